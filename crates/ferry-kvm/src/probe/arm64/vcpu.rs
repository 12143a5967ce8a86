//! A fresh vCPU, as a VMM makes one: VM, vCPU, its features, an interrupt controller.

use ferry_contract::VcpuFeature;
use kvm_bindings::{
    KVM_CAP_ARM_VM_IPA_SIZE, kvm_create_device, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS as VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2 as VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 as VGIC_V3,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};
use vmm_sys_util::errno;

use super::IPA_BITS;
use crate::arm64::vcpu::{finalize_sve, init};
use crate::probe::ProbeError;
use crate::probe::error::failed;

/// A vCPU that has run nothing.
pub(super) struct Fresh {
    pub(super) vm: VmFd,
    pub(super) vcpu: VcpuFd,
    _gic: Option<DeviceFd>,
}

impl Fresh {
    /// With these features, and a `GICv3` in its VM if wanted: a guest's `ID_AA64PFR0_EL1` says which it has.
    pub(super) fn make(kvm: &Kvm, features: &[VcpuFeature], gic: bool) -> Result<Self, ProbeError> {
        let vm = create_vm(kvm)?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU", "a vCPU to ask"))?;
        let refused = |(ioctl, source)| failed(ioctl, "a vCPU with its features")(source);
        init(&vm, &vcpu, VcpuFeature::bits(features)).map_err(refused)?;
        let gic = if gic {
            Some(device(&vm, VGIC_V3).map_err(failed("KVM_CREATE_DEVICE", "a GICv3 to ask with"))?)
        } else {
            None
        };
        if features.contains(&VcpuFeature::Sve) {
            finalize_sve(&vcpu).map_err(refused)?;
        }
        Ok(Self { vm, vcpu, _gic: gic })
    }
}

/// A VM with the usual size of addresses, or the host's where that is less.
pub(super) fn create_vm(kvm: &Kvm) -> Result<VmFd, ProbeError> {
    let most = u32::try_from(kvm.check_extension_raw(KVM_CAP_ARM_VM_IPA_SIZE.into())).unwrap_or(0);
    // 0 stands for the usual 40 bits, and is the only value that kernels without the capability take.
    let asked = if (1..IPA_BITS).contains(&most) { most } else { 0 };
    kvm.create_vm_with_type(asked.into()).map_err(failed("KVM_CREATE_VM", "a VM to ask"))
}

/// Makes a device in the VM.
fn device(vm: &VmFd, kind: u32) -> Result<DeviceFd, errno::Error> {
    vm.create_device(&mut kvm_create_device { type_: kind, fd: 0, flags: 0 })
}

/// Whether KVM makes such devices: each is tried in a VM of its own, for a VM has one GIC.
fn makes(kvm: &Kvm, kinds: &[u32]) -> Result<bool, ProbeError> {
    let vm = create_vm(kvm)?;
    let mut made = Vec::new();
    for kind in kinds {
        match device(&vm, *kind) {
            Ok(device) => made.push(device),
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Versions of the GIC that KVM emulates.
pub(super) fn gic_versions(kvm: &Kvm) -> Result<Vec<u32>, ProbeError> {
    let mut versions = Vec::new();
    for (version, kind) in [(2, VGIC_V2), (3, VGIC_V3)] {
        if makes(kvm, &[kind])? {
            versions.push(version);
        }
    }
    Ok(versions)
}

/// Whether KVM emulates the interrupt translation service.
pub(super) fn has_its(kvm: &Kvm) -> Result<bool, ProbeError> {
    makes(kvm, &[VGIC_V3, VGIC_ITS])
}
