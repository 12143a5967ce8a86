//! Guests on the real KVM: payloads, faults, pause and resume, custody.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::arch;
use crate::common::{
    IDLE, PATIENCE, born, churn, code_address, custody, kvm_is_here, nap, progress, running, wait_until,
};
use ferry_migrate::{Builder, Custody, Machine, RunWatch};
use ferry_vmm::{Birth, Guest, KvmBuilder};

#[test]
fn both_payloads_run_and_find_their_pages_whole() {
    if !kvm_is_here() {
        return;
    }
    let configs = [IDLE, churn(16 << 20, 50 << 20, 8 << 20)];
    for config in configs {
        let guest = running(&config);
        let check = guest.verify(PATIENCE).unwrap();
        assert_eq!(check.pages, config.working_set_bytes() / 4096);
        assert_eq!(check.faults, 0);
        let report = guest.report();
        assert_eq!((report.payload.as_str(), report.faults), (config.payload.name(), 0));
        assert_eq!((report.first_fault, report.stopped), (None, None));
        assert!(report.pages_checked >= check.pages);
    }
}

#[test]
fn churn_keeps_its_rate_without_taking_the_processor() {
    if !kvm_is_here() {
        return;
    }
    let rate = 20 << 20;
    let guest = running(&churn(16 << 20, rate, 8 << 20));
    let (began, before) = (Instant::now(), guest.report().pages_checked);
    nap(Duration::from_millis(400));
    let bytes = (guest.report().pages_checked - before) * 4096;
    let wanted = u64::try_from(began.elapsed().as_millis()).unwrap() * rate / 1000;
    assert!((wanted / 4..wanted * 6 / 5).contains(&bytes), "wrote {bytes} instead of {wanted} bytes");
}

#[test]
fn a_page_corrupted_from_outside_is_a_fault() {
    if !kvm_is_here() {
        return;
    }
    for config in [IDLE, churn(16 << 20, 1 << 20, 8 << 20)] {
        let mut guest = running(&config);
        let custody = guest.pause().unwrap();
        // One byte in the middle of a page that churn does not come to soon.
        let address = config.working_set_address(1900) + 1001;
        let mut byte = [0];
        guest.ram().read(address, &mut byte).unwrap();
        guest.ram().write(address, &[byte[0] ^ 0x10]).unwrap();
        guest.resume(custody).unwrap();
        assert_eq!(guest.verify(PATIENCE).unwrap().faults, 1);
        let report = guest.report();
        assert!(report.faults >= 1);
        let fault = report.first_fault.unwrap();
        assert!(fault.starts_with("page 1900 of the working set, word 125:"), "{fault}");
    }
}

#[test]
fn a_stale_page_is_a_fault_though_it_is_whole() {
    if !kvm_is_here() {
        return;
    }
    let config = churn(16 << 20, 50 << 20, 4096);
    let mut guest = running(&config);
    let address = config.working_set_address(0);
    let mut page = vec![0; 4096];
    let custody = guest.pause().unwrap();
    guest.ram().read(address, &mut page).unwrap();
    guest.resume(custody).unwrap();
    let before = guest.report().pages_checked;
    wait_until("the page is written again", || guest.report().pages_checked > before + 2);
    let custody = guest.pause().unwrap();
    guest.ram().write(address, &page).unwrap();
    guest.resume(custody).unwrap();
    wait_until("the guest notices", || guest.report().faults > 0);
    assert!(guest.report().first_fault.unwrap().contains("word 0"));
}

#[test]
fn two_hundred_pauses_lose_nothing_and_are_short() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&churn(16 << 20, 100 << 20, 8 << 20));
    let mut times = Vec::new();
    for turn in 0_u32..200 {
        nap(Duration::from_micros(u64::from(turn * 37 % 900)));
        let began = Instant::now();
        let custody = guest.pause().unwrap();
        times.push(began.elapsed());
        let seen = progress(&guest);
        let checked = guest.report().pages_checked;
        nap(Duration::from_micros(100));
        assert_eq!((progress(&guest), guest.report().pages_checked), (seen, checked), "paused means paused");
        guest.resume(custody).unwrap();
    }
    times.sort_unstable();
    println!("pause: median {:?}, worst {:?}", times[100], times[199]);
    assert!(times[100] < Duration::from_millis(50));
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let before = progress(&guest);
    wait_until("it goes on", || progress(&guest) > before);
}

#[test]
fn a_guest_that_crashes_says_so_and_cannot_be_paused() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = born(&IDLE);
    guest.ram().write(code_address(), arch::CRASH).unwrap();
    guest.resume(custody()).unwrap();
    wait_until("it crashes", || guest.report().stopped.is_some());
    let reason = guest.report().stopped.unwrap();
    assert!(reason.contains(arch::CRASHED), "{reason}");
    assert!(guest.pause().unwrap_err().to_string().contains("has ended"));
    let error = guest.verify(PATIENCE).unwrap_err().to_string();
    assert!(error.starts_with("the guest has ended"), "{error}");
}

#[derive(Default)]
struct Watch(Mutex<Vec<&'static str>>);

impl RunWatch for Watch {
    fn starts(&self, _: &Custody) {
        self.0.lock().unwrap().push("starts");
    }

    fn stops(&self, _: &Custody) {
        self.0.lock().unwrap().push("stops");
    }
}

#[test]
fn nothing_runs_without_its_own_custody_and_the_watch_sees_all() {
    if !kvm_is_here() {
        return;
    }
    let watch = Arc::new(Watch::default());
    let mut guest = ferry_vmm::create_on_kvm(&IDLE, Birth::plain(1), Some(Arc::clone(&watch) as _)).unwrap();
    assert!(guest.pause().is_err(), "it does not run");
    guest.resume(custody()).unwrap();
    let second = guest.resume(custody()).unwrap_err();
    assert!(second.source.to_string().contains("runs already"));
    let own = guest.pause().unwrap();
    let other = guest.resume(Custody::born("other".parse().unwrap())).unwrap_err();
    assert_eq!(other.source.to_string(), "this machine holds guest guest, the custody is of guest other");
    assert_eq!(other.custody.guest().as_str(), "other", "the custody comes back");
    guest.resume(own).unwrap();
    drop(guest);
    assert_eq!(*watch.0.lock().unwrap(), ["starts", "stops", "starts", "stops"]);
}

#[test]
fn a_builder_refuses_what_it_cannot_be() {
    if !kvm_is_here() {
        return;
    }
    let guest = born(&IDLE);
    let mut builder = KvmBuilder::new().unwrap();
    let good = guest.description();
    assert!(!builder.judge(&good).is_refusal());
    let mut unread = good.clone();
    unread.contract.push(0);
    let mut garbled = good.clone();
    garbled.config.push(0);
    let mut larger = good.clone();
    larger.regions[0].length *= 2;
    let mut foreign = good.clone();
    foreign.kind = "sim".to_owned();
    let mut vcpus = good;
    vcpus.vcpus = 2;
    for (bad, subject) in [
        (garbled, "guest configuration"),
        (larger, "guest configuration"),
        (vcpus, "guest configuration"),
        (foreign, "kind of machine"),
        (unread, "contract"),
    ] {
        let verdict = builder.judge(&bad);
        assert!(verdict.is_refusal() && verdict.is_bounded());
        assert_eq!(verdict.findings[0].subject, subject);
        let error = builder.build(&bad).unwrap_err().to_string();
        assert!(error.starts_with("this machine cannot be built here"), "{error}");
    }
}
