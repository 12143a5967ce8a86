//! How a vCPU's time stamp counter counts: how fast, and where it stands beside that of the others.
//!
//! `KVM_GET_TSC_KHZ` in the kernel's Documentation/virt/kvm/api.rst, and `KVM_VCPU_TSC_OFFSET` in
//! Documentation/virt/kvm/devices/vcpu.rst.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// How fast a vCPU's time stamp counter counts.
/// A new vCPU counts as fast as its host, so there is no value that stands for "as created": this part
/// is always needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TscFrequency {
    /// The frequency in kHz.
    #[n(0)]
    pub khz: u32,
}

impl Part for TscFrequency {
    const NAME: &'static str = "x86.tsc_frequency";
    const FIELDS: Fields = Fields::These(&[0]);
}

/// How far a vCPU's time stamp counter is from that of vCPU 0.
///
/// KVM holds each vCPU's offset from the host's counter, a number that means nothing on another host;
/// the difference of two vCPUs' offsets is the guest's own. New vCPUs have none, so it is needed
/// where the guest, or what was restored into it, set one apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TscOffset {
    /// This vCPU's offset less vCPU 0's, modulo 2^64.
    #[n(0)]
    pub from_first: u64,
}

impl Part for TscOffset {
    const NAME: &'static str = "x86.tsc_offset";
    const FIELDS: Fields = Fields::These(&[0]);
}
