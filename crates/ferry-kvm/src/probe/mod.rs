//! Probing a host: from `/dev/kvm` to a [`Profile`].
//!
//! [`probe`] asks KVM for everything that it can offer a guest. On x86-64 it runs a guest of a few
//! instructions to see whether what KVM is told reaches a guest; on arm64 it makes a vCPU for each useful
//! set of features and tries what KVM lets be written. A capability that is absent is a value; an error is
//! only what keeps the profile from being whole. Two probes of one host give the same profile.
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst, each at its place.

#[cfg(target_arch = "aarch64")]
pub(crate) mod arm64;
mod capabilities;
mod error;
mod host;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

pub use error::ProbeError;
#[cfg(target_arch = "x86_64")]
pub use x86::probe as probe_x86;

#[cfg(target_arch = "aarch64")]
use arm64 as here;
use ferry_contract::{Contract, Profile};
use kvm_ioctls::Kvm;
#[cfg(target_arch = "x86_64")]
use x86 as here;

/// Makes this host's profile.
pub fn probe(kvm: &Kvm) -> Result<Profile, ProbeError> {
    here::probe(kvm).map(Profile::from)
}

/// As much of this host's profile as one guest is held against: by its contract, or without one as a guest with all
/// that the host offers by itself. On x86-64 that is all of it; on arm64 it leaves out the sets of features that
/// the guest does not have, which may take seconds each.
pub fn probe_for(kvm: &Kvm, contract: Option<&Contract>) -> Result<Profile, ProbeError> {
    here::probe_for(kvm, contract).map(Profile::from)
}
