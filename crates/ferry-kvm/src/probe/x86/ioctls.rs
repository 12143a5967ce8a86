//! The calls that kvm-ioctls lacks: `KVM_GET_SUPPORTED_HV_CPUID`, `KVM_GET_DEVICE_ATTR` on `/dev/kvm`, and
//! `arch_prctl(ARCH_GET_XCOMP_GUEST_PERM)`.
//!
//! Numbers from the kernel's include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/prctl.h.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_X86_GRP_SYSTEM, KVM_X86_XCOMP_GUEST_SUPP, KVMIO, kvm_cpuid2,
    kvm_device_attr,
};
use kvm_ioctls::Kvm;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ref};
use vmm_sys_util::{errno, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iowr_nr!(KVM_GET_SUPPORTED_HV_CPUID, KVMIO, 0xc1, kvm_cpuid2);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// `ARCH_GET_XCOMP_GUEST_PERM`.
const ARCH_GET_XCOMP_GUEST_PERM: libc::c_int = 0x1024;

/// Hyper-V's leaves, from `/dev/kvm` (with `KVM_CAP_SYS_HYPERV_CPUID`) or from a vCPU.
pub(super) fn hyperv_cpuid(of: &impl AsRawFd) -> Result<CpuId, errno::Error> {
    let mut cpuid = CpuId::new(KVM_MAX_CPUID_ENTRIES).map_err(|_| errno::Error::new(libc::ENOMEM))?;
    // SAFETY: KVM writes at most `nent` entries through the pointer, for which the buffer has room, and
    // then `nent` itself.
    let result =
        unsafe { ioctl_with_mut_ptr(of, KVM_GET_SUPPORTED_HV_CPUID(), cpuid.as_mut_fam_struct_ptr()) };
    if result == 0 { Ok(cpuid) } else { Err(errno::Error::last()) }
}

/// Components of extended state that KVM lets guests have once the process was granted them
/// (Documentation/virt/kvm/devices/…, `KVM_X86_XCOMP_GUEST_SUPP`).
pub(super) fn guest_permission(kvm: &Kvm) -> Result<u64, errno::Error> {
    let mut mask = 0_u64;
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_X86_GRP_SYSTEM,
        attr: KVM_X86_XCOMP_GUEST_SUPP.into(),
        addr: (&raw mut mask).addr() as u64,
    };
    // The address is given away here, and KVM writes behind it.
    let _exposed = (&raw mut mask).expose_provenance();
    // SAFETY: KVM reads one kvm_device_attr through the pointer and writes 8 bytes to its `addr`, which is
    // `mask`.
    let result = unsafe { ioctl_with_ref(kvm, KVM_GET_DEVICE_ATTR(), &attribute) };
    if result == 0 { Ok(mask) } else { Err(errno::Error::last()) }
}

/// Components that this process was granted for its guests; none if the kernel does not know the call.
pub(super) fn granted() -> Option<u64> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes 8 bytes to the address, which is `mask`.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_XCOMP_GUEST_PERM, &raw mut mask) };
    (result == 0).then_some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_headers() {
        // By hand from linux/kvm.h: sizes 8 and 24 (0x18), type 0xae, read 2, write 1.
        assert_eq!(KVM_GET_SUPPORTED_HV_CPUID(), 0xc008_aec1);
        assert_eq!(KVM_GET_DEVICE_ATTR(), 0x4018_aee2);
    }
}
