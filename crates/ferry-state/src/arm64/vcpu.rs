//! What a vCPU holds beside its registers.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// Whether a vCPU runs or is powered off: what `KVM_GET_MP_STATE` gives.
///
/// Documentation/virt/kvm/api.rst, 4.38.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MpState {
    /// `KVM_MP_STATE_…`: 0 runnable, 5 stopped (PSCI's `CPU_OFF`), 10 suspended.
    #[n(0)]
    pub mp_state: u32,
}

impl Part for MpState {
    const NAME: &'static str = "arm64.mp_state";
    const FIELDS: Fields = Fields::These(&[0]);
}

/// An error interrupt that waits to be taken: what `KVM_GET_VCPU_EVENTS` gives.
///
/// From `struct kvm_vcpu_events` of the kernel's arch/arm64/include/uapi/asm/kvm.h. An external data
/// abort can only be set (`ext_dabt_pending`): reading gives what it made of the registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VcpuEvents {
    /// A `SError` waits.
    #[n(0)]
    pub serror_pending: bool,
    /// Its syndrome is known (`KVM_CAP_ARM_INJECT_SERROR_ESR`).
    #[n(1)]
    pub serror_has_esr: bool,
    /// The syndrome that the guest will find in `ESR_EL1`.
    #[n(2)]
    pub serror_esr: u64,
}

impl Part for VcpuEvents {
    const NAME: &'static str = "arm64.vcpu_events";
    const FIELDS: Fields = Fields::These(&[0, 1, 2]);
}
