//! What a target must have on disk before it acts.
//!
//! "May run" is written once the machine stands, before the source hears of it, and so long before it
//! can pause the guest. From then on a refusal of that epoch is written before anybody is told: a
//! later process in this place could not repeat it otherwise. What cannot be written is not said; the
//! source asks again. Only that a session is over before custody is said at once: it is no refusal.

use super::{
    Cause, Epoch, GuestId, OfEpoch, OfGuest, Record, Rule, Target, TargetAction, TargetPhase, Time,
    TimerName, ToSource,
};
use crate::journal::MayRun;

/// A record that is being written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Writing {
    /// That an epoch may run here: the source hears then that the machine stands.
    MayRun {
        /// The guest.
        guest: GuestId,
        /// The attempt.
        of: OfEpoch,
    },
    /// That it was not taken and never will be: these words are said then.
    Refusal {
        /// The guest.
        guest: GuestId,
        /// The epoch.
        epoch: Epoch,
        /// Words and the closing of links.
        words: Vec<TargetAction>,
    },
}

impl Target {
    /// The machine stands.
    pub(super) fn write_may_run(&mut self, now: Time) -> Vec<TargetAction> {
        let Some(session) = &self.session else { return Vec::new() };
        let (guest, of) = (session.guest.clone(), session.of);
        if !self.rules.keep(Rule::MayRunOnDisk) {
            return self.say_built(now);
        }
        self.ledger.owe(&guest, of.epoch);
        self.writing.push_back(Writing::MayRun { guest: guest.clone(), of });
        vec![TargetAction::Journal(Record::MayRun(MayRun { guest, of }))]
    }

    fn say_built(&mut self, now: Time) -> Vec<TargetAction> {
        let until = now.after(self.timeouts.silence);
        let Some(session) = &mut self.session else { return Vec::new() };
        session.phase = TargetPhase::Receive;
        session.deadline = Some((until, TimerName::Silence));
        vec![TargetAction::Send(session.link, ToSource::Built)]
    }

    /// Says words that follow from a refusal, which is in the ledger already: at once, or once it is
    /// on disk.
    pub(super) fn after_refusal(
        &mut self,
        guest: &GuestId,
        epoch: Epoch,
        words: Vec<TargetAction>,
    ) -> Vec<TargetAction> {
        if !self.ledger.owes(guest, epoch) {
            return words;
        }
        for writing in &mut self.writing {
            if let Writing::Refusal { guest: g, epoch: e, words: waiting } = writing
                && (&*g, *e) == (guest, epoch)
            {
                waiting.extend(words);
                return Vec::new();
            }
        }
        self.writing.push_back(Writing::Refusal { guest: guest.clone(), epoch, words });
        vec![TargetAction::Journal(Record::Refused(OfGuest { guest: guest.clone(), epoch }))]
    }

    pub(super) fn on_journal_done(&mut self, now: Time, result: Result<(), String>) -> Vec<TargetAction> {
        match (self.writing.pop_front(), result) {
            (None, _) => Vec::new(),
            (Some(Writing::MayRun { guest, of }), result) => {
                let live = self.session.as_ref().is_some_and(|session| {
                    session.of == of && session.guest == guest && session.phase == TargetPhase::Build
                });
                match result {
                    Ok(()) if live => self.say_built(now),
                    Ok(()) => Vec::new(),
                    Err(text) => {
                        // The source never heard that the machine stands, so custody is never given.
                        self.ledger.paid(&guest, of.epoch);
                        if live { self.end_session(Cause::Machine(text)) } else { Vec::new() }
                    }
                }
            }
            (Some(Writing::Refusal { guest, epoch, words }), Ok(())) => {
                self.ledger.paid(&guest, epoch);
                words
            }
            // Nobody is told what would not last: the links end, and a later question tries again.
            (Some(Writing::Refusal { words, .. }), Err(_)) => {
                words.into_iter().filter(|action| matches!(action, TargetAction::Close(_))).collect()
            }
        }
    }
}
