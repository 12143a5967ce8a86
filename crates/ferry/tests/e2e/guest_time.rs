//! What a guest sees of the time that it lay in a file, as its operator chose it.

use std::path::Path;
use std::time::Duration;

use crate::support::house::House;
use crate::support::{kvm_is_here, let_pass, skipped, wait_until};

/// How long the guest lies in its file.
const PAUSE: Duration = Duration::from_secs(2);

/// A guest for which a second and a half without time is a fault.
const CLOCK: &[&str] = &["--payload=clock", "--jump-limit=1500", "--memory=16M", "--cpus=2"];

/// Moves a guest into a file and out of it with these flags, and says what it found wrong.
fn faults(migrate: &[&str], receive: &[&str]) -> (u64, String) {
    let house = House::new("kvm");
    let guest = house.guest("g", CLOCK);
    let place = format!("file:{}", house.path("snapshot").display());
    let words = [&["migrate", "g", "--to", &place, "--wait"], migrate].concat();
    assert_eq!(house.json(&words).document()["outcome"], "moved");
    assert_eq!(guest.end().status, 0);
    let_pass(PAUSE);
    let taker = house.reading(&place, receive, true);
    let before = taker.status()["progress"].as_u64().unwrap();
    wait_until("it goes on", || taker.status()["progress"].as_u64().unwrap() > before + 10);
    let status = taker.status();
    let first = status["first_fault"].as_str().unwrap_or_default();
    (status["faults"].as_u64().unwrap(), first.to_owned())
}

#[test]
fn the_time_in_a_file_is_seen_where_it_catches_up() {
    if !kvm_is_here() {
        return;
    }
    for (migrate, receive) in
        [(&["--guest-time=catches-up"][..], &[][..]), (&["--guest-time=stops"], &["--guest-time=catches-up"])]
    {
        let (faults, first) = faults(migrate, receive);
        // Each vCPU sees it once.
        assert!(faults == 2 && first.contains("leapt"), "{faults}: {first}");
    }
}

#[test]
fn the_time_in_a_file_is_not_seen_where_time_stops() {
    if !kvm_is_here() {
        return;
    }
    if Path::new("/sys/module/kvm_pvm").exists() {
        skipped("time that stops: guests of kvm_pvm see the host's own");
        return;
    }
    for (migrate, receive) in [(&[][..], &[][..]), (&["--guest-time=catches-up"], &["--guest-time=stops"])] {
        assert_eq!(faults(migrate, receive), (0, String::new()));
    }
}

#[test]
fn time_does_nothing_else() {
    let house = House::new("sim");
    for words in [&["migrate", "g", "--to", "file:x"][..], &["receive", "--from", "file:x"]] {
        let done = house.ferry(&[words, &["--guest-time=flies"]].concat());
        assert!(done.status == 2 && done.errors.contains("`stops` or `catches-up`"), "{done:?}");
    }
}
