//! The calls that kvm-ioctls lacks (`KVM_GET_SREGS2`, `KVM_SET_SREGS2`) or leaves to its caller to
//! make safe (the XSAVE area, whose length only KVM knows).
//!
//! Numbers from the kernel's include/uapi/linux/kvm.h; the lengths that KVM reads and writes from
//! `kvm_vcpu_ioctl_x86_get_xsave2` in arch/x86/kvm/x86.c and `fpu_copy_guest_fpstate_to_uabi` in
//! arch/x86/kernel/fpu/core.c.

use kvm_bindings::{KVMIO, Xsave as XsaveBuffer, kvm_sregs2};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{errno, ioctl_ior_nr, ioctl_iow_nr};

ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);

/// Room for every XSAVE area that KVM may write: the largest of today's components, AMX, end at
/// 11008 bytes. The buffer always has this room, so that a component that the process was granted
/// after KVM was asked for the size cannot write past it.
const XSAVE_ROOM_BYTES: usize = ferry_state::x86::MAX_XSAVE_BYTES;

/// Words of the part of the area that every KVM has, `kvm_xsave::region`.
const HEAD_WORDS: usize = 1024;

/// Reads the special registers with their page directory pointers.
pub(super) fn sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, errno::Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM writes one kvm_sregs2 through the pointer, which is what it points to.
    let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) };
    if result == 0 { Ok(sregs) } else { Err(errno::Error::last()) }
}

/// Sets the special registers with their page directory pointers.
pub(super) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), errno::Error> {
    // SAFETY: KVM reads one kvm_sregs2 through the pointer, which is what it points to.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) };
    if result == 0 { Ok(()) } else { Err(errno::Error::last()) }
}

/// Reads the first `length` bytes of a vCPU's XSAVE area, by `KVM_GET_XSAVE2` where KVM has it.
pub(super) fn xsave(vcpu: &VcpuFd, length: usize, by_xsave2: bool) -> Result<Vec<u8>, errno::Error> {
    if !by_xsave2 {
        return Ok(bytes_of(&vcpu.get_xsave()?.region, length));
    }
    let mut buffer = buffer(&[0; HEAD_WORDS])?;
    // SAFETY: KVM writes the vCPU's XSAVE area, at most XSAVE_ROOM_BYTES long, and the buffer has
    // this room.
    unsafe { vcpu.get_xsave2(&mut buffer) }?;
    let head = &buffer.as_fam_struct_ref().xsave.region;
    Ok(bytes_of(head.iter().chain(buffer.as_slice()), length))
}

/// Sets a vCPU's XSAVE area from its first bytes; the rest is zero. `region` is at most
/// [`XSAVE_ROOM_BYTES`] long, by the bound of its part.
pub(super) fn set_xsave(vcpu: &VcpuFd, region: &[u8]) -> Result<(), errno::Error> {
    let mut words = region.chunks(size_of::<u32>()).map(|chunk| {
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        u32::from_ne_bytes(word)
    });
    let mut head = [0; HEAD_WORDS];
    for (to, from) in head.iter_mut().zip(&mut words) {
        *to = from;
    }
    let mut buffer = buffer(&head)?;
    for (to, from) in buffer.as_mut_slice().iter_mut().zip(&mut words) {
        *to = from;
    }
    // SAFETY: KVM reads the vCPU's XSAVE area, at most XSAVE_ROOM_BYTES long, and the buffer has this
    // many.
    unsafe { vcpu.set_xsave2(&buffer) }
}

/// An XSAVE buffer of [`XSAVE_ROOM_BYTES`] with this head and zeroes behind it.
fn buffer(head: &[u32; HEAD_WORDS]) -> Result<XsaveBuffer, errno::Error> {
    let extra = XSAVE_ROOM_BYTES / size_of::<u32>() - HEAD_WORDS;
    let mut buffer = XsaveBuffer::new(extra).map_err(|_| errno::Error::new(libc::ENOMEM))?;
    // SAFETY: the length of the flexible part stays as it is; only numbers are written.
    let whole = unsafe { buffer.as_mut_fam_struct() };
    whole.xsave.region = *head;
    Ok(buffer)
}

/// The first `length` bytes of these words.
fn bytes_of<'a>(words: impl IntoIterator<Item = &'a u32>, length: usize) -> Vec<u8> {
    words.into_iter().flat_map(|word| word.to_ne_bytes()).take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_headers() {
        // By hand from linux/kvm.h: size 320 (0x140), type 0xae, numbers 0xcc and 0xcd, read 2, write 1.
        assert_eq!(KVM_GET_SREGS2(), 0x8140_aecc);
        assert_eq!(KVM_SET_SREGS2(), 0x4140_aecd);
    }
}
