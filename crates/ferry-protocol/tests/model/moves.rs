//! What can happen next in a state.

use ferry_protocol::journal::Choice;
use ferry_protocol::{LinkId, PersonsChoice, Source, SourceEvent, SourcePhase, TargetEvent};

use super::links::{Item, Link};
use super::world::{SourceJob, SourceSide, TargetJob, World, words_of};

/// One step. The numbers are those of links, places in a queue, and lives of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Move {
    ToTarget(u64),
    ToSource(u64),
    SourceJob,
    TargetJob(usize),
    SourceTick,
    TargetTick(usize),
    TargetWrite(usize),
    StartTarget,
    /// A person who knows the truth decides.
    Decide(Choice),
    /// A person starts the guest anew where its source's process died.
    Birth,
    /// This step, and of the jobs that follow it and are answered at once this one fails.
    Failing(Trigger, u8),
    // From here on faults.
    OvertakeToTarget(u64, usize),
    OvertakeToSource(u64, usize),
    DoubleToTarget(u64),
    DoubleToSource(u64),
    LoseToTarget(u64),
    LoseToSource(u64),
    Cut {
        link: u64,
        keep_to_target: bool,
        keep_to_source: bool,
    },
    Replay(usize),
    FailSourceJob,
    FailTargetJob(usize),
    LoseSourceClaim,
    LoseTargetClaim(usize),
    FailTargetWrite(usize),
    CancelSource,
    CancelTarget(usize),
    KillSource {
        written: bool,
    },
    KillTarget {
        life: usize,
        written: bool,
    },
    Succeed,
    Retry,
}

impl World {
    /// Everything that can happen next.
    pub(crate) fn moves(&self, into: &mut Vec<Move>) {
        if self.broken.is_some() {
            return;
        }
        self.calm_moves(into);
        self.people(into);
        if self.left.faults > 0 {
            if !self.setup.slow {
                failures(into);
            }
            self.network_faults(into);
            self.process_faults(into);
        }
    }

    /// What people do. Who decides knows whether the process that was given custody lives, and whether
    /// the guest ran there.
    fn people(&self, into: &mut Vec<Move>) {
        if self.left.retries > 0 && self.source.may_begin() {
            into.push(Move::Retry);
        }
        if self.may_be_born() {
            into.push(Move::Birth);
        }
        if let Some((to, of)) = self.source.given
            && self.source.phase_is(SourcePhase::Asking)
            && self.source.choice().is_none()
        {
            let given = self.lives.iter().find(|life| life.instance == to);
            if given.is_some_and(|life| life.machine.is_none()) {
                into.push(Move::Decide(Choice::SourceRuns));
            }
            if given.is_some_and(|life| life.ran == Some(of.epoch) && life.jobs.is_empty()) {
                into.push(Move::Decide(Choice::TargetRuns));
            }
            into.push(Move::Decide(Choice::Abandon));
        }
    }

    /// What happens without any fault.
    pub(crate) fn calm_moves(&self, into: &mut Vec<Move>) {
        if !self.source.jobs.is_empty() {
            into.push(Move::SourceJob);
        }
        for (number, life) in self.lives.iter().enumerate() {
            if !life.jobs.is_empty() {
                into.push(Move::TargetJob(number));
            }
            if !life.writes.is_empty() {
                into.push(Move::TargetWrite(number));
            }
        }
        for (&number, link) in &self.links {
            if !link.to_target.queue.is_empty() {
                into.push(Move::ToTarget(number));
            }
            if !link.to_source.queue.is_empty() {
                into.push(Move::ToSource(number));
            }
        }
        if self.source.machine.as_ref().is_some_and(|machine| machine.deadline().is_some()) {
            into.push(Move::SourceTick);
        }
        for (number, life) in self.lives.iter().enumerate() {
            if life.machine.as_ref().is_some_and(|machine| machine.deadline().is_some()) {
                into.push(Move::TargetTick(number));
            }
        }
        if self.address.is_none() {
            into.push(Move::StartTarget);
        }
    }

    fn network_faults(&self, into: &mut Vec<Move>) {
        for (&number, link) in &self.links {
            let places = 1..link.to_target.queue.len();
            into.extend(places.map(|place| Move::OvertakeToTarget(number, place)));
            let places = 1..link.to_source.queue.len();
            into.extend(places.map(|place| Move::OvertakeToSource(number, place)));
            if let Some(Item::Message(_)) = link.to_target.queue.first() {
                into.extend([Move::DoubleToTarget(number), Move::LoseToTarget(number)]);
            }
            if let Some(Item::Message(_)) = link.to_source.queue.first() {
                into.extend([Move::DoubleToSource(number), Move::LoseToSource(number)]);
            }
            cuts(number, link, into);
        }
        if self.can_connect() {
            into.extend((0..self.source.gave.len()).map(Move::Replay));
        }
    }

    fn process_faults(&self, into: &mut Vec<Move>) {
        if self.source.lives {
            let writes = matches!(self.source.jobs.first(), Some(SourceJob::Journal(_)));
            into.push(Move::KillSource { written: false });
            into.extend(writes.then_some(Move::KillSource { written: true }));
            if self.source.ending.is_none() {
                into.push(Move::CancelSource);
            }
            if !self.source.jobs.is_empty() {
                into.push(Move::FailSourceJob);
            }
            if let Some(SourceJob::Claim(_)) = self.source.jobs.first() {
                into.push(Move::LoseSourceClaim);
            }
        }
        for (number, life) in self.lives.iter().enumerate() {
            let Some(machine) = &life.machine else { continue };
            into.push(Move::KillTarget { life: number, written: false });
            if !life.writes.is_empty() {
                into.extend([
                    Move::KillTarget { life: number, written: true },
                    Move::FailTargetWrite(number),
                ]);
            }
            if !life.jobs.is_empty() {
                into.push(Move::FailTargetJob(number));
            }
            if let Some(TargetJob::Claim(_)) = life.jobs.first() {
                into.push(Move::LoseTargetClaim(number));
            }
            if machine.session_guest().is_some() {
                into.push(Move::CancelTarget(number));
            }
        }
        if self.address.is_some() {
            into.push(Move::Succeed);
        }
    }

    /// The state after a step; none if a job was to fail that the step does not bring.
    pub(crate) fn after(&self, one: Move) -> Option<Self> {
        let mut world = self.clone();
        world.left.faults -= u8::from(one.is_fault());
        world.make(one);
        world.forget_links();
        let all_failed = world.fails == 0;
        world.fails = 0;
        all_failed.then_some(world)
    }

    pub(crate) fn make(&mut self, one: Move) {
        match one {
            Move::Failing(trigger, place) => {
                self.fails = place;
                self.make(trigger.into());
            }
            Move::ToTarget(link) => self.arrive_at_target(link, 0),
            Move::OvertakeToTarget(link, place) => self.arrive_at_target(link, place),
            Move::ToSource(link) => self.arrive_at_source(link, 0),
            Move::OvertakeToSource(link, place) => self.arrive_at_source(link, place),
            Move::DoubleToTarget(link) => {
                self.change_link(link, |link| link.to_target.double());
                self.arrive_at_target(link, 0);
            }
            Move::DoubleToSource(link) => {
                self.change_link(link, |link| link.to_source.double());
                self.arrive_at_source(link, 0);
            }
            Move::LoseToTarget(link) => {
                self.change_link(link, |link| link.to_target.take(0));
            }
            Move::LoseToSource(link) => {
                self.change_link(link, |link| link.to_source.take(0));
            }
            Move::Cut { link, keep_to_target, keep_to_source } => {
                self.change_link(link, |link| {
                    link.to_target.cut(keep_to_target);
                    link.to_source.cut(keep_to_source);
                });
            }
            Move::Replay(attempt) => {
                if let Some(life) = self.address {
                    let number = self.add_link(Link::replay(life, words_of(self.source.gave[attempt])));
                    self.feed_target(life, TargetEvent::Opened(LinkId(number)));
                }
            }
            Move::SourceJob => self.source_job(true),
            Move::FailSourceJob => self.source_job(false),
            Move::TargetJob(life) => self.target_job(life, true),
            Move::FailTargetJob(life) => self.target_job(life, false),
            Move::SourceTick => {
                let deadline = self.source.machine.as_ref().and_then(ferry_protocol::Source::deadline);
                if let Some((at, _)) = deadline {
                    self.feed_source_at(at, SourceEvent::Tick);
                }
            }
            Move::TargetTick(life) => {
                let deadline = self.lives[life].machine.as_ref().and_then(ferry_protocol::Target::deadline);
                if let Some((at, _)) = deadline {
                    self.feed_target_at(at, life, TargetEvent::Tick);
                }
            }
            Move::CancelSource => self.feed_source(SourceEvent::Cancel),
            Move::CancelTarget(life) => self.feed_target(life, TargetEvent::Cancel),
            Move::LoseSourceClaim => self.lose_source_claim(),
            Move::LoseTargetClaim(life) => self.lose_target_claim(life),
            Move::TargetWrite(life) => self.target_write(life, true),
            Move::FailTargetWrite(life) => self.target_write(life, false),
            Move::Decide(choice) => {
                let decision = PersonsChoice::new(choice, "seen", 0).expect("a reason");
                self.feed_source(SourceEvent::Decide(decision));
            }
            Move::Birth => self.birth(),
            Move::KillSource { written } => self.kill_source(written),
            Move::KillTarget { life, written } => self.kill_target(life, written),
            Move::StartTarget | Move::Succeed => self.start_target(),
            Move::Retry => {
                self.left.retries = self.left.retries.saturating_sub(1);
                let setup = self.setup;
                self.source.change(|source| source.begin(setup));
            }
        }
    }
}

/// Of the jobs that follow a step at once, any one can fail.
fn failures(into: &mut Vec<Move>) {
    let triggers: Vec<_> = into.iter().filter_map(|one| one.trigger()).collect();
    let places = |trigger| (1..=JOBS_IN_A_ROW).map(move |place| Move::Failing(trigger, place));
    into.extend(triggers.into_iter().flat_map(places));
}

fn cuts(number: u64, link: &Link, into: &mut Vec<Move>) {
    if link.to_target.is_ended() && link.to_source.is_ended() {
        return;
    }
    let fates = |waits: bool| if waits { &[true, false][..] } else { &[false][..] };
    for &keep_to_target in fates(!link.to_target.queue.is_empty()) {
        for &keep_to_source in fates(!link.to_source.queue.is_empty()) {
            into.push(Move::Cut { link: number, keep_to_target, keep_to_source });
        }
    }
}

/// The most jobs that one step can bring and that are answered at once.
const JOBS_IN_A_ROW: u8 = 4;

/// A step that can bring jobs which are answered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Trigger {
    ToTarget(u64),
    ToSource(u64),
    SourceJob,
    TargetJob(usize),
    TargetWrite(usize),
}

impl From<Trigger> for Move {
    fn from(trigger: Trigger) -> Self {
        match trigger {
            Trigger::ToTarget(link) => Self::ToTarget(link),
            Trigger::ToSource(link) => Self::ToSource(link),
            Trigger::SourceJob => Self::SourceJob,
            Trigger::TargetJob(life) => Self::TargetJob(life),
            Trigger::TargetWrite(life) => Self::TargetWrite(life),
        }
    }
}

impl Move {
    fn trigger(self) -> Option<Trigger> {
        Some(match self {
            Self::ToTarget(link) => Trigger::ToTarget(link),
            Self::ToSource(link) => Trigger::ToSource(link),
            Self::SourceJob => Trigger::SourceJob,
            Self::TargetJob(life) => Trigger::TargetJob(life),
            Self::TargetWrite(life) => Trigger::TargetWrite(life),
            _ => return None,
        })
    }

    fn is_fault(self) -> bool {
        let passing = matches!(self, Self::SourceTick | Self::TargetTick(_) | Self::StartTarget);
        let peoples = matches!(self, Self::Retry | Self::Decide(_) | Self::Birth);
        self.trigger().is_none() && !passing && !peoples
    }
}

/// Phases in which a source that has custody may have its guest paused for a while.
pub(crate) fn may_be_paused(phase: SourcePhase) -> bool {
    matches!(
        phase,
        SourcePhase::Pause
            | SourcePhase::LastRound
            | SourcePhase::State
            | SourcePhase::Ready
            | SourcePhase::Undo
    )
}

impl SourceSide {
    /// The choice that is not followed yet.
    pub(crate) fn choice(&self) -> Option<Choice> {
        self.machine.as_ref().and_then(Source::choice)
    }

    pub(crate) fn phase_is(&self, phase: SourcePhase) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.phase() == phase)
    }
}
