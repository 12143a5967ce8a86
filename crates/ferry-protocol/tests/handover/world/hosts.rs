//! The two hosts: a process each, with what its machine holds, held strictly to the contract of the
//! actions. A job takes effect when it is answered; jobs are answered in the order of their asking.

use std::collections::{BTreeMap, VecDeque};

use ferry_protocol::journal::Record;
use ferry_protocol::message::OfEpoch;
use ferry_protocol::{
    Epoch, InstanceId, Source, SourceAction, SourceOutcome, Target, TargetAction, TargetOutcome,
};

/// The source's process and its guest.
pub(crate) struct SourceHost {
    /// None once the process died.
    pub(crate) machine: Option<Source>,
    /// The guest's vCPUs run, or may run any moment.
    pub(crate) runs: bool,
    pub(crate) log: bool,
    pub(crate) resources: bool,
    /// The guest was let go.
    pub(crate) gone: bool,
    pub(crate) jobs: VecDeque<SourceAction>,
    pub(crate) link: Option<usize>,
    /// To whom custody was given.
    pub(crate) given: Option<(InstanceId, OfEpoch)>,
    /// The refusal, or the word that it runs, came from that very instance.
    pub(crate) refused: bool,
    pub(crate) told_running: bool,
    pub(crate) ambiguous: bool,
    pub(crate) outcome: Option<SourceOutcome>,
    pub(crate) fail_next: bool,
}

impl SourceHost {
    pub(crate) fn new(machine: Source) -> Self {
        Self {
            machine: Some(machine),
            runs: true,
            log: false,
            resources: true,
            gone: false,
            jobs: VecDeque::from([SourceAction::Connect]),
            link: None,
            given: None,
            refused: false,
            told_running: false,
            ambiguous: false,
            outcome: None,
            fail_next: false,
        }
    }

    /// A job that sends ends without an answer when its link does, and when the guest is to go on.
    pub(crate) fn stop_sending(&mut self) {
        self.jobs.retain(|job| !matches!(job, SourceAction::SendRound { .. } | SourceAction::SendState));
    }
}

/// One life of the target's process.
pub(crate) struct TargetHost {
    pub(crate) instance: InstanceId,
    /// None once the process died.
    pub(crate) machine: Option<Target>,
    pub(crate) jobs: VecDeque<TargetAction>,
    /// Records that are being written, and those on disk, which outlive the process.
    pub(crate) writes: VecDeque<Record>,
    pub(crate) journal: Vec<Record>,
    /// A machine stands that has never run.
    pub(crate) built: bool,
    pub(crate) restored: bool,
    /// The epoch under which the guest runs here, or may run any moment.
    pub(crate) runs: Option<Epoch>,
    /// The same, and the start is known to have succeeded.
    pub(crate) ran: Option<Epoch>,
    /// The same, and known after its death.
    pub(crate) ever_ran: Option<Epoch>,
    /// What was answered for each session's epoch: whether it was taken.
    pub(crate) answers: BTreeMap<(u64, u64), bool>,
    pub(crate) outcomes: Vec<TargetOutcome>,
    pub(crate) fail_next: bool,
}

impl TargetHost {
    pub(crate) fn new(instance: InstanceId, machine: Target) -> Self {
        Self {
            instance,
            machine: Some(machine),
            jobs: VecDeque::new(),
            writes: VecDeque::new(),
            journal: Vec::new(),
            built: false,
            restored: false,
            runs: None,
            ran: None,
            ever_ran: None,
            answers: BTreeMap::new(),
            outcomes: Vec::new(),
            fail_next: false,
        }
    }

    /// Notes an answer; it must never contradict an earlier one.
    pub(crate) fn note_answer(&mut self, of: OfEpoch, taken: bool) {
        let before = self.answers.insert((of.session.0, of.epoch.0), taken);
        assert!(before.is_none_or(|before| before == taken), "two answers for {of:?}");
        let ran = self.ran == Some(of.epoch);
        assert!(!taken || ran, "the target says that {of:?} runs, but it does not");
        assert!(taken || self.runs != Some(of.epoch), "the target refuses {of:?}, which it runs");
    }

    pub(crate) fn refused(&self, epoch: Epoch) -> bool {
        self.answers.iter().any(|(&(_, of), &taken)| of == epoch.0 && !taken)
    }
}
