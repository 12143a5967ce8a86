//! What the two sides could not settle by themselves: the witness decides, or a person.

use super::{
    Cause, Choice, Known, PersonsChoice, Question, Record, Source, SourceAction, SourceEvent, SourceOutcome,
    Time, Wait,
};
use crate::journal::Decided;
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
        let mut actions = vec![SourceAction::TakeBack { raise_to }];
        actions.extend(self.fail(cause, false));
        actions
    }

    /// A person's choice is followed only while the outcome is open, and not against what is known.
    pub(super) fn on_decision(&mut self, decision: PersonsChoice) -> Vec<SourceAction> {
        if let Some(obstacle) = self.obstacle(decision.choice) {
            return vec![SourceAction::NoteChoiceRefused(obstacle.into())];
        }
        let mut actions = Vec::new();
        if std::mem::take(&mut self.linked) {
            actions.push(SourceAction::Disconnect);
        }
        self.deadline = None;
        self.wait = Wait::Deciding(decision.choice);
        actions.push(SourceAction::Journal(Record::Decided(Decided {
            guest: self.config.guest.clone(),
            epoch: self.config.epoch,
            choice: decision.choice,
            reason: decision.reason,
            unix_seconds: decision.unix_seconds,
        })));
        actions
    }

    fn obstacle(&self, choice: Choice) -> Option<&'static str> {
        match (&self.wait, choice) {
            // The target may only have lost a link, and say within moments that it runs the guest.
            (Wait::Answer(_), _) if self.settle.is_some() => {
                Some("the target is still being asked: wait until the outcome is said to be ambiguous")
            }
            (Wait::Answer(_), Choice::TargetRuns) if self.known == Some(Known::MayHaveRun) => Some(
                "the target says that its process is gone, and the guest with it: decide for `--source-runs` or `--abandon`",
            ),
            (Wait::Answer(_), _) => None,
            (Wait::Claim, _) => Some("the witness is being asked: it decides"),
            (Wait::Deciding(_), _) => Some("a choice is being followed already"),
            (Wait::Running | Wait::Written, _) => {
                Some("custody was just given and the answer is awaited: nothing is to be decided yet")
            }
            _ => Some("custody was not given: the guest is here, and `ferry cancel` ends a migration"),
        }
    }

    /// While a choice is being journaled: an answer to an earlier question comes too late.
    pub(super) fn on_deciding(&mut self, now: Time, choice: Choice, event: SourceEvent) -> Vec<SourceAction> {
        match event {
            SourceEvent::Journaled => self.follow(choice),
            SourceEvent::Failed(text) => {
                self.rest(now);
                let text = format!("the choice cannot be journaled, so it is not followed: {text}");
                vec![SourceAction::NoteChoiceRefused(text)]
            }
            SourceEvent::Connected => vec![SourceAction::Disconnect],
            _ => Vec::new(),
        }
    }

    fn follow(&mut self, choice: Choice) -> Vec<SourceAction> {
        let epoch = self.config.epoch;
        match choice {
            Choice::SourceRuns => {
                // Above what the target may have run: a runner's epoch is the highest.
                let above = self.config.rules.keep(Rule::PersonAbove).then(|| epoch.next());
                self.returned(above, Cause::Decided(choice))
            }
            Choice::TargetRuns => {
                self.end();
                vec![SourceAction::ReleaseGuest, SourceAction::Finish(SourceOutcome::Moved { epoch })]
            }
            Choice::Abandon => {
                self.end();
                vec![SourceAction::ReleaseGuest, SourceAction::Finish(SourceOutcome::Abandoned { epoch })]
            }
        }
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
