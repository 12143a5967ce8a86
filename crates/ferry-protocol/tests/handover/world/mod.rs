//! A small deterministic world around the two machines: one source, one or more lives of a target,
//! links, jobs, a clock and faults. Who runs the guest is data; what must never happen is asserted
//! at every step.

mod carry;
mod hosts;
mod link;

use ferry_contract::{Finding, FindingKind, Layer, Verdict};
use ferry_protocol::journal::{History, Past};
use ferry_protocol::message::ToSource;
use ferry_protocol::{
    Epoch, GuestId, InstanceId, LinkFault, LinkId, MachineDescription, RegionSpan, SessionId, Source,
    SourceConfig, SourceEvent, SourcePhase, Target, TargetEvent, TargetPhase, Time, Timeouts,
};

use hosts::{SourceHost, TargetHost};
use link::{Item, Link};

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) source: SourceHost,
    pub(crate) lives: Vec<TargetHost>,
    /// The life that listens at the address.
    pub(crate) address: Option<usize>,
    pub(crate) links: Vec<Link>,
    /// Nothing that this side sends arrives, on any link.
    pub(crate) source_mute: bool,
    pub(crate) target_mute: bool,
    /// What the next harvest of a running guest finds.
    pub(crate) dirty_pages: u64,
    /// The highest epoch under which a vCPU ran.
    highest_run: Epoch,
}

impl World {
    pub(crate) fn new(verify: bool) -> Self {
        let mut world = Self {
            now: Time::ZERO,
            source: SourceHost::new(attempt(1, verify)),
            lives: Vec::new(),
            address: None,
            links: Vec::new(),
            source_mute: false,
            target_mute: false,
            dirty_pages: 0,
            highest_run: Epoch::BIRTH,
        };
        world.start_target();
        world
    }

    pub(crate) fn phase(&self) -> SourcePhase {
        self.source.machine.as_ref().map_or(SourcePhase::Done, Source::phase)
    }

    /// A new target process listens at the address.
    pub(crate) fn start_target(&mut self) {
        let instance = InstanceId(1000 + self.lives.len() as u64);
        let mut past = Past::default();
        for life in &self.lives {
            past.add(life.instance, History::of(&life.journal));
        }
        let machine = Target::new(instance, None, Timeouts::default()).with_past(past);
        self.address = Some(self.lives.len());
        self.lives.push(TargetHost::new(instance, machine));
    }

    /// The process that listens dies, and what ran in it.
    pub(crate) fn kill_target(&mut self) {
        let Some(dead) = self.address.take() else { return };
        let life = &mut self.lives[dead];
        life.machine = None;
        life.jobs.clear();
        life.writes.clear();
        (life.runs, life.ran, life.built) = (None, None, false);
        for link in self.links.iter_mut().filter(|link| link.life == dead) {
            link.to_target.shut();
            link.to_source.end(LinkFault::Closed);
        }
    }

    /// The source's process dies, and the guest if it was there.
    pub(crate) fn kill_source(&mut self) {
        self.source.machine = None;
        self.source.jobs.clear();
        self.source.runs = false;
        for link in &mut self.links {
            link.to_source.shut();
            link.to_target.end(LinkFault::Closed);
        }
        self.source.link = None;
    }

    /// Feeds the source; what follows is carried out.
    pub(crate) fn feed_source(&mut self, event: SourceEvent) {
        let Some(machine) = &mut self.source.machine else { return };
        let was_done = machine.phase() == SourcePhase::Done;
        let what = format!("{event:?}");
        let actions = machine.step(self.now, event);
        assert!(!was_done || actions.is_empty(), "a source that is done acts on {what}");
        for action in actions {
            self.carry_source(action);
        }
        self.check();
    }

    pub(crate) fn feed_target(&mut self, life: usize, event: TargetEvent) {
        let Some(machine) = &mut self.lives[life].machine else { return };
        for action in machine.step(self.now, event) {
            self.carry_target(life, action);
        }
        self.check();
    }

    pub(crate) fn deliver_to_target(&mut self, number: usize) {
        let link = &mut self.links[number];
        let (life, id) = (link.life, link.id);
        match link.to_target.take() {
            None => {}
            Some(Item::Opened) => self.feed_target(life, TargetEvent::Opened(id)),
            Some(Item::Message(message)) => self.feed_target(life, TargetEvent::Received(id, message)),
            Some(Item::Lost(fault)) => {
                self.links[number].to_source.end(LinkFault::Closed);
                self.feed_target(life, TargetEvent::LinkLost(id, fault));
            }
        }
    }

    pub(crate) fn deliver_to_source(&mut self, number: usize) {
        let link = &mut self.links[number];
        let instance = self.lives[link.life].instance;
        match link.to_source.take() {
            None | Some(Item::Opened) => {}
            Some(Item::Message(message)) => {
                if let Some((given_to, of)) = self.source.given {
                    let its = given_to == instance;
                    let given = self.lives.iter().find(|life| life.instance == given_to);
                    // A later process in its place may say it for a dead one that never ran the guest.
                    let dead =
                        given.is_some_and(|life| life.machine.is_none() && life.ever_ran != Some(of.epoch));
                    self.source.refused |=
                        (its || dead) && matches!(&message, ToSource::Refused(refused) if refused.of == of);
                    self.source.told_running |= its && message == ToSource::Running(of);
                }
                self.feed_source(SourceEvent::Received(message));
            }
            Some(Item::Lost(fault)) => {
                link.to_target.end(LinkFault::Closed);
                self.source.link = None;
                self.source.stop_sending();
                self.feed_source(SourceEvent::LinkLost(fault));
            }
        }
    }

    /// Ticks everyone whose deadline is over.
    pub(crate) fn tick(&mut self) {
        self.feed_source(SourceEvent::Tick);
        for life in 0..self.lives.len() {
            self.feed_target(life, TargetEvent::Tick);
        }
    }

    /// Goes to the next deadline of anyone and ticks. False if nobody waits for the time.
    pub(crate) fn advance(&mut self) -> bool {
        let source = self.source.machine.as_ref().and_then(Source::deadline);
        let targets = self.lives.iter().filter_map(|life| life.machine.as_ref()?.deadline());
        let next = source.into_iter().chain(targets).map(|(at, _)| at).min();
        let Some(at) = next else { return false };
        self.now = self.now.max(at);
        self.tick();
        true
    }

    /// Links with something that can arrive at the target, and at the source.
    pub(crate) fn arriving(&self) -> (Vec<usize>, Vec<usize>) {
        let numbers = || 0..self.links.len();
        let to_target = numbers().filter(|&n| self.links[n].to_target.has_items() && !self.source_mute);
        let to_source = numbers().filter(|&n| self.links[n].to_source.has_items() && !self.target_mute);
        (to_target.collect(), to_source.collect())
    }

    /// One step in a fixed order: jobs, then what arrives, then time.
    pub(crate) fn run_step(&mut self) -> bool {
        let (to_target, to_source) = self.arriving();
        let busy = (0..self.lives.len()).find(|&life| !self.lives[life].jobs.is_empty());
        let writes = (0..self.lives.len()).find(|&life| !self.lives[life].writes.is_empty());
        if !self.source.jobs.is_empty() {
            self.source_job(true);
        } else if let Some(life) = writes {
            self.target_write(life, true);
        } else if let Some(life) = busy {
            self.target_job(life, true);
        } else if let Some(&number) = to_target.first() {
            self.deliver_to_target(number);
        } else if let Some(&number) = to_source.first() {
            self.deliver_to_source(number);
        } else {
            return self.advance();
        }
        true
    }

    /// What must hold after every step.
    pub(crate) fn check(&self) {
        let targets = self.lives.iter().filter(|life| life.runs.is_some()).count();
        assert!(targets + usize::from(self.source.runs) <= 1, "two hosts run the guest");
        if let Some(source) = &self.source.machine {
            let waits =
                !matches!(source.phase(), SourcePhase::Connect | SourcePhase::Undo | SourcePhase::Done)
                    && self.source.jobs.is_empty();
            assert!(!waits || source.deadline().is_some(), "no deadline in {:?}", source.phase());
        }
        for target in self.lives.iter().filter_map(|life| life.machine.as_ref()) {
            let waits = matches!(
                target.phase(),
                TargetPhase::Hello | TargetPhase::Receive | TargetPhase::Ready | TargetPhase::Running
            );
            assert!(!waits || target.deadline().is_some(), "no deadline in {:?}", target.phase());
        }
    }
}

fn attempt(number: u64, verify: bool) -> Source {
    let epoch = Epoch(Epoch::BIRTH.0 + number);
    let mut config = SourceConfig::new(guest(), SessionId(number), epoch, description("sim"));
    config.verify = verify;
    Source::new(config)
}

pub(crate) fn guest() -> GuestId {
    "web-1".parse().unwrap()
}

pub(crate) fn description(kind: &str) -> MachineDescription {
    let regions = vec![RegionSpan { start: 0, length: 1 << 20 }];
    MachineDescription {
        kind: kind.into(),
        vcpus: 1,
        regions,
        config: Vec::new(),
        contract: Vec::new(),
        disks: Vec::new(),
    }
}

/// A verdict that says for which kind of machine it is.
fn verdict(kind: &str) -> Verdict {
    let text = String::new;
    Verdict {
        findings: vec![Finding {
            kind: FindingKind::Notice,
            subject: kind.into(),
            layer: Layer::Machine,
            guest: text(),
            target: text(),
            effect: text(),
            remedy: text(),
        }],
    }
}

fn index(link: LinkId) -> usize {
    usize::try_from(link.0).unwrap()
}
