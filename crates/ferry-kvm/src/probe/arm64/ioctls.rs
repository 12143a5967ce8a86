//! Calls that kvm-ioctls lacks: `KVM_ARM_GET_REG_WRITABLE_MASKS`, and `KVM_GET_REG_LIST` for more than the 500
//! registers that its list has room for.
//!
//! Number and structure from the kernel's include/uapi/linux/kvm.h and arch/arm64/include/uapi/asm/kvm.h
//! (api.rst, 4.139, 4.84): range 0 is the feature ID registers, 3 × 8 × 8 words.

use kvm_bindings::{KVMIO, kvm_reg_list};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iowr_nr};

/// Words of the table of range 0 (`KVM_ARM_FEATURE_ID_RANGE_SIZE`).
pub(super) const MASKS: usize = 3 * 8 * 8;

/// `struct reg_mask_range`.
#[repr(C)]
struct RegMaskRange {
    addr: u64,
    range: u32,
    reserved: [u32; 13],
}

ioctl_ior_nr!(KVM_ARM_GET_REG_WRITABLE_MASKS, KVMIO, 0xb6, RegMaskRange);

/// Which bits of each feature ID register may be written.
pub(super) fn feature_id_masks(vm: &VmFd) -> Result<Box<[u64; MASKS]>, errno::Error> {
    let mut masks = Box::new([0_u64; MASKS]);
    let address = masks.as_mut_ptr();
    let range = RegMaskRange { addr: address.expose_provenance() as u64, range: 0, reserved: [0; 13] };
    // SAFETY: KVM reads `range` through the pointer and writes 192 words to its `addr`, which is `masks`.
    let result = unsafe { ioctl_with_ref(vm, KVM_ARM_GET_REG_WRITABLE_MASKS(), &range) };
    if result == 0 { Ok(masks) } else { Err(errno::Error::last()) }
}

ioctl_iowr_nr!(KVM_GET_REG_LIST, KVMIO, 0xb0, kvm_reg_list);

/// The most registers that are asked for.
const MAX_REGISTERS: u64 = 4096;

/// The ids of a vCPU's registers, in the order in which KVM lists them.
pub(crate) fn register_list(vcpu: &VcpuFd) -> Result<Vec<u64>, errno::Error> {
    // `struct kvm_reg_list`: how many there is room for, then the ids.
    let mut list = vec![0_u64];
    loop {
        // SAFETY: KVM reads the first word, writes at most as many words behind it, for which `list` has room,
        // and writes how many registers there are into the first.
        let result = unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_REG_LIST(), list.as_mut_ptr()) };
        let count = list.first().copied().unwrap_or(0);
        if result == 0 {
            list.remove(0);
            list.truncate(usize::try_from(count).unwrap_or(usize::MAX));
            return Ok(list);
        }
        let error = errno::Error::last();
        // KVM says how many there are; a second call has room for them.
        let room = usize::try_from(count).unwrap_or(usize::MAX);
        if error.errno() != libc::E2BIG || count > MAX_REGISTERS || room < list.len() {
            return Err(error);
        }
        list.resize(room + 1, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_headers() {
        // By hand from linux/kvm.h: read 2, size 64 (0x40), type 0xae, number 0xb6.
        assert_eq!(KVM_ARM_GET_REG_WRITABLE_MASKS(), 0x8040_aeb6);
        // Both directions, size 8, number 0xb0.
        assert_eq!(KVM_GET_REG_LIST(), 0xc008_aeb0);
    }
}
