//! The TSC of vCPUs beyond the first: kept as far from vCPU 0's as it was.
//!
//! Two ways lead to a vCPU's TSC: its value (`IA32_TSC`) and its offset from the host's counter
//! (`KVM_VCPU_TSC_OFFSET`, Linux 5.16 and later). The value alone means something on another host, so
//! vCPU 0 is restored by it, and the guest's time stands still during the move, like its kvmclock. For
//! the others it will not do: it was read at another instant than vCPU 0's, and it is written at
//! another; KVM bends a value within a second of the last one written to the same offset
//! (`kvm_synchronize_tsc` in arch/x86/kvm/x86.c), which hides this and loses a difference that the
//! guest made. So they get vCPU 0's offset here, and the difference of both offsets on the source.

use ferry_state::Part;
use ferry_state::x86::Msrs;
use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Msrs as KvmMsrs, kvm_device_attr, kvm_msr_entry,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use super::StateIoError;
use super::msrs::IA32_TSC;

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
    let entry = kvm_msr_entry { index: IA32_TSC, data: value.wrapping_add(FAR), ..Default::default() };
    let failed = |source| {
        let fact = "the TSC cannot be set".to_owned();
        StateIoError::Ioctl { ioctl: "KVM_SET_MSRS", section: Msrs::NAME, index, fact, source }
    };
    let one = KvmMsrs::from_entries(&[entry]).map_err(|_| failed(errno::Error::new(libc::ENOMEM)))?;
    // One that KVM does not take is told of when it gets its value.
    vcpu.set_msrs(&one).map(drop).map_err(failed)
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
