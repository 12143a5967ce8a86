//! The dirty log of guests on the real KVM.

use crate::common::{IDLE, PATIENCE, churn, harvest, kvm_is_here, nap, running, wait_until};
use ferry_memory::{PAGE_SIZE, PageRange, PageSet};
use ferry_migrate::{Harvest, Machine};
use ferry_vmm::{Guest, GuestConfig, KvmGuest};
use std::time::Duration;

/// The content of every page, to be compared with later content.
fn snapshot(guest: &KvmGuest) -> Vec<u8> {
    let ram = guest.ram();
    let mut bytes = vec![0; usize::try_from(ram.layout().bytes()).unwrap()];
    ram.read(0, &mut bytes).unwrap();
    bytes
}

/// The pages that differ.
fn changed(guest: &KvmGuest, before: &[u8], after: &[u8]) -> PageSet {
    let mut pages = PageSet::empty(guest.ram().layout());
    for (page, (old, new)) in (0..).zip(before.chunks(4096).zip(after.chunks(4096))) {
        if old != new {
            assert!(pages.insert(PageRange { first: page, count: 1 }));
        }
    }
    pages
}

fn working_set(config: &GuestConfig, guest: &KvmGuest) -> PageSet {
    let mut pages = PageSet::empty(guest.ram().layout());
    let first = config.working_set_address(0) / PAGE_SIZE;
    assert!(pages.insert(PageRange { first, count: config.working_set_bytes() / PAGE_SIZE }));
    pages
}

fn holds(set: &PageSet, part: &PageSet) -> bool {
    let mut both = set.clone();
    assert!(both.union(part));
    both.count() == set.count()
}

#[test]
fn the_first_harvest_holds_what_was_written_since_the_start_and_little_else() {
    if !kvm_is_here() {
        return;
    }
    let config = churn(32 << 20, 10 << 20, 16 << 20);
    let mut guest = running(&config);
    let custody = guest.pause().unwrap();
    let before = snapshot(&guest);
    guest.start_dirty_tracking().unwrap();
    guest.resume(custody).unwrap();
    nap(Duration::from_millis(60));
    let _custody = guest.pause().unwrap();
    let found = harvest(&mut guest, Harvest::Paused);
    let after = snapshot(&guest);
    let changed = changed(&guest, &before, &after);
    assert!(changed.count() > 20, "it wrote");
    assert!(holds(&found, &changed), "a written page is missing");
    assert!(found.count() < 2 * changed.count() + 16, "{} for {}", found.count(), changed.count());
}

#[test]
fn live_harvests_miss_nothing_and_note_pages_again() {
    if !kvm_is_here() {
        return;
    }
    let config = churn(16 << 20, 64 << 20, 4 << 20);
    let mut guest = running(&config);
    let everything = working_set(&config, &guest);
    let custody = guest.pause().unwrap();
    guest.start_dirty_tracking().unwrap();
    let mut copy = snapshot(&guest);
    guest.resume(custody).unwrap();
    // As a migration does it: each harvest's pages are read after the harvest, while the guest writes.
    for _ in 0..10 {
        nap(Duration::from_millis(15));
        let pages = harvest(&mut guest, Harvest::Live);
        take(&guest, &pages, &mut copy);
    }
    // Pages written since the last harvest are noted again: all, once the guest was at each.
    let before = guest.report().pages_checked;
    let pages = config.working_set_bytes() / PAGE_SIZE;
    wait_until("it writes all pages", || guest.report().pages_checked > before + 2 * pages);
    let again = harvest(&mut guest, Harvest::Live);
    assert!(holds(&again, &everything), "pages written after a live harvest are noted again");
    take(&guest, &again, &mut copy);
    let _custody = guest.pause().unwrap();
    let last = harvest(&mut guest, Harvest::Paused);
    take(&guest, &last, &mut copy);
    assert!(snapshot(&guest) == copy, "the copy differs from memory");
}

/// Reads these pages into the copy.
fn take(guest: &KvmGuest, pages: &PageSet, copy: &mut [u8]) {
    for range in pages.ranges() {
        let start = usize::try_from(range.first * PAGE_SIZE).unwrap();
        let length = usize::try_from(range.count * PAGE_SIZE).unwrap();
        guest.ram().read(range.first * PAGE_SIZE, &mut copy[start..start + length]).unwrap();
    }
}

#[test]
fn a_guest_that_writes_nothing_is_clean_and_tracking_can_be_had_again() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&IDLE);
    // Let the guest come to rest in its wait.
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let mut at_rest = 0;
    wait_until("it waits", || {
        std::mem::replace(&mut at_rest, guest.report().progress) == guest.report().progress
    });
    for _ in 0..3 {
        guest.start_dirty_tracking().unwrap();
        assert!(harvest(&mut guest, Harvest::Live).count() <= 2, "not the initial all-ones");
        assert!(harvest(&mut guest, Harvest::Live).is_empty());
        guest.stop_dirty_tracking().unwrap();
    }
    guest.start_dirty_tracking().unwrap();
    // Asked to check, it pushes return addresses onto its stack, in its own page: that page, and no page of its set.
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let found = harvest(&mut guest, Harvest::Live);
    assert!(found.contains(0x112) && found.count() <= 2, "{:?}", found.ranges().collect::<Vec<_>>());
    guest.stop_dirty_tracking().unwrap();
}
