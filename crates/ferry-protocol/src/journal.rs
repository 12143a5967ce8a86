//! What a side remembers over the end of its process, as values.
//!
//! Each process keeps one journal under its [`InstanceId`]. What it must not forget is on disk before
//! it acts on it ([`SourceAction::Journal`](crate::SourceAction::Journal),
//! [`TargetAction::Journal`](crate::TargetAction::Journal)); the rest are notes, for the person who
//! may have to decide. A process that starts reads the journals of those that are gone: their
//! [`History`], together the [`Past`]. A guest dies with its process, so a journal never brings one
//! back: it says what may have become of it.

use std::fmt;

use ferry_contract::MAX_TEXT_BYTES;
use minicbor::{Decode, Encode};

use crate::message::OfEpoch;
use crate::{Epoch, GuestId, InstanceId};

mod history;

pub use history::{GuestHistory, History, Living, Past, PastAnswer};

/// One entry of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Record {
    /// A guest was born here.
    #[n(0)]
    Born(#[n(0)] OfGuest),
    /// Source: from here on custody may be given. On disk before any page is sent.
    #[n(1)]
    MayBeGiven(#[n(0)] MayBeGiven),
    /// Target: from here on this process may run the guest. On disk before the source hears that the
    /// machine stands.
    #[n(2)]
    MayRun(#[n(0)] MayRun),
    /// Target: this process did not take an epoch of which it had written that it may run it, and
    /// never will. On disk before anybody is told.
    #[n(3)]
    Refused(#[n(0)] OfGuest),
    /// Source: a person decided. On disk before it is done.
    #[n(4)]
    Decided(#[n(0)] Decided),
    /// Note of a source: custody of this epoch was not given, or came back.
    #[n(5)]
    Kept(#[n(0)] OfGuest),
    /// Note of a source: the target said that it runs the guest. On disk, unless that fails, before the
    /// target hears that the source let go: it needs to answer nobody then.
    #[n(6)]
    Moved(#[n(0)] OfGuest),
    /// Note of a target: the guest runs here.
    #[n(7)]
    Runs(#[n(0)] OfGuest),
    /// Note of a target: the source let the guest go.
    #[n(8)]
    Released(#[n(0)] OfGuest),
    /// Note: the guest ended here by itself, or by its user's will.
    #[n(9)]
    Ended(#[n(0)] OfGuest),
    /// A person decided what the journal of another process leaves open that cannot be read. On disk
    /// before anything rests on it.
    #[n(10)]
    Waived(#[n(0)] Waived),
    /// The highest epoch of a guest in journals that nobody needed any more. On disk before they are
    /// removed.
    #[n(11)]
    Floor(#[n(0)] OfGuest),
}

/// A guest and an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct OfGuest {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The epoch.
    #[n(1)]
    pub epoch: Epoch,
}

/// That a source may give custody away.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct MayBeGiven {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The attempt.
    #[n(1)]
    pub of: OfEpoch,
    /// The life of the target process; none of a file or a pipe.
    #[n(2)]
    pub to: Option<InstanceId>,
    /// Where to, for the question and for people, at most [`MAX_TEXT_BYTES`] bytes.
    #[n(3)]
    pub address: String,
}

/// That a target may run a guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct MayRun {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The attempt.
    #[n(1)]
    pub of: OfEpoch,
}

/// What a person may decide when the two sides cannot settle it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Choice {
    /// The source runs the guest: the person knows that the target does not.
    #[n(0)]
    SourceRuns,
    /// The target runs it, or ran it: the source lets it go.
    #[n(1)]
    TargetRuns,
    /// Nobody shall run it.
    #[n(2)]
    Abandon,
}

impl Choice {
    /// Its name, as it is given to `ferry recover`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SourceRuns => "source-runs",
            Self::TargetRuns => "target-runs",
            Self::Abandon => "abandon",
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A person's decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Decided {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The epoch whose fate was open.
    #[n(1)]
    pub epoch: Epoch,
    /// What was decided.
    #[n(2)]
    pub choice: Choice,
    /// Why, and by whom, in the person's words, at most [`MAX_TEXT_BYTES`] bytes.
    #[n(3)]
    pub reason: String,
    /// By this host's clock, in seconds since 1970-01-01 UTC.
    #[n(4)]
    pub unix_seconds: u64,
}

/// A person's decision on whatever a process had of a guest whose journal cannot be read as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Waived {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The highest epoch of it that could be read anywhere; 0 if there was none.
    #[n(1)]
    pub epoch: Epoch,
    /// The process whose journal it is.
    #[n(2)]
    pub instance: InstanceId,
    /// What was decided.
    #[n(3)]
    pub choice: Choice,
    /// Why, and by whom, in the person's words, at most [`MAX_TEXT_BYTES`] bytes.
    #[n(4)]
    pub reason: String,
    /// By this host's clock, in seconds since 1970-01-01 UTC.
    #[n(5)]
    pub unix_seconds: u64,
}

impl Waived {
    /// A person's decision, of what this process had.
    pub fn of(decided: Decided, instance: InstanceId) -> Self {
        let Decided { guest, epoch, choice, reason, unix_seconds } = decided;
        Self { guest, epoch, instance, choice, reason, unix_seconds }
    }
}

impl Record {
    /// The guest that it is about.
    pub fn guest(&self) -> &GuestId {
        match self {
            Self::Born(of)
            | Self::Refused(of)
            | Self::Kept(of)
            | Self::Moved(of)
            | Self::Runs(of)
            | Self::Released(of)
            | Self::Ended(of)
            | Self::Floor(of) => &of.guest,
            Self::MayBeGiven(given) => &given.guest,
            Self::MayRun(may) => &may.guest,
            Self::Decided(decided) => &decided.guest,
            Self::Waived(waived) => &waived.guest,
        }
    }

    /// The epoch that it is about.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Born(of)
            | Self::Refused(of)
            | Self::Kept(of)
            | Self::Moved(of)
            | Self::Runs(of)
            | Self::Released(of)
            | Self::Ended(of)
            | Self::Floor(of) => of.epoch,
            Self::MayBeGiven(given) => given.of.epoch,
            Self::MayRun(may) => may.of.epoch,
            Self::Decided(decided) => decided.epoch,
            Self::Waived(waived) => waived.epoch,
        }
    }

    /// The highest epoch that may be used because of it: who gets the guest back by a person's word runs
    /// it above the one that was given.
    fn highest_used(&self) -> Epoch {
        match self {
            Self::Decided(decided) if decided.choice == Choice::SourceRuns => decided.epoch.next(),
            _ => self.epoch(),
        }
    }

    /// Whether every text in it is within its bound.
    pub fn is_bounded(&self) -> bool {
        match self {
            Self::MayBeGiven(given) => given.address.len() <= MAX_TEXT_BYTES,
            Self::Decided(decided) => decided.reason.len() <= MAX_TEXT_BYTES,
            Self::Waived(waived) => waived.reason.len() <= MAX_TEXT_BYTES,
            _ => true,
        }
    }
}
