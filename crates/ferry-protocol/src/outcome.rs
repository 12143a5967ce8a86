//! How a migration ends, on each side.

use std::fmt;

use ferry_contract::Verdict;

use crate::journal::Choice;
use crate::message::Reason;
use crate::{Epoch, GuestId, TimerName};

/// Why a migration ended without the guest having moved.
///
/// The kinds are apart because they ask for different deeds: the peer's incompatibility wants
/// another host, the peer's misbehaviour another program, a lost link another try.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// No link to the target could be made: nothing began.
    NotReached(String),
    /// The peer speaks no protocol version that this build speaks, or is another program.
    OtherProtocol(String),
    /// The target's verdict is a refusal.
    Refused(Verdict),
    /// The peer ended the migration and said why.
    Peer(Reason),
    /// The peer sent what the protocol does not allow.
    Misbehaved(String),
    /// The link was lost.
    LinkLost(String),
    /// This side's machine could not do its part.
    Machine(String),
    /// A wait timed out.
    TimedOut(TimerName),
    /// The user cancelled.
    Cancelled,
    /// The source asked who runs the guest before custody had been taken.
    Asked,
    /// The witness settled it against who reports this cause's end of the migration; the text says how.
    Witness(String),
    /// A person decided after the outcome had been unknown.
    Decided(Choice),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReached(text)
            | Self::OtherProtocol(text)
            | Self::Misbehaved(text)
            | Self::LinkLost(text)
            | Self::Witness(text)
            | Self::Machine(text) => f.write_str(text),
            Self::Refused(verdict) => {
                f.write_str("the target refuses the guest")?;
                verdict.findings.iter().try_for_each(|finding| write!(f, ": {finding}"))
            }
            Self::Peer(reason) => write!(f, "the other side ended the migration: {}", reason.text),
            Self::TimedOut(TimerName::Total) => f.write_str(
                "the wait `total` timed out: give the migration more time, or a higher downtime limit",
            ),
            Self::TimedOut(timer) => write!(
                f,
                "the wait `{timer}` timed out: see whether the other side is alive and reachable, then try again"
            ),
            Self::Cancelled => f.write_str("the migration was cancelled"),
            Self::Asked => f.write_str("the source asked for the guest back before custody was taken"),
            Self::Decided(choice) => write!(f, "a person decided: {choice}"),
        }
    }
}

/// How a link came to an end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LinkFault {
    /// The peer closed it, or its process ended.
    Closed,
    /// Nothing moved for the whole `silence` timeout.
    Silent,
    /// The operating system reported an error.
    Failed(String),
    /// The link is whole, but this side's memory or a disk's image could not be read or written.
    Machine(String),
    /// What came cannot be read, or is not allowed.
    Garbled(String),
    /// What came is not Ferry's protocol.
    OtherProtocol(String),
}

impl From<LinkFault> for Cause {
    fn from(fault: LinkFault) -> Self {
        match fault {
            LinkFault::Closed => Self::LinkLost("the other side closed the link without a word".into()),
            LinkFault::Silent => Self::TimedOut(TimerName::Silence),
            LinkFault::Failed(text) => Self::LinkLost(text),
            LinkFault::Machine(text) => Self::Machine(text),
            LinkFault::Garbled(text) => Self::Misbehaved(text),
            LinkFault::OtherProtocol(text) => Self::OtherProtocol(text),
        }
    }
}

/// The exit status while nobody can say who runs the guest: a person must decide. Over a link the source
/// goes on asking and there is no outcome yet; of a file it is [`SourceOutcome::Doubtful`].
pub const EXIT_AMBIGUOUS: u8 = 6;

/// How a migration ended on the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceOutcome {
    /// The target runs the guest under this epoch; the source let it go.
    Moved {
        /// The epoch under which the target runs the guest.
        epoch: Epoch,
    },
    /// The source has the guest as before.
    Kept {
        /// Why it did not move.
        cause: Cause,
    },
    /// The source has custody, but the guest could not be resumed and stays paused.
    Held {
        /// Why it did not move.
        cause: Cause,
        /// Why it could not be resumed.
        obstacle: String,
    },
    /// One-way: custody was written, and whether it lasts is not known. The guest stays paused here for
    /// good, since who reads the file may run it.
    Doubtful {
        /// The epoch that was given.
        epoch: Epoch,
        /// What is known, and how to find out more.
        known: String,
    },
    /// A person decided that nobody shall run the guest: the source let it go.
    Abandoned {
        /// The epoch whose fate was open.
        epoch: Epoch,
    },
}

impl SourceOutcome {
    /// The exit status of the program that made this migration.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Moved { .. } => 0,
            Self::Held { .. } => 4,
            Self::Abandoned { .. } => 1,
            Self::Doubtful { .. } => EXIT_AMBIGUOUS,
            Self::Kept { cause } => match cause {
                Cause::NotReached(_) => 1,
                Cause::OtherProtocol(_) | Cause::Refused(_) => 3,
                Cause::Cancelled => 5,
                Cause::TimedOut(_) => 7,
                Cause::Peer(_)
                | Cause::Misbehaved(_)
                | Cause::LinkLost(_)
                | Cause::Machine(_)
                | Cause::Witness(_)
                | Cause::Decided(_)
                | Cause::Asked => 4,
            },
        }
    }
}

/// How a session ended on the target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetOutcome {
    /// The guest runs here.
    Runs {
        /// The guest that runs.
        guest: GuestId,
        /// The epoch under which it runs.
        epoch: Epoch,
        /// Whether the source said that it let the guest go; without it the source may ask.
        released: bool,
    },
    /// The guest was not taken; its epoch is refused for ever.
    NotTaken {
        /// The guest that was offered.
        guest: GuestId,
        /// Why it was not taken.
        cause: Cause,
    },
}
