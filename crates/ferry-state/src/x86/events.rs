//! Events that wait or are under way: what `KVM_GET_VCPU_EVENTS` gives.
//!
//! From `struct kvm_vcpu_events` of the kernel's arch/x86/include/uapi/asm/kvm.h and
//! `kvm_vcpu_ioctl_x86_get_vcpu_events` in arch/x86/kvm/x86.c.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The exception that a vCPU delivers or will deliver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Exception {
    /// It is being delivered.
    #[n(0)]
    pub injected: bool,
    /// Its vector (`nr`).
    #[n(1)]
    pub vector: u8,
    /// It pushes an error code.
    #[n(2)]
    pub has_error_code: bool,
    /// It waits to be delivered.
    #[n(3)]
    pub pending: bool,
    /// The error code.
    #[n(4)]
    pub error_code: u32,
}

/// The interrupt that a vCPU delivers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Interrupt {
    /// It is being delivered.
    #[n(0)]
    pub injected: bool,
    /// Its vector (`nr`).
    #[n(1)]
    pub vector: u8,
    /// It comes from an INT instruction.
    #[n(2)]
    pub soft: bool,
    /// What blocks interrupts for one instruction: `KVM_X86_SHADOW_INT_MOV_SS` (1),
    /// `KVM_X86_SHADOW_INT_STI` (2).
    #[n(3)]
    pub shadow: u8,
}

/// The non-maskable interrupts of a vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Nmi {
    /// One is being delivered.
    #[n(0)]
    pub injected: bool,
    /// How many wait.
    #[n(1)]
    pub pending: u8,
    /// They are masked until IRET.
    #[n(2)]
    pub masked: bool,
}

/// The system management interrupts of a vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Smi {
    /// The vCPU is in system management mode.
    #[n(0)]
    pub smm: bool,
    /// One waits.
    #[n(1)]
    pub pending: bool,
    /// SMM began inside an NMI handler (`smm_inside_nmi`).
    #[n(2)]
    pub inside_nmi: bool,
    /// An INIT waits for the end of SMM.
    #[n(3)]
    pub latched_init: bool,
}

/// The events of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VcpuEvents {
    /// The exception under way.
    #[n(0)]
    pub exception: Exception,
    /// The interrupt under way.
    #[n(1)]
    pub interrupt: Interrupt,
    /// Non-maskable interrupts.
    #[n(2)]
    pub nmi: Nmi,
    /// The vector of a start-up IPI; KVM reports 0 and takes it only where [`flags`](Self::flags) say
    /// so.
    #[n(3)]
    pub sipi_vector: u32,
    /// `KVM_VCPUEVENT_VALID_…`: which of the others count.
    #[n(4)]
    pub flags: u32,
    /// System management interrupts.
    #[n(5)]
    pub smi: Smi,
    /// A triple fault waits to be delivered (`triple_fault.pending`).
    #[n(6)]
    pub triple_fault_pending: bool,
    /// The exception has a payload.
    #[n(7)]
    pub exception_has_payload: bool,
    /// CR2 or DR6 that the pending exception will set.
    #[n(8)]
    pub exception_payload: u64,
}

impl Part for VcpuEvents {
    const NAME: &'static str = "x86.vcpu_events";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
}
