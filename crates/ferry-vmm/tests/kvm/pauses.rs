//! What a guest sees of a pause: nothing, or all of it.

use std::path::Path;
use std::time::{Duration, Instant};

use ferry_migrate::{Builder, Machine};
use ferry_state::{Pause, Section};
use ferry_vmm::{Guest, GuestConfig, GuestTime, KvmBuilder, KvmGuest, Payload};

use crate::common::{IDLE, PATIENCE, kvm_is_here, nap, running, wait_until};
use crate::crossing::copy_all;

/// How long a guest is paused that runs on where it was.
const SHORT: Duration = Duration::from_secs(3);

/// How long it is said to have been in no machine at all.
const LONG: Duration = Duration::from_secs(40);

fn watching_time(cpus: u32) -> KvmGuest {
    running(&GuestConfig { payload: Payload::Clock { jump_limit_ms: 600_000 }, cpus, ..IDLE })
}

/// The largest step of time that the guest has seen; it saw none that went back.
fn largest_step(guest: &KvmGuest) -> Duration {
    let before = guest.devices().port().progress_of_each();
    wait_until("every vCPU goes on", || {
        let now = guest.devices().port().progress_of_each();
        now.iter().zip(&before).all(|(now, before)| *now > before + 1)
    });
    let report = guest.report();
    assert_eq!((guest.verify(PATIENCE).unwrap().faults, report.first_fault), (0, None));
    Duration::from_micros(report.largest_jump_us.unwrap())
}

/// There guests see the host's own TSC, which nobody stops.
fn time_can_stop() -> bool {
    let foreign = Path::new("/sys/module/kvm_pvm").exists();
    if foreign {
        println!("skipped: time cannot stop on kvm_pvm");
    }
    !foreign
}

#[test]
fn a_guest_that_runs_on_sees_the_pause_or_not() {
    if !kvm_is_here() {
        return;
    }
    for (time, cpus) in [(GuestTime::CatchesUp, 1), (GuestTime::Stops, 2)] {
        if time == GuestTime::Stops && !time_can_stop() {
            continue;
        }
        let mut guest = watching_time(cpus);
        guest.set_guest_time(time);
        let custody = guest.pause().unwrap();
        let began = Instant::now();
        nap(SHORT);
        // A capture of which nothing becomes does not change it.
        drop(guest.capture().unwrap());
        let paused = began.elapsed();
        guest.resume(custody).unwrap();
        let step = largest_step(&guest);
        println!("{time}: paused for {paused:?}, largest step {step:?}");
        assert_eq!(step >= paused, time == GuestTime::CatchesUp, "{time}: {step:?} of {paused:?}");
    }
}

/// Captures the guest as if its host's wall clock had been off by so much, and restores it.
fn taken_up(
    mut guest: KvmGuest,
    time: GuestTime,
    wish: Option<GuestTime>,
    wall: impl Fn(u64) -> u64,
) -> KvmGuest {
    let builder = KvmBuilder::new().unwrap().with_guest_time(wish);
    let mut target = { builder }.build(&guest.description()).unwrap();
    guest.set_guest_time(time);
    let custody = guest.pause().unwrap();
    copy_all(&guest, &target);
    let (mut state, devices) = (guest.capture().unwrap(), guest.capture_devices().unwrap());
    drop(guest);
    let pause: Pause = state.require(0).unwrap();
    let pause = Pause { realtime_ns: wall(pause.realtime_ns), ..pause };
    let is_pause = |section: &&mut Section| section.name == "machine.pause";
    *state.sections.iter_mut().find(is_pause).unwrap() = pause.section().unwrap();
    target.restore(&state).unwrap();
    target.restore_devices(&devices).unwrap();
    target.resume(custody).unwrap();
    target
}

#[test]
fn a_guest_that_moves_sees_the_pause_or_not() {
    if !kvm_is_here() || !time_can_stop() {
        return;
    }
    let long = u64::try_from(LONG.as_nanos()).unwrap();
    let earlier = |now: u64| now - long;
    // Whoever takes the guest up has the last word.
    for (time, wish) in [
        (GuestTime::CatchesUp, None),
        (GuestTime::Stops, None),
        (GuestTime::Stops, Some(GuestTime::CatchesUp)),
        (GuestTime::CatchesUp, Some(GuestTime::Stops)),
    ] {
        let guest = taken_up(watching_time(2), time, wish, earlier);
        let step = largest_step(&guest);
        println!("{time}, {wish:?}: largest step {step:?}");
        let catches_up = wish.unwrap_or(time) == GuestTime::CatchesUp;
        assert_eq!(step >= LONG, catches_up, "{time}, {wish:?}: {step:?}");
    }
    // A source whose wall clock is ahead moves nothing, and nothing back.
    let guest = taken_up(watching_time(2), GuestTime::CatchesUp, None, |now| now + long);
    assert!(largest_step(&guest) < LONG);
}
