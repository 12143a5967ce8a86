//! A witness as the pumps reach it: a store outside both hosts with compare-and-set.
//!
//! What it decides, and why no clock takes part, is in `ferry_protocol`'s witness: the target claims a
//! guest before it runs it, a source that hears no answer claims it back.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use ferry_protocol::{Claim, ClaimAnswer, Epoch, GuestId, InstanceId};

/// A store that keeps one record `{holder, epoch}` a guest, changed by compare-and-set alone, which
/// never expires.
pub trait Witness: Debug + Send + Sync {
    /// Claims a guest for a process. A store that cannot be reached, or does not say whether it did it,
    /// is [`ClaimAnswer::Unreached`]; the same claim is made again then. Bound the wait: the guest is
    /// paused meanwhile.
    fn claim(&self, claim: &Claim, holder: InstanceId) -> ClaimAnswer;
}

/// A witness in memory, for tests: both sides must be in one process.
#[derive(Debug, Default)]
pub struct MemoryWitness {
    records: Mutex<BTreeMap<GuestId, (InstanceId, Epoch)>>,
}

impl MemoryWitness {
    /// Writes the record of a guest that was born.
    pub fn record(&self, guest: GuestId, holder: InstanceId, epoch: Epoch) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).insert(guest, (holder, epoch));
    }

    /// Who has a guest.
    pub fn holder(&self, guest: &GuestId) -> Option<(InstanceId, Epoch)> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).get(guest).copied()
    }
}

impl Witness for MemoryWitness {
    fn claim(&self, claim: &Claim, holder: InstanceId) -> ClaimAnswer {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = records.get_mut(&claim.guest) else { return ClaimAnswer::Lost };
        if record.1 == claim.from {
            *record = (holder, claim.to);
        }
        if *record == (holder, claim.to) { ClaimAnswer::Won } else { ClaimAnswer::Lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_claim_from_an_epoch_wins_and_stays_won() {
        let guest: GuestId = "g".parse().unwrap();
        let witness = MemoryWitness::default();
        let claim = |to| Claim { guest: guest.clone(), from: Epoch(1), to: Epoch(to) };
        assert_eq!(witness.claim(&claim(2), InstanceId(2)), ClaimAnswer::Lost, "nobody wrote a record");
        witness.record(guest.clone(), InstanceId(1), Epoch(1));
        assert_eq!(witness.claim(&claim(2), InstanceId(2)), ClaimAnswer::Won);
        assert_eq!(witness.claim(&claim(3), InstanceId(1)), ClaimAnswer::Lost);
        // Its answer was lost: the same claim again.
        assert_eq!(witness.claim(&claim(2), InstanceId(2)), ClaimAnswer::Won);
        assert_eq!(witness.holder(&guest), Some((InstanceId(2), Epoch(2))));
    }
}
