//! How a vCPU is made what it is: its kind and features, and its vectors.

use std::os::raw::c_int;

use kvm_bindings::{KVM_ARM_VCPU_SVE, kvm_vcpu_init};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;

/// An ioctl's name with its error.
pub(crate) type Refused = (&'static str, errno::Error);

/// Gives a vCPU the kind that this host prefers and these features (bits of `KVM_ARM_VCPU_INIT`).
pub(crate) fn init(vm: &VmFd, vcpu: &VcpuFd, features: u32) -> Result<(), Refused> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(|error| ("KVM_ARM_PREFERRED_TARGET", error))?;
    init.features = [features, 0, 0, 0, 0, 0, 0];
    vcpu.vcpu_init(&init).map_err(|error| ("KVM_ARM_VCPU_INIT", error))
}

/// Fixes the lengths of a vCPU's vectors, which are there to be read only then (Documentation/virt/kvm/api.rst, 4.119).
pub(crate) fn finalize_sve(vcpu: &VcpuFd) -> Result<(), Refused> {
    let sve = c_int::try_from(KVM_ARM_VCPU_SVE).unwrap_or_default();
    vcpu.vcpu_finalize(&sve).map_err(|error| ("KVM_ARM_VCPU_FINALIZE", error))
}
