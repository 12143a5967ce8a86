//! Every payload on one and on four vCPUs: run, paused and resumed, moved twice in a row.

use std::time::Duration;

use ferry_migrate::Machine;
use ferry_vmm::{Guest, GuestConfig, KvmGuest, Payload};

use crate::common::{IDLE, PATIENCE, kvm_is_here, nap, running, wait_until};
use crate::crossing::cross;

/// Lets a guest run, pauses it, moves it twice, and has it check itself each time. Gives it back with what
/// its last check looked at.
fn through_it_all(payload: Payload, cpus: u32) -> (KvmGuest, u64) {
    let config = GuestConfig { payload, cpus, ..IDLE };
    let mut guest = running(&config);
    let mut checked = 0;
    for round in 0..4 {
        let check = guest.verify(PATIENCE).unwrap();
        assert_eq!(check.faults, 0, "{config:?}, round {round}: {:?}", guest.report());
        checked = check.pages;
        let before = guest.devices().port().progress_of_each();
        assert_eq!(before.len(), cpus as usize);
        guest = if round == 0 { paused_and_resumed(guest) } else { cross(guest) };
        wait_until("every vCPU goes on", || {
            let now = guest.devices().port().progress_of_each();
            now.iter().zip(&before).all(|(now, before)| now > before)
        });
    }
    let report = guest.report();
    assert_eq!((report.faults, &report.first_fault, &report.stopped), (0, &None, &None));
    assert_eq!(report.payload, payload.name());
    (guest, checked)
}

fn paused_and_resumed(mut guest: KvmGuest) -> KvmGuest {
    let custody = guest.pause().unwrap();
    let before = guest.devices().port().progress_of_each();
    nap(Duration::from_millis(5));
    assert_eq!(guest.devices().port().progress_of_each(), before, "paused means all vCPUs");
    guest.resume(custody).unwrap();
    guest
}

#[test]
fn time_goes_on_and_its_largest_step_is_known() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (guest, looks) = through_it_all(Payload::Clock { jump_limit_ms: 10_000 }, cpus);
        let jump = guest.report().largest_jump_us.unwrap();
        println!("{cpus} vCPUs: {looks} looks, largest step {jump} us");
        assert!((500..10_000_000).contains(&jump), "{jump} us, with 1000 us between two looks");
    }
}

#[test]
fn a_step_of_time_beyond_the_limit_is_a_fault() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&GuestConfig { payload: Payload::Clock { jump_limit_ms: 500 }, ..IDLE });
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    // Backwards: the last look, in the working set's first word, was far in the future.
    let custody = guest.pause().unwrap();
    guest.ram().write(2 << 20, &(1_u64 << 62).to_le_bytes()).unwrap();
    guest.resume(custody).unwrap();
    wait_until("it is found", || guest.report().faults > 0);
    let fault = guest.report().first_fault.unwrap();
    assert!(fault.starts_with("the TSC went back from 4611686018427387904 to "), "{fault}");

    let mut guest = running(&GuestConfig { payload: Payload::Clock { jump_limit_ms: 500 }, ..IDLE });
    let custody = guest.pause().unwrap();
    nap(Duration::from_millis(700));
    guest.resume(custody).unwrap();
    assert!(guest.verify(PATIENCE).unwrap().faults > 0);
    let fault = guest.report().first_fault.unwrap();
    assert!(fault.starts_with("the TSC leapt by "), "{fault}");
}

#[test]
fn what_cpuid_shows_stays() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (_, leaves) = through_it_all(Payload::Features, cpus);
        assert!(leaves > 150 * u64::from(cpus), "{leaves} leaves");
    }
}

#[test]
fn a_leaf_that_is_not_as_at_birth_is_a_fault() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&GuestConfig { payload: Payload::Features, ..IDLE });
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let custody = guest.pause().unwrap();
    // Leaf 1 is the second entry of 64 bytes; at 32 lies its ECX of birth.
    let mut ecx = [0; 4];
    guest.ram().read((2 << 20) + 64 + 32, &mut ecx).unwrap();
    ecx[2] ^= 0x10; // SSE4.2
    guest.ram().write((2 << 20) + 64 + 32, &ecx).unwrap();
    guest.resume(custody).unwrap();
    assert!(guest.verify(PATIENCE).unwrap().faults > 0);
    let fault = guest.report().first_fault.unwrap();
    assert!(fault.starts_with("CPUID leaf 0x1, subleaf 0, ECX: "), "{fault}");
}

#[test]
fn every_promised_instruction_can_be_used() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (_, used) = through_it_all(Payload::Exercise, cpus);
        println!("{cpus} vCPUs: {used} features used");
        assert!(used >= 10 * u64::from(cpus), "{used} features");
    }
}

#[test]
fn no_tick_dies_or_comes_twice() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (_, sources) = through_it_all(Payload::Ticks, cpus);
        assert_eq!(sources, 3 * u64::from(cpus) + 1);
    }
}

/// The place of a feature in the notes of `exercise`, by its fault.
#[test]
fn an_instruction_that_is_not_there_is_named() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&GuestConfig { payload: Payload::Exercise, ..IDLE });
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let custody = guest.pause().unwrap();
    // The last features are AMD's and Intel's by turns: some of them no processor promises.
    let mut notes = [0; 128];
    guest.ram().read(2 << 20, &mut notes).unwrap();
    assert!(notes.contains(&2), "this processor promises everything");
    let absent = notes.map(|note| if note == 0 { 0 } else { 1 });
    guest.ram().write(2 << 20, &absent).unwrap();
    guest.resume(custody).unwrap();
    wait_until("it is found", || guest.report().faults > 0 || guest.report().stopped.is_some());
    println!("{:?}", guest.report());
}
