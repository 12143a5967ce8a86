//! What must never happen, looked at after every step, and what must be so in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ferry_protocol::journal::Choice;
use ferry_protocol::message::OfEpoch;
use ferry_protocol::{Epoch, InstanceId, SourceOutcome, SourcePhase, TargetPhase};

use crate::guest::Custody;
use crate::source_jobs::{INJECTED, LOCKED};
use crate::world::World;

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// Two processes ran the guest at once.
    TwoRunners,
    /// A guest ran under an epoch that was not the highest.
    OldEpoch,
    /// Two answers about one epoch contradict each other, or the facts.
    Answer,
    /// A failed migration left its traces on the source.
    Trace,
    /// A wait without a deadline.
    Deadline,
    /// What runs is not what was paused.
    Memory,
    /// In the end nobody runs the guest and nobody was asked, or something hangs.
    Lost,
    /// A choice that was known to be wrong was followed.
    Choice,
    /// The simulation's own rules, or a panic of the decisions.
    Machine,
}

impl Broken {
    /// In words.
    pub fn says(self) -> &'static str {
        match self {
            Self::TwoRunners => "two run the guest",
            Self::OldEpoch => "the guest runs under an old epoch",
            Self::Answer => "an answer contradicts another, or the facts",
            Self::Trace => "a failed migration left its traces",
            Self::Deadline => "a wait has no deadline",
            Self::Memory => "what runs is not what was paused",
            Self::Lost => "the guest is lost, or somebody waits for ever",
            Self::Choice => "a choice that is known to be wrong was followed",
            Self::Machine => "the decisions did what no caller can carry out",
        }
    }
}

/// What was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub broken: Broken,
    /// Who and what.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.broken.says(), self.what)
    }
}

/// What an answer said of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Runs,
    Refused,
}

/// What only the simulation knows of all processes together.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// The highest epoch under which the guest ran, and in which process.
    highest: Option<(Epoch, usize)>,
    /// Under which epochs which process ran it.
    ran: BTreeSet<(usize, Epoch)>,
    /// What was answered, by or for the process that was given custody.
    answers: BTreeMap<(u64, u64, u64), Said>,
    /// What the guest held when it was paused, by the epoch that was offered.
    paused: BTreeMap<Epoch, u64>,
    /// Guests that were known to have been refused for ever, and are not to run later.
    refused: BTreeSet<(u64, Epoch)>,
}

impl World {
    /// Notes what was broken first; the simulation ends.
    pub(crate) fn broken(&mut self, broken: Broken, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let violation = Violation { broken, what: what() };
            self.story.tell(self.now, || format!("BROKEN: {violation}"));
            self.violation = Some(violation);
        }
    }

    /// A guest is born. Its epoch is above every one that its own host knows; of a guest of that name that
    /// lived and died on the other host meanwhile only a witness could tell.
    pub(crate) fn note_born(&mut self, process: usize) {
        let host = self.processes[process].host;
        if self.truth.highest.is_some_and(|(_, holder)| self.processes[holder].host != host) {
            self.truth.highest = None;
        }
    }

    /// A process's vCPUs run from now on.
    pub(crate) fn note_runs(&mut self, process: usize, epoch: Epoch) {
        let name = self.processes[process].name.clone();
        self.story.tell(self.now, || format!("the guest runs in {name} under epoch {epoch}"));
        let others: Vec<_> = (0..self.processes.len())
            .filter(|&other| other != process && self.processes[other].runs())
            .map(|other| self.processes[other].name.clone())
            .collect();
        if !others.is_empty() {
            self.broken(Broken::TwoRunners, || format!("{} and {name}", others.join(" and ")));
        }
        if self
            .truth
            .highest
            .is_some_and(|(highest, holder)| epoch < highest || (epoch == highest && holder != process))
        {
            let highest = self.truth.highest.map_or(Epoch::BIRTH, |(epoch, _)| epoch);
            self.broken(Broken::OldEpoch, || {
                format!("{name} runs it under epoch {epoch}, after it ran under epoch {highest}")
            });
        }
        if self.truth.refused.contains(&(self.processes[process].instance.0, epoch)) {
            self.broken(Broken::Answer, || format!("{name} runs it under epoch {epoch}, which it refused"));
        }
        self.truth.highest = Some((epoch, process));
        self.truth.ran.insert((process, epoch));
    }

    /// What the guest held when it was paused for this epoch.
    pub(crate) fn note_paused(&mut self, epoch: Epoch, digest: u64) {
        self.truth.paused.insert(epoch, digest);
    }

    /// Holds what is about to run against what was paused.
    pub(crate) fn check_arrived(&mut self, process: usize, epoch: Epoch, digest: u64) {
        if self.truth.paused.get(&epoch).is_some_and(|&paused| paused != digest) {
            let name = self.processes[process].name.clone();
            self.broken(Broken::Memory, || {
                format!("{name} got another guest than was paused for epoch {epoch}")
            });
        }
    }

    /// An answer about an epoch that was offered to `instance`.
    pub(crate) fn note_answer(&mut self, instance: InstanceId, of: OfEpoch, said: Said) {
        let Some(process) = self.processes.iter().position(|process| process.instance == instance) else {
            return;
        };
        let name = self.processes[process].name.clone();
        let key = (instance.0, of.session.0, of.epoch.0);
        let before = self.truth.answers.insert(key, said);
        if before.is_some_and(|before| before != said) {
            self.broken(Broken::Answer, || format!("two answers of {name} about epoch {}", of.epoch));
        }
        let ran = self.truth.ran.contains(&(process, of.epoch));
        match said {
            Said::Runs if !ran => {
                self.broken(Broken::Answer, || {
                    format!("{name} says that epoch {} runs, and it never did", of.epoch)
                });
            }
            Said::Refused if ran => {
                self.broken(Broken::Answer, || {
                    format!("epoch {} is refused for {name}, which ran it", of.epoch)
                });
            }
            Said::Refused => {
                self.truth.refused.insert((instance.0, of.epoch));
            }
            Said::Runs => {}
        }
    }

    /// Takes back what was noted of a start that failed: no vCPU ran.
    pub(crate) fn note_never_ran(&mut self, process: usize, epoch: Epoch) {
        self.truth.ran.remove(&(process, epoch));
        if self.truth.highest == Some((epoch, process)) {
            self.truth.highest = self.truth.ran.iter().map(|&(process, epoch)| (epoch, process)).max();
        }
    }

    /// What a finished move must have left behind.
    pub(crate) fn check_finished(&mut self, process: usize) {
        let this = &self.processes[process];
        let (Some(source), name) = (&this.source, this.name.clone()) else { return };
        let Some(guest) = &this.guest else {
            return self.broken(Broken::Trace, || format!("{name} has no machine any more"));
        };
        let locked = !self.locks || self.lock == Some(process);
        match &source.outcome {
            Some(SourceOutcome::Kept { .. }) if !(guest.running && !guest.tracked && locked) => {
                let (running, tracked) = (guest.running, guest.tracked);
                self.broken(Broken::Trace, || {
                    format!("after a failed move of {name}: runs {running}, tracked {tracked}, lock {locked}")
                });
            }
            Some(SourceOutcome::Held { obstacle, .. })
                if obstacle != INJECTED && !obstacle.ends_with(LOCKED) =>
            {
                let obstacle = obstacle.clone();
                self.broken(Broken::Trace, || format!("{name} cannot resume: {obstacle}"));
            }
            Some(SourceOutcome::Held { .. }) if guest.running || guest.tracked => {
                self.broken(Broken::Trace, || {
                    format!("{name} says that it cannot resume, and runs or tracks")
                });
            }
            Some(SourceOutcome::Moved { epoch }) => {
                let epoch = *epoch;
                let by_person = self.decided == Some((process, Choice::TargetRuns));
                // The witness gave it to the target, which will run it.
                let by_witness = self.witness.as_ref().is_some_and(|witness| witness.stands() == epoch);
                let ran = self.truth.ran.iter().any(|&(other, ran)| ran == epoch && other != process);
                if guest.running {
                    self.broken(Broken::TwoRunners, || format!("{name} lets the guest go and runs it"));
                } else if !ran && !by_person && !by_witness {
                    self.broken(Broken::Lost, || {
                        format!("{name} let the guest go, and epoch {epoch} never ran")
                    });
                }
            }
            _ => {}
        }
    }

    /// Every wait for the other side has a deadline.
    pub(crate) fn check_deadlines(&mut self, process: usize) {
        let this = &self.processes[process];
        let source = this.source.as_ref().filter(|source| source.jobs.is_empty() && source.outcome.is_none());
        let waits = source.filter(|source| {
            !matches!(source.machine.phase(), SourcePhase::Connect | SourcePhase::Done)
                && source.machine.deadline().is_none()
        });
        let target =
            this.target.as_ref().filter(|target| target.jobs.is_empty() && target.writing.is_empty());
        let awaits = target.filter(|target| {
            !matches!(target.machine.phase(), TargetPhase::Waiting) && target.machine.deadline().is_none()
        });
        let phases = (waits.map(|s| s.machine.phase().name()), awaits.map(|t| t.machine.phase().name()));
        if let Some(phase) = phases.0.or(phases.1) {
            let name = this.name.clone();
            self.broken(Broken::Deadline, || format!("{name} waits in `{phase}` for ever"));
        }
    }

    /// What must be so when every fault is over.
    pub(crate) fn check_end(&mut self) {
        for process in 0..self.processes.len() {
            self.check_settled(process);
        }
        let runners: Vec<_> = (0..self.processes.len()).filter(|&p| self.processes[p].runs()).collect();
        for &process in &runners {
            self.check_undisturbed(process);
        }
        let asked = self.processes.iter().filter(|process| process.alive).any(|process| {
            process.source.as_ref().is_some_and(|source| {
                source.ambiguous && source.outcome.is_none()
                    || matches!(source.outcome, Some(SourceOutcome::Held { .. }))
            })
        });
        if runners.is_empty() && !asked && !self.guest_died && self.decided.is_none() {
            self.broken(Broken::Lost, || {
                "nobody runs it, its process did not die, and nobody was asked".into()
            });
        }
    }

    fn check_settled(&mut self, process: usize) {
        let this = &self.processes[process];
        if !this.alive {
            return;
        }
        let name = this.name.clone();
        if let Some(target) = &this.target
            && (target.machine.phase() != TargetPhase::Waiting || !target.jobs.is_empty())
        {
            let phase = target.machine.phase().name();
            return self.broken(Broken::Lost, || format!("the target {name} hangs in `{phase}`"));
        }
        let Some(source) = &this.source else { return };
        if source.is_over() {
            return;
        }
        let phase = source.machine.phase();
        let given_to = source.given_to.filter(|&to| {
            this.guest
                .as_ref()
                .is_some_and(|guest| matches!(guest.custody, Custody::Given(_)) && self.processes[to].alive)
        });
        if phase != SourcePhase::Asking {
            self.broken(Broken::Lost, || format!("the source {name} hangs in `{}`", phase.name()));
        } else if let Some(to) = given_to {
            let to = self.processes[to].name.clone();
            self.broken(Broken::Lost, || {
                format!("{name} does not learn from {to}, which lives, who runs the guest")
            });
        } else if !source.ambiguous && self.witness.is_none() {
            self.broken(Broken::Lost, || format!("{name} asks for ever and tells nobody"));
        }
    }

    /// The guest that runs in the end is the one that nobody ever moved.
    fn check_undisturbed(&mut self, process: usize) {
        let now = self.now;
        let Some(guest) = &mut self.processes[process].guest else { return };
        let compared = guest.catch_up(now).and_then(|()| Ok((guest.digest()?, guest.undisturbed()?)));
        let (name, steps) = (self.processes[process].name.clone(), self.guest_steps(process));
        match compared {
            Ok((one, other)) if one == other => {
                self.story.tell(now, || {
                    format!("in {name} the guest is as if nobody had moved it, after {steps} steps")
                });
            }
            Ok(_) => self.broken(Broken::Memory, || {
                format!("after {steps} steps the guest in {name} differs from one that nobody moved")
            }),
            Err(error) => self.broken(Broken::Memory, || format!("the guest in {name} ended: {error}")),
        }
    }
}
