//! A VM of arm64 and its interrupt controller, a `GICv3` in the kernel.
//!
//! Facts from the kernel's Documentation/virt/kvm/devices/arm-vgic-v3.rst (addresses, number of interrupts, then
//! `KVM_DEV_ARM_VGIC_CTRL_INIT` once every vCPU is there) and vcpu.rst (1 `KVM_ARM_VCPU_PMU_V3_CTRL`: a vCPU with a
//! performance monitor runs once that has its interrupt and is made ready, after the controller); api.rst 4.2 (a VM's
//! type is the size of its addresses).

use std::sync::Arc;

use ferry_contract::{Arm64Contract, Contract, VcpuFeature};
use ferry_kvm::arm64::Gic;
use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ, KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 as VGIC_V3,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};

use crate::VmmError;
use crate::boot::{DISTRIBUTOR, REDISTRIBUTORS};
use crate::kvm_guest::{KvmGuest, step};

/// The controller is a device, and its registers are part of the machine's state.
pub(crate) type Controller = Gic;

/// Interrupts that there are: 32 of each vCPU's own, 32 of devices.
const INTERRUPTS: u32 = 64;

/// The interrupt of a performance monitor, that of Arm's Base System Architecture (DEN0094): one of each
/// vCPU's own.
const PMU_INTERRUPT: u32 = 23;

/// Bits of guest-physical addresses that a VM has when nothing is said, which is all that old kernels take.
const IPA_BITS: u32 = 40;

/// Makes a VM with addresses as its contract has them, and its controller, by which the vCPUs say that there is one.
pub(super) fn create_vm(kvm: &Kvm, contract: &Contract) -> Result<(VmFd, DeviceFd), VmmError> {
    if let Contract::Arm64(contract) = contract {
        is_made(contract)?;
    }
    let bits = match contract {
        Contract::Arm64(contract) if contract.ipa_bits != IPA_BITS => contract.ipa_bits,
        _ => 0,
    };
    let vm = kvm.create_vm_with_type(bits.into()).map_err(|source| step("create a VM", source))?;
    let controller = vm.create_device(&mut kvm_create_device { type_: VGIC_V3, fd: 0, flags: 0 });
    Ok((vm, controller.map_err(|source| step("create a GICv3", source))?))
}

/// Refuses a contract of another machine than this one.
fn is_made(contract: &Arm64Contract) -> Result<(), VmmError> {
    if contract.gic_version != Some(3) {
        let asked = contract
            .gic_version
            .map_or_else(|| "no interrupt controller".to_owned(), |version| format!("a GICv{version}"));
        return Err(VmmError::NotMade { asked, reason: "guests of this VMM have a GICv3" });
    }
    if contract
        .features
        .iter()
        .any(|feature| matches!(feature, VcpuFeature::HasEl2 | VcpuFeature::HasEl2E2h0))
    {
        return Err(VmmError::NotMade {
            asked: "EL2".to_owned(),
            reason: "what its own guests have in their interrupt controllers (ICH_…) KVM gives nobody before Linux 6.17",
        });
    }
    Ok(())
}

/// Makes the controller ready, once every vCPU is there, and then the performance monitors.
pub(super) fn ready(device: DeviceFd, vcpus: &[VcpuFd], contract: &Contract) -> Result<Controller, VmmError> {
    let failed = |source| step("make a GICv3 ready", source);
    let set = |group, attr: u32, value: Option<&u64>| {
        let addr = value.map_or(0, |value| std::ptr::from_ref(value).expose_provenance() as u64);
        device.set_device_attr(&kvm_device_attr { group, attr: attr.into(), addr, flags: 0 }).map_err(failed)
    };
    set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, Some(&DISTRIBUTOR))?;
    set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, Some(&REDISTRIBUTORS))?;
    // KVM reads 32 bits, and this architecture has the low half first.
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&INTERRUPTS.into()))?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;
    if matches!(contract, Contract::Arm64(contract) if contract.features.contains(&VcpuFeature::PmuV3)) {
        vcpus.iter().try_for_each(ready_pmu)?;
    }
    Gic::new(Arc::new(device)).map_err(failed)
}

/// Gives a vCPU's performance monitor its interrupt, and makes it ready.
fn ready_pmu(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let addr = std::ptr::from_ref(&PMU_INTERRUPT).expose_provenance() as u64;
    for (attr, addr) in [(KVM_ARM_VCPU_PMU_V3_IRQ, addr), (KVM_ARM_VCPU_PMU_V3_INIT, 0)] {
        let attr = kvm_device_attr { group: KVM_ARM_VCPU_PMU_V3_CTRL, attr: attr.into(), addr, flags: 0 };
        vcpu.set_device_attr(&attr).map_err(|source| step("make a performance monitor ready", source))?;
    }
    Ok(())
}

/// Gives the controller to the machine, which then moves with it.
pub(crate) fn take_controller(machine: KvmGuest, gic: Controller) -> Result<KvmGuest, VmmError> {
    Ok(machine.with_gic(gic)?)
}
