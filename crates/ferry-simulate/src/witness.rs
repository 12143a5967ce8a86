//! A witness: a record of who has the guest, changed by compare-and-set alone.

use ferry_protocol::{Claim, ClaimAnswer, Epoch, Time};

use crate::dice::Dice;
use crate::world::{DICE_OF_THE_WITNESS, World};

/// The record, and how well it is reached.
#[derive(Debug)]
pub(crate) struct Witness {
    holder: usize,
    epoch: Epoch,
    /// Until when each host does not reach it, or does not hear it.
    lost: [Time; 2],
    dice: Dice,
}

impl Witness {
    pub(crate) fn new(seed: u64) -> Self {
        let dice = Dice::new(seed, DICE_OF_THE_WITNESS);
        Self { holder: 0, epoch: Epoch::BIRTH, lost: [Time::ZERO; 2], dice }
    }

    /// The epoch under which the record stands.
    pub(crate) fn stands(&self) -> Epoch {
        self.epoch
    }

    /// A guest was born.
    pub(crate) fn register(&mut self, process: usize, epoch: Epoch) {
        (self.holder, self.epoch) = (process, epoch);
    }

    /// A host does not reach it for a while.
    pub(crate) fn lose(&mut self, host: usize, until: Time) {
        self.lost[host] = until;
    }

    pub(crate) fn heal(&mut self) {
        self.lost = [Time::ZERO; 2];
    }

    fn swap(&mut self, process: usize, claim: &Claim) -> ClaimAnswer {
        if self.epoch == claim.from {
            (self.holder, self.epoch) = (process, claim.to);
        }
        if (self.holder, self.epoch) == (process, claim.to) { ClaimAnswer::Won } else { ClaimAnswer::Lost }
    }
}

impl World {
    /// Whether the witness says that the guest is this process's, which may not run it yet.
    pub(crate) fn has_claimed(&self, process: usize) -> bool {
        self.witness.as_ref().is_some_and(|witness| witness.holder == process)
    }

    /// A process claims the guest.
    pub(crate) fn claim(&mut self, process: usize, claim: &Claim) -> ClaimAnswer {
        let (host, now) = (self.processes[process].host, self.now);
        let Some(witness) = &mut self.witness else {
            return ClaimAnswer::Unreached("there is no witness".into());
        };
        let answer = if now >= witness.lost[host] {
            witness.swap(process, claim)
        } else {
            // The claim or its answer is lost.
            if witness.dice.chance(50) {
                witness.swap(process, claim);
            }
            ClaimAnswer::Unreached("the witness does not answer".into())
        };
        let name = &self.processes[process].name;
        self.story.tell(now, || {
            let said = match answer {
                ClaimAnswer::Won => "it has it",
                ClaimAnswer::Lost => "it does not get it",
                ClaimAnswer::Unreached(_) => "no answer",
            };
            format!("{name} claims the guest from the witness ({} to {}): {said}", claim.from, claim.to)
        });
        answer
    }
}
