//! The clock that KVM shows to guests that use kvmclock: what `KVM_GET_CLOCK` gives.
//!
//! From `struct kvm_clock_data` of the kernel's arch/x86/include/uapi/asm/kvm.h and
//! Documentation/virt/kvm/api.rst, 4.29 and 4.30.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The clock of a VM, and when it was read.
/// Only [`clock`](Self::clock) is state of the guest. The rest says when it was read on the source, and
/// is not marked as needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Clock {
    /// Nanoseconds of the guest's clock.
    #[n(0)]
    pub clock: u64,
    /// `KVM_CLOCK_…`: whether the guest's clock is stable (2), and which of the next two are valid (4:
    /// realtime, 8: host TSC).
    #[n(1)]
    pub flags: u32,
    /// The source's `CLOCK_REALTIME` at the same instant, in nanoseconds.
    #[n(2)]
    pub realtime: u64,
    /// The source's time stamp counter at the same instant.
    #[n(3)]
    pub host_tsc: u64,
}

impl Part for Clock {
    const NAME: &'static str = "x86.clock";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3]);
}
