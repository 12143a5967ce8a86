//! Questions who runs a guest, and the source's word that it let the guest go.
//!
//! An answer is for ever: "it runs here" lets the source let the guest go, "refused" lets the source
//! resume it. So while a guest is being started a question waits until that is known.

use super::{Cause, LinkId, Refused, Target, TargetAction, TargetOutcome, TargetPhase, Time, ToSource};
use crate::ledger::Answer;
use crate::message::{Ask, OfEpoch, Reason, ReasonKind};

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
            return vec![TargetAction::Send(link, ToSource::Unknown(ask.of)), TargetAction::Close(link)];
        }
        let live = self.session.as_ref().is_some_and(|s| s.guest == ask.guest && s.of.epoch == ask.of.epoch);
        let mut actions = Vec::new();
        if live && self.ledger.taken().is_none() {
            actions = self.end_session(Cause::Asked);
        }
        match self.ledger.answer(&ask.guest, ask.of.epoch) {
            Answer::Taken => {
                // The link stays open for the source's release.
                let until = now.after(self.timeouts.release);
                self.greeting.insert(link, Greeting { until, asked: Some(ask.of) });
                if self.phase() != TargetPhase::Taking {
                    actions.push(TargetAction::Send(link, ToSource::Running(ask.of)));
                }
            }
            Answer::Refused => {
                self.greeting.remove(&link);
                actions.extend(refuse(link, ask.of));
            }
        }
        actions
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

    pub(super) fn runs(&self, released: bool) -> Option<TargetAction> {
        let (guest, epoch) = self.ledger.taken()?.clone();
        Some(TargetAction::Finish(TargetOutcome::Runs { guest, epoch, released }))
    }
}

fn refuse(link: LinkId, of: OfEpoch) -> [TargetAction; 2] {
    let text = "this target did not take the guest and never will under this epoch";
    let reason = Reason::new(ReasonKind::Asked, text);
    [TargetAction::Send(link, ToSource::Refused(Refused { of, reason })), TargetAction::Close(link)]
}
