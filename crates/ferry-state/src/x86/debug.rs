//! Debug registers: what `KVM_GET_DEBUGREGS` gives.
//!
//! From `struct kvm_debugregs` of the kernel's arch/x86/include/uapi/asm/kvm.h.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The debug registers of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DebugRegs {
    /// DR0 to DR3: the breakpoint addresses.
    #[n(0)]
    pub db: [u64; 4],
    /// DR6: the status.
    #[n(1)]
    pub dr6: u64,
    /// DR7: the control.
    #[n(2)]
    pub dr7: u64,
    /// Reserved by KVM, zero so far.
    #[n(3)]
    pub flags: u64,
}

impl Part for DebugRegs {
    const NAME: &'static str = "x86.debug_regs";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3]);
}
