//! Custody as a value: who holds it may run the guest, and it cannot be copied.

use ferry_protocol::{Epoch, GuestId};

/// The right to run one guest.
///
/// No vCPU runs without it: [`Machine::resume`](crate::Machine::resume) takes it,
/// [`Machine::pause`](crate::Machine::pause) gives it back. It cannot be cloned, and only two ways
/// make one: a guest's birth, and a hand-over that the engine carried out.
///
/// ```compile_fail
/// let custody = ferry_migrate::Custody::born("guest".parse().unwrap());
/// let copy = custody.clone();
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use = "without its custody a guest cannot be run again"]
pub struct Custody {
    guest: GuestId,
    epoch: Epoch,
}

impl Custody {
    /// Custody of a guest that has never run anywhere: call it once, where a guest is created.
    pub fn born(guest: GuestId) -> Self {
        Self { guest, epoch: Epoch::BIRTH }
    }

    /// Custody that a source gave and this process took.
    pub(crate) fn taken(guest: GuestId, epoch: Epoch) -> Self {
        Self { guest, epoch }
    }

    /// Whose custody this is.
    pub fn guest(&self) -> &GuestId {
        &self.guest
    }

    /// The epoch under which the guest runs.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The point of no return: afterwards there is nothing here that could run the guest.
    pub(crate) fn give(self) -> Given {
        Given(self)
    }
}

/// Custody that was given away. It can become custody again only by the target's refusal, which the
/// source's decisions turn into [`SourceAction::TakeBack`](ferry_protocol::SourceAction::TakeBack).
#[derive(Debug)]
pub(crate) struct Given(Custody);

impl Given {
    /// It is here again: as it was, or under a higher epoch.
    pub(crate) fn back(self, raise_to: Option<Epoch>) -> Custody {
        let Custody { guest, epoch } = self.0;
        Custody { guest, epoch: raise_to.map_or(epoch, |raised| epoch.max(raised)) }
    }
}
