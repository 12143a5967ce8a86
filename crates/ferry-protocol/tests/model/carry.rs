//! Carries the machines' actions out and answers their jobs, as an engine does.

use ferry_protocol::message::{ToSource, ToTarget};
use ferry_protocol::{
    Claim, ClaimAnswer, InstanceId, LinkFault, LinkId, SourceAction, SourceEvent, SourceOutcome,
    TargetAction, TargetEvent, Time,
};

use super::links::{Item, Link, plain_to_source, plain_to_target};
use super::world::{Ending, Gave, SourceJob, TargetJob, Witness, World, accepted};

impl World {
    pub(crate) fn feed_source(&mut self, event: SourceEvent) {
        self.feed_source_at(Time::ZERO, event);
    }

    pub(crate) fn feed_source_at(&mut self, now: Time, event: SourceEvent) {
        let actions = self.source.change(|source| source.machine.as_mut().map(|m| m.step(now, event)));
        let answers: Vec<_> =
            actions.into_iter().flatten().filter_map(|one| self.carry_source(one)).collect();
        for answer in answers {
            self.feed_source(answer);
        }
    }

    pub(crate) fn feed_target(&mut self, life: usize, event: TargetEvent) {
        self.feed_target_at(Time::ZERO, life, event);
    }

    pub(crate) fn feed_target_at(&mut self, now: Time, life: usize, event: TargetEvent) {
        let actions = self.lives[life].change(|life| life.machine.as_mut().map(|m| m.step(now, event)));
        let actions = actions.into_iter().flatten();
        let answers: Vec<_> = actions.filter_map(|one| self.carry_target(life, one)).collect();
        for answer in answers {
            self.feed_target(life, answer);
        }
    }

    fn send_to_target(&mut self, message: ToTarget) {
        if let Some(number) = self.source.link {
            self.change_link(number, |link| link.to_target.send(plain_to_target(message)));
        }
    }

    /// Whether the job that is answered at once fails.
    fn fails_now(&mut self) -> bool {
        let fails = self.fails == 1;
        self.fails = self.fails.saturating_sub(1);
        fails
    }

    /// Carries an action out; gives the answer of a job that is answered at once.
    fn carry_source(&mut self, action: SourceAction) -> Option<SourceEvent> {
        let ends = matches!(action, SourceAction::TakeBack { .. } | SourceAction::ReleaseGuest);
        if ends && self.source.answered {
            self.broken = Some("a person's choice is followed after the target has answered");
        }
        match action {
            SourceAction::Disconnect => {
                let number = self.source.change(|source| {
                    source.stop_sending();
                    source.link.take()
                });
                if let Some(number) = number {
                    self.change_link(number, |link| {
                        link.to_source.shut();
                        link.to_target.end();
                    });
                }
            }
            SourceAction::Send(message) => self.send_to_target(message),
            SourceAction::Give(of) => {
                let instance = self
                    .source
                    .link
                    .and_then(|number| Some(self.lives[self.links.get(&number)?.life].instance));
                if self.source.runs || self.source.given.is_some() {
                    self.broken = Some("custody was given of a guest that runs, or twice");
                }
                let witness = self.setup.witness.then_some(self.source.held);
                self.source.change(|source| {
                    source.given = instance.map(|instance| (instance, of));
                    source.gave.extend(instance.map(|to| Gave { of, to, witness }));
                });
                self.send_to_target(ToTarget::Custody(of));
            }
            SourceAction::TakeBack { raise_to } => self.source.change(|source| {
                source.given = None;
                if let Some(epoch) = raise_to {
                    (source.epoch, source.held) = (epoch, epoch);
                    source.used = source.used.max(epoch);
                }
            }),
            SourceAction::Note(record) => self.source.change(|source| source.journal.push(record)),
            SourceAction::ReleaseGuest => self.source.change(|source| {
                source.gone = true;
            }),
            SourceAction::NoteAmbiguous => self.source.change(|source| source.ambiguous = true),
            SourceAction::NoteChoiceRefused(_) => {
                self.source.change(|source| source.overruled |= std::mem::take(&mut source.answered));
            }
            SourceAction::StopLog | SourceAction::NoteStalled(_) => {}
            SourceAction::Finish(outcome) => self.source.change(|source| {
                source.jobs.clear();
                source.ending = Some(match outcome {
                    SourceOutcome::Moved { .. } => Ending::Moved,
                    SourceOutcome::Kept { .. } => Ending::Kept,
                    SourceOutcome::Abandoned { .. } => Ending::Abandoned,
                    SourceOutcome::Held { .. } | SourceOutcome::Doubtful { .. } => Ending::Held,
                });
            }),
            job => return self.ask_source_for(&job),
        }
        None
    }

    fn ask_source_for(&mut self, action: &SourceAction) -> Option<SourceEvent> {
        let job = match action {
            SourceAction::Connect => SourceJob::Connect,
            SourceAction::Journal(record) => SourceJob::Journal(record.clone()),
            SourceAction::Pause => SourceJob::Pause,
            SourceAction::Claim(claim) => SourceJob::Claim(claim.clone()),
            SourceAction::Resume { .. } => SourceJob::Resume,
            at_once => {
                let done = match at_once {
                    SourceAction::StartLog => SourceEvent::LogStarted,
                    SourceAction::SendRound { .. } => SourceEvent::RoundSent { data_pages: 1, zero_pages: 0 },
                    SourceAction::Harvest { .. } => SourceEvent::Harvested { dirty_pages: 0 },
                    SourceAction::ReleaseResources => SourceEvent::ResourcesReleased,
                    SourceAction::SendState => SourceEvent::StateSent { sections: 1 },
                    _ => panic!("{at_once:?} is no job of a migration over one link"),
                };
                if !self.setup.slow {
                    return Some(if self.fails_now() { SourceEvent::Failed(String::new()) } else { done });
                }
                let sends = matches!(at_once, SourceAction::SendRound { .. } | SourceAction::SendState);
                SourceJob::Work { done, sends }
            }
        };
        if job == SourceJob::Resume && (self.source.gone || self.source.given.is_some()) {
            self.broken = Some("the source resumes a guest of which it has no custody");
        }
        self.source.change(|source| {
            if job == SourceJob::Resume {
                source.stop_sending();
                // From here on its vCPUs may run.
                source.runs = true;
            }
            source.jobs.push(job);
        });
        None
    }

    /// Answers the oldest job of the source.
    pub(crate) fn source_job(&mut self, success: bool) {
        let job = self.source.change(|source| source.jobs.remove(0));
        let event = match job {
            SourceJob::Connect => self.connect(success),
            SourceJob::Claim(claim) => SourceEvent::Claimed(self.claim(&claim, None, success)),
            job => self.source.change(|source| match job {
                SourceJob::Journal(record) if success => {
                    source.journal.push(record);
                    SourceEvent::Journaled
                }
                SourceJob::Pause if success => {
                    source.runs = false;
                    SourceEvent::Paused
                }
                SourceJob::Resume if success => SourceEvent::Resumed,
                SourceJob::Work { done, .. } if success => done,
                job => {
                    if job == SourceJob::Resume {
                        (source.runs, source.stuck) = (false, true);
                    }
                    SourceEvent::Failed(String::new())
                }
            }),
        };
        self.feed_source(event);
    }

    /// What the witness says. Without success its answer is lost, but the claim was carried out.
    fn claim(&mut self, claim: &Claim, who: Option<InstanceId>, success: bool) -> ClaimAnswer {
        let wanted = Witness { holder: who, epoch: claim.to };
        if self.witness.epoch == claim.from {
            self.witness = wanted;
        }
        match self.witness == wanted {
            _ if !success => ClaimAnswer::Unreached(String::new()),
            true => ClaimAnswer::Won,
            false => ClaimAnswer::Lost,
        }
    }

    /// Whether a link could be made now.
    pub(crate) fn can_connect(&self) -> bool {
        self.address.is_some() && self.links.len() < usize::from(self.setup.links)
    }

    fn connect(&mut self, success: bool) -> SourceEvent {
        match self.address.filter(|_| success && self.can_connect()) {
            None => SourceEvent::ConnectFailed(String::new()),
            Some(life) => {
                let number = self.add_link(Link::new(life));
                self.source.change(|source| source.link = Some(number));
                self.feed_target(life, TargetEvent::Opened(LinkId(number)));
                SourceEvent::Connected
            }
        }
    }

    fn carry_target(&mut self, number: usize, action: TargetAction) -> Option<TargetEvent> {
        match action {
            TargetAction::Send(link, message) => {
                self.change_link(link.0, |link| link.to_source.send(plain_to_source(message)));
            }
            TargetAction::Close(link) => {
                self.change_link(link.0, |link| {
                    link.to_source.end();
                    link.to_target.shut();
                });
            }
            TargetAction::Judge(_) => return self.work(number, TargetEvent::Judged(accepted())),
            TargetAction::Build { .. } => return self.work(number, TargetEvent::Built),
            TargetAction::Restore { .. } => return self.work(number, TargetEvent::Restored),
            TargetAction::Journal(record) => self.lives[number].change(|life| life.writes.push(record)),
            TargetAction::Claim(claim) => {
                self.lives[number].change(|life| life.jobs.push(TargetJob::Claim(claim)));
            }
            TargetAction::RunGuest { epoch, .. } => {
                self.lives[number].change(|life| {
                    life.jobs.push(TargetJob::Run(epoch));
                    // From here on its vCPUs may run.
                    life.runs = true;
                    life.ran = Some(epoch);
                });
            }
            _ => {}
        }
        None
    }

    fn work(&mut self, number: usize, done: TargetEvent) -> Option<TargetEvent> {
        if self.setup.slow {
            self.lives[number].change(|life| life.jobs.push(TargetJob::Work(done)));
            return None;
        }
        Some(if self.fails_now() { TargetEvent::Failed(String::new()) } else { done })
    }

    /// Answers the oldest job of one life of the target.
    pub(crate) fn target_job(&mut self, number: usize, success: bool) {
        let job = self.lives[number].change(|life| life.jobs.remove(0));
        let event = match job {
            TargetJob::Claim(claim) => {
                let who = Some(self.lives[number].instance);
                TargetEvent::Claimed(self.claim(&claim, who, success))
            }
            TargetJob::Work(done) if success => done,
            TargetJob::Work(_) => TargetEvent::Failed(String::new()),
            TargetJob::Run(_) if success => TargetEvent::GuestRuns,
            TargetJob::Run(_) => {
                // No vCPU ran: the trait `Machine` asks for that.
                self.lives[number].change(|life| (life.runs, life.ran) = (false, None));
                TargetEvent::Failed(String::new())
            }
        };
        self.feed_target(number, event);
    }

    /// The source's claim never reaches the witness.
    pub(crate) fn lose_source_claim(&mut self) {
        self.source.change(|source| source.jobs.remove(0));
        self.feed_source(SourceEvent::Claimed(ClaimAnswer::Unreached(String::new())));
    }

    /// A target's claim never reaches the witness.
    pub(crate) fn lose_target_claim(&mut self, number: usize) {
        self.lives[number].change(|life| life.jobs.remove(0));
        self.feed_target(number, TargetEvent::Claimed(ClaimAnswer::Unreached(String::new())));
    }

    /// The oldest record of a target is on disk, or cannot be written.
    pub(crate) fn target_write(&mut self, number: usize, success: bool) {
        self.lives[number].change(|life| {
            let record = life.writes.remove(0);
            if success {
                life.journal.push(record);
            }
        });
        let result = if success { Ok(()) } else { Err(String::new()) };
        self.feed_target(number, TargetEvent::JournalDone(result));
    }

    /// The item at that place arrives at the target.
    pub(crate) fn arrive_at_target(&mut self, number: u64, place: usize) {
        let Some(life) = self.links.get(&number).map(|link| link.life) else { return };
        let item = self.change_link(number, |link| {
            let item = link.to_target.take(place);
            if matches!(item, Some(Item::Lost)) {
                link.to_source.end();
            }
            item
        });
        match item.flatten() {
            None => {}
            Some(Item::Message(message)) => {
                self.feed_target(life, TargetEvent::Received(LinkId(number), message));
            }
            Some(Item::Lost) => {
                self.feed_target(life, TargetEvent::LinkLost(LinkId(number), LinkFault::Closed));
            }
        }
    }

    /// The item at that place arrives at the source.
    pub(crate) fn arrive_at_source(&mut self, number: u64, place: usize) {
        let item = self.change_link(number, |link| {
            let item = link.to_source.take(place);
            if matches!(item, Some(Item::Lost)) {
                link.to_target.end();
            }
            item
        });
        match item.flatten() {
            None => {}
            Some(Item::Message(message)) => {
                self.note_answer(&message);
                self.feed_source(SourceEvent::Received(message));
            }
            Some(Item::Lost) => {
                self.source.change(|source| {
                    source.link = None;
                    source.stop_sending();
                });
                self.feed_source(SourceEvent::LinkLost(LinkFault::Closed));
            }
        }
    }

    /// Notes an answer that comes before a person's choice is followed.
    fn note_answer(&mut self, message: &ToSource) {
        let given = self.source.given.map(|(_, of)| of);
        let answers = match message {
            ToSource::Running(of) => Some(*of) == given,
            ToSource::Refused(refused) => Some(refused.of) == given,
            _ => false,
        };
        if answers && self.source.choice().is_some() {
            self.source.change(|source| source.answered = true);
        }
    }

    /// The source's process dies, and the guest if it was there. What it was just writing is on disk, or
    /// is not.
    pub(crate) fn kill_source(&mut self, written: bool) {
        self.source.change(|source| {
            (source.lives, source.machine, source.runs, source.link) = (false, None, false, None);
            let jobs = std::mem::take(&mut source.jobs);
            source.journal.extend(jobs.into_iter().filter_map(|job| match job {
                SourceJob::Journal(record) if written => Some(record),
                _ => None,
            }));
        });
        for number in self.links.keys().copied().collect::<Vec<_>>() {
            if self.links[&number].to_source.is_open() {
                self.change_link(number, |link| {
                    link.to_source.shut();
                    link.to_target.end();
                });
            }
        }
    }

    /// A process of the target dies, and the guest if it was there.
    pub(crate) fn kill_target(&mut self, number: usize, written: bool) {
        self.lives[number].change(|life| {
            (life.machine, life.runs) = (None, false);
            life.jobs.clear();
            let writes = std::mem::take(&mut life.writes);
            life.journal.extend(writes.into_iter().filter(|_| written).take(1));
        });
        if self.address == Some(number) {
            self.address = None;
        }
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            if self.links[&link].life == number {
                self.change_link(link, |link| {
                    link.to_target.shut();
                    link.to_source.end();
                });
            }
        }
    }
}
