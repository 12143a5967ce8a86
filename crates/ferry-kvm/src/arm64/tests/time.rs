//! What the counters of a machine do about a pause: they catch up, or they stand still.

use std::time::Duration;

use ferry_contract::arm64::RegisterValue;
use ferry_state::arm64::{Counter, Registers};

use super::super::Clocks;
use super::super::registers::{PHYSICAL_COUNT, TIMER_COUNT};
use super::round_trip::set_everything;
use super::{Fresh, Like, kvm, part, registers, system};

/// How long the pause is said to have been. Nothing waits for it.
const PAUSE: Duration = Duration::from_secs(300);

/// What a test may take by itself under emulation.
const PATIENCE_SECONDS: u64 = 60;

fn count(fresh: &Fresh) -> u64 {
    registers::read(fresh.first(), TIMER_COUNT).ok().and_then(|value| value.number()).unwrap()
}

#[test]
fn counters_are_restored_where_they_stood_or_where_they_would_be() {
    let Some(kvm) = kvm() else { return };
    let mut source = Fresh::new(&kvm, &Like::default());
    set_everything(&source);
    let state = source.capture();
    let then: Counter = part(&state, 0);
    for by in [Duration::ZERO, PAUSE] {
        let mut target = Fresh::new(&kvm, &Like::default());
        target.restore(&state.catch_up(by).unwrap()).unwrap();
        let due = then.value + by.as_secs() * then.frequency_hz;
        let late = count(&target).checked_sub(due).expect("the counter is behind");
        assert!(late < PATIENCE_SECONDS * then.frequency_hz, "{late} ticks after {by:?}");
        let again = target.capture();
        let compare = system(3, 14, 0, 2);
        let of = |state, id| part::<Registers>(state, 0).value(id).and_then(RegisterValue::number);
        assert_eq!(of(&again, compare), of(&state, compare), "a timer is due when it is due");
        // Kernels before 6.4 give out none, or keep the host's.
        let physical = [&state, &again].map(|state| of(state, PHYSICAL_COUNT));
        println!("the physical counter after {by:?}: {physical:?}");
    }
}

#[test]
fn counters_that_stand_still_are_put_back() {
    let Some(kvm) = kvm() else { return };
    let mut fresh = Fresh::new(&kvm, &Like::default());
    set_everything(&fresh);
    let then = count(&fresh);
    let clocks = Clocks::read(&fresh.vm, &mut fresh.vcpus).unwrap();
    std::thread::park_timeout(Duration::from_secs(2));
    let hz = crate::arm64::counter_frequency();
    let late = count(&fresh);
    assert!(late - then > 3 * hz / 2, "KVM stops no clock");
    let before = std::time::Instant::now();
    fresh.state.set_clocks(&clocks, &fresh.vm, &mut fresh.vcpus).unwrap();
    let now = count(&fresh);
    let took = u64::try_from(before.elapsed().as_micros()).unwrap() * hz / 1_000_000;
    assert!(now >= then && now - then < hz + took, "{then}, then {late}, put back {now}");
}
