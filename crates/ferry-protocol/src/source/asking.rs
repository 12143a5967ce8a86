//! After custody was given: the source waits, asks again, and resumes only on a refusal.

use super::{
    Answer, Ask, Cause, Known, Question, Record, Source, SourceAction, SourceEvent, SourceOutcome, Time,
    TimerName, ToSource, ToTarget, Wait,
};
use crate::{ClaimAnswer, Rule};

impl Source {
    /// The point of no return.
    pub(super) fn give(&mut self, now: Time) -> Vec<SourceAction> {
        self.total = None;
        self.paused_until = None;
        if self.config.one_way {
            self.await_job(Wait::Written);
            return vec![SourceAction::Give(self.offered())];
        }
        self.await_message(Wait::Running, now, self.config.timeouts.running, TimerName::Running);
        vec![SourceAction::Give(self.offered())]
    }

    pub(super) fn on_given(&mut self, now: Time, event: SourceEvent) -> Vec<SourceAction> {
        if self.wait == Wait::Written {
            return self.on_written(event);
        }
        if let Wait::Deciding { .. } = self.wait {
            return self.on_deciding(now, event);
        }
        match event {
            SourceEvent::Claimed(answer) if self.wait == Wait::Claim => self.on_claimed(now, &answer),
            // The claim may have been carried out all the same.
            SourceEvent::Failed(text) if self.wait == Wait::Claim => {
                self.on_claimed(now, &ClaimAnswer::Unreached(text))
            }
            SourceEvent::Received(message) => self.on_answer(now, &message),
            SourceEvent::LinkLost(_) if self.wait != Wait::Claim => {
                self.linked = false;
                self.ask_again(now)
            }
            SourceEvent::Connected if self.wait == Wait::Answer(Question::Linking) => self.ask(now),
            SourceEvent::ConnectFailed(_) if self.wait == Wait::Answer(Question::Linking) => {
                self.question_over(now)
            }
            SourceEvent::Tick => self.on_given_tick(now),
            // Too late to cancel, and no job is under way.
            _ => Vec::new(),
        }
    }

    fn on_answer(&mut self, now: Time, message: &ToSource) -> Vec<SourceAction> {
        if let Some(answer) = self.answer_of(message) {
            return self.settled(answer);
        }
        match message {
            // It crossed custody, and is no refusal: that follows once it is on disk, or the link ends.
            ToSource::Abort(_) if self.wait == Wait::Running => Vec::new(),
            // Another process listens there now: no further question to it can settle this, unless the one
            // that was given custody lives and will still write what became of it.
            ToSource::Unknown(unknown) if unknown.of == self.offered() => {
                self.known = Some(unknown.known);
                let lives = unknown.known == Known::Lives;
                let mut actions = if lives { Vec::new() } else { self.say_ambiguous() };
                actions.extend(self.ask_again(now));
                actions
            }
            // Nothing else is proof of anything.
            _ => self.ask_again(now),
        }
    }

    pub(super) fn answer_of(&self, message: &ToSource) -> Option<Answer> {
        match message {
            ToSource::Running(of) if *of == self.offered() => Some(Answer::Runs),
            ToSource::Refused(refused) if refused.of == self.offered() => {
                Some(Answer::Refused(refused.reason.clone()))
            }
            _ => None,
        }
    }

    /// The target's word goes before a person's choice.
    pub(super) fn settled(&mut self, answer: Answer) -> Vec<SourceAction> {
        let (text, settled) = match answer {
            Answer::Runs => ("the target has answered: it runs the guest".into(), self.moved()),
            Answer::Refused(reason) => (
                format!("the target has answered, and the guest comes back here: {}", reason.text),
                self.returned(None, Cause::Peer(reason)),
            ),
        };
        self.refuse_choice(text).into_iter().chain(settled).collect()
    }

    pub(super) fn moved(&mut self) -> Vec<SourceAction> {
        self.end();
        // Before the target is told: from then on it may answer nobody any more.
        let noted = SourceAction::Note(Record::Moved(self.of_guest()));
        let mut actions = vec![SourceAction::ReleaseGuest, noted];
        if std::mem::take(&mut self.linked) {
            actions.extend([SourceAction::Send(ToTarget::Release(self.offered())), SourceAction::Disconnect]);
        }
        let epoch = self.config.epoch;
        actions.push(SourceAction::Finish(SourceOutcome::Moved { epoch }));
        actions
    }

    /// Drops the link, if there is one, and asks over a new one: at once when it was the link of the
    /// migration, after a rest when a question just failed.
    fn ask_again(&mut self, now: Time) -> Vec<SourceAction> {
        let mut actions = Vec::new();
        if std::mem::take(&mut self.linked) {
            actions.push(SourceAction::Disconnect);
        }
        self.deadline = None;
        if !self.config.rules.keep(Rule::RefusalBeforeResume) {
            actions.extend(self.back(None, Cause::LinkLost("the link was lost".into())));
            return actions;
        }
        if self.wait == Wait::Running {
            self.settle = Some(now.after(self.config.timeouts.settle));
            actions.extend(self.next_question(now, true));
        } else {
            actions.extend(self.question_over(now));
        }
        actions
    }

    fn ask(&mut self, now: Time) -> Vec<SourceAction> {
        let Some(instance) = self.instance else {
            return Vec::new(); // custody is given only to a target that said hello
        };
        self.linked = true;
        self.wait = Wait::Answer(Question::Asked { until: now.after(self.config.timeouts.ask) });
        let (guest, of) = (self.config.guest.clone(), self.offered());
        vec![SourceAction::Send(ToTarget::Ask(Ask { guest, of, instance }))]
    }

    pub(super) fn rest(&mut self, now: Time) {
        self.wait = Wait::Answer(Question::Resting { until: now.after(self.config.timeouts.ask_interval) });
    }

    fn on_given_tick(&mut self, now: Time) -> Vec<SourceAction> {
        let mut actions = Vec::new();
        if self.settle.is_some_and(|at| now >= at) {
            actions.extend(self.say_ambiguous());
        }
        match (&self.wait, self.deadline) {
            (Wait::Running, Some((at, _))) if now >= at => actions.extend(self.ask_again(now)),
            (Wait::Answer(Question::Asked { until }), _) if now >= *until => {
                // The link stays while a choice is made to last: the answer may only be late.
                let write = self.write_choice();
                actions.extend(write.map_or_else(|| self.ask_again(now), |write| vec![write]));
            }
            (Wait::Answer(Question::Resting { until }), _) if now >= *until => {
                let claim = if self.returns.is_some() { self.claim() } else { None };
                if claim.is_none() {
                    self.wait = Wait::Answer(Question::Linking);
                }
                actions.push(claim.unwrap_or(SourceAction::Connect));
            }
            _ => {}
        }
        actions
    }

    /// Says it once.
    fn say_ambiguous(&mut self) -> Vec<SourceAction> {
        let first = self.settle.take().is_some();
        if first { vec![SourceAction::NoteAmbiguous] } else { Vec::new() }
    }
}
