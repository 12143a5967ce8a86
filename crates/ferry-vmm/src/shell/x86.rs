//! A VM of x86-64: the places that Intel's KVM needs, interrupt controllers and interval timer.
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst: 4.24 `KVM_CREATE_IRQCHIP`, 4.37
//! `KVM_SET_TSS_ADDR` and 4.41 `KVM_SET_IDENTITY_MAP_ADDR` (both needed on Intel; unused guest-physical
//! pages below 4 GiB), 4.71 `KVM_CREATE_PIT2`.

use ferry_contract::Contract;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::VmmError;
use crate::kvm_guest::{KvmGuest, step};

/// The controllers are part of the VM.
pub(crate) struct Controller;

/// Three pages for a TSS that Intel's KVM needs, in the hole below 4 GiB.
const TSS_ADDRESS: u64 = 0xfffb_d000;

/// One page for an identity map that Intel's KVM needs, before the TSS.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Makes a VM with its controllers.
pub(super) fn create_vm(kvm: &Kvm, _: &Contract) -> Result<(VmFd, Controller), VmmError> {
    let vm = kvm.create_vm().map_err(|source| step("create a VM", source))?;
    if vm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(|source| step("place the identity map", source))?;
    }
    if vm.check_extension(Cap::SetTssAddr) {
        let address = usize::try_from(TSS_ADDRESS).unwrap_or(usize::MAX);
        vm.set_tss_address(address).map_err(|source| step("place the TSS", source))?;
    }
    vm.create_irq_chip().map_err(|source| step("create the interrupt controllers", source))?;
    // After the controllers, whose line 0 it drives. With the speaker's port answered in the kernel.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(|source| step("create the interval timer", source))?;
    Ok((vm, Controller))
}

/// Nothing is left to do once the vCPUs are there.
#[expect(clippy::unnecessary_wraps, reason = "on arm64 something is")]
pub(super) const fn ready(
    controller: Controller,
    _: &[VcpuFd],
    _: &Contract,
) -> Result<Controller, VmmError> {
    Ok(controller)
}

/// Nothing is left to give to the machine.
#[expect(clippy::unnecessary_wraps, reason = "on arm64 something is")]
pub(crate) fn take_controller(machine: KvmGuest, _: Controller) -> Result<KvmGuest, VmmError> {
    Ok(machine)
}
