//! A witness: a record outside both hosts that says who has a guest.
//!
//! It holds one record a guest, `{holder, epoch}`, which is changed by compare-and-set alone and never
//! expires; no clock takes part. With a witness the target claims the guest before it runs it, and a
//! source that hears no answer claims it back: one of the two wins, whatever the network does. A source
//! that lost keeps the paused guest until the target says that it runs: if the target cannot start it,
//! the source claims it back from there.

use crate::{Epoch, GuestId};

/// A compare-and-set on a guest's record: if its epoch is `from`, it becomes `to`, held by who claims.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The guest.
    pub guest: GuestId,
    /// The epoch that the record must have.
    pub from: Epoch,
    /// The epoch that it gets.
    pub to: Epoch,
}

/// What came of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClaimAnswer {
    /// The record says that who claimed has the guest under `to`: by this claim, or by the same one
    /// earlier, whose answer was lost.
    Won,
    /// It says something else, and a claim from this epoch can never be won any more.
    Lost,
    /// The witness gave no answer: the claim may have been carried out.
    Unreached(String),
}
