//! The registers with which the vCPUs of a kernel of arm64 begin: vCPU 0 at EL1 with all interrupts closed, caches and
//! translation off, and the device tree's address in X0; the others are off until PSCI switches them on.
//!
//! Facts: the kernel's Documentation/arch/arm64/booting.rst ("Call the kernel image").

use ferry_contract::arm64::{RegisterId, SystemRegister};
use ferry_migrate::MachineError;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, kvm_mp_state};
use kvm_ioctls::VcpuFd;

use super::Entry;
use crate::VmmError;
use crate::boot::{PC, PSTATE, PSTATE_VALUE, X0, core, set};
use crate::kvm_guest::step;

const MPIDR_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 0, 5);

/// The affinity fields of `MPIDR_EL1`: what a vCPU is called by.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// A vCPU's own name of itself.
pub(crate) fn name_of(vcpu: &VcpuFd, _: u32) -> Result<u64, MachineError> {
    let mut value = [0; 8];
    vcpu.get_one_reg(RegisterId::system(MPIDR_EL1).raw(), &mut value)
        .map_err(|error| MachineError::with_source("a vCPU does not say its MPIDR_EL1", error))?;
    Ok(u64::from_le_bytes(value) & AFFINITY)
}

/// Makes a vCPU ready for the kernel.
pub(crate) fn start_at(vcpu: &VcpuFd, cpu: u32, entry: &Entry) -> Result<(), VmmError> {
    let mp_state = if cpu == 0 { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_STOPPED };
    vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(|source| step("say whether a vCPU runs", source))?;
    if cpu > 0 {
        return Ok(());
    }
    [(X0, entry.device_tree), (PC, entry.kernel), (PSTATE, PSTATE_VALUE)]
        .into_iter()
        .filter_map(|(word, value)| Some((core(word)?, value)))
        .try_for_each(|(id, value)| set(vcpu, id, value))
}
