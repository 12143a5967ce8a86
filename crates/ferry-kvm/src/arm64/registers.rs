//! A vCPU's registers: which there are, and what each holds.

use ferry_contract::arm64::{
    MAX_REGISTER_BYTES, RegisterClass, RegisterId, RegisterKind, RegisterValue, SystemRegister,
};
use ferry_state::arm64::Registers;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::StateIoError;
use crate::probe::arm64::register_list;

/// The virtual and the physical counter, and the timers on them, as KVM numbers them (uapi `asm/kvm.h`).
pub(super) const TIMER_COUNT: RegisterId = RegisterId::system(SystemRegister::new(3, 3, 14, 3, 2));
pub(super) const PHYSICAL_COUNT: RegisterId = RegisterId::system(SystemRegister::new(3, 3, 14, 0, 1));

/// Registers that clear what another of the list sets, and the one that counts events by being written.
/// Some kernels (those with a45f41d754e0 and without 45bf944e6703, both "KVM: arm64: …") take a write as the
/// guest's own, so one that was read and is written back would clear all. What they say is in the others:
/// `PMCNTENSET_EL0`, `PMINTENSET_EL1`, `PMOVSSET_EL0`.
const CLEARING: [SystemRegister; 4] = [
    SystemRegister::new(3, 0, 9, 14, 2),
    SystemRegister::new(3, 3, 9, 12, 2),
    SystemRegister::new(3, 3, 9, 12, 3),
    SystemRegister::new(3, 3, 9, 12, 4),
];

/// When a register is written: the stages follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// What the firmware offers, which processor it is and what it can do: the contract has set these, and KVM
    /// takes a write that changes nothing.
    Given,
    /// System registers, and general ones.
    Plain,
    /// Vectors: they follow `ZCR_EL1`, which is among the system registers.
    Vectors,
    /// The performance monitor's counts before what lets them count.
    Counts,
    /// What lets events be counted, and the timers: they act.
    Acting,
}

/// When a register is written; none for those that are never.
pub(super) fn stage(id: RegisterId) -> Option<Stage> {
    // One for all vCPUs, and set once for all: see `arm64.counter`.
    if id == TIMER_COUNT || id == PHYSICAL_COUNT {
        return None;
    }
    match (id.kind(), id.class()) {
        (RegisterKind::System(register), _) if CLEARING.contains(&register) => None,
        (_, RegisterClass::Firmware | RegisterClass::Identity | RegisterClass::Feature) => Some(Stage::Given),
        (_, RegisterClass::Sve) => Some(Stage::Vectors),
        (RegisterKind::System(register), RegisterClass::Pmu) => Some(match register.crn() {
            // PMEVCNTR, PMEVTYPER, PMCCFILTR; and the cycle counter among the others.
            14 => Stage::Counts,
            _ if register == SystemRegister::new(3, 3, 9, 13, 0) => Stage::Counts,
            _ => Stage::Acting,
        }),
        (_, RegisterClass::Timer) => Some(Stage::Acting),
        _ => Some(Stage::Plain),
    }
}

/// Whether what a guest has in it can be another at the next look, without anybody doing anything.
pub(super) fn counts_by_itself(id: RegisterId) -> bool {
    let RegisterKind::System(register) = id.kind() else { return false };
    let is_count = stage(id) == Some(Stage::Counts) && (register.crn(), register.crm()) < (14, 12);
    // ISTATUS of a timer's control follows the counter.
    is_count || id.class() == RegisterClass::Timer
}

/// The registers that KVM lists, ascending. One that this build cannot take apart is left out: no state can
/// hold it.
fn list(vcpu: &VcpuFd) -> Result<Vec<RegisterId>, errno::Error> {
    let ids = register_list(vcpu)?;
    let mut ids: Vec<RegisterId> = ids.into_iter().filter_map(|id| RegisterId::new(id).ok()).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Reads a register.
pub(crate) fn read(vcpu: &VcpuFd, id: RegisterId) -> Result<RegisterValue, errno::Error> {
    let mut buffer = [0; MAX_REGISTER_BYTES];
    let bytes = buffer.get_mut(..id.bytes()).unwrap_or_default();
    vcpu.get_one_reg(id.raw(), bytes)?;
    RegisterValue::new(bytes.to_vec()).ok_or_else(|| errno::Error::new(libc::EINVAL))
}

/// Reads every register that KVM lists and can read.
pub(super) fn read_all(vcpu: &VcpuFd, index: u32) -> Result<Registers, StateIoError> {
    let failed = |ioctl, what: String| move |source| StateIoError::Ioctl { ioctl, what, index, source };
    let ids = list(vcpu).map_err(failed("KVM_GET_REG_LIST", "the registers".to_owned()))?;
    let mut registers = Registers::default();
    for id in ids {
        let value = read(vcpu, id).map_err(failed("KVM_GET_ONE_REG", id.to_string()))?;
        // It was read with the length of its id.
        drop(registers.set(id, value));
    }
    Ok(registers)
}

/// Writes a register.
pub(super) fn write(vcpu: &VcpuFd, id: RegisterId, value: &RegisterValue) -> Result<(), errno::Error> {
    vcpu.set_one_reg(id.raw(), value.bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Option<Stage> {
        stage(RegisterId::system(SystemRegister::new(op0, op1, crn, crm, op2)))
    }

    #[test]
    fn what_acts_comes_last_and_what_clears_never() {
        assert_eq!(of(3, 0, 0, 4, 0), Some(Stage::Given));
        assert_eq!(of(3, 0, 1, 0, 0), Some(Stage::Plain));
        assert_eq!(of(3, 3, 14, 8, 0), Some(Stage::Counts));
        assert_eq!(of(3, 3, 9, 13, 0), Some(Stage::Counts));
        assert_eq!(of(3, 3, 9, 12, 1), Some(Stage::Acting));
        assert_eq!(of(3, 3, 9, 12, 2), None);
        assert_eq!(of(3, 0, 9, 14, 1), Some(Stage::Acting));
        assert_eq!(of(3, 0, 9, 14, 2), None);
        assert_eq!((stage(TIMER_COUNT), stage(PHYSICAL_COUNT)), (None, None));
        assert_eq!(of(3, 3, 14, 3, 1), Some(Stage::Acting));
        assert!(
            Stage::Given < Stage::Plain && Stage::Plain < Stage::Vectors && Stage::Vectors < Stage::Acting
        );
        let vector = RegisterId::from_key(0x15_0020, 256).and_then(stage);
        assert_eq!(vector, Some(Stage::Vectors));
    }

    #[test]
    fn only_counts_change_by_themselves() {
        let changes =
            |crn, crm, op2| counts_by_itself(RegisterId::system(SystemRegister::new(3, 3, crn, crm, op2)));
        assert!(changes(14, 8, 3) && changes(9, 13, 0) && changes(14, 3, 1));
        assert!(!changes(14, 12, 3) && !changes(14, 15, 7) && !changes(9, 12, 0));
    }
}
