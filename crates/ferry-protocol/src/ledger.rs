//! What a target remembers of epochs: the one it took, and those that it refused for ever.
//!
//! Only a target that did not take an epoch may refuse it, and a refusal is permanent: the source
//! resumes the guest on it. One target process runs at most one guest.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Epoch, GuestId};

/// The most guests whose refusals one process remembers.
const MAX_GUESTS: usize = 1024;

/// What this process did with the epochs that it was offered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    taken: Option<(GuestId, Epoch)>,
    /// The highest refused epoch of each guest: it and every lower one cannot be taken any more.
    refused: BTreeMap<GuestId, Epoch>,
    /// Epochs of which the journal may say that they may run here, and no refusal of which is on disk.
    owed: BTreeSet<(GuestId, Epoch)>,
}

/// A target's answer to the question who runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// This process took the epoch: the guest runs, or ran, here.
    Taken,
    /// This process did not take the epoch, and never will.
    Refused,
}

impl Ledger {
    /// Whether an epoch could still be taken.
    pub fn may_take(&self, guest: &GuestId, epoch: Epoch) -> bool {
        self.taken.is_none() && self.refused.get(guest).is_none_or(|&refused| epoch > refused)
    }

    /// Notes that the epoch is taken. False, and nothing is noted, if it cannot be.
    #[must_use]
    pub fn take(&mut self, guest: &GuestId, epoch: Epoch) -> bool {
        let may = self.may_take(guest, epoch);
        if may {
            self.taken = Some((guest.clone(), epoch));
        }
        may
    }

    /// Takes a guest's taking back, because no vCPU of it ever ran, and refuses its epoch.
    pub fn untake(&mut self, guest: &GuestId, epoch: Epoch) {
        if self.taken.as_ref().is_some_and(|(g, e)| g == guest && *e == epoch) {
            self.taken = None;
        }
        self.answer(guest, epoch);
    }

    /// How an epoch stands now; nothing is refused by it.
    pub fn present(&self, guest: &GuestId, epoch: Epoch) -> Answer {
        let taken = self.taken.as_ref().is_some_and(|(g, e)| g == guest && *e == epoch);
        if taken { Answer::Taken } else { Answer::Refused }
    }

    /// Answers for an epoch; refuses it for ever if it was not taken.
    pub fn answer(&mut self, guest: &GuestId, epoch: Epoch) -> Answer {
        if self.present(guest, epoch) == Answer::Taken {
            return Answer::Taken;
        }
        self.make_room(guest);
        let refused = self.refused.entry(guest.clone()).or_insert(epoch);
        *refused = (*refused).max(epoch);
        Answer::Refused
    }

    /// Notes that the journal is to say that an epoch may run here.
    pub fn owe(&mut self, guest: &GuestId, epoch: Epoch) {
        self.owed.insert((guest.clone(), epoch));
    }

    /// Notes that a refusal of it is on disk, or that it never came to be written that it may run.
    pub fn paid(&mut self, guest: &GuestId, epoch: Epoch) {
        self.owed.remove(&(guest.clone(), epoch));
    }

    /// Whether a refusal of this epoch must be on disk before anybody is told.
    pub fn owes(&self, guest: &GuestId, epoch: Epoch) -> bool {
        self.owed.contains(&(guest.clone(), epoch))
    }

    /// How many refusals could not be written yet, or will not be needed.
    pub fn debts(&self) -> usize {
        self.owed.len()
    }

    /// The guest that this process took.
    pub fn taken(&self) -> Option<&(GuestId, Epoch)> {
        self.taken.as_ref()
    }

    /// Forgetting a refusal is safe: without a live session of its epoch nothing can take it, and a
    /// new session of it would need the source to use an epoch twice.
    fn make_room(&mut self, guest: &GuestId) {
        if self.refused.len() >= MAX_GUESTS && !self.refused.contains_key(guest) {
            self.refused.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> GuestId {
        name.parse().unwrap()
    }

    #[test]
    fn a_refused_epoch_is_never_taken() {
        let (mut ledger, g) = (Ledger::default(), guest("g"));
        assert_eq!(ledger.answer(&g, Epoch(5)), Answer::Refused);
        assert!(!ledger.take(&g, Epoch(5)));
        assert!(!ledger.take(&g, Epoch(4)));
        assert!(ledger.take(&g, Epoch(6)));
        assert_eq!(ledger.answer(&g, Epoch(6)), Answer::Taken);
        assert_eq!(ledger.answer(&g, Epoch(5)), Answer::Refused);
    }

    #[test]
    fn one_process_takes_one_guest() {
        let mut ledger = Ledger::default();
        assert!(ledger.take(&guest("a"), Epoch(2)));
        assert!(!ledger.take(&guest("b"), Epoch(2)));
    }

    #[test]
    fn a_guest_that_never_ran_can_be_given_back() {
        let (mut ledger, g) = (Ledger::default(), guest("g"));
        assert!(ledger.take(&g, Epoch(2)));
        ledger.untake(&g, Epoch(2));
        assert_eq!(ledger.answer(&g, Epoch(2)), Answer::Refused);
        assert!(ledger.take(&g, Epoch(3)));
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut ledger = Ledger::default();
        for n in 0..MAX_GUESTS + 10 {
            ledger.answer(&guest(&format!("g{n}")), Epoch(2));
        }
        assert_eq!(ledger.refused.len(), MAX_GUESTS);
    }
}
