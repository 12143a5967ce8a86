//! What the tests on KVM share.

use std::time::{Duration, Instant};

use ferry_kvm::DirtyRingError;
use ferry_memory::PageSet;
use ferry_migrate::{Custody, Harvest, Machine};
use ferry_vmm::{DirtyKind, GuestConfig, KvmGuest, Payload, VmmError};

/// How long anything may take that takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Whether KVM can be used; if not, says that the test was skipped.
pub(crate) fn kvm_is_here() -> bool {
    match ferry_kvm::open() {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

pub(crate) const IDLE: GuestConfig =
    GuestConfig { memory_bytes: 32 << 20, cpus: 1, payload: Payload::Idle, low_bytes: None };

pub(crate) fn churn(memory_bytes: u64, rate_bytes_per_second: u64, working_set_bytes: u64) -> GuestConfig {
    let payload = Payload::Churn { rate_bytes_per_second, working_set_bytes };
    GuestConfig { memory_bytes, cpus: 1, payload, low_bytes: None }
}

pub(crate) fn born(config: &GuestConfig) -> KvmGuest {
    ferry_vmm::create_on_kvm(config, ferry_vmm::Birth::plain(ferry_vmm::fresh_seed()), None).unwrap()
}

pub(crate) fn custody() -> Custody {
    Custody::born("guest".parse().unwrap())
}

/// The same whose written pages are noted so; none where this KVM cannot.
pub(crate) fn running_with(config: &GuestConfig, dirty: DirtyKind) -> Option<KvmGuest> {
    let birth = ferry_vmm::Birth { dirty, ..ferry_vmm::Birth::plain(ferry_vmm::fresh_seed()) };
    match ferry_vmm::create_on_kvm(config, birth, None) {
        Err(error @ VmmError::DirtyRing(DirtyRingError::NotOffered)) => {
            println!("skipped: {error}");
            None
        }
        guest => {
            let mut guest = guest.unwrap();
            guest.resume(custody()).unwrap();
            wait_until("the guest is at work", || progress(&guest) > 0);
            Some(guest)
        }
    }
}

/// A guest that runs and has filled its working set.
pub(crate) fn running(config: &GuestConfig) -> KvmGuest {
    let mut guest = born(config);
    guest.resume(custody()).unwrap();
    wait_until("the guest is at work", || progress(&guest) > 0);
    guest
}

pub(crate) fn progress(guest: &KvmGuest) -> u64 {
    guest.devices().port().report().progress
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        nap(Duration::from_millis(1));
    }
}

/// Lets time pass.
pub(crate) fn nap(time: Duration) {
    std::thread::park_timeout(time);
}

pub(crate) fn harvest(guest: &mut KvmGuest, when: Harvest) -> PageSet {
    let mut pages = PageSet::empty(guest.ram().layout());
    guest.harvest_dirty(when, &mut pages).unwrap();
    pages
}

/// Where the payload lies that a guest starts with: before the working set.
pub(crate) fn code_address() -> u64 {
    IDLE.working_set_address(0) - (2 << 20) + 0x8000
}
