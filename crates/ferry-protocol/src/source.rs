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

use crate::journal::{Choice, MayBeGiven, OfGuest, Record};
use crate::message::{
    Ask, Hello, Known, MAX_LANES, MAX_WRITTEN, MemoryHash, OfEpoch, Offer, Reason, ReasonKind, RoundEnd,
    StateEnd, ToSource, ToTarget, VERSIONS,
};
use crate::precopy::{Decision, Precopy, RoundFigures};
use crate::{Cause, Epoch, InstanceId, SourceOutcome, Time, Timeouts, TimerName};

/// The job or message that the machine waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wait {
    Link,
    Hello,
    Verdict,
    Built,
    /// "May be given" is being made to last.
    Journal,
    Lanes,
    Log,
    Round {
        round: u32,
        since: Time,
        last: bool,
    },
    /// The target has all of a live round. Without it the pause could come while megabytes are still
    /// under way, and the guest would wait for them.
    Taken {
        round: u32,
        since: Time,
        data_pages: u64,
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
    /// One-way: what was sent is made to last.
    Sealed,
    Running,
    /// One-way: custody is being written.
    Written,
    Answer(Question),
    /// The witness is asked for the guest.
    Claim,
    /// A person's choice is being made to last. What the target says until then counts more.
    Deciding {
        answer: Option<Answer>,
    },
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

/// A word of the target that settles who has the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Answer {
    Runs,
    Refused(Reason),
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
    /// When a pause has lasted too long; gone once custody was given.
    paused_until: Option<Time>,
    /// When the outcome becomes ambiguous; gone once that was said.
    settle: Option<Time>,
    linked: bool,
    /// That custody may be given is, or may be, in the journal.
    journaled: bool,
    /// What the place where the target was knows, if it answered that it does not know.
    known: Option<Known>,
    /// A person's choice that waits for the end of a question, since the target may yet answer, or is
    /// being made to last.
    choice: Option<PersonsChoice>,
    /// Why the guest comes back, while the witness has still to say so.
    returns: Option<Cause>,
    /// The epoch under which it comes back, if that is above the one under which it was paused.
    raised: Option<Epoch>,
    /// The witness gave the guest to the target.
    lost: bool,
    log_started: bool,
    paused: bool,
    resources_released: bool,
}

mod asking;
mod deciding;
mod ending;
mod one_way;
mod terms;

pub(crate) use ending::reason_of;
pub use terms::{
    MAX_REASON_BYTES, PersonsChoice, ReasonError, SourceAction, SourceConfig, SourceEvent, SourcePhase,
};

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
            paused_until: None,
            settle: None,
            linked: false,
            journaled: false,
            known: None,
            choice: None,
            returns: None,
            raised: None,
            lost: false,
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
            Wait::Built | Wait::Journal | Wait::Lanes => SourcePhase::Build,
            Wait::Log | Wait::Round { last: false, .. } | Wait::Taken { .. } | Wait::Harvest { .. } => {
                SourcePhase::Rounds
            }
            Wait::Pause { .. } => SourcePhase::Pause,
            Wait::Released { .. }
            | Wait::LastHarvest { .. }
            | Wait::Round { last: true, .. }
            | Wait::Hash => SourcePhase::LastRound,
            Wait::State => SourcePhase::State,
            Wait::Ready | Wait::Sealed => SourcePhase::Ready,
            Wait::Running | Wait::Written => SourcePhase::Given,
            Wait::Answer(_) | Wait::Claim | Wait::Deciding { .. } => SourcePhase::Asking,
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
        matches!(self.phase(), SourcePhase::Given | SourcePhase::Asking)
    }

    /// The person's choice that was heard and is not followed yet: it waits for the end of a question, or is
    /// being made to last.
    pub fn choice(&self) -> Option<Choice> {
        self.choice.as_ref().map(|choice| choice.choice)
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
        let paused = self.paused_until.map(|at| (at, TimerName::Paused));
        [self.deadline, total, paused, settle, question].into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// Takes one event and gives the actions that follow.
    pub fn step(&mut self, now: Time, event: SourceEvent) -> Vec<SourceAction> {
        if let SourceEvent::Decide(decision) = event {
            return self.on_decision(decision);
        }
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
        if let Err(error) = self.config.machine.check() {
            return self.fail(Cause::Machine(format!("the guest's own description is wrong: {error}")), true);
        }
        self.total = Some(now.after(self.config.timeouts.total));
        if self.config.one_way {
            return self.begin_one_way();
        }
        self.await_message(Wait::Hello, now, self.config.timeouts.hello, TimerName::Hello);
        vec![self.hello()]
    }

    fn hello(&self) -> SourceAction {
        SourceAction::Send(ToTarget::Hello(Hello {
            version_min: *VERSIONS.start(),
            version_max: *VERSIONS.end(),
            session: self.config.session,
            guest: self.config.guest.clone(),
            epoch: self.config.epoch,
            program: self.config.program.clone(),
        }))
    }

    fn offer(&self) -> SourceAction {
        let (machine, verify) = (self.config.machine.clone(), self.config.verify);
        let written = self.config.written.iter().take(MAX_WRITTEN).copied().collect();
        SourceAction::Send(ToTarget::Offer(Offer {
            machine,
            verify,
            lanes: self.lanes(),
            written,
            witness: self.config.witness,
            to: self.instance,
            from: self.config.instance,
        }))
    }

    /// From here on custody may be given: a later life of this process has to know it. Long before the
    /// pause, so that no disk is waited for in the downtime.
    fn journal(&mut self) -> SourceAction {
        self.await_job(Wait::Journal);
        self.journaled = true;
        SourceAction::Journal(Record::MayBeGiven(MayBeGiven {
            guest: self.config.guest.clone(),
            of: self.offered(),
            to: self.instance,
            address: self.config.address.clone(),
        }))
    }

    fn on_message(&mut self, now: Time, message: ToSource) -> Vec<SourceAction> {
        match (&self.wait, message) {
            (Wait::Hello, ToSource::Hello(hello)) if VERSIONS.contains(&hello.version) => {
                self.instance = Some(hello.instance);
                self.await_message(Wait::Verdict, now, self.config.timeouts.verdict, TimerName::Verdict);
                vec![self.offer()]
            }
            (Wait::Verdict, ToSource::Verdict(verdict)) => {
                self.verdict = Some(verdict.clone());
                if verdict.is_refusal() {
                    return self.fail(Cause::Refused(verdict), false);
                }
                self.await_message(Wait::Built, now, self.config.timeouts.build, TimerName::Build);
                Vec::new()
            }
            (Wait::Built, ToSource::Built) => vec![self.journal()],
            (&Wait::Taken { round, since, data_pages }, ToSource::RoundTaken(taken))
                if taken.round == round =>
            {
                vec![self.harvest_after(now, round, since, data_pages)]
            }
            (Wait::Ready, ToSource::Ready) => self.give(now),
            (_, ToSource::Refused(refused)) if refused.of == self.offered() => {
                self.fail(Cause::Peer(refused.reason), false)
            }
            (Wait::Hello, ToSource::Abort(reason)) if reason.kind == ReasonKind::Incompatible => {
                self.fail(Cause::OtherProtocol(reason.text), false)
            }
            (_, ToSource::Abort(reason)) => self.fail(Cause::Peer(reason), false),
            (Wait::Hello, ToSource::Hello(hello)) => {
                let (ours, theirs) = (VERSIONS, hello.version);
                let text = format!(
                    "the target chose the protocol version {theirs}, this source speaks {} to {}",
                    ours.start(),
                    ours.end()
                );
                self.fail(Cause::OtherProtocol(text), true)
            }
            (_, message) => {
                let (name, phase) = (message.name(), self.phase().name());
                self.fail(Cause::Misbehaved(format!("the target sent `{name}` in phase `{phase}`")), true)
            }
        }
    }

    fn on_job_done(&mut self, now: Time, event: SourceEvent) -> Vec<SourceAction> {
        match (self.wait.clone(), event) {
            (Wait::Journal, SourceEvent::Journaled) if self.lanes() > 1 => {
                self.await_job(Wait::Lanes);
                vec![SourceAction::OpenLanes { lanes: self.lanes() }]
            }
            (Wait::Journal, SourceEvent::Journaled) | (Wait::Lanes, SourceEvent::LanesOpen) => {
                self.await_job(Wait::Log);
                vec![SourceAction::StartLog]
            }
            (Wait::Log, SourceEvent::LogStarted) => {
                self.log_started = true;
                self.send_round(now, 0, false)
            }
            (Wait::Round { round, since, last }, SourceEvent::RoundSent { data_pages, zero_pages }) => {
                let end = ToTarget::RoundEnd(RoundEnd { round, data_pages, zero_pages, last });
                let mut actions = vec![SourceAction::Send(end)];
                if last {
                    actions.push(self.after_last_round());
                } else if self.config.one_way {
                    // Nobody says that it was taken: a file has what was written.
                    actions.push(self.harvest_after(now, round, since, data_pages));
                } else {
                    let wait = Wait::Taken { round, since, data_pages };
                    self.await_message(wait, now, self.config.timeouts.silence, TimerName::Silence);
                }
                actions
            }
            (Wait::Harvest { after, figures }, SourceEvent::Harvested { dirty_pages }) => {
                let decision = self.precopy.after_round(figures, dirty_pages);
                self.follow_up(now, after.saturating_add(1), decision)
            }
            (Wait::Harvest { after, figures }, SourceEvent::DisksBehind { dirty_pages, sync }) => {
                let decision = self.precopy.disks_behind(figures, dirty_pages, sync);
                self.follow_up(now, after.saturating_add(1), decision)
            }
            (Wait::Pause { round }, SourceEvent::Paused) => {
                self.paused = true;
                self.paused_until = Some(now.after(self.config.timeouts.paused + self.hash_allowance()));
                self.await_job(Wait::Released { round });
                vec![SourceAction::ReleaseResources]
            }
            (Wait::Pause { .. }, SourceEvent::PausedInVain(text)) => {
                self.paused = true;
                self.undo(Cause::Machine(text), true, false)
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
            (Wait::State, SourceEvent::StateSent { sections }) if self.config.one_way => self.seal(sections),
            (Wait::Sealed, SourceEvent::Sealed) => self.give(now),
            (Wait::State, SourceEvent::StateSent { sections }) => {
                let within = self.config.timeouts.ready + self.hash_allowance();
                self.await_message(Wait::Ready, now, within, TimerName::Ready);
                vec![SourceAction::Send(ToTarget::StateEnd(StateEnd { sections }))]
            }
            // The caller reports a job that nobody waits for any more, for example a round that was
            // under way when the migration failed: it changes nothing.
            _ => Vec::new(),
        }
    }

    /// A live round is over: its figures are complete.
    fn harvest_after(&mut self, now: Time, round: u32, since: Time, data_pages: u64) -> SourceAction {
        let figures = RoundFigures { bytes: data_pages.saturating_mul(4096), duration: now.since(since) };
        self.await_job(Wait::Harvest { after: round, figures });
        SourceAction::Harvest { last: false }
    }

    fn after_last_round(&mut self) -> SourceAction {
        if self.config.verify {
            self.await_job(Wait::Hash);
            SourceAction::HashMemory
        } else {
            self.await_job(Wait::State);
            SourceAction::SendState
        }
    }

    fn follow_up(&mut self, now: Time, round: u32, decision: Decision) -> Vec<SourceAction> {
        match decision {
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

    fn hash_allowance(&self) -> Duration {
        let bytes = if self.config.verify { self.config.machine.moved_bytes() } else { 0 };
        Timeouts::hash_allowance(bytes)
    }

    fn lanes(&self) -> u8 {
        if self.config.one_way { 1 } else { self.config.lanes.clamp(1, MAX_LANES) }
    }

    fn of_guest(&self) -> OfGuest {
        OfGuest { guest: self.config.guest.clone(), epoch: self.config.epoch }
    }

    fn offered(&self) -> OfEpoch {
        OfEpoch { session: self.config.session, epoch: self.config.epoch }
    }
}
