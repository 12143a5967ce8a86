//! The user's wishes: the guest is moved, and moved again.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use ferry_memory::PageSet;
use ferry_protocol::message::{Hello, OfEpoch, Offer, ToTarget};
use ferry_protocol::{
    MachineDescription, RegionSpan, SessionId, Source, SourceAction, SourceConfig, SourceOutcome,
    SourcePhase, TargetPhase, Time,
};

use ferry_sim::KIND;

use crate::clock::Due;
use crate::guest::Custody;
use crate::invariants::Broken;
use crate::network::Maker;
use crate::plan::When;
use crate::process::{Process, SourceSide};
use crate::witness::Witness;
use crate::world::{World, guest_id, timeouts};

/// A stranger's guest, and the kind of its machine.
pub(crate) const STRANGER: &str = "stranger";

/// How long after one move the user wants the next, in microseconds.
pub(crate) const TRY_AGAIN: u64 = 2_000;

impl World {
    /// The user moves the guest to the other host, if it runs somewhere and is not being moved.
    pub(crate) fn begin_move(&mut self) {
        if self.attempts >= self.plan.base.moves || self.healed {
            return;
        }
        let free = |process: &Process| {
            process.runs()
                && !process.is_starting()
                && process.source.as_ref().is_none_or(SourceSide::is_over)
        };
        let Some(process) = self.processes.iter().position(free) else {
            return self.agenda.enter(Time(self.now.0 + TRY_AGAIN), Due::Move);
        };
        let to_host = 1 - self.processes[process].host;
        if !self.dark[to_host] {
            self.listen(to_host);
        }
        self.attempts += 1;
        self.mover = process;
        let Some(side) = self.source_side(process, to_host) else {
            return self.broken(Broken::Machine, || "the guest has no description".into());
        };
        let (name, epoch, attempt) = (self.processes[process].name.clone(), side.of.epoch, self.attempts);
        self.story.tell(self.now, || {
            format!("move {attempt} begins: from {name} to the other host, epoch {epoch}")
        });
        self.processes[process].source = Some(side);
        self.ask_source(process, SourceAction::Connect);
        self.source_reached(attempt, SourcePhase::Connect);
    }

    fn source_side(&mut self, process: usize, to_host: usize) -> Option<SourceSide> {
        let base = &self.plan.base;
        let this = &mut self.processes[process];
        let guest = this.guest.as_ref()?;
        let runs = match guest.custody {
            Custody::Here(epoch) => epoch,
            _ => this.last_epoch,
        };
        // Above every epoch that was used: in this process, and in the witness's record.
        let stands = self.witness.as_ref().map_or(runs, Witness::stands);
        let epoch = runs.max(this.last_epoch).max(stands).next();
        this.last_epoch = epoch;
        let session = SessionId(self.plan.seed ^ (u64::from(self.attempts) << 32));
        let machine = guest.description().ok()?;
        let dirty = PageSet::empty(guest.all_pages().layout());
        let mut config = SourceConfig::new(guest_id()?, session, epoch, machine);
        config.verify = base.verify;
        config.lanes = base.lanes;
        config.downtime_limit = Duration::from_micros(base.downtime_limit_us);
        config.timeouts = timeouts();
        config.witness = self.witness.as_ref().map(Witness::stands);
        config.rules = self.rules;
        Some(SourceSide {
            machine: Source::new(config),
            attempt: self.attempts,
            to_host,
            of: OfEpoch { session, epoch },
            link: None,
            lanes: Vec::new(),
            lanes_taken: BTreeSet::new(),
            jobs: VecDeque::new(),
            fail_next: false,
            round: None,
            dirty,
            stuck_since: None,
            given_to: None,
            ambiguous: false,
            chose: None,
            answered: false,
            told_gone: false,
            outcome: None,
            closed: false,
            phase: SourcePhase::Connect,
        })
    }

    /// A source is over and has done all its jobs.
    pub(crate) fn source_is_over(&mut self, process: usize) {
        let Some(source) = &mut self.processes[process].source else { return };
        if std::mem::replace(&mut source.closed, true) {
            return;
        }
        let outcome = source.outcome.clone();
        match &outcome {
            Some(SourceOutcome::Moved { .. }) => self.tally.moved += 1,
            Some(SourceOutcome::Kept { .. }) => self.tally.kept += 1,
            _ => self.tally.others += 1,
        }
        self.check_finished(process);
        if matches!(outcome, Some(SourceOutcome::Moved { .. } | SourceOutcome::Abandoned { .. })) {
            self.exit(process);
        }
        self.agenda.enter(Time(self.now.0 + TRY_AGAIN), Due::Move);
    }

    /// Faults that wait for this.
    pub(crate) fn source_reached(&mut self, attempt: u32, phase: SourcePhase) {
        self.reached(|when| match when {
            When::Source { attempt: a, phase: p, after_us } if (a, p) == (attempt, phase) => Some(after_us),
            _ => None,
        });
    }

    pub(crate) fn target_reached(&mut self, phase: TargetPhase) {
        let attempt = self.attempts;
        self.reached(|when| match when {
            When::Target { attempt: a, phase: p, after_us } if (a, p) == (attempt, phase) => Some(after_us),
            _ => None,
        });
    }

    fn reached(&mut self, matches: impl Fn(When) -> Option<u64>) {
        for (number, fault) in self.plan.faults.iter().enumerate() {
            if !self.fired[number]
                && let Some(after) = matches(fault.when)
            {
                self.fired[number] = true;
                self.strikes_due += 1;
                self.agenda.enter(Time(self.now.0 + after), Due::Strike(number));
            }
        }
    }

    /// The link of a move, if it has one.
    pub(crate) fn link_of_the_move(&self) -> Option<usize> {
        let source = self.processes[self.mover].source.as_ref()?;
        source.link.or_else(|| {
            (0..self.links.len()).rev().find(|&link| self.links[link].maker == Maker::Source(self.mover))
        })
    }

    /// What a stranger says before it goes away: it offers a guest of its own.
    pub(crate) fn words_of_a_stranger(&self, words: usize, same_name: bool) -> Vec<ToTarget> {
        let guest = if same_name { guest_id() } else { STRANGER.parse().ok() };
        let Some(guest) = guest else { return Vec::new() };
        let Some(side) = &self.processes[self.mover].source else { return Vec::new() };
        let (session, epoch, program) = (SessionId(9), side.of.epoch, String::new());
        let hello = Hello { version_min: 1, version_max: 1, session, guest, epoch, program };
        let regions = vec![RegionSpan { start: 0, length: 4096 }];
        let machine = MachineDescription {
            kind: if same_name { KIND } else { STRANGER }.into(),
            vcpus: 1,
            regions,
            config: Vec::new(),
            contract: Vec::new(),
            disks: Vec::new(),
        };
        let offer = Offer::plain(machine);
        [ToTarget::Hello(hello), ToTarget::Offer(offer)].into_iter().take(words).collect()
    }
}
