//! One state of the world: the source's process, every life of the target, what is under way between
//! them, and how many faults may still strike.

use std::collections::BTreeMap;
use std::time::Duration;

use ferry_contract::Verdict;
use ferry_protocol::journal::{Choice, History, OfGuest, Past, Record};
use ferry_protocol::message::{Hello, OfEpoch, Offer, RoundEnd, StateEnd, ToTarget};
use ferry_protocol::{
    Claim, Epoch, GuestId, InstanceId, LinkId, MachineDescription, RegionSpan, Rules, SessionId, Source,
    SourceConfig, SourceEvent, SourcePhase, Target, TargetEvent, Timeouts,
};

use super::links::Link;
use super::shared::Shared;

/// The instance of the target's first life; each later life has the next one.
const FIRST_INSTANCE: u64 = 1000;

/// What a run may hold beside what always can happen (messages and answers in any order between the
/// links, each as late as it likes, every wait over at any moment).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Left {
    /// Faults of any kind.
    pub(crate) faults: u8,
    /// Further attempts to move the guest.
    pub(crate) retries: u8,
}

/// What is tried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Setup {
    /// The rules that both sides keep.
    pub(crate) rules: Rules,
    /// Whether a witness says who has the guest.
    pub(crate) witness: bool,
    /// The most links at once: a source that asks again and again finds nobody when there are more.
    pub(crate) links: u8,
    /// Whether every job takes its time. Otherwise those of one side alone are done at once, or fail.
    pub(crate) slow: bool,
    /// Whether the source's journal is lost with its process: a wrong one, to be found out.
    pub(crate) forgets: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { rules: Rules::default(), witness: false, links: 2, slow: false, forgets: false }
    }
}

/// A job that takes its time: between it and its answer everything else can happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum SourceJob {
    Connect,
    Journal(Record),
    Pause,
    Claim(Claim),
    Resume,
    /// Anything else, and its answer. What sends is not answered any more once its link is gone.
    Work {
        done: SourceEvent,
        sends: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum TargetJob {
    Claim(Claim),
    Run(Epoch),
    Work(TargetEvent),
}

/// The witness's record of the guest: who has it (a target's instance, or none for the source), and
/// under which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Witness {
    pub(crate) holder: Option<InstanceId>,
    pub(crate) epoch: Epoch,
}

/// How an attempt ended on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    Moved,
    Kept,
    Held,
    Abandoned,
}

/// The source's process and its guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SourceSide {
    /// Its process lives.
    pub(crate) lives: bool,
    /// The present or last attempt; none before the first.
    pub(crate) machine: Option<Source>,
    pub(crate) jobs: Vec<SourceJob>,
    pub(crate) link: Option<u64>,
    /// Its vCPUs run, or may.
    pub(crate) runs: bool,
    /// The epoch under which it runs the guest, or last did.
    pub(crate) epoch: Epoch,
    /// To which process custody was given, and of what.
    pub(crate) given: Option<(InstanceId, OfEpoch)>,
    /// The guest was let go.
    pub(crate) gone: bool,
    /// A person was told that nobody knows.
    pub(crate) ambiguous: bool,
    pub(crate) ending: Option<Ending>,
    /// The target has answered since a person chose, and the choice was not followed yet.
    pub(crate) answered: bool,
    /// A person's choice gave way to that.
    pub(crate) overruled: bool,
    /// Its own resume failed: what follows is a matter of that machine.
    pub(crate) stuck: bool,
    pub(crate) attempt: u64,
    /// The highest epoch that it used: the next attempt offers the next one.
    pub(crate) used: Epoch,
    /// With a witness: the epoch under which its record stands, as far as the source knows.
    pub(crate) held: Epoch,
    /// The attempts that gave custody: somebody may say again all that they said.
    pub(crate) gave: Vec<Gave>,
    /// What this process wrote.
    pub(crate) journal: Vec<Record>,
    /// What those before it on its host wrote.
    pub(crate) past: Past,
}

/// An attempt that came to give custody, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Gave {
    pub(crate) of: OfEpoch,
    pub(crate) to: InstanceId,
    pub(crate) witness: Option<Epoch>,
}

/// One process of the target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Life {
    pub(crate) instance: InstanceId,
    /// None: the process is gone.
    pub(crate) machine: Option<Target>,
    pub(crate) jobs: Vec<TargetJob>,
    /// Records that are being written.
    pub(crate) writes: Vec<Record>,
    /// What is on disk. It outlives the process.
    pub(crate) journal: Vec<Record>,
    /// Its vCPUs run, or may.
    pub(crate) runs: bool,
    /// The epoch under which they run, or ran while the process lived.
    pub(crate) ran: Option<Epoch>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) source: Shared<SourceSide>,
    pub(crate) lives: Vec<Shared<Life>>,
    /// The life that listens at the target's address.
    pub(crate) address: Option<usize>,
    /// Links of which one side may still hear, by number.
    pub(crate) links: BTreeMap<u64, Shared<Link>>,
    pub(crate) witness: Witness,
    pub(crate) left: Left,
    /// The next jobs that are answered at once succeed up to this one, which fails.
    pub(crate) fails: u8,
    /// A misuse that no step may be.
    pub(crate) broken: Option<&'static str>,
}

impl World {
    pub(crate) fn new(setup: Setup, left: Left) -> Self {
        let mut source = SourceSide::born(Past::default(), 0);
        source.begin(setup);
        let mut world = Self {
            setup,
            source: Shared::new(source),
            lives: Vec::new(),
            address: None,
            links: BTreeMap::new(),
            witness: Witness { holder: None, epoch: Epoch::BIRTH },
            left,
            fails: 0,
            broken: None,
        };
        world.start_target();
        world
    }

    /// A new process listens at the target's address. It knows what those that are gone wrote there.
    pub(crate) fn start_target(&mut self) {
        let mut past = Past::default();
        for dead in self.lives.iter().filter(|life| life.machine.is_none()) {
            past.add(dead.instance, History::of(&dead.journal));
        }
        let instance = InstanceId(FIRST_INSTANCE + self.lives.len() as u64);
        let mut machine =
            Target::new(instance, None, target_timeouts()).with_past(past).with_rules(self.setup.rules);
        if self.setup.witness {
            machine = machine.with_witness();
        }
        self.address = Some(self.lives.len());
        self.lives.push(Shared::new(Life {
            instance,
            machine: Some(machine),
            jobs: Vec::new(),
            writes: Vec::new(),
            journal: Vec::new(),
            runs: false,
            ran: None,
        }));
    }

    /// A person starts the guest anew on the source's host, after its process died there.
    pub(crate) fn birth(&mut self) {
        let past = self.past_of_source();
        let source = SourceSide::born(past, self.source.attempt);
        if source.epoch <= self.highest_run() {
            self.broken = Some("a guest is born under an epoch that ran before");
        }
        self.source = Shared::new(source);
    }

    /// A birth is refused while nobody knows what became of the guest. Who decided that the source shall
    /// not run it starts it anew only once the target's process is gone.
    pub(crate) fn may_be_born(&self) -> bool {
        if self.source.lives || self.source.gone || self.setup.witness {
            return false;
        }
        let let_go =
            |record: &Record| matches!(record, Record::Decided(it) if it.choice != Choice::SourceRuns);
        if self.source.journal.iter().any(let_go) {
            let target_lives =
                |(to, _)| self.lives.iter().any(|life| life.instance == to && life.machine.is_some());
            return !self.source.given.is_some_and(target_lives);
        }
        self.past_of_source().lives().all(|(_, history)| history.is_settled())
    }

    fn past_of_source(&self) -> Past {
        let mut past = self.source.past.clone();
        if !self.setup.forgets {
            past.add(InstanceId(past.lives().count() as u64), History::of(&self.source.journal));
        }
        past
    }

    pub(crate) fn phase(&self) -> Option<SourcePhase> {
        self.source.machine.as_ref().map(Source::phase)
    }

    /// A link to whoever listens, under a number that nobody knows any more.
    pub(crate) fn add_link(&mut self, link: Link) -> u64 {
        let number = (0..=u64::MAX).find(|number| !self.links.contains_key(number)).unwrap_or_default();
        self.links.insert(number, Shared::new(link));
        number
    }

    /// Changes a link.
    pub(crate) fn change_link<R>(&mut self, number: u64, how: impl FnOnce(&mut Link) -> R) -> Option<R> {
        self.links.get_mut(&number).map(|link| link.change(how))
    }

    /// Forgets the links of which nobody hears any more and that no target may still speak to: it keeps
    /// its session's link while it starts the guest, and words for links while it writes.
    pub(crate) fn forget_links(&mut self) {
        let lives = &self.lives;
        self.links.retain(|&number, link| {
            let life = &lives[link.life];
            let held = life.machine.as_ref().and_then(Target::session_link) == Some(LinkId(number));
            !link.is_over() || held || !life.writes.is_empty()
        });
    }

    /// Runs the guest here and there, as far as anybody can tell.
    pub(crate) fn runners(&self) -> usize {
        self.lives.iter().filter(|life| life.runs).count() + usize::from(self.source.runs)
    }

    /// The highest epoch under which a vCPU ever ran.
    pub(crate) fn highest_run(&self) -> Epoch {
        let targets = self.lives.iter().filter_map(|life| life.ran).max();
        targets.map_or(self.source.epoch, |epoch| epoch.max(self.source.epoch))
    }
}

impl SourceSide {
    /// A guest that runs, and of which nobody wants anything yet.
    fn born(past: Past, attempt: u64) -> Self {
        let epoch = past.birth(&guest());
        Self {
            lives: true,
            machine: None,
            jobs: Vec::new(),
            link: None,
            runs: true,
            epoch,
            given: None,
            gone: false,
            ambiguous: false,
            ending: Some(Ending::Kept),
            answered: false,
            overruled: false,
            stuck: false,
            attempt,
            used: epoch,
            held: epoch,
            gave: Vec::new(),
            journal: vec![Record::Born(OfGuest { guest: guest(), epoch })],
            past,
        }
    }

    /// The guest is tried to be moved, under the next epoch.
    pub(crate) fn begin(&mut self, setup: Setup) {
        self.attempt += 1;
        self.used = self.used.next();
        let mut config = SourceConfig::new(guest(), SessionId(self.attempt), self.used, description());
        config.timeouts = timeouts();
        config.program = String::new();
        config.rules = setup.rules;
        config.witness = setup.witness.then_some(self.held);
        self.machine = Some(Source::new(config));
        self.jobs = vec![SourceJob::Connect];
        self.ending = None;
        (self.ambiguous, self.answered, self.overruled) = (false, false, false);
    }

    pub(crate) fn stop_sending(&mut self) {
        self.jobs.retain(|job| !matches!(job, SourceJob::Work { sends: true, .. }));
    }

    pub(crate) fn may_begin(&self) -> bool {
        self.lives && self.ending == Some(Ending::Kept) && self.runs
    }
}

/// Time stands at zero and every wait may be over at any moment. A few waits end at one instead, so
/// that those that end at zero can end without them.
fn timeouts() -> Timeouts {
    let none = Duration::ZERO;
    Timeouts {
        connect: none,
        hello: none,
        offer: none,
        verdict: none,
        build: none,
        silence: none,
        state: none,
        paused: none,
        ready: none,
        custody: none,
        running: none,
        ask: none,
        ask_interval: none,
        settle: Duration::from_micros(1),
        release: none,
        total: none,
    }
}

/// A greeting may be over before the session is.
fn target_timeouts() -> Timeouts {
    let later = Duration::from_micros(1);
    Timeouts { offer: later, silence: later, state: later, custody: later, ..timeouts() }
}

/// All that an attempt says until it gave custody.
pub(crate) fn words_of(gave: Gave) -> Vec<ToTarget> {
    let Gave { of, to, witness } = gave;
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        session: of.session,
        guest: guest(),
        epoch: of.epoch,
        program: String::new(),
    };
    let offer = Offer { witness, to: Some(to), ..Offer::plain(description()) };
    let round = |round, last| ToTarget::RoundEnd(RoundEnd { round, data_pages: 1, zero_pages: 0, last });
    vec![
        ToTarget::Hello(hello),
        ToTarget::Offer(offer),
        round(0, false),
        round(1, true),
        ToTarget::StateEnd(StateEnd { sections: 1 }),
        ToTarget::Custody(of),
    ]
}

pub(crate) fn guest() -> GuestId {
    "g".parse().expect("a guest's name")
}

fn description() -> MachineDescription {
    let regions = vec![RegionSpan { start: 0, length: 4096 }];
    MachineDescription {
        kind: "m".into(),
        vcpus: 1,
        regions,
        config: Vec::new(),
        contract: Vec::new(),
        disks: Vec::new(),
    }
}

pub(crate) fn accepted() -> Verdict {
    Verdict { findings: Vec::new() }
}
