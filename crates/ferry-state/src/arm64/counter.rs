//! The counter that a guest's clock counts on.
//!
//! `CNTVCT_EL0` is one for all vCPUs of a VM: KVM keeps one offset from the host's counter, which
//! `KVM_REG_ARM_TIMER_CNT` of any vCPU reads and sets (`arch_timer.c` of the kernel's arm64 KVM). The
//! registers have it, too; whoever restores the machine takes it from here, so that time can go on.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The guest's virtual counter.
///
/// Where it stood means nothing without how fast it counts, which no KVM can change: a guest can go on
/// only where the counter has the same frequency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Counter {
    /// `CNTVCT_EL0`.
    #[n(0)]
    pub value: u64,
    /// Counts a second (`CNTFRQ_EL0`).
    #[n(1)]
    pub frequency_hz: u64,
}

impl Part for Counter {
    const NAME: &'static str = "arm64.counter";
    const FIELDS: Fields = Fields::These(&[0, 1]);

    fn check(&self) -> Result<(), String> {
        if self.frequency_hz == 0 { Err("a counter that does not count".into()) } else { Ok(()) }
    }
}
