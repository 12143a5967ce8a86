//! The TSC of vCPUs beyond the first: kept as far from vCPU 0's as it was.
//!
//! Two ways lead to a vCPU's TSC: its value (`IA32_TSC`) and its offset from the host's counter
//! (`KVM_VCPU_TSC_OFFSET`, Linux 5.16 and later). The value alone means something on another host, so
//! vCPU 0 is restored by it, moved on where the guest's time is to catch up, like its kvmclock. For
//! the others it will not do: it was read at another instant than vCPU 0's, and it is written at
//! another; KVM bends a value within a second of the last one written to the same offset
//! (`kvm_synchronize_tsc` in arch/x86/kvm/x86.c), which hides this and loses a difference that the
//! guest made. So they get vCPU 0's offset here, and the difference of both offsets on the source.

use ferry_state::x86::IA32_TSC;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use super::{StateIoError, msrs};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// The offset of vCPU 0, which the other vCPUs of a VM are captured and restored against: one value for
/// each capture and each restore, new before vCPU 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct FirstTsc {
    pub(super) offset: Option<u64>,
}

/// How far from a guest's TSC a vCPU's is set first, in ticks: minutes, where KVM looks at one second.
const FAR: u64 = 1 << 40;

/// Sets a vCPU's TSC far from this value, which is set next. Before 6.7 KVM takes a TSC that is within a second
/// of what the new vCPU counts by itself for an attempt to keep that count, and keeps it
/// (`kvm_synchronize_tsc`): a guest younger than a second would find its time set back.
pub(super) fn leave_its_own_count(vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), StateIoError> {
    match msrs::set(vcpu, index, IA32_TSC, value.wrapping_add(FAR)) {
        // One that KVM does not take is told of when it gets its value.
        Err(StateIoError::MsrRefused { .. }) => Ok(()),
        set => set,
    }
}

/// The TSC's offset of a vCPU, where KVM has that attribute.
pub(super) fn offset(vcpu: &VcpuFd) -> Result<u64, errno::Error> {
    let mut offset: u64 = 0;
    let attribute = attribute(&raw mut offset);
    // SAFETY: KVM reads the attribute's description and writes one u64 to the address in it, that of
    // `offset`.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
    if result == 0 { Ok(offset) } else { Err(errno::Error::last()) }
}

/// Sets it.
pub(super) fn set_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), errno::Error> {
    let attribute = attribute(&raw mut offset);
    // SAFETY: KVM reads the attribute's description and one u64 from the address in it, that of `offset`.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) };
    if result == 0 { Ok(()) } else { Err(errno::Error::last()) }
}

fn attribute(offset: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: offset as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_headers() {
        // By hand from linux/kvm.h: size 24 (0x18), type 0xae, numbers 0xe1 and 0xe2, write 1.
        assert_eq!(KVM_SET_DEVICE_ATTR(), 0x4018_aee1);
        assert_eq!(KVM_GET_DEVICE_ATTR(), 0x4018_aee2);
    }
}
