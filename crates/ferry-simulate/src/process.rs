//! Processes of the two hosts: each may have a guest, may wait for one, and may be moving its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ferry_memory::PageSet;
use ferry_protocol::journal::{Choice, Record};
use ferry_protocol::message::OfEpoch;
use ferry_protocol::{
    Epoch, InstanceId, LinkId, Source, SourceAction, SourceOutcome, SourcePhase, Target, TargetAction,
    TargetPhase, Time,
};
use ferry_state::Section;

use crate::guest::Guest;

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    /// For people: the host's letter and which of its processes it is.
    pub(crate) name: String,
    pub(crate) host: usize,
    /// In which of the host's folders it keeps its journal.
    pub(crate) folder: u32,
    pub(crate) instance: InstanceId,
    pub(crate) alive: bool,
    /// When it ended.
    pub(crate) ended_at: Time,
    /// Stopped until then.
    pub(crate) awake_at: Time,
    /// The machine: of a guest that runs or is paused here, or of one that is arriving.
    pub(crate) guest: Option<Guest>,
    /// The highest epoch that it ran or offered.
    pub(crate) last_epoch: Epoch,
    pub(crate) source: Option<SourceSide>,
    pub(crate) target: Option<TargetSide>,
}

/// A job and the time at which it is done.
#[derive(Debug)]
pub(crate) struct Job<A> {
    pub(crate) what: A,
    pub(crate) ready_at: Time,
    /// When it was first tried.
    pub(crate) since: Option<Time>,
}

/// A process as the source of one move.
#[derive(Debug)]
pub(crate) struct SourceSide {
    pub(crate) machine: Source,
    /// Which move of the story it is.
    pub(crate) attempt: u32,
    /// The host to which it goes.
    pub(crate) to_host: usize,
    pub(crate) of: OfEpoch,
    /// The session's link or that of a question.
    pub(crate) link: Option<usize>,
    pub(crate) lanes: Vec<usize>,
    pub(crate) lanes_taken: BTreeSet<usize>,
    pub(crate) jobs: VecDeque<Job<SourceAction>>,
    pub(crate) fail_next: bool,
    pub(crate) round: Option<Round>,
    pub(crate) dirty: PageSet,
    /// Since when nothing could be sent.
    pub(crate) stuck_since: Option<Time>,
    /// The process to which custody was given.
    pub(crate) given_to: Option<usize>,
    pub(crate) ambiguous: bool,
    /// What a person chose last, unless it was refused.
    pub(crate) chose: Option<Choice>,
    /// The target has answered since then, and the choice was not followed yet.
    pub(crate) answered: bool,
    /// The target said that its process is gone, which may have run the guest.
    pub(crate) told_gone: bool,
    pub(crate) outcome: Option<SourceOutcome>,
    /// What follows from the outcome was done.
    pub(crate) closed: bool,
    /// The phase that was told last.
    pub(crate) phase: SourcePhase,
}

/// A round under way.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) number: u32,
    pub(crate) pages: VecDeque<u64>,
    pub(crate) data: u64,
    pub(crate) zeros: u64,
}

impl SourceSide {
    /// What sends ends without an answer when its link does, and when the guest is to go on.
    pub(crate) fn stop_sending(&mut self) {
        let sends = |what: &SourceAction| {
            matches!(
                what,
                SourceAction::SendRound { .. } | SourceAction::SendState | SourceAction::OpenLanes { .. }
            )
        };
        self.jobs.retain(|job| !sends(&job.what));
        self.round = None;
        self.stuck_since = None;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.outcome.is_some() && self.jobs.is_empty()
    }
}

/// A process that waits for a guest, or answers for the one that came.
#[derive(Debug)]
pub(crate) struct TargetSide {
    pub(crate) machine: Target,
    pub(crate) links: BTreeMap<LinkId, usize>,
    pub(crate) lanes: BTreeSet<LinkId>,
    pub(crate) jobs: VecDeque<Job<TargetAction>>,
    pub(crate) writing: VecDeque<Job<Record>>,
    pub(crate) fail_next: bool,
    pub(crate) incoming: Option<Incoming>,
    /// The phase that was told last.
    pub(crate) phase: TargetPhase,
}

/// What came of a guest so far.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// Pages of each round that are in guest memory.
    pub(crate) pages: BTreeMap<u32, u64>,
    pub(crate) sections: Vec<Section>,
    pub(crate) restored: bool,
}

impl TargetSide {
    pub(crate) fn new(machine: Target) -> Self {
        Self {
            machine,
            links: BTreeMap::new(),
            lanes: BTreeSet::new(),
            jobs: VecDeque::new(),
            writing: VecDeque::new(),
            fail_next: false,
            incoming: None,
            phase: TargetPhase::Waiting,
        }
    }

    /// Whether a session's pages and state come on this link.
    pub(crate) fn carries(&self, link: LinkId) -> bool {
        self.machine.session_link() == Some(link) || self.lanes.contains(&link)
    }
}

impl Process {
    /// Whether a guest that came is being started: it may still fail.
    pub(crate) fn is_starting(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.machine.phase() == TargetPhase::Taking)
    }

    /// Whether its vCPUs run.
    pub(crate) fn runs(&self) -> bool {
        self.alive && self.guest.as_ref().is_some_and(|guest| guest.running)
    }
}
