//! What a lowering write really does: tried on a vCPU that is thrown away.
//!
//! Kernels before 6.6 have no writable masks, and a bit in a mask is no promise: KVM takes a field that is
//! safe by its type and refuses others (`arm64_check_features` in `arch/arm64/kvm/sys_regs.c`). Each field of
//! a feature ID register is written less by one, each bit of a bitmap of hypercalls cleared, and each
//! number of the firmware set to every value that is known to exist; all else stays. What was taken is
//! put back; where that fails, the next try has a vCPU of its own.

use ferry_contract::arm64::{RegisterId, RegisterKind, RegisterValue};
use ferry_contract::{Arm64Register, Lowering};
use kvm_ioctls::VcpuFd;

use super::registers::{mask_place, read};
use super::vcpu::Fresh;
use crate::probe::ProbeError;

/// Versions of PSCI that KVM ever had: 0.2, 1.0 to 1.3 (arch/arm64/kvm/psci.c).
const PSCI: [u64; 5] = [0x2, 0x1_0000, 0x1_0001, 0x1_0002, 0x1_0003];

/// Answers that the firmware's workarounds ever had (the uapi `asm/kvm.h`).
const WORKAROUNDS: [u64; 4] = [0, 1, 2, 3];

/// What a write came to.
enum Came {
    Taken,
    Changed,
    Refused,
}

/// Tries every register that says a feature, on vCPUs that `fresh` makes.
pub(super) fn try_all(
    registers: &mut [Arm64Register],
    mut fresh: impl FnMut() -> Result<Fresh, ProbeError>,
) -> Result<(), ProbeError> {
    let mut throwaway = fresh()?;
    for register in registers {
        let id = register.id;
        let Some(value) = register.value.as_ref().and_then(RegisterValue::number) else { continue };
        let writes = writes(id, value);
        let mut lowering = Lowering::default();
        for (place, less) in &writes {
            let came = write(&throwaway.vcpu, id, *less);
            let spoilt = !matches!(came, Came::Refused) && !is_restored(&throwaway.vcpu, id, value);
            if spoilt {
                throwaway = fresh()?;
            }
            match (place, came) {
                (None, Came::Taken) => lowering.values_taken.push(*less),
                (Some(place), Came::Taken) => lowering.taken.push(*place),
                (Some(place), Came::Changed) => lowering.changed.push(*place),
                (Some(place), Came::Refused) => lowering.refused.push(*place),
                (None, Came::Changed | Came::Refused) => {}
            }
        }
        register.lowering = (!writes.is_empty()).then_some(lowering);
    }
    Ok(())
}

/// What to write to a register: whole values, or less at one place.
fn writes(id: RegisterId, value: u64) -> Vec<(Option<u32>, u64)> {
    match id.kind() {
        RegisterKind::Firmware(number) => {
            let values: &[u64] = if number == 0 { &PSCI } else { &WORKAROUNDS };
            values.iter().map(|value| (None, *value)).collect()
        }
        RegisterKind::Services(_) => {
            (0..64).filter(|bit| value >> bit & 1 == 1).map(|bit| (Some(bit), value & !(1 << bit))).collect()
        }
        _ if mask_place(id).is_some() => {
            (0..64).step_by(4).filter_map(|place| Some((Some(place), less(value, place)?))).collect()
        }
        _ => Vec::new(),
    }
}

/// The value with the field at that place less by one; none where that says nothing: 0 is the least, and
/// 0xf is, of a signed field, less than 0.
fn less(value: u64, place: u32) -> Option<u64> {
    let field = value >> place & 0xf;
    (1..0xf).contains(&field).then(|| value - (1 << place))
}

fn write(vcpu: &VcpuFd, id: RegisterId, value: u64) -> Came {
    let value = RegisterValue::from(value);
    let bytes = value.bytes().get(..id.bytes()).unwrap_or(value.bytes());
    match vcpu.set_one_reg(id.raw(), bytes) {
        Err(_) => Came::Refused,
        Ok(_) if read(vcpu, id).is_some_and(|reads| reads.bytes() == bytes) => Came::Taken,
        Ok(_) => Came::Changed,
    }
}

/// Puts the value back; whether it is there again.
fn is_restored(vcpu: &VcpuFd, id: RegisterId, value: u64) -> bool {
    matches!(write(vcpu, id, value), Came::Taken)
}

#[cfg(test)]
mod tests {
    use ferry_contract::arm64::SystemRegister;

    use super::*;

    #[test]
    fn a_field_is_lowered_alone() {
        assert_eq!(less(0x0000_1122_00f0_0021, 4), Some(0x0000_1122_00f0_0011));
        assert_eq!(less(0x0000_1122_00f0_0021, 20), None);
        assert_eq!(less(0x0000_1122_00f0_0021, 8), None);
        let mmfr0 = writes(RegisterId::system(SystemRegister::ID_AA64MMFR0_EL1), 0x1122);
        let places: Vec<_> = mmfr0.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [Some(0), Some(4), Some(8), Some(12)]);
    }

    #[test]
    fn bitmaps_lose_one_bit_and_numbers_change_as_a_whole() {
        let id = |id| RegisterId::new(id).unwrap();
        assert_eq!(writes(id(0x6030_0000_0016_0002), 0b101), [(Some(0), 0b100), (Some(2), 0b001)]);
        assert_eq!(writes(id(0x6030_0000_0014_0000), 0x1_0001).len(), PSCI.len());
        assert_eq!(writes(id(0x6030_0000_0010_0000), 7), []);
    }
}
