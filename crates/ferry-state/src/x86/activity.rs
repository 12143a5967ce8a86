//! Whether a vCPU runs, halts or waits to be started.
//!
//! `KVM_GET_MP_STATE` in the kernel's Documentation/virt/kvm/api.rst.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// A vCPU's multiprocessing state (`struct kvm_mp_state`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MpState {
    /// `KVM_MP_STATE_…`: 0 runnable, 1 uninitialised, 2 INIT received, 3 halted, 4 SIPI received.
    #[n(0)]
    pub mp_state: u32,
}

impl Part for MpState {
    const NAME: &'static str = "x86.mp_state";
    const FIELDS: Fields = Fields::These(&[0]);
}
