//! What the clocks of a machine do about a pause: they catch up, or they stand still.

use std::time::Duration;

use ferry_migrate::MachineError;

use super::*;
use crate::{UseVcpu, Vcpus};

/// How long the pause is said to have been. Nothing waits for it.
const PAUSE: Duration = Duration::from_secs(3);

/// How far the deadline of the timer of vCPU 0 is.
const DEADLINE_SECONDS: u64 = 100;

struct Stopped<'a>(&'a [VcpuFd]);

impl Vcpus for Stopped<'_> {
    fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap()
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn with_vcpu(&mut self, index: u32, use_vcpu: &mut UseVcpu<'_>) -> Result<(), MachineError> {
        use_vcpu(&self.0[index as usize])
    }
}

impl Fresh {
    fn clocks(&self) -> Clocks {
        Clocks::read(&self.vm, &mut Stopped(&self.vcpus)).unwrap()
    }

    fn tsc(&self, index: usize) -> u64 {
        msrs::read(&self.vcpus[index], 0, &[IA32_TSC]).unwrap().0.values[&IA32_TSC]
    }

    fn ticks(&self, by: Duration) -> u64 {
        u64::from(self.vcpus[0].get_tsc_khz().unwrap()) * u64::try_from(by.as_millis()).unwrap()
    }

    fn put_back(&self, clocks: &Clocks) {
        let mut passed = 0;
        for (vcpu, index) in self.vcpus.iter().zip(0..) {
            clocks.put_back(vcpu, index, &self.caps, &mut passed).unwrap();
        }
        vm::set_clock(&self.vm, &clocks.clock).unwrap();
    }
}

/// A machine of two vCPUs that has lived for a while, by its clocks, with a timer on vCPU 0; none where guests see the
/// host's own TSC.
fn aged(kvm: &Kvm) -> Option<Fresh> {
    let fresh = Fresh::new(kvm, 2);
    for vcpu in &fresh.vcpus {
        set_msr(vcpu, IA32_TSC, 1 << 50);
    }
    if fresh.tsc(0) < 1 << 50 {
        println!("skipped: this KVM lets guests see the host's own TSC");
        return None;
    }
    let mut lapic = fresh.vcpus[0].get_lapic().unwrap();
    (lapic.regs[0xf1], lapic.regs[0x320], lapic.regs[0x322]) = (1, 0xec_u8.cast_signed(), 4);
    fresh.vcpus[0].set_lapic(&lapic).unwrap();
    set_msr(&fresh.vcpus[0], 0x6e0, fresh.tsc(0) + fresh.ticks(Duration::from_secs(DEADLINE_SECONDS)));
    let clock = Clock { clock: 1 << 40, ..Clock::default() };
    vm::set_clock(&fresh.vm, &clock).unwrap();
    Some(fresh)
}

/// Whether a clock went on by this and what the test itself may take, and by no less.
fn went_on(from: u64, to: u64, by: u64, second: u64, what: &str) {
    let late =
        to.checked_sub(from + by).unwrap_or_else(|| panic!("{what} is behind: {from} to {to}, not by {by}"));
    assert!(late < second * 3 / 2, "{what} leapt: {from} to {to}, not by {by}");
}

#[test]
fn clocks_are_restored_where_they_stood_or_where_they_would_be() {
    let Some(kvm) = kvm() else { return };
    let Some(source) = aged(&kvm) else { return };
    let state = source.capture();
    let then = Clocks::of(&state, 2).unwrap();
    for by in [Duration::ZERO, PAUSE] {
        let target = Fresh::new(&kvm, 2);
        target.restore(&state.catch_up(by).unwrap()).unwrap();
        let (now, second) = (target.clocks(), target.ticks(Duration::from_secs(1)));
        went_on(then.tsc, now.tsc, target.ticks(by), second, "the TSC");
        let nanos = u64::try_from(by.as_nanos()).unwrap();
        went_on(then.clock.clock, now.clock.clock, nanos, 1_000_000_000, "the kvmclock");
        // Both vCPUs alike, and the deadline is as it was: that much nearer now.
        assert!(target.tsc(1) >= now.tsc, "{} and {}", target.tsc(1), now.tsc);
        went_on(now.tsc, target.tsc(1), 0, second, "the TSC of vCPU 1");
        assert_eq!(now.deadlines, then.deadlines);
    }
}

#[test]
fn clocks_that_stand_still_are_put_back() {
    let Some(kvm) = kvm() else { return };
    let Some(mut fresh) = aged(&kvm) else { return };
    for by_offset in [fresh.caps.tsc_offset, false] {
        fresh.caps.tsc_offset = by_offset;
        let then = fresh.clocks();
        std::thread::park_timeout(Duration::from_millis(1100));
        let late = fresh.clocks();
        let tenth = fresh.ticks(Duration::from_millis(100));
        assert!(late.tsc - then.tsc > 10 * tenth, "KVM stops no clock");
        fresh.put_back(&then);
        let (now, other) = (fresh.clocks(), fresh.tsc(1));
        let halves = [(then.tsc, now.tsc), (now.tsc, other)].map(|(from, to)| to.checked_sub(from).unwrap());
        assert!(halves.iter().all(|passed| *passed < 5 * tenth), "{halves:?} ticks, by offset: {by_offset}");
        let clock = now.clock.clock.checked_sub(then.clock.clock).unwrap();
        assert!(clock < 500_000_000, "{clock} ns of the kvmclock");
        assert_eq!(now.deadlines, then.deadlines);
    }
}
