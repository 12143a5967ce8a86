//! Every payload on one and on four vCPUs: run, paused and resumed, moved twice in a row.

use std::time::Duration;

use ferry_contract::Contract;
use ferry_migrate::Machine;
use ferry_vmm::{Birth, Guest, GuestConfig, Image, KvmGuest, Level, Payload};

use crate::common::{IDLE, PATIENCE, custody, kvm_is_here, nap, running, wait_until};
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
fn a_guest_sees_its_contract_and_not_its_host_wherever_it_goes() {
    if !kvm_is_here() {
        return;
    }
    // All that the host offers, less one feature: PCLMULQDQ, bit 1 of leaf 1 ECX.
    let offered = running(&IDLE).description().contract;
    let mut contract = Contract::from_bytes(&offered).unwrap();
    if contract.kvm_cpuid.is_some() {
        println!("skipped: this KVM shows guests the hardware's CPUID");
        return;
    }
    let leaf = contract.cpuid.iter_mut().find(|entry| entry.leaf == 1).unwrap();
    assert_ne!(leaf.ecx & 2, 0, "the host has it");
    leaf.ecx &= !2;
    let birth = Birth { contract: Some(&contract), ..Birth::plain(1) };
    let config = GuestConfig { payload: Payload::Features, ..IDLE };
    let mut guest = ferry_vmm::create_on_kvm(&config, birth, None).unwrap();
    guest.resume(custody()).unwrap();
    for _ in 0..2 {
        assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
        // Leaf 1 is the second entry of 64 bytes; at 48 lies its ECX of now.
        let mut ecx = [0; 4];
        guest.ram().read((2 << 20) + 64 + 48, &mut ecx).unwrap();
        // OSXSAVE and MONITOR follow what the vCPU does.
        let run_time = 1 << 27 | 1 << 3;
        let told = contract.cpuid.iter().find(|entry| entry.leaf == 1).unwrap().ecx;
        assert_eq!(u32::from_le_bytes(ecx) & !run_time, told & !run_time);
        guest = cross(guest);
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
fn what_rdmsr_gives_stays() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (_, entries) = through_it_all(Payload::Msrs, cpus);
        assert!(entries > 50 * u64::from(cpus), "{entries} entries");
    }
}

#[test]
fn an_msr_that_is_not_as_at_birth_or_not_there_any_more_is_a_fault() {
    if !kvm_is_here() {
        return;
    }
    // The third entry of 64 bytes is the microcode's revision, which every KVM shows: at 0 lies its number,
    // at 32 its value of birth.
    for (at, byte, expected) in [(32, 0x5a, "now"), (3, 0xf0, "raises #GP")] {
        let mut guest = running(&GuestConfig { payload: Payload::Msrs, ..IDLE });
        assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
        let custody = guest.pause().unwrap();
        let place = (2 << 20) + 2 * 64 + at;
        let mut was = [0];
        guest.ram().read(place, &mut was).unwrap();
        guest.ram().write(place, &[was[0] ^ byte]).unwrap();
        guest.resume(custody).unwrap();
        assert!(guest.verify(PATIENCE).unwrap().faults > 0);
        let fault = guest.report().first_fault.unwrap();
        assert!(fault.starts_with("MSR 0x") && fault.ends_with(expected), "{fault}");
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

#[test]
fn an_instruction_that_is_not_there_is_named() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&GuestConfig { payload: Payload::Exercise, ..IDLE });
    let custody = guest.pause().unwrap();
    // The vCPU's notes: 1 is promised, 2 is not. No processor has all of AMD's and Intel's.
    let mut notes = [0; 128];
    guest.ram().read(2 << 20, &mut notes).unwrap();
    assert!(notes.contains(&2));
    guest.ram().write(2 << 20, &notes.map(|note| note.min(1))).unwrap();
    guest.resume(custody).unwrap();
    wait_until("it is found", || guest.report().faults > 0);
    let report = guest.report();
    assert_eq!(report.stopped, None, "the guest goes on after the exception");
    let fault = report.first_fault.unwrap();
    assert!(fault.ends_with(" at birth, and its instruction raises #UD"), "{fault}");
    let before = report.progress;
    wait_until("it goes on", || guest.report().progress > before);
}

/// The counters lie at the start of a vCPU's share: a source whose counter goes back has not ticked so often.
#[test]
fn a_tick_too_many_is_a_fault() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&GuestConfig { payload: Payload::Ticks, ..IDLE });
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let custody = guest.pause().unwrap();
    let mut count = [0; 8];
    guest.ram().read((2 << 20) + 16, &mut count).unwrap();
    let more = u64::from_le_bytes(count) + 1;
    guest.ram().write((2 << 20) + 16, &more.to_le_bytes()).unwrap();
    guest.resume(custody).unwrap();
    wait_until("it is found", || guest.report().faults > 0);
    let fault = guest.report().first_fault.unwrap();
    assert!(fault.starts_with("the own IPI has ticked "), "{fault}");
}

#[test]
fn an_image_runs_at_either_level_and_moves() {
    if !kvm_is_here() {
        return;
    }
    // again: mov edx, 0xf08; mov eax, 1; out dx, eax; mov edx, 0xf00; mov eax, 1000; out dx, eax; jmp again
    let code = [
        0xba, 0x08, 0x0f, 0, 0, 0xb8, 1, 0, 0, 0, 0xef, 0xba, 0x00, 0x0f, 0, 0, 0xb8, 0xe8, 3, 0, 0, 0xef,
        0xeb, 0xe8,
    ];
    let image = Image::parse(&code).unwrap();
    for (level, cpus) in [(Level::User, 1), (Level::Kernel, 2)] {
        let config = GuestConfig { payload: Payload::Image { level }, cpus, ..IDLE };
        let mut guest =
            ferry_vmm::create_on_kvm(&config, Birth { image: Some(&image), ..Birth::plain(1) }, None)
                .unwrap();
        guest.resume(custody()).unwrap();
        for _ in 0..2 {
            let before = guest.report().progress;
            wait_until("it runs", || guest.report().progress > before + 3);
            guest = cross(guest);
        }
        assert_eq!((guest.report().payload.as_str(), guest.report().stopped), ("image", None));
        let error = ferry_vmm::create_on_kvm(&config, Birth::plain(1), None).unwrap_err().to_string();
        assert!(error.starts_with("the payload `image` and the image"), "{error}");
    }
    let error = ferry_vmm::create_on_kvm(&IDLE, Birth { image: Some(&image), ..Birth::plain(1) }, None)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("the payload `idle` and the image"), "{error}");
}

#[test]
fn the_simulated_machine_says_what_it_has_not() {
    let create =
        |config: GuestConfig| ferry_vmm::create_in_sim(&config, 1, None).map(drop).unwrap_err().to_string();
    assert_eq!(
        create(GuestConfig { payload: Payload::Ticks, ..IDLE }),
        "the simulated machine has no payload `ticks`: choose idle or churn, or a host with KVM"
    );
    assert!(create(IDLE.with_cpus(4)).starts_with("the simulated machine has 1 vCPU, not 4"));
}
