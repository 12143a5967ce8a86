//! What the two sides could not settle by themselves: the witness decides, or a person.

use super::{
    Cause, Choice, Known, PersonsChoice, Question, Record, Source, SourceAction, SourceEvent, SourceOutcome,
    Time, ToSource, Wait,
};
use crate::{Claim, ClaimAnswer, Epoch, Rule};

impl Source {
    /// Asks the witness for the guest, if there is one. Its record is as it was before, or the target
    /// has it: from there the guest comes back only once the target can no longer run it.
    pub(super) fn claim(&mut self) -> Option<SourceAction> {
        let from = self.config.witness?;
        let from = match (self.lost, &self.returns) {
            (false, _) => from,
            (true, Some(_)) => self.config.epoch,
            (true, None) => return None,
        };
        self.wait = Wait::Claim;
        let to = self.config.epoch.next();
        Some(SourceAction::Claim(Claim { guest: self.config.guest.clone(), from, to }))
    }

    pub(super) fn on_claimed(&mut self, now: Time, answer: &ClaimAnswer) -> Vec<SourceAction> {
        match answer {
            ClaimAnswer::Won => {
                let text = "the link was lost after custody was given, and the witness gave the guest back";
                let cause = self.returns.take().unwrap_or_else(|| Cause::Witness(text.into()));
                self.back(Some(self.config.epoch.next()), cause)
            }
            // The target won its claim. It may still fail to run the guest: only its own word lets the
            // guest go.
            ClaimAnswer::Lost if !std::mem::replace(&mut self.lost, true) => {
                let claim = self.claim();
                if claim.is_none() {
                    self.wait = Wait::Answer(Question::Linking);
                }
                vec![claim.unwrap_or(SourceAction::Connect)]
            }
            ClaimAnswer::Lost | ClaimAnswer::Unreached(_) => {
                self.rest(now);
                Vec::new()
            }
        }
    }

    /// The target cannot run the guest any more: it comes back, with a witness once that says so too.
    pub(super) fn returned(&mut self, raise_to: Option<Epoch>, cause: Cause) -> Vec<SourceAction> {
        self.returns = Some(cause.clone());
        let Some(claim) = self.claim() else {
            self.returns = None;
            return self.back(raise_to, cause);
        };
        self.deadline = None;
        let link = std::mem::take(&mut self.linked).then_some(SourceAction::Disconnect);
        link.into_iter().chain([claim]).collect()
    }

    /// Custody is here again, and the guest goes on.
    pub(super) fn back(&mut self, raise_to: Option<Epoch>, cause: Cause) -> Vec<SourceAction> {
        self.raised = raise_to;
        let mut actions = vec![SourceAction::TakeBack { raise_to }];
        actions.extend(self.fail(cause, false));
        actions
    }

    /// A person's choice is heard only while the outcome is open, and not against what is known. It waits
    /// until one more question has ended: the answer may be on its way, or lie before the caller.
    pub(super) fn on_decision(&mut self, decision: PersonsChoice) -> Vec<SourceAction> {
        if let Some(obstacle) = self.obstacle(decision.choice) {
            return vec![SourceAction::NoteChoiceRefused(obstacle.into())];
        }
        self.choice = Some(decision);
        // A question that is being asked has a link that was made for it, so none is fresher.
        if !matches!(self.wait, Wait::Answer(Question::Resting { .. })) {
            return Vec::new();
        }
        self.wait = Wait::Answer(Question::Linking);
        vec![SourceAction::Connect]
    }

    fn obstacle(&self, choice: Choice) -> Option<&'static str> {
        match &self.wait {
            _ if self.choice.is_some() => Some("a choice is being followed already"),
            // The target may only have lost a link, and say within moments that it runs the guest.
            Wait::Answer(_) if self.settle.is_some() => {
                Some("the target is still being asked: wait until the outcome is said to be ambiguous")
            }
            Wait::Answer(_) => self.wrong(choice),
            Wait::Claim => Some("the witness is being asked: it decides"),
            Wait::Running | Wait::Written => {
                Some("custody was just given and the answer is awaited: nothing is to be decided yet")
            }
            _ => Some("custody was not given: the guest is here, and `ferry cancel` ends a migration"),
        }
    }

    /// What is known against a choice.
    fn wrong(&self, choice: Choice) -> Option<&'static str> {
        match choice {
            Choice::TargetRuns if self.known == Some(Known::MayHaveRun) => Some(
                "the target says that its process is gone, and the guest with it: decide for `--source-runs` or `--abandon`",
            ),
            Choice::TargetRuns if matches!(self.returns, Some(Cause::Peer(_))) => {
                Some("the target has refused the guest, which comes back once the witness says so")
            }
            _ => None,
        }
    }

    /// A question ended, and nobody said who has the guest: a choice that waited for that is made to last,
    /// or the next question follows.
    pub(super) fn question_over(&mut self, now: Time) -> Vec<SourceAction> {
        if let Some(write) = self.write_choice() {
            return vec![write];
        }
        let refused = self.refuse_wrong_choice();
        refused.into_iter().chain(self.next_question(now, false)).collect()
    }

    /// Begins to make a choice last, unless what is known by now is against it.
    pub(super) fn write_choice(&mut self) -> Option<SourceAction> {
        let choice = self.choice.as_ref().filter(|it| self.wrong(it.choice).is_none())?;
        let decided = choice.decided(self.config.guest.clone(), self.config.epoch);
        self.wait = Wait::Deciding { answer: None };
        Some(SourceAction::Journal(Record::Decided(decided)))
    }

    /// Until a choice is on disk the target's word goes before it. Who reads both in the journal sees what
    /// became of the guest last, and never a choice that the source then did not follow as its end.
    pub(super) fn on_deciding(&mut self, now: Time, event: SourceEvent) -> Vec<SourceAction> {
        let Wait::Deciding { answer } = self.wait.clone() else { return Vec::new() };
        match (event, answer) {
            (SourceEvent::Journaled | SourceEvent::Failed(_), Some(answer)) => return self.settled(answer),
            (SourceEvent::Journaled, None) => return self.follow(now),
            (SourceEvent::Failed(text), None) => {
                let text = format!("the choice cannot be journaled, so it is not followed: {text}");
                return self.go_on_asking(now, text);
            }
            (SourceEvent::Received(ToSource::Unknown(unknown)), _) if unknown.of == self.offered() => {
                self.known = Some(unknown.known);
            }
            (SourceEvent::Received(message), answer) => {
                self.wait = Wait::Deciding { answer: answer.or_else(|| self.answer_of(&message)) };
            }
            (SourceEvent::LinkLost(_), _) => self.linked = false,
            _ => {}
        }
        Vec::new()
    }

    pub(super) fn refuse_choice(&mut self, text: String) -> Option<SourceAction> {
        self.choice.take().map(|_| SourceAction::NoteChoiceRefused(text))
    }

    fn refuse_wrong_choice(&mut self) -> Option<SourceAction> {
        let text = self.wrong(self.choice.as_ref()?.choice)?;
        self.refuse_choice(text.into())
    }

    /// The choice is not followed, and nothing else is known.
    fn go_on_asking(&mut self, now: Time, text: String) -> Vec<SourceAction> {
        let link = std::mem::take(&mut self.linked).then_some(SourceAction::Disconnect);
        self.rest(now);
        link.into_iter().chain(self.refuse_choice(text)).collect()
    }

    /// The choice is on disk, and nothing was heard meanwhile: what comes from now on comes too late.
    fn follow(&mut self, now: Time) -> Vec<SourceAction> {
        if let Some(text) = self.choice.as_ref().and_then(|choice| self.wrong(choice.choice)) {
            return self.go_on_asking(now, text.into());
        }
        let Some(PersonsChoice { choice, .. }) = self.choice.take() else { return Vec::new() };
        let mut actions = Vec::new();
        if std::mem::take(&mut self.linked) {
            actions.push(SourceAction::Disconnect);
        }
        let epoch = self.config.epoch;
        let outcome = match choice {
            Choice::SourceRuns => {
                // Above what the target may have run: a runner's epoch is the highest.
                let above = self.config.rules.keep(Rule::PersonAbove).then(|| epoch.next());
                actions.extend(self.returned(above, Cause::Decided(choice)));
                return actions;
            }
            Choice::TargetRuns => SourceOutcome::Moved { epoch },
            Choice::Abandon => SourceOutcome::Abandoned { epoch },
        };
        self.end();
        actions.extend([SourceAction::ReleaseGuest, SourceAction::Finish(outcome)]);
        actions
    }

    /// After a question that led to nothing: the next one, over a new link.
    pub(super) fn next_question(&mut self, now: Time, first: bool) -> Option<SourceAction> {
        if let Some(claim) = self.claim() {
            return Some(claim);
        }
        if first {
            self.wait = Wait::Answer(Question::Linking);
            return Some(SourceAction::Connect);
        }
        self.rest(now);
        None
    }
}
