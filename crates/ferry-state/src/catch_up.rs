//! A captured machine whose clocks go on by the time for which it was paused: see [`crate::GuestTime`].
//!
//! Every clock moves by the same time: the TSC of each vCPU, the kvmclock and the LAPIC's count on x86-64, the virtual
//! and the physical counter on arm64. A timer that is set to an instant of such a clock (`IA32_TSC_DEADLINE`,
//! `CNTV_CVAL_EL0`, the preemption timer of a nested VMX state) stays as it is, and is due when it is due. The PIT
//! begins its period again wherever it is restored, because KVM sets it in no other way.
//!
//! Facts: the Intel SDM, volume 3, 12.5.4 "APIC Timer"; `tmict_to_ns` and `set_target_expiration` in the
//! kernel's arch/x86/kvm/lapic.c.

use std::collections::BTreeMap;
use std::time::Duration;

use ferry_contract::arm64::{RegisterId, RegisterValue, SystemRegister};

use crate::{MachineState, Part, Section, StateError, arm64, x86};

/// `CNTPCT_EL0`, as KVM numbers it (`KVM_REG_ARM_PTIMER_CNT`).
const PHYSICAL_COUNT: RegisterId = RegisterId::system(SystemRegister::new(3, 3, 14, 0, 1));

impl MachineState {
    /// The same state with its clocks moved on. An error is one of the state's form, a clock of which it does not
    /// say how fast it counts, or one that would go round.
    pub fn catch_up(&self, by: Duration) -> Result<Self, StateError> {
        // Once, and not for each vCPU: how many there are is the other side's word.
        let of_frequency = self.sections.iter().filter(|section| section.name == x86::TscFrequency::NAME);
        let frequencies = of_frequency.map(|section| Ok((section.index, section.read()?)));
        let frequencies = frequencies.collect::<Result<BTreeMap<u32, x86::TscFrequency>, StateError>>()?;
        let counter: Option<arm64::Counter> = self.find(0)?;
        let sections = self.sections.iter().map(|section| match section.name.as_str() {
            x86::Msrs::NAME => tsc_moved_on(section, frequencies.get(&section.index), by),
            x86::Clock::NAME => rewritten(section, |clock: &mut x86::Clock| {
                add(&mut clock.clock, u64::try_from(by.as_nanos()).ok())
            }),
            x86::Lapic::NAME => rewritten(section, |lapic: &mut x86::Lapic| {
                count_down(lapic, by);
                Some(())
            }),
            arm64::Counter::NAME => rewritten(section, |counter: &mut arm64::Counter| {
                add(&mut counter.value, ticks(by, counter.frequency_hz))
            }),
            arm64::Registers::NAME => physical_counter_moved_on(section, counter.as_ref(), by),
            _ => Ok(section.clone()),
        });
        Ok(Self { sections: sections.collect::<Result<_, _>>()? })
    }
}

fn tsc_moved_on(
    section: &Section,
    frequency: Option<&x86::TscFrequency>,
    by: Duration,
) -> Result<Section, StateError> {
    rewritten(section, |msrs: &mut x86::Msrs| match msrs.values.get_mut(&x86::IA32_TSC) {
        Some(tsc) => add(tsc, ticks(by, u64::from(frequency?.khz) * 1000)),
        None => Some(()),
    })
}

fn physical_counter_moved_on(
    section: &Section,
    counter: Option<&arm64::Counter>,
    by: Duration,
) -> Result<Section, StateError> {
    rewritten(section, |registers: &mut arm64::Registers| {
        let Some(mut value) = registers.value(PHYSICAL_COUNT).and_then(RegisterValue::number) else {
            return Some(());
        };
        add(&mut value, ticks(by, counter?.frequency_hz))?;
        registers.set(PHYSICAL_COUNT, value.into()).ok()
    })
}

/// How often a clock of this frequency ticks in a time; none if no clock of 64 bits holds that.
fn ticks(by: Duration, hertz: u64) -> Option<u64> {
    u64::try_from(by.as_nanos().checked_mul(u128::from(hertz))? / 1_000_000_000).ok()
}

/// Moves a clock on; none if it would go round, which is back.
fn add(clock: &mut u64, by: Option<u64>) -> Option<()> {
    *clock = clock.checked_add(by?)?;
    Some(())
}

/// A section with its part changed; what was needed of it is so still.
fn rewritten<T: Part>(
    section: &Section,
    change: impl FnOnce(&mut T) -> Option<()>,
) -> Result<Section, StateError> {
    let mut part: T = section.read()?;
    change(&mut part).ok_or_else(|| StateError::Invalid {
        section: section.name.clone(),
        index: section.index,
        problem: "its clock cannot catch up: how fast it counts is not known, or it would go round"
            .to_owned(),
    })?;
    Ok(Section { body: Section::of(&part, section.index, None)?.body, ..section.clone() })
}

/// The LAPIC's registers for its timer: its mode in the local vector table, the current count, the divisor.
const LVT_TIMER: usize = 0x320;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE_CONFIGURATION: usize = 0x3e0;

/// Lets the LAPIC's timer count down, in the modes in which it counts from an initial count (one-shot and periodic).
/// One that would have run out has one count left, so that it fires as soon as it is restored: of a count of 0 kernels
/// make different things. It counts once a nanosecond, divided (`APIC_BUS_CYCLE_NS`).
fn count_down(lapic: &mut x86::Lapic, by: Duration) {
    const TSC_DEADLINE: u32 = 2;
    let left = register(lapic, CURRENT_COUNT);
    if register(lapic, LVT_TIMER) >> 17 & 3 >= TSC_DEADLINE || left == 0 {
        return;
    }
    let divisor = register(lapic, DIVIDE_CONFIGURATION);
    // Bits 0, 1 and 3: 2, 4, … 128, and then 1.
    let shift = ((divisor & 3 | (divisor & 8) >> 1) + 1) & 7;
    let counts = u32::try_from(by.as_nanos() >> shift).unwrap_or(u32::MAX);
    let left = left.saturating_sub(counts).max(1).to_le_bytes();
    lapic.regs.iter_mut().skip(CURRENT_COUNT).zip(left).for_each(|(byte, left)| *byte = left);
}

fn register(lapic: &x86::Lapic, offset: usize) -> u32 {
    let bytes = lapic.regs.iter().skip(offset).take(4).rev();
    bytes.fold(0, |value, byte| value << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section<T: Part>(part: &T, index: u32) -> Section {
        Section::of(part, index, None).unwrap()
    }

    fn vcpu(index: u32, tsc: u64) -> [Section; 2] {
        let msrs = x86::Msrs { values: [(x86::IA32_TSC, tsc), (0x6e0, 77)].into() };
        [section(&msrs, index), section(&x86::TscFrequency { khz: 2_500_001 }, index)]
    }

    #[test]
    fn the_clocks_of_x86_move_by_the_same_time() {
        let clock = x86::Clock { clock: 5_000_000_000, flags: 2, realtime: 3, host_tsc: 4 };
        let clock_of = Section { needed: vec![0], ..section(&clock, 0) };
        let state = MachineState { sections: [&vcpu(0, 100)[..], &vcpu(1, 90)[..], &[clock_of]].concat() };
        let moved = state.catch_up(Duration::from_secs(3)).unwrap();
        let tsc = |index| moved.require::<x86::Msrs>(index).unwrap().values;
        let by = 3 * 2_500_001_000;
        assert_eq!(tsc(0), [(x86::IA32_TSC, 100 + by), (0x6e0, 77)].into());
        assert_eq!(tsc(1)[&x86::IA32_TSC], 90 + by);
        assert_eq!(moved.require::<x86::Clock>(0).unwrap(), x86::Clock { clock: 8_000_000_000, ..clock });
        assert_eq!(moved.section(x86::Clock::NAME, 0).unwrap().unwrap().needed, [0]);
        assert_eq!(state.catch_up(Duration::ZERO).unwrap(), state);
    }

    #[test]
    fn the_counters_of_arm64_move_by_the_same_time() {
        let counter = arm64::Counter { value: 1 << 40, frequency_hz: 62_500_000 };
        let mut registers = arm64::Registers::default();
        // `CNTV_CVAL_EL0`, as KVM numbers it.
        let compare = RegisterId::system(SystemRegister::new(3, 3, 14, 0, 2));
        registers.set(PHYSICAL_COUNT, 500_u64.into()).unwrap();
        registers.set(compare, 600_u64.into()).unwrap();
        let state = MachineState { sections: vec![section(&registers, 0), section(&counter, 0)] };
        let moved = state.catch_up(Duration::from_millis(1500)).unwrap();
        assert_eq!(moved.require::<arm64::Counter>(0).unwrap().value, (1 << 40) + 93_750_000);
        let registers: arm64::Registers = moved.require(0).unwrap();
        assert_eq!(registers.value(PHYSICAL_COUNT).and_then(RegisterValue::number), Some(93_750_500));
        assert_eq!(registers.value(compare).and_then(RegisterValue::number), Some(600));
    }

    #[test]
    fn a_year_is_caught_up_and_no_clock_goes_round() {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let state = MachineState { sections: vcpu(0, 100).into() };
        let moved = state.catch_up(YEAR).unwrap().require::<x86::Msrs>(0).unwrap();
        assert_eq!(moved.values[&x86::IA32_TSC], 100 + YEAR.as_secs() * 2_500_001_000);
        let late = MachineState { sections: vcpu(0, u64::MAX - 100).into() };
        let error = late.catch_up(Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("x86.msrs, index 0: its clock cannot catch up"), "{error}");
        assert!(state.catch_up(Duration::MAX).is_err());
        let [msrs, _] = vcpu(0, 100);
        let unknown = MachineState { sections: vec![msrs] };
        assert!(unknown.catch_up(Duration::from_secs(1)).is_err(), "its frequency is not known");
    }

    /// What is left of a LAPIC's count in this mode, with this divisor.
    fn left(mode: u8, divisor: u8, count: u32, by: Duration) -> u32 {
        let mut lapic = x86::Lapic::default();
        lapic.regs[LVT_TIMER + 2] = mode << 1;
        lapic.regs[DIVIDE_CONFIGURATION] = divisor;
        lapic.regs[CURRENT_COUNT..CURRENT_COUNT + 4].copy_from_slice(&count.to_le_bytes());
        let state = MachineState { sections: vec![section(&lapic, 0)] };
        register(&state.catch_up(by).unwrap().require::<x86::Lapic>(0).unwrap(), CURRENT_COUNT)
    }

    #[test]
    fn the_lapics_count_goes_on_and_fires_when_it_is_over() {
        let milli = Duration::from_millis(1);
        // Divided by 1 (1011), by 2 (0000), by 16 (0011), by 128 (1010).
        assert_eq!(left(0, 0xb, 3_000_000, milli), 2_000_000);
        assert_eq!(left(1, 0, 3_000_000, milli), 2_500_000);
        assert_eq!(left(1, 3, 3_000_000, milli), 3_000_000 - 62_500);
        assert_eq!(left(0, 0xa, 3_000_000, milli), 3_000_000 - 7812);
        assert_eq!(left(0, 0xb, 3_000_000, Duration::from_secs(300)), 1);
        assert_eq!(left(1, 0xb, 1_000_000, milli), 1);
        assert_eq!(left(0, 0xb, 0, milli), 0, "it had run out before");
        assert_eq!(left(2, 0xb, 3_000_000, milli), 3_000_000, "the deadline's mode has no count");
    }
}
