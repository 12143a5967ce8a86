//! Attributes of a device of KVM's that are numbers (`KVM_GET_DEVICE_ATTR`, `KVM_SET_DEVICE_ATTR`).
//!
//! How wide an attribute is its group says: 32 or 64 bits (Documentation/virt/kvm/devices/arm-vgic-v3.rst,
//! arm-vgic-its.rst). Here all are 64 bits: of these KVM reads and writes the lower half where it has 32, because arm64
//! Linux is little-endian.

use kvm_bindings::kvm_device_attr;
use kvm_ioctls::DeviceFd;
use vmm_sys_util::errno;

pub(super) fn read(device: &DeviceFd, group: u32, attr: u64) -> Result<u64, errno::Error> {
    let mut value = 0_u64;
    let addr = (&raw mut value).expose_provenance() as u64;
    // SAFETY: KVM writes to the address in the attribute, which is `value`'s: at most 64 bits.
    unsafe { device.get_device_attr(&mut kvm_device_attr { group, attr, addr, flags: 0 }) }?;
    Ok(value)
}

/// One of 32 bits.
pub(super) fn read_word(device: &DeviceFd, group: u32, attr: u64) -> Result<u32, errno::Error> {
    read(device, group, attr).map(|value| (value & 0xffff_ffff) as u32)
}

pub(super) fn write(device: &DeviceFd, group: u32, attr: u64, value: u64) -> Result<(), errno::Error> {
    let addr = (&raw const value).expose_provenance() as u64;
    device.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 })
}

/// Has the device do something that takes no value (the groups `CTRL`).
pub(super) fn tell(device: &DeviceFd, group: u32, attr: u64) -> Result<(), errno::Error> {
    device.set_device_attr(&kvm_device_attr { group, attr, addr: 0, flags: 0 })
}
