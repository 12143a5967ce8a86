//! Guests in huge pages: each side has its own, and what a host has none of is refused with the remedy.
//! Where no pages are reserved (`/proc/sys/vm/nr_hugepages`, 64 are enough) or shared memory has no
//! transparent ones, that part says so and is skipped.

use ferry_protocol::RegionSpan;
use ferry_vmm::HugePages;

use crate::support::house::{CHURN, House, IDLE};
use crate::support::{kvm_is_here, skipped};

/// Whether several guests of the tests can lie in such pages here.
fn is_had(wish: &str) -> bool {
    let room = [RegionSpan { start: 0, length: 64 << 20 }];
    match wish.parse::<HugePages>().unwrap().reserved(&room) {
        Ok(_) => true,
        Err(error) => {
            skipped(&format!("guests in pages `{wish}`: {error}"));
            false
        }
    }
}

#[test]
fn each_side_chooses_its_own_pages() {
    if !kvm_is_here() {
        return;
    }
    for (wish, name) in [("2M", "reserved 2M"), ("transparent", "transparent huge")] {
        if !is_had(wish) {
            continue;
        }
        let house = House::new("kvm");
        let there = format!("--huge-pages={wish}");
        let mut at = house.guest("g", &[CHURN, &["--huge-pages=off"]].concat());
        assert_eq!(at.status()["memory_pages"], "ordinary");
        for (flag, name) in [(&*there, name), (&*there, name), ("--huge-pages=off", "ordinary")] {
            let to = house.receiver(&[flag]);
            let before = at.status()["memory_pages"].clone();
            let words = ["migrate", "g", "--to", &to.listen, "--wait", "--verify"];
            let report = house.json(&words).document();
            assert_eq!(
                (&report["verified"], &report["hashes_equal"]),
                (&true.into(), &true.into()),
                "{report}"
            );
            assert!(report["rounds"].as_u64().unwrap() >= 2, "{report}");
            // Hashing provides zeros as data everywhere but in reserved pages, which are looked into.
            let reserved = before == "reserved 2M";
            let untouched = report["untouched_bytes"].as_u64().unwrap();
            assert!(!reserved || untouched > 8 << 20, "zeros are left out: {report}");
            assert_eq!(at.end().status, 0);
            assert_eq!(to.status()["memory_pages"], name);
            assert!(to.check() > 0);
            at = to;
        }
    }
}

#[test]
fn pages_that_a_host_does_not_have_are_refused_with_the_remedy() {
    if kvm_is_here() {
        let house = House::new("kvm");
        let wish = "--huge-pages=8192G";
        let done = house.json(&[&["run", "--backend=kvm", wish], IDLE].concat());
        assert_eq!(done.status, 1);
        assert!(
            done.errors.contains("this host has no pages of 8192G: /sys/kernel/mm/hugepages"),
            "{done:?}"
        );

        let (from, to) = (house.guest("g", IDLE), house.receiver(&[wish]));
        let error = house.migrate("g", &to.listen).failed(3, &["`g`", "still runs on this host"]);
        assert_eq!(error["findings"][0]["subject"], "huge pages", "{error}");
        assert!(error["findings"][0]["target"].as_str().unwrap().contains("no pages of 8192G"), "{error}");
        assert!(from.check() > 0);
    }
    let house = House::new("sim");
    for words in [&["run", "--huge-pages=2M"][..], &["receive", "--listen=127.0.0.1:0", "--huge-pages=2M"]] {
        let done = house.json(&[words, &["--backend=sim"]].concat());
        assert_eq!(done.status, 1, "{done:?}");
        assert!(done.errors.contains("huge pages need KVM"), "{done:?}");
    }
    let done = house.json(&["run", "--huge-pages=4K"]);
    assert_eq!(done.status, 2, "{done:?}");
    assert!(done.errors.contains("use `auto`, `off`, `transparent`, or a page size"), "{done:?}");
}

#[test]
fn a_guest_that_asks_for_nothing_has_what_the_host_has_and_says_why() {
    if !kvm_is_here() {
        return;
    }
    let house = House::new("kvm");
    let guest = house.guest("g", IDLE);
    let status = guest.status();
    let pages = status["memory_pages"].as_str().unwrap();
    assert!(["ordinary", "transparent huge", "reserved 2M"].contains(&pages), "{status}");
    assert_eq!(status["memory_pages_reason"].is_null(), pages != "ordinary", "{status}");
    let told = house.ferry(&["status", "g"]).output;
    assert!(told.contains(&format!("pages         {pages}")), "{told}");
}
