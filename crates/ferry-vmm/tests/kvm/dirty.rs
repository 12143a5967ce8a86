//! The dirty log and the dirty rings of guests on the real KVM.

use crate::arch;
use crate::common::{
    IDLE, PATIENCE, churn, harvest, kvm_is_here, nap, progress, running, running_with, wait_until,
};
use ferry_memory::{PAGE_SIZE, PageRange, PageSet};
use ferry_migrate::{Harvest, Machine};
use ferry_vmm::{DirtyKind, Guest, GuestConfig, KvmGuest, Payload};
use std::time::Duration;

/// The content of every page, region after region, to be compared with later content.
fn snapshot(guest: &KvmGuest) -> Vec<u8> {
    let ram = guest.ram();
    let mut bytes = Vec::new();
    for region in ram.layout().ranges() {
        let start = bytes.len();
        bytes.resize(start + usize::try_from(region.count * PAGE_SIZE).unwrap(), 0);
        ram.read(region.first * PAGE_SIZE, &mut bytes[start..]).unwrap();
    }
    bytes
}

/// Where a page lies in such a content.
fn place(guest: &KvmGuest, page: u64) -> u64 {
    let mut before = 0;
    for region in guest.ram().layout().ranges() {
        if (region.first..region.first + region.count).contains(&page) {
            return (before + page - region.first) * PAGE_SIZE;
        }
        before += region.count;
    }
    panic!("page {page} is in no region");
}

/// The pages that differ.
fn changed(guest: &KvmGuest, before: &[u8], after: &[u8]) -> PageSet {
    let mut pages = PageSet::empty(guest.ram().layout());
    let numbers =
        guest.ram().layout().ranges().flat_map(|of| of.first..of.first + of.count).collect::<Vec<_>>();
    for (page, (old, new)) in numbers.into_iter().zip(before.chunks(4096).zip(after.chunks(4096))) {
        if old != new {
            assert!(pages.insert(PageRange { first: page, count: 1 }));
        }
    }
    pages
}

fn working_set(config: &GuestConfig, guest: &KvmGuest) -> PageSet {
    let mut pages = PageSet::empty(guest.ram().layout());
    for page in 0..config.working_set_bytes() / PAGE_SIZE {
        let first = config.working_set_address(page) / PAGE_SIZE;
        assert!(pages.insert(PageRange { first, count: 1 }));
    }
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
    let checked = guest.report().pages_checked;
    guest.resume(custody).unwrap();
    wait_until("it writes", || guest.report().pages_checked > checked + 100);
    let _custody = guest.pause().unwrap();
    let found = harvest(&mut guest, Harvest::Paused);
    let after = snapshot(&guest);
    let changed = changed(&guest, &before, &after);
    assert!(changed.count() > 20, "it wrote");
    assert!(holds(&found, &changed), "a written page is missing");
    assert!(found.count() < 2 * changed.count() + 16, "{} for {}", found.count(), changed.count());
}

/// Memory in one piece and in two, the working set on both sides of the hole; one vCPU and four.
fn configs() -> [GuestConfig; 3] {
    let one = churn(16 << 20, 64 << 20, 4 << 20);
    let two = GuestConfig { low_bytes: Some(4 << 20), ..one };
    [one, two, two.with_cpus(4)]
}

#[test]
fn live_harvests_miss_nothing_and_note_pages_again() {
    if !kvm_is_here() {
        return;
    }
    for dirty in [DirtyKind::Log, DirtyKind::Ring] {
        for config in configs() {
            let Some(guest) = running_with(&config, dirty) else { continue };
            misses_nothing(guest, &config);
        }
    }
}

fn misses_nothing(mut guest: KvmGuest, config: &GuestConfig) {
    let everything = working_set(config, &guest);
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
    // Pages written since the last harvest are noted again: all, once each vCPU was at each of its share. There are
    // 200 bursts a second.
    let Payload::Churn { rate_bytes_per_second: rate, .. } = config.payload else { panic!("no churn") };
    let turns = 2 * config.working_set_bytes() / (rate / 200) + 2;
    let before = guest.devices().port().progress_of_each();
    wait_until("it writes all pages", || {
        let now = guest.devices().port().progress_of_each();
        now.iter().zip(&before).all(|(now, before)| now > &(before + turns))
    });
    let again = harvest(&mut guest, Harvest::Live);
    let what = (guest.dirty_kind(), config);
    assert!(holds(&again, &everything), "{what:?}: pages written after a live harvest are noted again");
    take(&guest, &again, &mut copy);
    let _custody = guest.pause().unwrap();
    let last = harvest(&mut guest, Harvest::Paused);
    take(&guest, &last, &mut copy);
    assert!(snapshot(&guest) == copy, "{what:?}: the copy differs from memory");
}

/// More pages than the rings hold are written before anybody harvests: the vCPUs make room themselves, and
/// can be paused meanwhile.
#[test]
fn rings_that_run_full_lose_nothing_and_hold_nobody_up() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 2] {
        let bytes = u64::from(cpus) * (20 << 20);
        let config = churn(bytes + (4 << 20), 4 << 30, bytes).with_cpus(cpus);
        let Some(mut guest) = running_with(&config, DirtyKind::Ring) else { return };
        let mut custody = guest.pause().unwrap();
        guest.start_dirty_tracking().unwrap();
        let before = snapshot(&guest);
        let turns = progress(&guest);
        for _ in 0..20 {
            guest.resume(custody).unwrap();
            nap(Duration::from_millis(5));
            custody = guest.pause().unwrap();
        }
        guest.resume(custody).unwrap();
        wait_until("it writes all pages", || progress(&guest) > turns + 3 * u64::from(cpus));
        let _custody = guest.pause().unwrap();
        let found = harvest(&mut guest, Harvest::Paused);
        let changed = changed(&guest, &before, &snapshot(&guest));
        assert!(
            changed.count() * PAGE_SIZE >= bytes,
            "it wrote more than its rings hold: {}",
            changed.count()
        );
        assert!(holds(&found, &changed), "{cpus} vCPUs: a written page is missing");
    }
}

/// Reads these pages into the copy.
fn take(guest: &KvmGuest, pages: &PageSet, copy: &mut [u8]) {
    for range in pages.ranges() {
        let start = usize::try_from(place(guest, range.first)).unwrap();
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
        assert!(harvest(&mut guest, Harvest::Live).count() <= 8, "not the initial all-ones");
        assert!(harvest(&mut guest, Harvest::Live).is_empty());
        guest.stop_dirty_tracking().unwrap();
    }
    guest.start_dirty_tracking().unwrap();
    // Asked to check, it may push return addresses onto its stack, in its own page: that page, and no page of its
    // set. AMD's nested paging takes the guest's own page tables for written when it walks them.
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let found = harvest(&mut guest, Harvest::Live);
    let first = IDLE.working_set_address(0) / PAGE_SIZE - 0x200;
    let tables = [0x10, 0x11, 0x12].into_iter().filter(|page| found.contains(first + page)).count() as u64;
    let pushed = u64::from(found.contains(first + 0x112));
    assert_eq!(pushed, arch::PUSHES, "the stack");
    assert!(found.count() <= 2 * pushed + tables, "{:?}", found.ranges().collect::<Vec<_>>());
    guest.stop_dirty_tracking().unwrap();
}
