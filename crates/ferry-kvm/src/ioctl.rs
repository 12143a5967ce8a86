//! The ioctls on a VM that kvm-ioctls does not have: `KVM_CLEAR_DIRTY_LOG`, `KVM_RESET_DIRTY_RINGS`.
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst, 4.117, and
//! `kvm_clear_dirty_log_protect` in `virt/kvm/kvm_main.c`: `first_page` is a multiple of 64; so is
//! `num_pages`, unless the range ends with the slot; the kernel reads one bit a page, rounded up to
//! whole 64-bit words. A set bit clears the page in the log and protects it, so that the next write
//! is noted again. The rings' reset takes no argument and gives the number of entries that it freed;
//! newer kernels end it when a signal waits and give the number so far (`kvm_vm_ioctl_reset_dirty_pages`
//! in `virt/kvm/kvm_main.c`).

use std::os::raw::c_ulong;

use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl, ioctl_expr, ioctl_with_ref};

/// Pages that one word of a dirty bitmap stands for.
pub(crate) const PAGES_PER_WORD: u64 = 64;

/// `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)` of linux/kvm.h.
const KVM_CLEAR_DIRTY_LOG: c_ulong = ioctl_expr(_IOC_READ | _IOC_WRITE, KVMIO, 0xc0, LOG_BYTES);

/// Bytes of `struct kvm_clear_dirty_log`, which are part of the number.
const LOG_BYTES: u32 = 24;

/// Clears the pages whose bits are set in `words` from the log of `slot`, and protects them.
///
/// `words[0]` bit 0 stands for page `first_page` of the slot, a multiple of 64; `pages` is at most
/// `64 * words.len()`.
pub(crate) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u32,
    words: &[u64],
) -> Result<(), errno::Error> {
    if u64::from(pages).div_ceil(PAGES_PER_WORD) > words.len() as u64 {
        return Err(errno::Error::new(libc::EINVAL));
    }
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel reads `log` and, from its bitmap, one bit for each of `num_pages` rounded up
    // to whole words, which `words` holds by the check above; it writes to neither.
    let result = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG, &log) };
    if result == 0 { Ok(()) } else { Err(errno::Error::last()) }
}

/// `_IO(KVMIO, 0xc7)` of linux/kvm.h.
const KVM_RESET_DIRTY_RINGS: c_ulong = ioctl_expr(_IOC_NONE, KVMIO, 0xc7, 0);

/// Protects the pages again that were taken from the VM's dirty rings, and frees their entries; how many.
/// Fewer than there are if a signal waits.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> Result<u32, errno::Error> {
    // SAFETY: the call takes no argument and writes to no memory of this process but the rings,
    // whose entries this process has given back.
    let result = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS) };
    u32::try_from(result).or_else(|_| {
        let error = errno::Error::last();
        if error.errno() == libc::EINTR { Ok(0) } else { Err(error) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_headers() {
        assert_eq!(size_of::<kvm_clear_dirty_log>(), LOG_BYTES as usize);
        // Computed by hand from linux/kvm.h: direction 3, size 24, type 0xae, number 0xc0.
        assert_eq!(KVM_CLEAR_DIRTY_LOG, 0xc018_aec0);
        assert_eq!(KVM_RESET_DIRTY_RINGS, 0xaec7);
    }
}
