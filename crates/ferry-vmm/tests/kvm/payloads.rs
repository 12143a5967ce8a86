//! Every payload on one and on four vCPUs: run, paused and resumed, moved twice in a row.

use std::time::Duration;

use ferry_migrate::Machine;
use ferry_vmm::{Birth, Guest, GuestConfig, Image, KvmGuest, Level, Payload};

use crate::arch;
use crate::common::{IDLE, PATIENCE, custody, kvm_is_here, nap, running, wait_until};
use crate::crossing::cross;

/// Where the share of the first vCPU begins.
pub(crate) fn share() -> u64 {
    IDLE.working_set_address(0)
}

/// Lets a guest run, pauses it, moves it twice, and has it check itself each time. Gives it back with what
/// its last check looked at.
pub(crate) fn through_it_all(payload: Payload, cpus: u32) -> (KvmGuest, u64) {
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
    guest.ram().write(share(), &(1_u64 << 62).to_le_bytes()).unwrap();
    guest.resume(custody).unwrap();
    wait_until("it is found", || guest.report().faults > 0);
    let fault = guest.report().first_fault.unwrap();
    assert!(
        fault.starts_with(&format!("{} went back from 4611686018427387904 to ", arch::COUNTER)),
        "{fault}"
    );

    let mut guest = running(&GuestConfig { payload: Payload::Clock { jump_limit_ms: 500 }, ..IDLE });
    let custody = guest.pause().unwrap();
    nap(Duration::from_millis(700));
    guest.resume(custody).unwrap();
    assert!(guest.verify(PATIENCE).unwrap().faults > 0);
    let fault = guest.report().first_fault.unwrap();
    assert!(fault.starts_with(&format!("{} leapt by ", arch::COUNTER)), "{fault}");
}

#[test]
fn no_tick_dies_or_comes_twice() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (_, sources) = through_it_all(Payload::Ticks, cpus);
        assert_eq!(sources, 3 * u64::from(cpus) + arch::TICKS_OF_THE_FIRST);
    }
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
    guest.ram().read(share() + 16, &mut count).unwrap();
    let more = u64::from_le_bytes(count) + 1;
    guest.ram().write(share() + 16, &more.to_le_bytes()).unwrap();
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
    let image = Image::parse(arch::IMAGE).unwrap();
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
