//! The world: two hosts with their processes, the network between them, and the order of events.

use std::time::Duration;

use ferry_protocol::journal::Choice;
use ferry_protocol::{GuestId, Rules, SourceEvent, SourcePhase, TargetEvent, TargetPhase, Time, Timeouts};

use crate::clock::{Agenda, Clock, Due};
use crate::dice::Dice;
use crate::disk::Disk;
use crate::guest::Guest;
use crate::invariants::{Broken, Truth, Violation};
use crate::moves::TRY_AGAIN;
use crate::network::{Down, Link, Maker, Network, Up};
use crate::plan::{Plan, What};
use crate::process::Process;
use crate::report::{Report, Tally};
use crate::story::{Story, Telling};
use crate::witness::Witness;

const DICE_OF_THE_JOBS: u64 = 11;
const DICE_OF_THE_NETWORK: u64 = 12;
const DICE_OF_PERSONS: u64 = 13;
pub(crate) const DICE_OF_THE_WITNESS: u64 = 14;

/// When every fault is over, in microseconds.
const HEALED_AT: u64 = 400_000;

/// How long a healed world may take to settle.
const SETTLED_WITHIN: u64 = 400_000;

/// The most events of a simulation; what makes more of them spins.
const MAX_EVENTS: u64 = 400_000;

/// The timeouts of the simulated processes: the defaults, a thousand times shorter.
pub(crate) fn timeouts() -> Timeouts {
    let Timeouts {
        connect,
        hello,
        offer,
        verdict,
        build,
        silence,
        state,
        paused,
        ready,
        custody,
        running,
        ask,
        ask_interval,
        settle,
        release,
        total: _,
    } = Timeouts::default();
    let shorter = |within: Duration| within / 1000;
    Timeouts {
        connect: shorter(connect),
        hello: shorter(hello),
        offer: shorter(offer),
        verdict: shorter(verdict),
        build: shorter(build),
        silence: shorter(silence),
        state: shorter(state),
        paused: shorter(paused),
        ready: shorter(ready),
        custody: shorter(custody),
        running: shorter(running),
        ask: shorter(ask),
        ask_interval: shorter(ask_interval),
        settle: shorter(settle),
        release: shorter(release),
        // Shorter still: a guest that never converges takes all of it.
        total: Duration::from_millis(120),
    }
}

/// The name of the guest.
pub(crate) fn guest_id() -> Option<GuestId> {
    "web-1".parse().ok()
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) rules: Rules,
    pub(crate) now: Time,
    pub(crate) story: Story,
    pub(crate) agenda: Agenda,
    pub(crate) network: Network,
    pub(crate) disks: [Disk; 2],
    /// The folder in which the next process of each host keeps its journal.
    pub(crate) folders: [u32; 2],
    /// Hosts without power.
    pub(crate) dark: [bool; 2],
    pub(crate) processes: Vec<Process>,
    /// The process that listens on each host.
    pub(crate) address: [Option<usize>; 2],
    pub(crate) links: Vec<Link>,
    /// Whether the guest has a lock that only one process may hold, and which does.
    pub(crate) locks: bool,
    pub(crate) lock: Option<usize>,
    pub(crate) witness: Option<Witness>,
    pub(crate) truth: Truth,
    pub(crate) violation: Option<Violation>,
    /// A process died that had custody, or had given it.
    pub(crate) guest_died: bool,
    /// What a person decided last, and in which process.
    pub(crate) decided: Option<(usize, Choice)>,
    /// Moves begun, and the process that is or was the source of the last.
    pub(crate) attempts: u32,
    pub(crate) mover: usize,
    /// Faults of the plan whose time came.
    pub(crate) fired: Vec<bool>,
    /// How many of them have not struck yet.
    pub(crate) strikes_due: u32,
    /// How many users are about to start a guest again.
    pub(crate) births_due: u32,
    /// When one of them did.
    pub(crate) born_at: Time,
    pub(crate) tally: Tally,
    pub(crate) healed: bool,
    records: bool,
    jobs_dice: Dice,
    network_dice: Dice,
    pub(crate) persons_dice: Dice,
}

impl World {
    /// The world of a plan, with a guest that runs in the first process.
    pub(crate) fn new(plan: &Plan, rules: Rules, telling: Telling) -> Self {
        let (seed, base) = (plan.seed, &plan.base);
        let mut world = Self {
            rules,
            now: Time::ZERO,
            story: Story::new(telling),
            agenda: Agenda::default(),
            network: Network {
                delay: base.delay_us,
                page: base.page_us,
                slower: (1, Time::ZERO),
                held: [Time::ZERO; 2],
            },
            disks: [Disk::new(), Disk::new()],
            folders: [0; 2],
            dark: [false; 2],
            processes: Vec::new(),
            address: [None; 2],
            links: Vec::new(),
            locks: base.lock,
            lock: None,
            witness: base.witness.then(|| Witness::new(seed)),
            truth: Truth::default(),
            violation: None,
            guest_died: false,
            decided: None,
            attempts: 0,
            mover: 0,
            fired: vec![false; plan.faults.len()],
            strikes_due: 0,
            births_due: 0,
            born_at: Time::ZERO,
            tally: Tally::default(),
            healed: false,
            records: plan.faults.iter().any(|fault| matches!(fault.what, What::Replay { .. })),
            jobs_dice: Dice::new(seed, DICE_OF_THE_JOBS),
            network_dice: Dice::new(seed, DICE_OF_THE_NETWORK),
            persons_dice: Dice::new(seed, DICE_OF_PERSONS),
            plan: plan.clone(),
        };
        world.begin();
        world.agenda.enter(Time(TRY_AGAIN), Due::Move);
        world
    }

    /// Runs until everything is settled, or something is broken.
    pub(crate) fn run(mut self) -> Report {
        let mut events = 0;
        while self.violation.is_none() {
            events += 1;
            if events > MAX_EVENTS {
                self.broken(Broken::Lost, || format!("after {MAX_EVENTS} events nothing is settled"));
            } else if !self.healed && (self.now.0 >= HEALED_AT || self.is_settled()) {
                self.heal();
            } else if self.healed && (self.now.0 >= HEALED_AT + SETTLED_WITHIN || self.is_settled()) {
                self.check_end();
                if self.violation.is_some() || !self.ask_last() {
                    break;
                }
            } else if !self.next_event() {
                self.now = Time(self.now.0.max(HEALED_AT));
                if self.healed {
                    self.now = Time(HEALED_AT + SETTLED_WITHIN);
                }
            }
        }
        self.tally.events = events;
        Report { violation: self.violation, story: self.story.lines, tally: self.tally }
    }

    /// Carries out what is next: something that is due, or a deadline. False if there is nothing.
    fn next_event(&mut self) -> bool {
        let deadline = self.next_deadline();
        let due = self.agenda.next_at();
        match (deadline, due) {
            (Some((at, process)), due) if due.is_none_or(|due| at < due) => {
                self.now = self.now.max(at);
                self.tick(process);
            }
            (_, Some(at)) => {
                self.now = self.now.max(at);
                if let Some(due) = self.agenda.take() {
                    self.carry_out(due);
                }
            }
            _ => return false,
        }
        true
    }

    fn next_deadline(&self) -> Option<(Time, usize)> {
        (0..self.processes.len())
            .filter(|&process| self.processes[process].alive)
            .filter_map(|process| {
                let this = &self.processes[process];
                let source = this.source.as_ref().and_then(|source| source.machine.deadline());
                let target = this.target.as_ref().and_then(|target| target.machine.deadline());
                let shown = source.into_iter().chain(target).map(|(at, _)| at).min()?;
                Some((self.clock_of(process).world(shown).max(this.awake_at), process))
            })
            .min()
    }

    fn tick(&mut self, process: usize) {
        let shown = self.clock_of(process).shows(self.now);
        let this = &self.processes[process];
        let source = this.source.as_ref().and_then(|source| source.machine.deadline());
        if source.is_some_and(|(at, _)| at <= shown) {
            self.feed_source(process, SourceEvent::Tick);
        }
        let target = self.processes[process].target.as_ref().and_then(|target| target.machine.deadline());
        if target.is_some_and(|(at, _)| at <= shown) {
            self.feed_target(process, TargetEvent::Tick);
        }
    }

    fn carry_out(&mut self, due: Due) {
        match due {
            Due::Down(link) => self.deliver_down(link),
            Due::Up(link) => self.deliver_up(link),
            Due::SourceJob(process) => self.source_job(process),
            Due::TargetJob(process) => self.target_job(process),
            Due::Strike(fault) => {
                self.strikes_due = self.strikes_due.saturating_sub(1);
                if let Some(fault) = self.plan.faults.get(fault).copied().filter(|_| !self.healed) {
                    self.tally.faults += 1;
                    self.strike(fault.what);
                }
            }
            Due::Stir => self.stir(),
            Due::Listen(host) => self.listen(host),
            Due::Move => self.begin_move(),
            Due::Birth(process) => self.rebirth(process),
            Due::Person(process) => {
                self.person_acts(process);
            }
        }
    }

    /// Everything is looked at again.
    pub(crate) fn stir(&mut self) {
        self.agenda_hasty_persons();
        for link in 0..self.links.len() {
            self.agenda.enter(self.now, Due::Down(link));
            self.agenda.enter(self.now, Due::Up(link));
        }
        for process in 0..self.processes.len() {
            self.agenda.enter(self.now, Due::SourceJob(process));
            self.agenda.enter(self.now, Due::TargetJob(process));
            // A wakeup for nothing is no harm.
            if !self.is_away(process) {
                self.feed_source(process, SourceEvent::Tick);
                self.feed_target(process, TargetEvent::Tick);
            }
        }
    }

    pub(crate) fn clock_of(&self, process: usize) -> Clock {
        self.plan.base.clocks[self.processes[process].host]
    }

    /// Whether a process is gone, or stopped.
    pub(crate) fn is_away(&self, process: usize) -> bool {
        let this = &self.processes[process];
        !this.alive || self.now < this.awake_at
    }

    pub(crate) fn job_time(&mut self) -> u64 {
        self.jobs_dice.within(3, self.plan.base.job_us)
    }

    pub(crate) fn guest_steps(&self, process: usize) -> u64 {
        self.processes[process].guest.as_ref().map_or(0, Guest::steps)
    }

    /// Who listens on a host.
    pub(crate) fn listener(&self, host: usize) -> Option<usize> {
        self.address[host].filter(|&process| self.processes[process].alive)
    }

    pub(crate) fn send_down(&mut self, link: usize, now: Time, item: Down) {
        let factor = self.network.factor(now);
        let busy = if matches!(item, Down::Page { data: Some(_), .. }) { self.network.page } else { 1 };
        let delay = self.network.delay + self.network_dice.below(self.network.delay / 4 + 1);
        let this = &mut self.links[link];
        if self.records
            && matches!(this.maker, Maker::Source(_))
            && !matches!(item, Down::Opened | Down::Lost(_))
        {
            this.record.push((this.answers, item.clone()));
        }
        if let Some(at) = this.down.send(now, item, busy * factor, delay * factor) {
            self.agenda.enter(at, Due::Down(link));
        }
    }

    pub(crate) fn send_up(&mut self, link: usize, now: Time, item: Up) {
        let factor = self.network.factor(now);
        let delay = self.network.delay + self.network_dice.below(self.network.delay / 4 + 1);
        if let Some(at) = self.links[link].up.send(now, item, factor, delay * factor) {
            self.agenda.enter(at, Due::Up(link));
        }
    }

    /// No more faults: whatever was held is released, and whoever is asked is there again.
    fn heal(&mut self) {
        self.story.tell(self.now, || "every fault is over".into());
        self.healed = true;
        self.network.held = [self.now; 2];
        self.network.slower = (1, self.now);
        for process in &mut self.processes {
            process.awake_at = process.awake_at.min(self.now);
        }
        for disk in &mut self.disks {
            disk.fail(self.now, false);
            disk.slow_down(self.now, 0);
        }
        if let Some(witness) = &mut self.witness {
            witness.heal();
        }
        for host in 0..2 {
            self.dark[host] = false;
            self.listen(host);
        }
        let rate = self.plan.base.rate.min(500);
        for guest in self.processes.iter_mut().filter_map(|process| process.guest.as_mut()) {
            let _ = guest.catch_up(self.now);
            guest.rate = rate;
        }
        self.stir();
    }

    /// Whether nobody has anything left to do but to ask a process that is gone.
    fn is_settled(&self) -> bool {
        if self.strikes_due > 0 && !self.healed {
            return false;
        }
        let moves = self.attempts < self.plan.base.moves && !self.healed && !self.guest_died;
        let is_quiet = |process: &Process| {
            let source = process.source.as_ref().is_none_or(|source| {
                let gone = source.given_to.is_some_and(|to| !self.processes[to].alive);
                source.is_over()
                    || (source.ambiguous
                        && source.machine.choice().is_none()
                        && gone
                        && self.healed
                        && source.machine.phase() == SourcePhase::Asking)
            });
            let target = process.target.as_ref().is_none_or(|target| {
                target.machine.phase() == TargetPhase::Waiting
                    && target.jobs.is_empty()
                    && target.writing.is_empty()
            });
            source && target
        };
        !moves && self.births_due == 0 && self.processes.iter().filter(|process| process.alive).all(is_quiet)
    }
}
