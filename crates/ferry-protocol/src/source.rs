//! The source's decisions.
//!
//! [`Source::step`] takes an event and the time and gives the actions that follow. The caller
//! carries them out in order and reports each job (everything but sends and notes) with the event
//! that its documentation names: each job once, in the order of their asking. Only what sends
//! ([`SourceAction::SendRound`], [`SourceAction::SendState`]) goes unanswered when its link is lost or
//! an action that follows makes it pointless (`Disconnect`, `Resume`, `Finish`). The point of no return is [`SourceAction::Give`]: before it every
//! failure leads back to a guest that runs here, after it only the target's refusal does.

use std::time::Duration;

use ferry_contract::Verdict;

use crate::message::{
    Ask, Hello, MemoryHash, OfEpoch, Offer, Reason, ReasonKind, RoundEnd, StateEnd, ToSource, ToTarget,
    VERSIONS,
};
use crate::outcome::LinkFault;
use crate::precopy::{Decision, Precopy, RoundFigures};
use crate::{
    Cause, Epoch, GuestId, InstanceId, MachineDescription, SessionId, SourceOutcome, Time, Timeouts,
    TimerName,
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
    /// Whether both sides hash all memory after the pause.
    pub verify: bool,
    /// The guest is paused when the rest is predicted to take at most this long.
    pub downtime_limit: Duration,
    /// How long each wait may last.
    pub timeouts: Timeouts,
    /// The program and its version, for people on the other side.
    pub program: String,
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
            verify: false,
            downtime_limit: Self::DOWNTIME_LIMIT,
            timeouts: Timeouts::default(),
            program: concat!("ferry ", env!("CARGO_PKG_VERSION")).into(),
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
    /// [`SourceAction::Pause`] is done.
    Paused,
    /// [`SourceAction::ReleaseResources`] is done.
    ResourcesReleased,
    /// [`SourceAction::HashMemory`] is done.
    Hashed([u8; 32]),
    /// [`SourceAction::SendState`] is done.
    StateSent {
        /// Sections sent.
        sections: u32,
    },
    /// [`SourceAction::Resume`] is done.
    Resumed,
    /// The oldest job that is not answered yet failed; the machine is as it was before that job.
    Failed(String),
    /// The user wants the migration to end.
    Cancel,
    /// Time passed; a deadline may be over.
    Tick,
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
    /// Give custody of this epoch away and say so with the message [`ToTarget::Custody`], in one
    /// indivisible step. The guest cannot be resumed after it.
    Give(OfEpoch),
    /// The target refused for ever what was given: custody is here again.
    TakeBack,
    /// Run the guest again as before.
    Resume {
        /// Whether resources were released and must be taken again first.
        take_resources: bool,
    },
    /// The target runs the guest: let it go.
    ReleaseGuest,
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
    /// The target restores and checks.
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

/// The job or message that the machine waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wait {
    Link,
    Hello,
    Verdict,
    Built,
    Log,
    Round {
        round: u32,
        since: Time,
        last: bool,
    },
    Harvest {
        after: u32,
        figures: RoundFigures,
    },
    Pause {
        round: u32,
    },
    Released {
        round: u32,
    },
    LastHarvest {
        round: u32,
    },
    Hash,
    State,
    Ready,
    Running,
    Answer(Question),
    /// The migration failed while the guest was being paused, or its resources released: the answer
    /// of that job says what is to be undone.
    Halted {
        cause: Cause,
        tell: bool,
    },
    /// `stale`: an earlier job is still to be answered first.
    Resumed {
        cause: Cause,
        tell: bool,
        stale: bool,
    },
    Nothing,
}

/// How far the question who runs the guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Question {
    Linking,
    Asked { until: Time },
    Resting { until: Time },
}

/// The source of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    config: SourceConfig,
    wait: Wait,
    precopy: Precopy,
    instance: Option<InstanceId>,
    verdict: Option<Verdict>,
    /// The deadline of the present wait.
    deadline: Option<(Time, TimerName)>,
    /// The deadline of the whole migration; gone once custody was given.
    total: Option<Time>,
    /// When the outcome becomes ambiguous; gone once that was said.
    settle: Option<Time>,
    linked: bool,
    log_started: bool,
    paused: bool,
    resources_released: bool,
}

mod asking;
mod ending;

pub(crate) use ending::reason_of;

impl Source {
    /// A source whose caller is making the link: the next event is [`SourceEvent::Connected`] or
    /// [`SourceEvent::ConnectFailed`].
    pub fn new(config: SourceConfig) -> Self {
        let precopy = Precopy::new(config.downtime_limit);
        Self {
            config,
            wait: Wait::Link,
            precopy,
            instance: None,
            verdict: None,
            deadline: None,
            total: None,
            settle: None,
            linked: false,
            log_started: false,
            paused: false,
            resources_released: false,
        }
    }

    /// Where the migration is.
    pub fn phase(&self) -> SourcePhase {
        match self.wait {
            Wait::Link => SourcePhase::Connect,
            Wait::Hello => SourcePhase::Hello,
            Wait::Verdict => SourcePhase::Offer,
            Wait::Built => SourcePhase::Build,
            Wait::Log | Wait::Round { last: false, .. } | Wait::Harvest { .. } => SourcePhase::Rounds,
            Wait::Pause { .. } => SourcePhase::Pause,
            Wait::Released { .. }
            | Wait::LastHarvest { .. }
            | Wait::Round { last: true, .. }
            | Wait::Hash => SourcePhase::LastRound,
            Wait::State => SourcePhase::State,
            Wait::Ready => SourcePhase::Ready,
            Wait::Running => SourcePhase::Given,
            Wait::Answer(_) => SourcePhase::Asking,
            Wait::Halted { .. } | Wait::Resumed { .. } => SourcePhase::Undo,
            Wait::Nothing => SourcePhase::Done,
        }
    }

    /// The target's verdict, once it came.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Whether custody was given away and not taken back.
    pub fn has_given(&self) -> bool {
        matches!(self.wait, Wait::Running | Wait::Answer(_))
    }

    /// The next deadline and its name: step with [`SourceEvent::Tick`] at that time at the latest.
    pub fn deadline(&self) -> Option<(Time, TimerName)> {
        let question = match self.wait {
            Wait::Answer(Question::Asked { until } | Question::Resting { until }) => {
                Some((until, TimerName::Ask))
            }
            _ => None,
        };
        let total = self.total.map(|at| (at, TimerName::Total));
        let settle = self.settle.map(|at| (at, TimerName::Settle));
        [self.deadline, total, settle, question].into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// Takes one event and gives the actions that follow.
    pub fn step(&mut self, now: Time, event: SourceEvent) -> Vec<SourceAction> {
        match self.phase() {
            SourcePhase::Done => Vec::new(),
            SourcePhase::Undo => self.on_undo(event),
            SourcePhase::Given | SourcePhase::Asking => self.on_given(now, event),
            _ => self.on_before_custody(now, event),
        }
    }

    fn on_before_custody(&mut self, now: Time, event: SourceEvent) -> Vec<SourceAction> {
        match event {
            SourceEvent::Received(message) => self.on_message(now, message),
            SourceEvent::Connected if self.wait == Wait::Link => self.on_connected(now),
            SourceEvent::ConnectFailed(text) if self.wait == Wait::Link => {
                self.fail(Cause::NotReached(text), false)
            }
            SourceEvent::LinkLost(fault) => {
                self.linked = false;
                self.fail(fault.into(), false)
            }
            SourceEvent::Failed(text) => self.undo(Cause::Machine(text), true, false),
            SourceEvent::Cancel => self.fail(Cause::Cancelled, true),
            SourceEvent::Tick => match self.deadline() {
                Some((at, timer)) if now >= at => self.fail(Cause::TimedOut(timer), true),
                _ => Vec::new(),
            },
            done => self.on_job_done(now, done),
        }
    }

    fn on_connected(&mut self, now: Time) -> Vec<SourceAction> {
        self.linked = true;
        self.total = Some(now.after(self.config.timeouts.total));
        self.await_message(Wait::Hello, now, self.config.timeouts.hello, TimerName::Hello);
        vec![SourceAction::Send(ToTarget::Hello(Hello {
            version_min: *VERSIONS.start(),
            version_max: *VERSIONS.end(),
            session: self.config.session,
            guest: self.config.guest.clone(),
            epoch: self.config.epoch,
            program: self.config.program.clone(),
        }))]
    }

    fn on_message(&mut self, now: Time, message: ToSource) -> Vec<SourceAction> {
        match (&self.wait, message) {
            (Wait::Hello, ToSource::Hello(hello)) if VERSIONS.contains(&hello.version) => {
                self.instance = Some(hello.instance);
                self.await_message(Wait::Verdict, now, self.config.timeouts.verdict, TimerName::Verdict);
                let (machine, verify) = (self.config.machine.clone(), self.config.verify);
                vec![SourceAction::Send(ToTarget::Offer(Offer { machine, verify }))]
            }
            (Wait::Verdict, ToSource::Verdict(verdict)) => {
                self.verdict = Some(verdict.clone());
                if verdict.is_refusal() {
                    return self.fail(Cause::Refused(verdict), false);
                }
                self.await_message(Wait::Built, now, self.config.timeouts.build, TimerName::Build);
                Vec::new()
            }
            (Wait::Built, ToSource::Built) => {
                self.await_job(Wait::Log);
                vec![SourceAction::StartLog]
            }
            (Wait::Ready, ToSource::Ready) => self.give(now),
            (_, ToSource::Refused(refused)) if refused.of == self.offered() => {
                self.fail(Cause::Peer(refused.reason), false)
            }
            (Wait::Hello, ToSource::Abort(reason)) if reason.kind == ReasonKind::Incompatible => {
                self.fail(Cause::OtherProtocol(reason.text), false)
            }
            (_, ToSource::Abort(reason)) => self.fail(Cause::Peer(reason), false),
            (_, message) => {
                let (name, phase) = (message.name(), self.phase().name());
                self.fail(Cause::Misbehaved(format!("the target sent `{name}` in phase `{phase}`")), true)
            }
        }
    }

    fn on_job_done(&mut self, now: Time, event: SourceEvent) -> Vec<SourceAction> {
        match (self.wait.clone(), event) {
            (Wait::Log, SourceEvent::LogStarted) => {
                self.log_started = true;
                self.send_round(now, 0, false)
            }
            (Wait::Round { round, since, last }, SourceEvent::RoundSent { data_pages, zero_pages }) => {
                let end = ToTarget::RoundEnd(RoundEnd { round, data_pages, zero_pages, last });
                let figures =
                    RoundFigures { bytes: data_pages.saturating_mul(4096), duration: now.since(since) };
                vec![SourceAction::Send(end), self.after_round_sent(round, last, figures)]
            }
            (Wait::Harvest { after, figures }, SourceEvent::Harvested { dirty_pages }) => {
                self.decide(now, after.saturating_add(1), figures, dirty_pages)
            }
            (Wait::Pause { round }, SourceEvent::Paused) => {
                self.paused = true;
                self.await_job(Wait::Released { round });
                vec![SourceAction::ReleaseResources]
            }
            (Wait::Released { round }, SourceEvent::ResourcesReleased) => {
                self.resources_released = true;
                self.await_job(Wait::LastHarvest { round });
                vec![SourceAction::Harvest { last: true }]
            }
            (Wait::LastHarvest { round }, SourceEvent::Harvested { .. }) => self.send_round(now, round, true),
            (Wait::Hash, SourceEvent::Hashed(blake3)) => {
                self.await_job(Wait::State);
                vec![SourceAction::Send(ToTarget::MemoryHash(MemoryHash { blake3 })), SourceAction::SendState]
            }
            (Wait::State, SourceEvent::StateSent { sections }) => {
                self.await_message(Wait::Ready, now, self.config.timeouts.ready, TimerName::Ready);
                vec![SourceAction::Send(ToTarget::StateEnd(StateEnd { sections }))]
            }
            // The caller reports a job that nobody waits for any more, for example a round that was
            // under way when the migration failed: it changes nothing.
            _ => Vec::new(),
        }
    }

    fn after_round_sent(&mut self, round: u32, last: bool, figures: RoundFigures) -> SourceAction {
        if !last {
            self.await_job(Wait::Harvest { after: round, figures });
            SourceAction::Harvest { last: false }
        } else if self.config.verify {
            self.await_job(Wait::Hash);
            SourceAction::HashMemory
        } else {
            self.await_job(Wait::State);
            SourceAction::SendState
        }
    }

    fn decide(
        &mut self,
        now: Time,
        round: u32,
        figures: RoundFigures,
        dirty_pages: u64,
    ) -> Vec<SourceAction> {
        match self.precopy.after_round(figures, dirty_pages) {
            Decision::Pause { .. } => {
                self.await_job(Wait::Pause { round });
                vec![SourceAction::Pause]
            }
            Decision::GoOn { predicted, stalled } => {
                let mut actions = self.send_round(now, round, false);
                if stalled {
                    actions.insert(0, SourceAction::NoteStalled(predicted));
                }
                actions
            }
        }
    }

    fn send_round(&mut self, now: Time, round: u32, last: bool) -> Vec<SourceAction> {
        self.await_job(Wait::Round { round, since: now, last });
        vec![SourceAction::SendRound { round, last }]
    }

    fn await_message(&mut self, wait: Wait, now: Time, within: Duration, timer: TimerName) {
        self.wait = wait;
        self.deadline = Some((now.after(within), timer));
    }

    fn await_job(&mut self, wait: Wait) {
        self.wait = wait;
        self.deadline = None;
    }

    fn offered(&self) -> OfEpoch {
        OfEpoch { session: self.config.session, epoch: self.config.epoch }
    }
}
