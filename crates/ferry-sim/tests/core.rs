//! The core as a value: determinism, exact dirty tracking, and lost or changed pages that are found.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use ferry_memory::{GuestRam, PAGE_SIZE, PageRange, PageSet};
use ferry_sim::{CoreError, SimConfig, SimCore, Workload};
use proptest::prelude::*;

const PAGES: u64 = 32;

fn churn(seed: u64) -> SimConfig {
    let workload = Workload::Churn { working_set_bytes: 20 * PAGE_SIZE, rate_bytes_per_second: 1 << 20 };
    SimConfig { seed, memory_bytes: PAGES * PAGE_SIZE, workload }
}

fn idle(seed: u64) -> SimConfig {
    SimConfig { workload: Workload::Idle { patterned_bytes: 20 * PAGE_SIZE }, ..churn(seed) }
}

fn ran(config: SimConfig, steps: u64) -> SimCore {
    let mut core = SimCore::born(config).unwrap();
    core.step(steps).unwrap();
    core
}

fn page(ram: &GuestRam, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    ram.read(page * PAGE_SIZE, &mut bytes).unwrap();
    bytes
}

fn one(page: u64) -> PageRange {
    PageRange { first: page, count: 1 }
}

fn any_config() -> impl Strategy<Value = SimConfig> {
    (any::<u64>(), any::<bool>()).prop_map(|(seed, busy)| if busy { churn(seed) } else { idle(seed) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equal_seeds_and_steps_make_equal_guests(
        config in any_config(),
        parts in prop::collection::vec(0_u64..60, 0..6),
    ) {
        let mut split = SimCore::born(config).unwrap();
        for part in &parts {
            split.step(*part).unwrap();
        }
        let whole = ran(config, parts.iter().sum());
        prop_assert_eq!(split.registers(), whole.registers());
        prop_assert_eq!(split.port(), whole.port());
        prop_assert_eq!(split.ram().hash().unwrap(), whole.ram().hash().unwrap());
        prop_assert_eq!(split.digest().unwrap(), whole.digest().unwrap());
    }

    #[test]
    fn another_seed_or_another_step_makes_another_guest(config in any_config(), steps in 1_u64..100) {
        let digest = ran(config, steps).digest().unwrap();
        prop_assert_ne!(digest, ran(config, steps + 1).digest().unwrap());
        let other = SimConfig { seed: config.seed.wrapping_add(1), ..config };
        prop_assert_ne!(digest, ran(other, steps).digest().unwrap());
    }

    #[test]
    fn the_dirty_pages_are_exactly_those_that_changed(
        config in any_config(),
        before in 0_u64..60,
        during in 0_u64..60,
    ) {
        let mut core = ran(config, before);
        let old: Vec<_> = (0..PAGES).map(|number| page(core.ram(), number)).collect();
        core.start_tracking();
        core.step(during).unwrap();
        let mut dirty = PageSet::empty(core.ram().layout());
        core.harvest(&mut dirty).unwrap();
        for (number, old) in (0..PAGES).zip(old) {
            prop_assert_eq!(dirty.contains(number), page(core.ram(), number) != old, "page {}", number);
        }
        let mut again = PageSet::empty(core.ram().layout());
        core.harvest(&mut again).unwrap();
        prop_assert!(again.is_empty(), "a harvest forgets what it gave");
    }

    #[test]
    fn memory_copied_by_rounds_is_the_guests_memory(
        config in any_config(),
        rounds in prop::collection::vec(0_u64..40, 1..5),
    ) {
        let mut core = ran(config, 30);
        let copy = GuestRam::anonymous(core.ram().layout()).unwrap();
        core.start_tracking();
        let mut to_send = PageSet::full(core.ram().layout());
        for steps in rounds {
            // The guest writes while its pages are read: here, before half of them are.
            for (count, range) in to_send.chunks(1).enumerate() {
                if count == 8 {
                    core.step(steps).unwrap();
                }
                copy.write(range.first * PAGE_SIZE, &page(core.ram(), range.first)).unwrap();
            }
            to_send = PageSet::empty(core.ram().layout());
            core.harvest(&mut to_send).unwrap();
        }
        for range in to_send.chunks(1) {
            copy.write(range.first * PAGE_SIZE, &page(core.ram(), range.first)).unwrap();
        }
        prop_assert_eq!(core.ram().hash().unwrap(), copy.hash().unwrap());
    }

    #[test]
    fn one_page_of_an_earlier_time_is_found(seed: u64, steps in 21_u64..200, lost in 0_u64..20) {
        let now = ran(churn(seed), steps);
        let earlier = ran(churn(seed), steps - 20);
        now.ram().write(lost * PAGE_SIZE, &page(earlier.ram(), lost)).unwrap();
        let found = now.verify().unwrap();
        // Twenty steps write each of twenty pages once at least, or one of them twice and this one not.
        let same = page(earlier.ram(), lost) == page(ran(churn(seed), steps).ram(), lost);
        prop_assert_eq!((found.pages, found.faults), (20, u64::from(!same)));
        prop_assert_eq!(found.first_fault.map(|fault| fault.page), (!same).then_some(lost));
    }
}

#[test]
fn a_changed_word_is_found_by_a_check_and_by_the_workload() {
    let mut core = ran(churn(3), 100);
    assert_eq!(core.verify().unwrap().faults, 0);
    let good = u64::from_le_bytes(page(core.ram(), 7)[800..808].try_into().unwrap());
    core.ram().write(7 * PAGE_SIZE + 800, &(good ^ 1).to_le_bytes()).unwrap();

    let checked = core.verify().unwrap();
    let fault = checked.first_fault.unwrap();
    assert_eq!((checked.pages, checked.faults), (20, 1));
    assert_eq!((fault.page, fault.offset, fault.expected, fault.found), (7, 800, good, good ^ 1));
    assert_eq!(core.verify_pages(one(7)).unwrap().faults, 1);
    assert_eq!(core.verify_pages(one(8)).unwrap().faults, 0);
    assert_eq!(core.registers().faults, 0, "a check changes nothing");

    core.step(40).unwrap();
    assert_eq!(core.registers().faults, 1, "the workload looks at each page before it writes it");
    assert_eq!(core.registers().first_fault, Some(fault));
    assert_eq!(core.verify().unwrap().faults, 0, "and writes it then");
    assert_ne!(core.digest().unwrap(), ran(churn(3), 140).digest().unwrap());
}

#[test]
fn a_page_that_should_still_be_empty_is_checked_too() {
    let core = ran(churn(3), 5);
    core.ram().write(10 * PAGE_SIZE, &[1]).unwrap();
    assert_eq!(core.verify().unwrap().first_fault.unwrap().page, 10);
}

#[test]
fn a_changed_check_leaves_a_trace_in_the_registers_of_an_idle_guest() {
    let (mut one, mut other) = (ran(idle(3), 20), ran(idle(3), 20));
    other.ram().write(4 * PAGE_SIZE + 16, &[0; 8]).unwrap();
    one.step(4).unwrap();
    other.step(4).unwrap();
    assert_eq!(one.registers(), other.registers());
    one.step(1).unwrap();
    other.step(1).unwrap();
    assert_ne!(one.registers(), other.registers());
}

#[test]
fn an_idle_guest_writes_nothing_once_its_pages_are_filled() {
    let mut core = ran(idle(9), 20);
    assert_eq!(core.steps_to_fill(), 0);
    core.start_tracking();
    core.step(500).unwrap();
    let mut dirty = PageSet::empty(core.ram().layout());
    core.harvest(&mut dirty).unwrap();
    assert!(dirty.is_empty());
    assert_eq!(core.port().writes, 520 / 64);
    assert_eq!(core.verify().unwrap().faults, 0);
}

#[test]
fn a_captured_state_goes_on_over_the_same_memory() {
    let mut one = ran(churn(3), 100);
    let other_ram = GuestRam::anonymous(one.ram().layout()).unwrap();
    for number in 0..PAGES {
        other_ram.write(number * PAGE_SIZE, &page(one.ram(), number)).unwrap();
    }
    let mut other = SimCore::with_memory(churn(3), other_ram).unwrap();
    other.restore(one.capture().unwrap()).unwrap();
    one.step(77).unwrap();
    other.step(77).unwrap();
    assert_eq!(one.digest().unwrap(), other.digest().unwrap());
    let mut state = one.capture().unwrap();
    state.sections.pop();
    assert!(SimCore::born(churn(3)).unwrap().restore(state).is_err(), "the debug port is missing");
}

#[test]
fn misuse_is_an_error_and_loses_no_page() {
    let mut core = ran(churn(1), 20);
    let mut dirty = PageSet::empty(core.ram().layout());
    assert!(matches!(core.harvest(&mut dirty), Err(CoreError::NotTracking)));
    core.start_tracking();
    core.step(1).unwrap();
    let small = SimConfig { memory_bytes: 20 * PAGE_SIZE, ..churn(1) };
    let mut foreign = PageSet::empty(&small.layout().unwrap());
    assert!(matches!(core.harvest(&mut foreign), Err(CoreError::ForeignPageSet)));
    core.harvest(&mut dirty).unwrap();
    assert_eq!(dirty.count(), 1);
    core.stop_tracking();
    assert!(matches!(core.harvest(&mut dirty), Err(CoreError::NotTracking)));

    let ram = GuestRam::anonymous(&small.layout().unwrap()).unwrap();
    assert!(matches!(SimCore::with_memory(churn(1), ram), Err(CoreError::Layout { .. })));
    let nothing = SimConfig { memory_bytes: 0, ..churn(1) };
    assert!(matches!(SimCore::born(nothing), Err(CoreError::Config(_))));
}

#[test]
fn the_numbers_of_a_guest_are_the_same_in_every_build() {
    // The two sides of a migration may be two builds: what these digests cover never changes.
    let digests = [churn(1), idle(1)].map(|config| ran(config, 200).digest().unwrap());
    assert_eq!(digests.map(|digest| format!("{digest:016x}")), ["2c20f0e9f2dcfcda", "c2463c544f9e1d96"]);
}
