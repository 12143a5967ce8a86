//! What `ferry recover` cannot know, and what it knows by itself: processes that do not answer, journals
//! that cannot be read, moves of which both sides are gone, disks without room.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::{Value, json};

use crate::recover::{WAIT, doubtful_file, journaled, matter, recover, runs_again};
use crate::support::each;
use crate::support::house::{CHURN, House};
use crate::support::process::{Done, Process};

on_both! {
    a_process_that_does_not_answer_is_not_passed_over,
    a_guest_is_not_born_beside_a_journal_that_cannot_be_read,
    a_move_of_which_both_sides_are_gone_settles_itself,
    what_a_file_shows_is_written_down_before_it_goes,
}

/// `ferry recover g` where the control sockets of this house are not seen.
fn recover_elsewhere(house: &House, words: &[&str]) -> Done {
    let elsewhere = house.path("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    let mut command = house.command(&[&["recover", "g", "--output=json"], words].concat());
    command.env("XDG_RUNTIME_DIR", elsewhere);
    house.start(command).end()
}

fn a_process_that_does_not_answer_is_not_passed_over(on: &'static str) {
    let house = House::new(on);
    let guest = house.guest("g", CHURN);
    let is_unknown = |done: &Done| {
        let shown = matter(done);
        let known = shown["known"].as_str().unwrap();
        assert!(known.contains("does not answer") && known.contains(".journal"), "{known}");
        assert_eq!((done.status, &shown["side"], &shown["choices"]), (6, &json!("unknown"), &json!([])));
    };
    is_unknown(&recover_elsewhere(&house, &[]));
    let choice = ["--abandon", "--reason", "I see nothing"];
    recover_elsewhere(&house, &choice).failed(6, &["nothing is decided", "fuser"]);
    guest.signal(Signal::STOP);
    is_unknown(&recover(&house, &[]));
    assert_eq!(journaled(&house, "I see nothing"), 0);
    guest.resume();
    assert_eq!(recover(&house, &[]).document()["has_it"][0]["pid"], guest.pid());
    // Another guest is none of its business.
    assert_eq!(house.json(&["recover", "h"]).document()["open"], false);
    assert!(guest.check() > 0);
}

/// The journals of the house.
fn journals(house: &House) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(house.journals()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "journal")).collect()
}

fn a_guest_is_not_born_beside_a_journal_that_cannot_be_read(on: &'static str) {
    let house = House::new(on);
    house.guest("g", CHURN).kill();
    let [journal] = &journals(&house)[..] else { panic!("{:?}", journals(&house)) };
    let mut bytes = std::fs::read(journal).unwrap();
    bytes[30] ^= 0x40;
    std::fs::write(journal, bytes).unwrap();
    let name = journal.file_name().unwrap().to_str().unwrap();
    house.json(&["run", "--id=g"]).failed(1, &[name, "is damaged", "ferry recover g"]);
    let done = recover(&house, &[]);
    let shown = matter(&done);
    let all = json!(["source-runs", "target-runs", "abandon"]);
    assert_eq!((done.status, &shown["side"], &shown["choices"]), (6, &json!("unknown"), &all), "{shown}");
    assert!(shown["known"].as_str().unwrap().contains(name), "{shown}");
    // Who takes a name that nobody had is not kept from it.
    let words = ["run", "--memory=16M", "--backend", on, "--output=json", "--die-with-parent"];
    drop(house.start(house.command(&words)).ready("running"));
    let done = recover(&house, &["--abandon", "--reason", "its disk was bad"]);
    assert_eq!((done.status, &matter(&done)["end"]), (0, &"abandon".into()), "{done:?}");
    assert_eq!(journaled(&house, "its disk was bad"), 1);
    let settled = recover(&house, &[]).document();
    assert_eq!((&settled["matters"], settled["complaints"].as_array().unwrap().len()), (&json!([]), 1));
    // It was decided of this guest alone.
    house.json(&["run", "--id=h"]).failed(1, &["ferry recover h"]);
    assert!(house.guest_without_journal("g", CHURN).check() > 0);
    assert!(journal.exists());
}

fn a_move_of_which_both_sides_are_gone_settles_itself(on: &'static str) {
    each(&["ready", "running"], |&phase| {
        let house = House::new(on);
        let source = house.guest("g", CHURN);
        let target = house.receiver(&["--stop-at", phase]);
        let migrating = house.migrating("g", &target);
        target.await_stop();
        source.kill();
        target.kill();
        drop(migrating);
        house.json(&["run", "--id=g"]).failed(1, &["ferry recover g"]);
        let done = recover(&house, &[]);
        let document: Value = serde_json::from_str(&done.output).unwrap();
        assert_eq!((done.status, &document["open"]), (0, &json!(false)), "{document}");
        for matter in document["matters"].as_array().unwrap() {
            assert_eq!(matter["end"], "nobody-has-it", "{document}");
            assert!(matter["known"].as_str().unwrap().contains("both sides are gone"), "{document}");
        }
        assert_eq!(recover(&house, &[]).document()["matters"], json!([]));
        assert_eq!(house.guest_without_journal("g", CHURN).status()["epoch"], 3);
        house.runners();
    });
}

/// No file of a process may grow beyond this.
fn file_limit(process: &Process, bytes: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(process.pid()).unwrap());
    let maximum = getrlimit(Resource::Fsize).maximum;
    prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

fn what_a_file_shows_is_written_down_before_it_goes(on: &'static str) {
    let house = House::hasty(on, WAIT);
    let (guest, partial) = doubtful_file(on, &house);
    let file = std::fs::File::options().write(true).open(&partial).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4).unwrap();
    let [journal] = &journals(&house)[..] else { panic!("{:?}", journals(&house)) };
    file_limit(&guest, Some(length(journal)));
    let done = recover(&house, &[]);
    assert_eq!(done.status, 6, "{done:?}");
    assert!(matter(&done)["known"].as_str().unwrap().contains("cannot be used"), "{done:?}");
    assert!(partial.exists(), "what it shows would be lost");
    assert_eq!(guest.status()["state"], "ambiguous");
    file_limit(&guest, None);
    let done = recover(&house, &[]);
    assert_eq!((done.status, &matter(&done)["end"]), (0, &"kept".into()), "{done:?}");
    assert!(!partial.exists());
    runs_again(&house, guest);
}
