//! The target's decisions.
//!
//! One [`Target`] is one process that waits for a guest: it holds the [`Ledger`] of epochs, at most
//! one session, and every link on which a first message is awaited. As with the source, the caller
//! carries actions out in order and reports each job with the event that its documentation names:
//! once, in the order of their asking, also when [`TargetAction::Discard`] followed.
//! A session that ends without custody refuses its epoch for ever; that refusal is what lets a
//! source resume.

use std::collections::{BTreeMap, VecDeque};

use ferry_contract::Verdict;

use crate::journal::{OfGuest, Past, Record};
use crate::ledger::Ledger;
use crate::message::{
    Hello, OfEpoch, Offer, Reason, ReasonKind, Refused, TargetHello, ToSource, ToTarget, VERSIONS,
};
use crate::outcome::LinkFault;
use crate::{
    Cause, Claim, ClaimAnswer, Epoch, GuestId, InstanceId, MachineDescription, RegionSpan, Rule, Rules,
    TargetOutcome, Time, Timeouts, TimerName,
};

mod lanes;
mod questions;
mod session;
mod writing;

use questions::Greeting;
use writing::Writing;

/// The most links on which a first message may be awaited at once.
const MAX_GREETING: usize = 16;

/// The most jobs of ended sessions that may still be under way when a new session begins.
const MAX_STALE_JOBS: u32 = 4;

/// The most refusals that may wait for a journal that cannot be written before no session begins.
const MAX_DEBTS: usize = 64;

/// One link of the target process; numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetEvent {
    /// A link was accepted.
    Opened(LinkId),
    /// A message came on a link.
    Received(LinkId, ToTarget),
    /// Page data came on a link: at least once in each `silence` timeout while it does.
    Heard(LinkId),
    /// A link is gone, or what comes on it cannot be read or kept any further. In the second case
    /// ([`LinkFault::Garbled`], [`LinkFault::Machine`]) it may still carry a last word: what is sent on it is tried.
    LinkLost(LinkId, LinkFault),
    /// [`TargetAction::Judge`] is done.
    Judged(Verdict),
    /// [`TargetAction::Build`] is done.
    Built,
    /// [`TargetAction::HashMemory`] is done.
    Hashed([u8; 32]),
    /// [`TargetAction::Restore`] is done.
    Restored,
    /// The oldest [`TargetAction::Journal`] that is not answered yet is done: the record is on disk, or
    /// why it cannot be. Apart from the order of the other jobs.
    JournalDone(Result<(), String>),
    /// [`TargetAction::Claim`] is done.
    Claimed(ClaimAnswer),
    /// [`TargetAction::RunGuest`] is done: the guest runs.
    GuestRuns,
    /// The oldest job that is not answered yet failed. For [`TargetAction::RunGuest`]: no vCPU ran.
    Failed(String),
    /// The user wants the session to end.
    Cancel,
    /// Time passed; a deadline may be over.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetAction {
    /// Send a message on a link.
    Send(LinkId, ToSource),
    /// Close a link once everything sent on it has left. No event of it may come later.
    Close(LinkId),
    /// The link carries pages of the session from now on.
    TakeLane(LinkId),
    /// Hold the machine against this host.
    Judge(MachineDescription),
    /// Build the machine with memory and vCPUs; from now on its pages may come.
    Build {
        /// The machine.
        machine: MachineDescription,
        /// Where pages will come: memory that had better be provided now.
        written: Vec<RegionSpan>,
    },
    /// Hash all memory.
    HashMemory,
    /// Restore the state, check it, take what only one host may hold.
    Restore {
        /// How many sections the source sent.
        sections: u32,
    },
    /// Write a record into the journal and make it last; answer [`TargetEvent::JournalDone`].
    Journal(Record),
    /// Write a note into the journal, when there is time; nobody waits for it.
    Note(Record),
    /// Claim the guest from the witness; answer [`TargetEvent::Claimed`].
    Claim(Claim),
    /// Custody is here: run the guest.
    RunGuest {
        /// The guest.
        guest: GuestId,
        /// The epoch under which it runs.
        epoch: Epoch,
    },
    /// Drop the machine that never ran, and what it took.
    Discard,
    /// A session is over. The process may wait for the next one, unless the guest runs here.
    Finish(TargetOutcome),
}

/// Where a target is; the names are those of the table in `docs/guarantees.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetPhase {
    /// No session: the process waits for a guest, or has one.
    Waiting,
    /// The offer is awaited.
    Hello,
    /// The machine is held against this host.
    Offer,
    /// The machine is being built.
    Build,
    /// Pages and state come.
    Receive,
    /// The state is being restored and checked.
    Restore,
    /// The target said ready; custody is awaited.
    Ready,
    /// Custody came; the guest is being started.
    Taking,
    /// The guest runs; the source's release is awaited.
    Running,
}

impl TargetPhase {
    /// Every phase, in order.
    pub const ALL: [Self; 9] = [
        Self::Waiting,
        Self::Hello,
        Self::Offer,
        Self::Build,
        Self::Receive,
        Self::Restore,
        Self::Ready,
        Self::Taking,
        Self::Running,
    ];

    /// The phase's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Hello => "hello",
            Self::Offer => "offer",
            Self::Build => "build",
            Self::Receive => "receive",
            Self::Restore => "restore",
            Self::Ready => "ready",
            Self::Taking => "taking",
            Self::Running => "running",
        }
    }
}

/// One migration, from the source's hello to its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    link: LinkId,
    guest: GuestId,
    of: OfEpoch,
    phase: TargetPhase,
    deadline: Option<(Time, TimerName)>,
    /// A job was asked for and is not answered yet.
    job: bool,
    /// The witness is being asked: the guest is not being started yet.
    claiming: bool,
    offer: Option<Offer>,
    /// The links that carry pages beside the session's own, by number; until the last round is over.
    lanes: BTreeMap<u8, LinkId>,
    next_round: u32,
    last_round_done: bool,
    hash: HashCheck,
}

/// The comparison of the memory hashes: both sides hash at the same time, after the last round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct HashCheck {
    /// The source's.
    expected: Option<[u8; 32]>,
    /// This side's.
    found: Option<[u8; 32]>,
    /// The state is complete: it is restored once the hashes were compared.
    sections: Option<u32>,
}

/// A process that waits for a guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    instance: InstanceId,
    program: String,
    expected: Option<GuestId>,
    timeouts: Timeouts,
    ledger: Ledger,
    past: Past,
    /// Records that are being written, the oldest first.
    writing: VecDeque<Writing>,
    has_witness: bool,
    rules: Rules,
    session: Option<Session>,
    /// Jobs of sessions that are over: their answers come before those of later jobs and mean nothing.
    stale_jobs: u32,
    /// Links without a session.
    greeting: BTreeMap<LinkId, Greeting>,
}

impl Target {
    /// A process that waits for any guest, or for one of a certain name.
    pub fn new(instance: InstanceId, expected: Option<GuestId>, timeouts: Timeouts) -> Self {
        Self {
            instance,
            program: concat!("ferry ", env!("CARGO_PKG_VERSION")).into(),
            expected,
            timeouts,
            ledger: Ledger::default(),
            past: Past::default(),
            writing: VecDeque::new(),
            has_witness: false,
            rules: Rules::default(),
            session: None,
            stale_jobs: 0,
            greeting: BTreeMap::new(),
        }
    }

    /// A process that knows what those before it in its place wrote.
    #[must_use]
    pub fn with_past(mut self, past: Past) -> Self {
        self.past = past;
        self
    }

    /// A process that can reach a witness.
    #[must_use]
    pub fn with_witness(mut self) -> Self {
        self.has_witness = true;
        self
    }

    /// For checkers: the rules that are kept.
    #[doc(hidden)]
    #[must_use]
    pub fn with_rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Where the session is.
    pub fn phase(&self) -> TargetPhase {
        self.session.as_ref().map_or(TargetPhase::Waiting, |session| session.phase)
    }

    /// What this process did with the epochs that it was offered.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The guest and epoch of the present session.
    pub fn guest(&self) -> Option<(&GuestId, Epoch)> {
        self.session.as_ref().map(|session| (&session.guest, session.of.epoch))
    }

    /// The link of the present session.
    pub fn session_link(&self) -> Option<LinkId> {
        self.session.as_ref().map(|session| session.link)
    }

    /// The life of the source process of the present session, once its offer came.
    pub fn session_source(&self) -> Option<InstanceId> {
        self.session.as_ref()?.offer.as_ref()?.from
    }

    /// The guest of the present session.
    pub fn session_guest(&self) -> Option<&GuestId> {
        self.session.as_ref().map(|session| &session.guest)
    }

    /// The next deadline and its name: step with [`TargetEvent::Tick`] at that time at the latest.
    pub fn deadline(&self) -> Option<(Time, TimerName)> {
        let session = self.session.as_ref().and_then(|session| session.deadline);
        let greeting = self
            .greeting
            .values()
            .map(|greeting| (greeting.until, TimerName::Hello))
            .min_by_key(|&(at, _)| at);
        [session, greeting].into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// Takes one event and gives the actions that follow.
    pub fn step(&mut self, now: Time, event: TargetEvent) -> Vec<TargetAction> {
        match event {
            TargetEvent::Opened(link) => self.on_opened(now, link),
            TargetEvent::Received(link, message) if self.is_sessions(link) => self.on_message(now, message),
            TargetEvent::Received(link, message) if self.greeting.contains_key(&link) => {
                self.on_first_message(now, link, message)
            }
            TargetEvent::Heard(link) if self.is_sessions(link) || self.is_lane(link) => self.on_heard(now),
            TargetEvent::Received(link, _) if self.is_lane(link) => {
                self.end_session(Cause::Misbehaved("the source sent a message on a lane".into()))
            }
            TargetEvent::Received(..) | TargetEvent::Heard(_) => Vec::new(),
            TargetEvent::LinkLost(link, fault) => {
                let greets = self.greeting.remove(&link).is_some();
                match fault {
                    fault if self.is_sessions(link) => self.on_session_link_lost(fault),
                    fault if self.is_lane(link) => self.on_lane_lost(&fault),
                    LinkFault::Garbled(text) if greets => {
                        turn_away(link, Reason::new(ReasonKind::Misbehaved, text))
                    }
                    _ => Vec::new(),
                }
            }
            TargetEvent::Tick => self.on_tick(now),
            TargetEvent::Cancel => self.on_cancel(),
            TargetEvent::JournalDone(result) => self.on_journal_done(now, result),
            job => self.on_job_done(now, job),
        }
    }

    fn is_sessions(&self, link: LinkId) -> bool {
        self.session.as_ref().is_some_and(|session| session.link == link)
    }

    fn on_opened(&mut self, now: Time, link: LinkId) -> Vec<TargetAction> {
        let mut actions = Vec::new();
        if self.greeting.len() >= MAX_GREETING {
            // Silent links must not keep a source out: the one that has been silent longest goes. Who
            // was told that the guest runs stays for its release.
            let silent = self.greeting.iter().filter(|(_, greeting)| greeting.asked.is_none());
            match silent.min_by_key(|(link, greeting)| (greeting.until, **link)).map(|(&link, _)| link) {
                Some(oldest) => {
                    self.greeting.remove(&oldest);
                    actions.push(TargetAction::Close(oldest));
                }
                None => return vec![TargetAction::Close(link)],
            }
        }
        self.greeting.insert(link, Greeting { until: now.after(self.timeouts.hello), asked: None });
        actions
    }

    fn on_first_message(&mut self, now: Time, link: LinkId, message: ToTarget) -> Vec<TargetAction> {
        match message {
            ToTarget::Hello(hello) => {
                self.greeting.remove(&link);
                self.on_hello(now, link, hello)
            }
            ToTarget::Ask(ask) => self.on_ask(now, link, &ask),
            ToTarget::Lane(lane) => {
                self.greeting.remove(&link);
                self.on_lane(now, link, lane)
            }
            ToTarget::Release(of) if self.may_release(link, of) => {
                self.greeting.remove(&link);
                self.released(link)
            }
            other => {
                self.greeting.remove(&link);
                let text = format!("`{}` is no first message of a link", other.name());
                turn_away(link, Reason::new(ReasonKind::Misbehaved, text))
            }
        }
    }

    fn on_hello(&mut self, now: Time, link: LinkId, hello: Hello) -> Vec<TargetAction> {
        let version = hello.version_max.min(*VERSIONS.end());
        if version < hello.version_min.max(*VERSIONS.start()) {
            let text = format!(
                "the source speaks the protocol versions {} to {}, this target {} to {}: use a release of Ferry in between",
                hello.version_min,
                hello.version_max,
                VERSIONS.start(),
                VERSIONS.end()
            );
            return turn_away(link, Reason::new(ReasonKind::Incompatible, text));
        }
        if let Some(reason) = self.reason_to_turn_away(&hello.guest) {
            return turn_away(link, reason);
        }
        let of = OfEpoch { session: hello.session, epoch: hello.epoch };
        if let Some(floor) = self.past.floor(&hello.guest).filter(|&floor| hello.epoch <= floor) {
            // It is no refusal: an earlier process may have run the guest under this epoch.
            let text = format!(
                "epoch {} of guest `{}` is not above {floor}, which was used here before: try again, each attempt offers a higher one",
                hello.epoch, hello.guest
            );
            return turn_away(link, Reason::new(ReasonKind::OldEpoch, text));
        }
        if !self.ledger.may_take(&hello.guest, hello.epoch) {
            self.ledger.answer(&hello.guest, hello.epoch);
            let text = format!(
                "epoch {} of guest `{}` was refused here before: try again, the next attempt offers a higher one",
                hello.epoch, hello.guest
            );
            let reason = Reason::new(ReasonKind::OldEpoch, text);
            let refused = ToSource::Refused(Refused { of, reason });
            let words = vec![TargetAction::Send(link, refused), TargetAction::Close(link)];
            return self.after_refusal(&hello.guest, hello.epoch, words);
        }
        self.session = Some(Session {
            link,
            guest: hello.guest,
            of,
            phase: TargetPhase::Hello,
            deadline: Some((now.after(self.timeouts.offer), TimerName::Offer)),
            job: false,
            claiming: false,
            offer: None,
            lanes: BTreeMap::new(),
            next_round: 0,
            last_round_done: false,
            hash: HashCheck::default(),
        });
        let hello = TargetHello { version, instance: self.instance, program: self.program.clone() };
        vec![TargetAction::Send(link, ToSource::Hello(hello))]
    }

    fn reason_to_turn_away(&self, guest: &GuestId) -> Option<Reason> {
        if let Some((taken, _)) = self.ledger.taken() {
            let text = format!("this target already has the guest `{taken}`: start another `ferry receive`");
            return Some(Reason::new(ReasonKind::Busy, text));
        }
        if let Some(session) = &self.session {
            let text = format!("this target is taking the guest `{}`: try again later", session.guest);
            return Some(Reason::new(ReasonKind::Busy, text));
        }
        if self.ledger.debts() >= MAX_DEBTS {
            let text = "this target's journal cannot be written: make room on its disk, then try again";
            return Some(Reason::new(ReasonKind::Machine, text));
        }
        if self.stale_jobs >= MAX_STALE_JOBS {
            let text = "this target is still busy with migrations that failed: try again later";
            return Some(Reason::new(ReasonKind::Busy, text));
        }
        let expected = self.expected.as_ref().filter(|&expected| expected != guest)?;
        let text = format!("this target waits for the guest `{expected}`, not for `{guest}`");
        Some(Reason::new(ReasonKind::Busy, text))
    }

    fn on_tick(&mut self, now: Time) -> Vec<TargetAction> {
        let late: Vec<_> = self
            .greeting
            .iter()
            .filter(|(_, greeting)| now >= greeting.until)
            .map(|(&link, _)| link)
            .collect();
        let mut actions: Vec<_> = late.iter().map(|&link| TargetAction::Close(link)).collect();
        self.greeting.retain(|_, greeting| now < greeting.until);
        if let Some((at, timer)) = self.session.as_ref().and_then(|session| session.deadline)
            && now >= at
        {
            actions.extend(self.on_session_timeout(timer));
        }
        actions
    }
}

fn turn_away(link: LinkId, reason: Reason) -> Vec<TargetAction> {
    vec![TargetAction::Send(link, ToSource::Abort(reason)), TargetAction::Close(link)]
}
