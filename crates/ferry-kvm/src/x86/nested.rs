//! `KVM_GET_NESTED_STATE` and `KVM_SET_NESTED_STATE`, by calls of our own.
//!
//! kvm-ioctls takes a header alone for "nothing", and turns a positive result of the second into an
//! error of whatever `errno` held before. Facts from `kvm_arch_vcpu_ioctl` in arch/x86/kvm/x86.c,
//! `vmx_get_nested_state` and `vmx_set_nested_state` in vmx/nested.c, and their like in svm/nested.c:
//!
//! - KVM looks at the size that the caller names only after it wrote: SVM writes the page of an L2 that
//!   runs behind a header of 128 bytes, VMX a shadow VMCS that the state's size does not count. So the
//!   buffer always has the size of `KVM_CHECK_EXTENSION(KVM_CAP_NESTED_STATE)`, whatever the state has.
//! - The second returns the reason of a failed entry into L2 as a positive number. Only 0 is success.
//! - A failure leaves the vCPU half changed.

use std::os::raw::c_int;

use ferry_state::x86::{MAX_NESTED_BYTES, NESTED_HEADER_BYTES, Nested};
use kvm_bindings::{KVMIO, kvm_nested_state};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr};
use vmm_sys_util::{errno, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iowr_nr!(KVM_GET_NESTED_STATE, KVMIO, 0xbe, kvm_nested_state);
ioctl_iow_nr!(KVM_SET_NESTED_STATE, KVMIO, 0xbf, kvm_nested_state);

/// Where the header says how many bytes the whole has (`kvm_nested_state::size`).
const SIZE_AT: usize = 4;

/// Why `KVM_SET_NESTED_STATE` did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// KVM refused the state.
    Errno(errno::Error),
    /// KVM took it apart and could not enter L2: its own number for why.
    Entry(c_int),
}

/// A buffer for one nested state, as aligned as the structure.
#[derive(Debug)]
struct Buffer {
    words: Vec<u64>,
}

impl Buffer {
    /// A buffer with these bytes at its start and zeroes behind; it has room for `capability` bytes and
    /// for the longest state that the kernel defines, the greater of the two.
    fn new(data: &[u8], capability: usize) -> Self {
        let room = capability.max(MAX_NESTED_BYTES).max(data.len());
        let mut words = vec![0; room.div_ceil(size_of::<u64>())];
        for (word, chunk) in words.iter_mut().zip(data.chunks(size_of::<u64>())) {
            let mut bytes = [0; 8];
            for (to, from) in bytes.iter_mut().zip(chunk) {
                *to = *from;
            }
            *word = u64::from_ne_bytes(bytes);
        }
        Self { words }
    }

    fn room(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }

    /// The first `length` bytes.
    fn bytes(&self, length: usize) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_ne_bytes()).take(length).collect()
    }
}

/// Reads a vCPU's nested state. `capability` is what `KVM_CHECK_EXTENSION(KVM_CAP_NESTED_STATE)` says,
/// not 0. `EPROTO` if KVM says something that is none.
pub(super) fn read(vcpu: &VcpuFd, capability: usize) -> Result<Nested, errno::Error> {
    let mut header = [0; NESTED_HEADER_BYTES];
    let size = u32::try_from(capability).unwrap_or(u32::MAX);
    for (to, from) in header.iter_mut().skip(SIZE_AT).zip(size.to_ne_bytes()) {
        *to = from;
    }
    let mut buffer = Buffer::new(&header, capability);
    let pointer = buffer.words.as_mut_ptr().cast::<kvm_nested_state>();
    // SAFETY: KVM writes at most as many bytes as its capability says, and the buffer has this room.
    let result = unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_NESTED_STATE(), pointer) };
    if result != 0 {
        return Err(errno::Error::last());
    }
    as_captured(&buffer).ok_or_else(|| errno::Error::new(libc::EPROTO))
}

/// What KVM wrote, cut at the size that it says.
fn as_captured(buffer: &Buffer) -> Option<Nested> {
    let header = buffer.bytes(NESTED_HEADER_BYTES);
    let size = header.get(SIZE_AT..)?.first_chunk()?;
    let size = usize::try_from(u32::from_ne_bytes(*size)).ok().filter(|size| *size <= buffer.room())?;
    Nested::from_bytes(buffer.bytes(size))
}

/// Sets a vCPU's nested state. After a refusal discard the vCPU.
pub(super) fn write(vcpu: &VcpuFd, nested: &Nested, capability: usize) -> Result<(), Refusal> {
    let buffer = Buffer::new(nested.data(), capability);
    let pointer = buffer.words.as_ptr().cast::<kvm_nested_state>();
    // SAFETY: KVM reads at most as many bytes as the header says or its capability, and the buffer has
    // both.
    let result = unsafe { ioctl_with_ptr(vcpu, KVM_SET_NESTED_STATE(), pointer) };
    outcome(result, errno::Error::last)
}

/// What the result of the ioctl means; `errno` is asked only where it holds something.
fn outcome(result: c_int, errno: impl FnOnce() -> errno::Error) -> Result<(), Refusal> {
    match result {
        0 => Ok(()),
        1.. => Err(Refusal::Entry(result)),
        _ => Err(Refusal::Errno(errno())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_headers() {
        // By hand from linux/kvm.h: size 128 (0x80), type 0xae, numbers 0xbe and 0xbf.
        assert_eq!(KVM_GET_NESTED_STATE(), 0xc080_aebe);
        assert_eq!(KVM_SET_NESTED_STATE(), 0x4080_aebf);
    }

    #[test]
    fn a_positive_result_is_a_failure_and_leaves_errno_alone() {
        assert_eq!(outcome(0, || panic!("no error")), Ok(()));
        assert_eq!(outcome(2, || panic!("errno says nothing")), Err(Refusal::Entry(2)));
        let einval = errno::Error::new(libc::EINVAL);
        assert_eq!(outcome(-1, || einval), Err(Refusal::Errno(einval)));
    }

    #[test]
    fn every_buffer_has_room_for_all_that_kvm_may_write() {
        assert_eq!(Buffer::new(&[1; 128], 4224).room(), 8320, "SVM says 4224 bytes");
        assert_eq!(Buffer::new(&[], 8320).room(), 8320);
        assert_eq!(Buffer::new(&[], 16384).room(), 16384, "a later kernel has more");
        assert_eq!(Buffer::new(&[], 16381).room(), 16384, "whole words");
        let buffer = Buffer::new(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 128);
        assert_eq!(buffer.bytes(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
    }

    #[test]
    fn what_kvm_wrote_is_cut_at_its_own_size() {
        let with_size = |size: u32| {
            let mut header = [0; 128];
            header[SIZE_AT..8].copy_from_slice(&size.to_ne_bytes());
            header[8] = 9;
            as_captured(&Buffer::new(&header, 8320))
        };
        assert_eq!(with_size(128).unwrap().data().len(), 128, "a header alone is a state");
        assert_eq!(with_size(4224).unwrap().data().len(), 4224);
        for bad in [0, 127, 8321, u32::MAX] {
            assert_eq!(with_size(bad), None);
        }
    }
}
