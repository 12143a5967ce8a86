//! The local APIC: what `KVM_GET_LAPIC` gives.
//!
//! From `struct kvm_lapic_state` of the kernel's arch/x86/include/uapi/asm/kvm.h: the APIC's register
//! page as in the Intel SDM, volume 3, chapter "Advanced Programmable Interrupt Controller".

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The length of a local APIC's registers (`KVM_APIC_REG_SIZE`).
pub const LAPIC_BYTES: usize = 0x400;

/// The local APIC of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Lapic {
    /// Its registers, 16 bytes apart.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub regs: [u8; LAPIC_BYTES],
}

impl Default for Lapic {
    fn default() -> Self {
        Self { regs: [0; LAPIC_BYTES] }
    }
}

impl Part for Lapic {
    const NAME: &'static str = "x86.lapic";
    const FIELDS: Fields = Fields::These(&[0]);
}
