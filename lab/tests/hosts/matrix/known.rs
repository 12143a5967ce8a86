//! Disagreements between verdict and truth that are known, each with its reason.
//!
//! One that does not occur any more fails the test as well as one that is not here.

/// What is known of a refusal where nothing shows: some bits of a register.
#[derive(Debug)]
pub(super) struct Unseen {
    pub(super) vendor: &'static str,
    /// As a finding names the register.
    pub(super) register: &'static str,
    /// Bits that nothing of what the guests do shows.
    pub(super) bits: u64,
    pub(super) reason: &'static str,
}

/// Refusals where nothing shows.
pub(super) const UNSEEN: &[Unseen] = &[];

/// What is known of an accept, or of a refusal after the offer, where something shows.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) vendor: &'static str,
    /// Whether the guest was accepted for good; else it was refused after the offer.
    pub(super) accepted: bool,
    /// How what shows begins.
    pub(super) begins: &'static str,
    pub(super) reason: &'static str,
}

/// Guests that were let in at the offer though something shows.
pub(super) const SHOWN: &[Shown] = &[];
