//! Questions who runs a guest, and the source's word that it let the guest go.
//!
//! An answer is for ever: "it runs here" lets the source let the guest go, "refused" lets the source
//! resume it. So while a guest is being started a question waits until that is known.

use super::{
    Cause, LinkId, OfGuest, Record, Refused, Rule, Target, TargetAction, TargetOutcome, TargetPhase, Time,
    ToSource,
};
use crate::journal::PastAnswer;
use crate::ledger::Answer;
use crate::message::{Ask, Known, OfEpoch, Reason, ReasonKind, Unknown};

/// A link without a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Greeting {
    /// When its time to speak ends.
    pub(super) until: Time,
    /// The epoch of which it asked and that was taken here. Answered, unless the guest is just being
    /// started.
    pub(super) asked: Option<OfEpoch>,
}

impl Target {
    /// Answers who runs a guest. The live session of that epoch, if there is one, is over then: an
    /// answer that is not "here" is a refusal for ever.
    pub(super) fn on_ask(&mut self, now: Time, link: LinkId, ask: &Ask) -> Vec<TargetAction> {
        if ask.instance != self.instance {
            self.greeting.remove(&link);
            return self.answer_for_another(link, ask);
        }
        let live = self.session.as_ref().is_some_and(|s| s.guest == ask.guest && s.of.epoch == ask.of.epoch);
        let mut actions = Vec::new();
        if live && self.ledger.taken().is_none() {
            actions = self.end_session(Cause::Asked);
        }
        let final_word = self.rules.keep(Rule::RefusalIsFinal);
        let answer = if final_word {
            self.ledger.answer(&ask.guest, ask.of.epoch)
        } else {
            self.ledger.present(&ask.guest, ask.of.epoch)
        };
        match answer {
            Answer::Taken if !self.rules.keep(Rule::TakenIsNotRefused) => {
                self.greeting.remove(&link);
                actions.extend(refuse(link, ask.of));
            }
            Answer::Taken => {
                // The link stays open for the source's release.
                let until = now.after(self.timeouts.release);
                self.greeting.insert(link, Greeting { until, asked: Some(ask.of) });
                if self.phase() != TargetPhase::Taking || !self.rules.keep(Rule::AnswerAfterStart) {
                    actions.push(TargetAction::Send(link, ToSource::Running(ask.of)));
                }
            }
            Answer::Refused => {
                self.greeting.remove(&link);
                let words = refuse(link, ask.of).to_vec();
                actions.extend(self.after_refusal(&ask.guest, ask.of.epoch, words));
            }
        }
        actions
    }

    /// What the journal of another process says. One that is gone can take nothing any more, and this
    /// one none of its epochs; but a guest that it may have run must not go back in time. For one that
    /// lives only what it wrote outright is said.
    fn answer_for_another(&self, link: LinkId, ask: &Ask) -> Vec<TargetAction> {
        let known = match self.past.answer(ask.instance, &ask.guest, ask.of.epoch) {
            Some(PastAnswer::NeverRan) => return refuse(link, ask.of).to_vec(),
            // It has it, or whoever has it now has it from there: the source lets it go.
            Some(PastAnswer::Took) => {
                return vec![TargetAction::Send(link, ToSource::Running(ask.of)), TargetAction::Close(link)];
            }
            Some(PastAnswer::MayHaveRun) if !self.rules.keep(Rule::UnknownAfterRestart) => {
                return refuse(link, ask.of).to_vec();
            }
            Some(PastAnswer::Undecided) | None if !self.rules.keep(Rule::OnlyThatProcess) => {
                return refuse(link, ask.of).to_vec();
            }
            Some(PastAnswer::MayHaveRun) => Known::MayHaveRun,
            Some(PastAnswer::Undecided) => Known::Lives,
            None => Known::NoTrace,
        };
        let unknown = ToSource::Unknown(Unknown { of: ask.of, known });
        vec![TargetAction::Send(link, unknown), TargetAction::Close(link)]
    }

    /// Answers those who asked while the guest was being started.
    pub(super) fn answer_waiting(&mut self, now: Time) -> Vec<TargetAction> {
        let until = now.after(self.timeouts.release);
        let mut actions = Vec::new();
        for (&link, greeting) in &mut self.greeting {
            if let Some(of) = greeting.asked {
                greeting.until = until;
                actions.push(TargetAction::Send(link, ToSource::Running(of)));
            }
        }
        actions
    }

    /// Refuses those who asked while the guest was being started, because it could not be.
    pub(super) fn refuse_waiting(&mut self) -> Vec<TargetAction> {
        let waiting: Vec<_> =
            self.greeting.iter().filter_map(|(&link, greeting)| Some((link, greeting.asked?))).collect();
        self.greeting.retain(|_, greeting| greeting.asked.is_none());
        waiting.into_iter().flat_map(|(link, of)| refuse(link, of)).collect()
    }

    /// Only who was told that the guest runs here may let it go.
    pub(super) fn may_release(&self, link: LinkId, of: OfEpoch) -> bool {
        let asked = self.greeting.get(&link).and_then(|greeting| greeting.asked);
        asked == Some(of) && self.phase() != TargetPhase::Taking
    }

    pub(super) fn released(&mut self, link: LinkId) -> Vec<TargetAction> {
        let mut actions = vec![TargetAction::Close(link)];
        if let Some(session) = self.session.take()
            && session.link != link
        {
            actions.push(TargetAction::Close(session.link));
        }
        actions.extend(self.runs(true));
        actions
    }

    pub(super) fn runs(&self, released: bool) -> Vec<TargetAction> {
        let Some((guest, epoch)) = self.ledger.taken().cloned() else { return Vec::new() };
        let note = Record::Released(OfGuest { guest: guest.clone(), epoch });
        let note = released.then_some(TargetAction::Note(note));
        let finish = TargetAction::Finish(TargetOutcome::Runs { guest, epoch, released });
        note.into_iter().chain([finish]).collect()
    }
}

fn refuse(link: LinkId, of: OfEpoch) -> [TargetAction; 2] {
    let text = "this target did not take the guest and never will under this epoch";
    let reason = Reason::new(ReasonKind::Asked, text);
    [TargetAction::Send(link, ToSource::Refused(Refused { of, reason })), TargetAction::Close(link)]
}
