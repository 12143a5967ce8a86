//! A vCPU's registers: which there are, and what each holds.

use ferry_contract::arm64::{
    MAX_REGISTER_BYTES, RegisterClass, RegisterId, RegisterKind, RegisterValue, SystemRegister,
};
use ferry_state::arm64::Registers;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::StateIoError;
use super::capture::failed;
use crate::probe::arm64::register_list;

/// The virtual and the physical counter, and the timers on them, as KVM numbers them (uapi `asm/kvm.h`).
pub(super) const TIMER_COUNT: RegisterId = RegisterId::system(SystemRegister::new(3, 3, 14, 3, 2));
pub(super) const PHYSICAL_COUNT: RegisterId = RegisterId::system(SystemRegister::new(3, 3, 14, 0, 1));
const PHYSICAL_CONTROL: RegisterId = RegisterId::system(SystemRegister::new(3, 3, 14, 2, 1));

/// Registers that set bits, each with the one that clears them; both read the same. `PMINTENSET_EL1`,
/// `PMCNTENSET_EL0`, `PMOVSSET_EL0`.
///
/// Some kernels (those with a45f41d754e0 and without 45bf944e6703, both "KVM: arm64: …") take a write as the guest's
/// own: bits are added or taken away. The others take it as the new value, whichever of the two is written. So
/// what is read is written back to the first alone, see [`write`].
const SET_AND_CLEAR: [(SystemRegister, SystemRegister); 3] = [
    (SystemRegister::new(3, 0, 9, 14, 1), SystemRegister::new(3, 0, 9, 14, 2)),
    (SystemRegister::new(3, 3, 9, 12, 1), SystemRegister::new(3, 3, 9, 12, 2)),
    (SystemRegister::new(3, 3, 9, 14, 3), SystemRegister::new(3, 3, 9, 12, 3)),
];

/// `PMSWINC_EL0`: counts events by being written.
const COUNTING: SystemRegister = SystemRegister::new(3, 3, 9, 12, 4);

/// When a register is written: the stages follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// What the firmware offers, which processor it is and what it can do, and the vector lengths: the contract
    /// has set these, or the VMM that made the vCPU. They are compared, and written no more.
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

impl Stage {
    /// Those that are written, in their order.
    pub(super) const WRITTEN: [Self; 4] = [Self::Plain, Self::Vectors, Self::Counts, Self::Acting];
}

/// When a register is written; none for those that are never.
pub(super) fn stage(id: RegisterId) -> Option<Stage> {
    // One for all vCPUs, and set once for all: see `arm64.counter`.
    if id == TIMER_COUNT || id == PHYSICAL_COUNT {
        return None;
    }
    match (id.kind(), id.class()) {
        (RegisterKind::System(register), _) if register == COUNTING || clears(register) => None,
        _ if id.is_of_contract() || id.class() == RegisterClass::Identity => Some(Stage::Given),
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

/// Whether what was written to it is there at the next look.
pub(super) fn lasts(id: RegisterId) -> bool {
    stage(id).is_some() && !id.counts()
}

/// The registers that KVM lists, ascending, but for those that this build cannot take apart: no contract can
/// have them.
pub(super) fn list(vcpu: &VcpuFd) -> Result<Vec<RegisterId>, errno::Error> {
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

/// The registers of these ids. One that this build cannot take apart is an error: it would be left behind.
fn known(ids: Vec<u64>, index: u32) -> Result<Vec<RegisterId>, StateIoError> {
    let known = |id| RegisterId::new(id).map_err(|source| StateIoError::UnknownRegister { index, source });
    ids.into_iter().map(known).collect()
}

/// Reads every register that KVM lists.
pub(super) fn read_all(vcpu: &VcpuFd, index: u32) -> Result<Registers, StateIoError> {
    let ids = register_list(vcpu).map_err(failed("KVM_GET_REG_LIST", "the registers", index))?;
    let mut registers = Registers::default();
    for id in known(ids, index)? {
        // Its name is looked up only where it is wanted: there are hundreds.
        let value =
            read(vcpu, id).map_err(|source| failed("KVM_GET_ONE_REG", &id.to_string(), index)(source))?;
        // It was read with the length of its id.
        drop(registers.set(id, value));
    }
    Ok(registers)
}

/// Whether the guest has memory tags: `ID_AA64PFR1_EL1.MTE` of 2 and more. (1 is instructions alone, without tags.)
pub(super) fn has_memory_tags(registers: &Registers) -> bool {
    let pfr1 = RegisterId::system(SystemRegister::new(3, 0, 0, 4, 1));
    registers.value(pfr1).and_then(RegisterValue::number).is_some_and(|it| it >> 8 & 0xf >= 2)
}

/// Whether the physical timer is among them.
pub(super) fn has_physical_timer(registers: &Registers) -> bool {
    registers.value(PHYSICAL_CONTROL).is_some()
}

/// Writes a register.
pub(super) fn write(vcpu: &VcpuFd, id: RegisterId, value: &RegisterValue) -> Result<(), errno::Error> {
    let put = |id: RegisterId, value: &RegisterValue| vcpu.set_one_reg(id.raw(), value.bytes()).map(drop);
    put(id, value)?;
    // A new vCPU may have bits there that the guest has not. Where clearing all of them is taken as the new
    // value, the one after it is, too.
    if let Some(clearing) = cleared_by(id)
        && read(vcpu, id)? != *value
    {
        put(clearing, &u64::MAX.into())?;
        put(id, value)?;
    }
    Ok(())
}

fn clears(register: SystemRegister) -> bool {
    SET_AND_CLEAR.iter().any(|(_, clearing)| *clearing == register)
}

/// The register that clears what this one sets.
fn cleared_by(id: RegisterId) -> Option<RegisterId> {
    let RegisterKind::System(register) = id.kind() else { return None };
    let pair = SET_AND_CLEAR.iter().find(|(setting, _)| *setting == register);
    pair.map(|(_, clearing)| RegisterId::system(*clearing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Option<Stage> {
        stage(RegisterId::system(SystemRegister::new(op0, op1, crn, crm, op2)))
    }

    #[test]
    fn a_register_that_cannot_be_taken_apart_is_named() {
        let midr = 0x6030_0000_0013_c000;
        assert_eq!(known(vec![midr], 0).unwrap().len(), 1);
        let error = known(vec![midr, midr | 1 << 40], 3).unwrap_err();
        let StateIoError::UnknownRegister { index: 3, source } = error else { panic!("{error:?}") };
        assert!(source.to_string().contains("0x603001000013c000"), "{source}");
    }

    #[test]
    fn memory_tags_are_more_than_their_instructions() {
        let with = |mte: u64| {
            let mut registers = Registers::default();
            let pfr1 = RegisterId::system(SystemRegister::new(3, 0, 0, 4, 1));
            registers.set(pfr1, (mte << 8 | 0x21).into()).unwrap();
            has_memory_tags(&registers)
        };
        assert_eq!([0, 1, 2, 3].map(with), [false, false, true, true]);
        assert!(!has_memory_tags(&Registers::default()));
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
}
