//! What goes into a [`Source`](super::Source) and what comes out of it.

use std::time::Duration;

use ferry_contract::MAX_TEXT_BYTES;

use crate::journal::{Choice, Decided, Record};
use crate::message::{OfEpoch, ToSource, ToTarget};
use crate::outcome::LinkFault;
use crate::{
    Claim, ClaimAnswer, Epoch, GuestId, InstanceId, MachineDescription, RegionSpan, Rules, SessionId,
    SourceOutcome, Timeouts,
};

/// What one migration is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceConfig {
    /// The guest.
    pub guest: GuestId,
    /// This attempt, chosen at random.
    pub session: SessionId,
    /// The epoch that is offered; no earlier attempt used it.
    pub epoch: Epoch,
    /// What the target must build.
    pub machine: MachineDescription,
    /// Where memory was ever written, if that is known: a hint for the target.
    pub written: Vec<RegionSpan>,
    /// Whether both sides hash all memory after the pause.
    pub verify: bool,
    /// How many links carry pages: 1 to [`MAX_LANES`](crate::message::MAX_LANES); others count as the
    /// nearest of these.
    pub lanes: u8,
    /// Nobody answers: the link leads into a file or a pipe. There is one lane, and custody is given once
    /// everything before it lasts.
    pub one_way: bool,
    /// The guest is paused when the rest is predicted to take at most this long.
    pub downtime_limit: Duration,
    /// How many bytes of page data live rounds may send a second; the last round is not held back.
    pub bandwidth_limit: Option<u64>,
    /// How long each wait may last.
    pub timeouts: Timeouts,
    /// The program and its version, for people on the other side.
    pub program: String,
    /// Where the guest is moved to, for the journal.
    pub address: String,
    /// The life of this process, as its journal is named.
    pub instance: Option<InstanceId>,
    /// With a witness: the epoch under which its record of the guest stands.
    pub witness: Option<Epoch>,
    /// For checkers: the rules that are kept.
    #[doc(hidden)]
    pub rules: Rules,
}

impl SourceConfig {
    /// The default downtime limit.
    pub const DOWNTIME_LIMIT: Duration = Duration::from_millis(30);

    /// A migration with default limits.
    pub fn new(guest: GuestId, session: SessionId, epoch: Epoch, machine: MachineDescription) -> Self {
        Self {
            guest,
            session,
            epoch,
            machine,
            written: Vec::new(),
            verify: false,
            lanes: 1,
            one_way: false,
            downtime_limit: Self::DOWNTIME_LIMIT,
            bandwidth_limit: None,
            timeouts: Timeouts::default(),
            program: concat!("ferry ", env!("CARGO_PKG_VERSION")).into(),
            address: String::new(),
            instance: None,
            witness: None,
            rules: Rules::default(),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The link stands: the first one, or one that [`SourceAction::Connect`] asked for.
    Connected,
    /// It could not be made.
    ConnectFailed(String),
    /// A message came.
    Received(ToSource),
    /// The link is gone.
    LinkLost(LinkFault),
    /// [`SourceAction::Journal`] is done: the record is on disk.
    Journaled,
    /// [`SourceAction::OpenLanes`] is done.
    LanesOpen,
    /// [`SourceAction::StartLog`] is done.
    LogStarted,
    /// [`SourceAction::SendRound`] is done.
    RoundSent {
        /// Pages whose data was sent.
        data_pages: u64,
        /// Pages sent as zeros.
        zero_pages: u64,
    },
    /// [`SourceAction::Harvest`] is done.
    Harvested {
        /// Pages that are dirty now.
        dirty_pages: u64,
    },
    /// The same while the guest runs, but the pause must not come yet: it would have to wait until the host's disk has
    /// what the guest wrote to its own.
    DisksBehind {
        /// Pages that are dirty now.
        dirty_pages: u64,
        /// For how long the disk has been at work.
        sync: Duration,
    },
    /// [`SourceAction::Pause`] is done.
    Paused,
    /// [`SourceAction::Pause`] is done, but the guest must not be given away, and waits for [`SourceAction::Resume`].
    PausedInVain(String),
    /// [`SourceAction::ReleaseResources`] is done.
    ResourcesReleased,
    /// [`SourceAction::HashMemory`] is done.
    Hashed([u8; 32]),
    /// [`SourceAction::SendState`] is done.
    StateSent {
        /// Sections sent.
        sections: u32,
    },
    /// [`SourceAction::Seal`] is done.
    Sealed,
    /// One-way: [`SourceAction::Give`] is done; whoever reads the stream has custody.
    Delivered,
    /// One-way: [`SourceAction::Give`] failed, and nobody can ever read the whole message.
    Undelivered(String),
    /// One-way: [`SourceAction::Give`] failed, and the message may be there all the same.
    Doubtful(String),
    /// [`SourceAction::Resume`] is done.
    Resumed,
    /// [`SourceAction::Claim`] is done.
    Claimed(ClaimAnswer),
    /// A person decides what the two sides could not settle.
    Decide(PersonsChoice),
    /// The oldest job that is not answered yet failed; the machine is as it was before that job.
    Failed(String),
    /// The user wants the migration to end.
    Cancel,
    /// Time passed; a deadline may be over.
    Tick,
}

/// The longest reason of a person's choice, in bytes: what a journal takes ([`MAX_TEXT_BYTES`]).
pub const MAX_REASON_BYTES: usize = MAX_TEXT_BYTES;

/// Why something is no reason of a person's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give a reason of 1 to {MAX_REASON_BYTES} bytes of text")]
pub struct ReasonError;

/// What a person decided, to be journaled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PersonsChoice {
    /// What.
    pub choice: Choice,
    /// Why, and by whom, in the person's words.
    pub reason: String,
    /// By this host's clock, in seconds since 1970-01-01 UTC.
    pub unix_seconds: u64,
}

impl PersonsChoice {
    /// A choice, if its reason says something and is not longer than a journal takes.
    pub fn new(choice: Choice, reason: impl Into<String>, unix_seconds: u64) -> Result<Self, ReasonError> {
        let reason = reason.into();
        if reason.trim().is_empty() || reason.len() > MAX_REASON_BYTES {
            return Err(ReasonError);
        }
        Ok(Self { choice, reason, unix_seconds })
    }

    /// As it is journaled of this guest and epoch.
    pub fn decided(&self, guest: GuestId, epoch: Epoch) -> Decided {
        let Self { choice, reason, unix_seconds } = self.clone();
        Decided { guest, epoch, choice, reason, unix_seconds }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Make a new link to the same address; answer [`SourceEvent::Connected`] or `ConnectFailed`.
    Connect,
    /// Close the link. No event of it may come later.
    Disconnect,
    /// Send a message.
    Send(ToTarget),
    /// Make the links of lanes 1 to `lanes - 1`: each presents itself with [`ToTarget::Lane`] and waits
    /// for [`ToSource::LaneTaken`](crate::message::ToSource::LaneTaken). `Disconnect` closes them as well.
    OpenLanes {
        /// How many links will carry pages, the session's own included.
        lanes: u8,
    },
    /// Write a record into the journal and make it last; answer [`SourceEvent::Journaled`].
    Journal(Record),
    /// Write a note into the journal, when there is time; nobody waits for it. But [`Record::Moved`] is made
    /// to last, if that can be, before what follows is carried out.
    Note(Record),
    /// Start dirty tracking.
    StartLog,
    /// End dirty tracking; a failure is only worth a warning.
    StopLog,
    /// Send all pages (round 0) or those of the last harvest.
    SendRound {
        /// The round, from 0.
        round: u32,
        /// Whether the guest is paused for it: the data gets checksums.
        last: bool,
    },
    /// Harvest the dirty pages.
    Harvest {
        /// Whether the guest is paused.
        last: bool,
    },
    /// Pause the guest.
    Pause,
    /// Let go of what only one host may hold.
    ReleaseResources,
    /// Hash all memory.
    HashMemory,
    /// Capture the state and send it.
    SendState,
    /// One-way: make what was sent last, so that the custody that follows is never without it.
    Seal,
    /// Give custody of this epoch away and say so with the message [`ToTarget::Custody`], in one
    /// indivisible step. The guest cannot be resumed after it. One-way it is answered: `Delivered`,
    /// `Undelivered` or `Doubtful`.
    Give(OfEpoch),
    /// What was given is here again: the target refused it for ever, the witness said so, or a person.
    TakeBack {
        /// The epoch under which the guest runs from now on; as before, if none is named.
        raise_to: Option<Epoch>,
    },
    /// Claim the guest from the witness; answer [`SourceEvent::Claimed`].
    Claim(Claim),
    /// Run the guest again as before.
    Resume {
        /// Whether resources were released and must be taken again first.
        take_resources: bool,
    },
    /// The target runs the guest, or nobody shall: let it go.
    ReleaseGuest,
    /// Tell whoever waits: the person's choice is not followed, and why.
    NoteChoiceRefused(String),
    /// Tell whoever waits: the guest does not converge; the prediction of the downtime.
    NoteStalled(Duration),
    /// Tell whoever waits: who runs the guest is unknown. Asking goes on.
    NoteAmbiguous,
    /// The migration is over.
    Finish(SourceOutcome),
}

/// Where a source is; the names are those of the table in `docs/guarantees.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourcePhase {
    /// The link is being made.
    Connect,
    /// The target's hello is awaited.
    Hello,
    /// The verdict is awaited.
    Offer,
    /// The target builds the machine.
    Build,
    /// Pages are sent while the guest runs.
    Rounds,
    /// The guest is being paused.
    Pause,
    /// The guest is paused; the last pages are sent.
    LastRound,
    /// The state is captured and sent.
    State,
    /// The target restores and checks; one-way: what was sent is made to last.
    Ready,
    /// Custody was given; the target's word that the guest runs is awaited.
    Given,
    /// The link was lost after custody was given: the source asks who runs the guest.
    Asking,
    /// The guest is being resumed after a failure.
    Undo,
    /// It is over.
    Done,
}

impl SourcePhase {
    /// Every phase, in order.
    pub const ALL: [Self; 13] = [
        Self::Connect,
        Self::Hello,
        Self::Offer,
        Self::Build,
        Self::Rounds,
        Self::Pause,
        Self::LastRound,
        Self::State,
        Self::Ready,
        Self::Given,
        Self::Asking,
        Self::Undo,
        Self::Done,
    ];

    /// The phase's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Hello => "hello",
            Self::Offer => "offer",
            Self::Build => "build",
            Self::Rounds => "rounds",
            Self::Pause => "pause",
            Self::LastRound => "last-round",
            Self::State => "state",
            Self::Ready => "ready",
            Self::Given => "given",
            Self::Asking => "asking",
            Self::Undo => "undo",
            Self::Done => "done",
        }
    }
}
