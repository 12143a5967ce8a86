//! A guest's memory and state put into a second machine of this process, which goes on.

use std::time::Duration;

use ferry_memory::{GuestRam, PageSet};
use ferry_migrate::{Builder, Harvest, Machine};
use ferry_vmm::{Guest, KvmBuilder, KvmGuest, Places};

use crate::arch;
use crate::common::{IDLE, PATIENCE, churn, harvest, kvm_is_here, nap, progress, running, wait_until};

/// Copies these pages.
fn copy(pages: &PageSet, from: &GuestRam, to: &GuestRam) {
    let mut bytes = Vec::new();
    for range in pages.chunks(256) {
        bytes.resize(usize::try_from(range.count * 4096).unwrap(), 0);
        from.read(range.first * 4096, &mut bytes).unwrap();
        to.write(range.first * 4096, &bytes).unwrap();
    }
}

/// Copies all of a machine's memory.
pub(crate) fn copy_all(from: &KvmGuest, to: &KvmGuest) {
    copy(&PageSet::full(from.ram().layout()), &from.ram(), &to.ram());
}

/// Moves a guest that runs, as a migration does it, and gives its new machine.
pub(crate) fn cross(mut source: KvmGuest) -> KvmGuest {
    let mut builder = KvmBuilder::new().unwrap().with_places(Places::same());
    let mut target = builder.build(&source.description()).unwrap();
    source.start_dirty_tracking().unwrap();
    copy_all(&source, &target);
    for _ in 0..2 {
        let pages = harvest(&mut source, Harvest::Live);
        copy(&pages, &source.ram(), &target.ram());
    }
    let custody = source.pause().unwrap();
    let pages = harvest(&mut source, Harvest::Paused);
    copy(&pages, &source.ram(), &target.ram());
    let (state, devices) = (source.capture().unwrap(), source.capture_devices().unwrap());
    drop(source);
    target.restore(&state).unwrap();
    target.restore_devices(&devices).unwrap();
    target.resume(custody).unwrap();
    target
}

#[test]
fn a_guest_goes_on_in_another_machine_with_all_its_pages() {
    if !kvm_is_here() {
        return;
    }
    let churn = churn(16 << 20, 40 << 20, 8 << 20);
    for config in [IDLE, churn, IDLE.with_cpus(4), churn.with_cpus(4)] {
        let mut guest = running(&config);
        for _ in 0..5 {
            nap(Duration::from_millis(7));
            let (turns, checked) = (progress(&guest), guest.report().pages_checked);
            guest = cross(guest);
            let report = guest.report();
            assert!(report.progress >= turns && report.pages_checked >= checked, "counters crossed");
            let check = guest.verify(PATIENCE).unwrap();
            assert_eq!((check.pages, check.faults), (config.working_set_bytes() / 4096, 0));
            wait_until("it goes on", || progress(&guest) > turns);
        }
        assert_eq!(guest.report().faults, 0);
    }
}

#[test]
fn a_page_lost_on_the_way_is_found_by_the_guest() {
    if !kvm_is_here() {
        return;
    }
    let mut source = running(&IDLE);
    let mut target = KvmBuilder::new().unwrap().build(&source.description()).unwrap();
    let custody = source.pause().unwrap();
    let mut pages = PageSet::full(source.ram().layout());
    let first = IDLE.working_set_address(77) / 4096;
    assert!(pages.remove(ferry_memory::PageRange { first, count: 1 }));
    copy(&pages, &source.ram(), &target.ram());
    target.restore(&source.capture().unwrap()).unwrap();
    target.restore_devices(&source.capture_devices().unwrap()).unwrap();
    drop(source);
    target.resume(custody).unwrap();
    assert_eq!(target.verify(PATIENCE).unwrap().faults, 1);
    assert!(target.report().first_fault.unwrap().starts_with("page 77 "));
}

#[test]
fn a_state_goes_only_into_a_machine_that_has_never_run_and_stands_still() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&IDLE);
    assert!(guest.capture().unwrap_err().to_string().contains("pause it first"));
    assert!(guest.capture_devices().is_err());
    let custody = guest.pause().unwrap();
    let state = guest.capture().unwrap();
    let error = guest.restore(&state).unwrap_err();
    assert!(error.to_string().contains("has run"), "{error}");
    // Without a section of its vCPU a machine is not the guest's.
    let mut target = KvmBuilder::new().unwrap().build(&guest.description()).unwrap();
    let mut partial = state;
    partial.sections.retain(|section| section.name != arch::REGISTERS);
    assert!(target.restore(&partial).is_err());
    // What is in it now is no guest: it takes no other state and runs nothing.
    let error = target.restore(&guest.capture().unwrap()).unwrap_err();
    assert!(error.to_string().contains("discard this machine"), "{error}");
    let refused = target.resume(custody).unwrap_err();
    assert!(refused.source.to_string().contains("discard this machine"), "{}", refused.source);
}
