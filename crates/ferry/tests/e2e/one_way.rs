//! Guests that go into a file or through a pipe, process by process.

use serde_json::Value;

use crate::support::house::{CHURN, House};
use crate::support::process::Process;

on_both! {
    a_guest_rests_in_a_file_and_is_taken_once,
    a_guest_goes_through_a_pipe,
    wrong_uses_say_so,
    the_locks_of_a_guest_in_a_file_are_free_until_somebody_takes_it,
    a_source_whose_reader_dies_takes_its_locks_again,
}

fn a_guest_rests_in_a_file_and_is_taken_once(on: &'static str) {
    let house = House::new(on);
    let guest = house.guest("g", CHURN);
    let file = house.path("snapshot");
    let place = format!("file:{}", file.display());
    let report = house.json(&["migrate", "g", "--to", &place, "--wait", "--verify"]).document();
    assert_eq!((&report["outcome"], &report["epoch"]), (&"moved".into(), &2.into()), "{report}");
    assert_eq!(guest.end().status, 0);
    let inspect = || house.json(&["inspect", file.to_str().unwrap()]).document();
    let found = inspect();
    assert_eq!(
        (&found["custody"], &found["complete"], &found["guest"]),
        (&"present".into(), &true.into(), &"g".into())
    );
    if on == "kvm" {
        let sections = found["sections"].as_array().unwrap();
        let regs = sections.iter().find(|section| section["name"] == "x86.regs").unwrap();
        assert!(regs["fields"]["rip"].as_str().unwrap().starts_with("0x"), "{regs}");
    }
    let copy = house.reading(&place, &["--clone", "--id=copy"], false);
    assert_eq!(copy.status()["epoch"], 1);
    assert!(copy.check() > 0);
    assert_eq!(inspect(), found, "a copy leaves the file as it is");
    let taker = house.reading(&place, &[], true);
    assert_eq!((&taker.status()["id"], &taker.status()["epoch"]), (&"g".into(), &2.into()));
    assert!(taker.check() > 0);
    assert_eq!(inspect()["taken"]["pid"], taker.pid());
    let again = house.ferry(&["receive", "--backend", on, "--from", &place]);
    assert!(again.status == 1 && again.errors.contains(&format!("process {}", taker.pid())), "{again:?}");
    assert_eq!(house.runners().len(), 2);
}

fn a_guest_goes_through_a_pipe(on: &'static str) {
    let house = House::new(on);
    let guest = house.guest("g", CHURN);
    let pipe = house.pipe("pipe");
    let into = house.reading_a_pipe(&pipe, &[]);
    let report = house.migrating_into_a_pipe("g", &pipe, &[]).end().document();
    assert_eq!((&report["outcome"], &report["to"]), (&"moved".into(), &"fd:7".into()), "{report}");
    assert_eq!(guest.end().status, 0);
    let into = into.ready("arrived");
    assert!(into.check() > 0);
    let status: Value = house.json(&["status", "g"]).document();
    assert_eq!((&status["state"], &status["epoch"]), (&"running".into(), &2.into()), "{status}");
}

/// Whoever takes the guest or a copy of it takes its locks; where somebody has one nothing is taken, and
/// the file stays as it is.
fn the_locks_of_a_guest_in_a_file_are_free_until_somebody_takes_it(on: &'static str) {
    let house = House::new(on);
    let lock = format!("--lock={}", house.path("disk.lock").display());
    let holder = || std::fs::read_to_string(house.path("disk.lock")).unwrap();
    let guest = house.guest("g", &[CHURN, &[&lock]].concat());
    let file = house.path("snapshot");
    let place = format!("file:{}", file.display());
    house.json(&["migrate", "g", "--to", &place, "--wait"]).document();
    assert_eq!(guest.end().status, 0);
    assert!(!holder().contains("guest `"), "{}", holder());
    let inspect = || house.json(&["inspect", file.to_str().unwrap()]).document();
    let whole = inspect();
    let refuses = |flags: &[&str], who: &str| {
        let words = [&["receive", "--backend", on, "--from", &place], flags].concat();
        house.json(&words).failed(1, &["disk.lock is held by", who]);
        assert_eq!(inspect(), whole, "the file is as it was");
    };
    let thief = house.guest_without_journal("thief", &[CHURN, &[&lock]].concat());
    refuses(&[], "guest `thief`");
    refuses(&["--clone", "--id=copy"], "guest `thief`");
    thief.kill();
    let copy = house.reading(&place, &["--clone", "--id=copy"], false);
    assert!(holder().contains(&format!("guest `copy`, process {}", copy.pid())), "{}", holder());
    refuses(&[], "guest `copy`");
    copy.kill();
    let taker = house.reading(&place, &[], true);
    assert!(holder().contains(&format!("guest `g`, process {}", taker.pid())), "{}", holder());
    assert!(taker.check() > 0);
    refuses_as_taken(&house, on, &place, &taker);
}

fn a_source_whose_reader_dies_takes_its_locks_again(on: &'static str) {
    for is_stolen in [false, true] {
        let house = House::new(on);
        let lock = format!("--lock={}", house.path("disk.lock").display());
        let holder = || std::fs::read_to_string(house.path("disk.lock")).unwrap();
        let guest = house.guest("g", &[CHURN, &["--stop-at=state", &lock]].concat());
        let pipe = house.pipe("pipe");
        let reader = house.reading_a_pipe(&pipe, &[]);
        let migrating = house.migrating_into_a_pipe("g", &pipe, &[]);
        guest.await_stop();
        assert!(!holder().contains("guest `"), "{}", holder());
        let thief = is_stolen.then(|| house.guest_without_journal("thief", &[CHURN, &[&lock]].concat()));
        reader.kill();
        guest.resume();
        if let Some(thief) = thief {
            migrating.end().failed(4, &["paused", "disk.lock is held by guest `thief`"]);
            guest.await_state("held");
            assert!(thief.check() > 0);
        } else {
            migrating.end().failed(4, &["still runs on this host"]);
            guest.await_state("running");
            assert!(guest.check() > 0);
            assert!(holder().contains(&format!("guest `g`, process {}", guest.pid())), "{}", holder());
        }
    }
}

fn refuses_as_taken(house: &House, on: &str, place: &str, taker: &Process) {
    let again = house.json(&["receive", "--backend", on, "--from", place]);
    again.failed(1, &["was taken already", &format!("process {}", taker.pid())]);
}

fn wrong_uses_say_so(on: &'static str) {
    let house = House::new(on);
    let cases: [(&[&str], i32, &str); 7] = [
        (&["migrate", "g", "--to", "file:x", "--lanes", "2"], 2, "--lanes is for addresses"),
        (&["migrate", "g", "--to", "fd:1"], 2, "use 3 or above"),
        (&["migrate", "g", "--to", "fd:77"], 2, "descriptor 77"),
        (&["receive", "--from", "127.0.0.1:1"], 2, "--listen"),
        (&["receive", "--from", "file:x", "--clone"], 2, "--id"),
        (&["receive", "--backend", on, "--from", "file:/no/such"], 1, "/no/such"),
        (&["inspect", "/dev/null"], 1, "/dev/null"),
    ];
    for (words, status, text) in cases {
        let done = house.ferry(words);
        assert!(done.status == status && done.errors.contains(text), "{words:?}: {done:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let done = house.ferry(&["completions", shell]);
        assert!(done.status == 0 && done.output.contains("migrate"), "{shell}");
    }
}
