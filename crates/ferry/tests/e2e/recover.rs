//! Moves whose outcome the two sides could not settle, and persons who do, process by process.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::house::{CHURN, House};
use crate::support::links::{Proxy, Way};
use crate::support::process::{Done, Process};
use crate::support::{each, wait_until};

on_both! {
    nothing_is_open_of_a_guest_that_was_kept,
    a_target_that_did_not_take_it_refuses_for_ever_and_the_source_resumes,
    a_target_that_may_have_run_it_leaves_the_choice_to_a_person,
    a_person_decides_where_the_target_cannot_answer,
    a_choice_that_can_be_seen_to_be_wrong_is_refused,
    a_source_that_died_is_settled_from_its_journal,
    a_target_that_died_is_settled_on_its_own_host,
    custody_of_a_file_is_where_the_file_says,
    a_source_that_died_over_a_file_is_settled_by_the_file,
}

/// How long every wait lasts.
pub(crate) const WAIT: Duration = Duration::from_secs(2);

/// `ferry recover g` with more words.
pub(crate) fn recover(house: &House, words: &[&str]) -> Done {
    house.json(&[&["recover", "g"], words].concat())
}

/// The one matter that is open, or was.
pub(crate) fn matter(done: &Done) -> Value {
    let document: Value =
        serde_json::from_str(&done.output).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let matters = document["matters"].as_array().unwrap();
    assert_eq!(matters.len(), 1, "{document}");
    matters[0].clone()
}

/// A source that gave custody away, and a target that died before it took it, or after.
fn doubt(on: &'static str, took: bool) -> (House, Process, String) {
    let house = House::hasty(on, WAIT);
    let address = format!("unix:{}", house.path("target").display());
    let stops = if took { ["--stop-at", "running"] } else { ["--stop-at", "given"] };
    let at = |side: bool| if side == took { &stops[..] } else { &[] };
    let source = house.guest("g", &[CHURN, at(false)].concat());
    let target = house.receiver_at(&address, at(true));
    let migrating = house.migrating("g", &target);
    if took {
        target.await_stop();
        target.kill();
    } else {
        source.await_stop();
        target.kill();
        source.resume();
    }
    migrating.end().failed(6, &["nobody answers", "ferry recover"]);
    assert_eq!(house.runners(), [source.pid()], "nobody told the journal of runs of the second one");
    (house, source, address)
}

/// The same with the target's death before custody came, so that its journal says that it may have run
/// the guest though it did not.
fn doubt_before(on: &'static str) -> (House, Process, String) {
    doubt(on, false)
}

/// Custody was on its way when the link was cut. Nobody can be asked until it heals; then the target
/// refuses, and nobody needs to decide.
fn a_target_that_did_not_take_it_refuses_for_ever_and_the_source_resumes(on: &'static str) {
    let house = House::hasty(on, WAIT);
    let source = house.guest("g", &[CHURN, &["--stop-at", "given"]].concat());
    let target = house.receiver(&[]);
    let proxy = Proxy::to(&target.listen);
    let migrating =
        house.start(house.command(&["migrate", "g", "--to", &proxy.address, "--wait", "--output=json"]));
    source.await_stop();
    proxy.set(Way::Cut);
    source.resume();
    migrating.end().failed(6, &["nobody answers"]);
    let shown = matter(&recover(&house, &[]));
    assert_eq!(
        (&shown["side"], &shown["pid"], &shown["end"]),
        (&"source".into(), &source.pid().into(), &Value::Null)
    );
    assert_eq!(house.runners(), [source.pid()]);
    proxy.set(Way::Open);
    source.await_state("running");
    assert_eq!(recover(&house, &[]).document()["open"], false);
    let told = source.status();
    assert_eq!((&told["epoch"], &told["last_migration"]["outcome"]), (&1.into(), &"kept".into()), "{told}");
    assert!(source.check() > 0);
    target.await_state("waiting");
    house.moves("g", source, &target);
}

fn nothing_is_open_of_a_guest_that_was_kept(on: &'static str) {
    let house = House::hasty(on, WAIT);
    let source = house.guest("g", CHURN);
    let target = house.receiver(&["--stop-at", "ready"]);
    let migrating = house.migrating("g", &target);
    target.await_stop();
    assert!(matches!(migrating.end().status, 4 | 7), "custody was never given");
    target.resume();
    assert_eq!(source.status()["state"], "running");
    let shown = recover(&house, &[]).document();
    assert_eq!(
        (&shown["open"], &shown["has_it"][0]["pid"]),
        (&false.into(), &source.pid().into()),
        "{shown}"
    );
    target.await_state("waiting");
    house.moves("g", source, &target);
}

fn a_target_that_may_have_run_it_leaves_the_choice_to_a_person(on: &'static str) {
    let (house, source, address) = doubt_before(on);
    let second = house.receiver_at(&address, &[]);
    wait_until("the journal of the dead target is heard of", || {
        source.status()["doubt"]["known"].as_str().is_some_and(|known| known.contains("may have run"))
    });
    // Whatever it is asked, it never refuses; and never takes that epoch.
    let done = recover(&house, &[]);
    assert_eq!(done.status, 6, "{done:?}");
    let document: Value = serde_json::from_str(&done.output).unwrap();
    let sides: Vec<_> =
        document["matters"].as_array().unwrap().iter().map(|matter| &matter["side"]).collect();
    assert_eq!(sides, ["source", "target"], "{document}");
    let text = house.ferry(&["recover", "g"]);
    assert_eq!(text.status, 6);
    for words in ["holds `g` paused", "epoch 2", "may have run", "--source-runs", "--reason TEXT"] {
        assert!(text.output.contains(words), "`{words}` is not in {text:?}");
    }
    house.json(&["run", "--id=g"]).failed(1, &["`g`", "choose another --id"]);
    // On one machine both sides are one folder's: the choice is for both.
    let wrong = recover(&house, &["--target-runs", "--reason", "I think so"]);
    wrong.failed(1, &["--target-runs", "gone"]);
    let done = recover(&house, &["--source-runs", "--reason", "the process was killed by me"]);
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(source.status()["state"], "running");
    assert_eq!((&source.status()["epoch"], &source.status()["doubt"]), (&3.into(), &Value::Null));
    assert!(source.check() > 0);
    let report = house.moves("g", source, &second);
    assert_eq!(report["epoch"], 4);
    assert_eq!(house.runners().len(), 2);
    let written = journaled(&house, "the process was killed by me");
    assert!(written > 0, "the reason is in the journals");
}

/// How many journals hold a text.
pub(crate) fn journaled(house: &House, text: &str) -> usize {
    let holds = |path: std::path::PathBuf| {
        std::fs::read(path).unwrap().windows(text.len()).any(|bytes| bytes == text.as_bytes())
    };
    std::fs::read_dir(house.journals()).unwrap().filter(|entry| holds(entry.as_ref().unwrap().path())).count()
}

fn a_person_decides_where_the_target_cannot_answer(on: &'static str) {
    each(&["--source-runs", "--target-runs", "--abandon"], |&choice| {
        let (house, source, _) = doubt_before(on);
        // The target was on another host: its journals are not here.
        elsewhere(&house, &source);
        let shown = matter(&recover(&house, &[]));
        assert_eq!(shown["choices"], json!(["source-runs", "target-runs", "abandon"]), "{shown}");
        assert!(shown["known"].as_str().unwrap().contains("cannot be asked"), "{shown}");
        recover(&house, &[choice]).failed(2, &["--reason"]);
        let done = recover(&house, &[choice, "--reason", "seen with my own eyes"]);
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(journaled(&house, "seen with my own eyes"), 1);
        if choice == "--source-runs" {
            assert_eq!(
                (&source.status()["state"], &source.status()["epoch"]),
                (&"running".into(), &3.into())
            );
            assert!(source.check() > 0);
            let fresh = house.receiver(&[]);
            assert_eq!(house.moves("g", source, &fresh)["epoch"], 4);
        } else {
            let ended = source.end();
            let word = if choice == "--abandon" { "abandoned" } else { "moved" };
            assert!(ended.status == 0 && ended.output.contains(&format!("{{\"{word}\":")), "{ended:?}");
            // It is settled: the name is free, and a new guest's epoch above all.
            assert_eq!(recover(&house, &[]).document()["open"], false);
            assert_eq!(house.guest_without_journal("g", CHURN).status()["epoch"], 3);
        }
        house.runners();
    });
}

/// Takes the journals of all other processes away, as if they were another host's.
fn elsewhere(house: &House, process: &Process) {
    for entry in std::fs::read_dir(house.journals()).unwrap() {
        let path = entry.unwrap().path();
        let is_own = open_files(process).contains(&path);
        if path.extension().is_some_and(|extension| extension == "journal") && !is_own {
            std::fs::remove_file(path).unwrap();
        }
    }
}

fn open_files(process: &Process) -> Vec<std::path::PathBuf> {
    let folder = format!("/proc/{}/fd", process.pid());
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

fn a_choice_that_can_be_seen_to_be_wrong_is_refused(on: &'static str) {
    let house = House::hasty(on, WAIT);
    let source = house.guest("g", CHURN);
    recover(&house, &["--abandon", "--reason", "x"]).failed(1, &["nothing is open"]);
    let target = house.receiver(&["--stop-at", "running"]);
    let migrating = house.migrating("g", &target);
    target.await_stop();
    migrating.end().failed(6, &["nobody answers"]);
    // The source dies as well; then the target can be asked again, and says that it runs the guest.
    source.kill();
    target.resume();
    target.await_state("running");
    for reason in ["", &"x".repeat(5000)] {
        recover(&house, &["--abandon", "--reason", reason]).failed(2, &["--reason", "bytes"]);
    }
    for (words, told) in [
        (["--source-runs", "--reason", "x"], "the source's process is gone"),
        (["--abandon", "--reason", "x"], "nothing is open"),
    ] {
        // On one machine the target's own journal settles it; from another host it is asked.
        let done = recover(&house, &words);
        assert!(done.status == 1, "{done:?}");
        let message = done.error()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(told) || message.contains("nothing is open"), "{message}");
    }
    assert!(target.check() > 0);
    let fresh = house.receiver(&[]);
    house.moves("g", target, &fresh);
}

fn a_source_that_died_is_settled_from_its_journal(on: &'static str) {
    each(&[(0, "running"), (1, "running"), (0, "ready"), (1, "ready"), (0, "gone")], |&(number, phase)| {
        let (house, there) = (House::hasty(on, WAIT), House::hasty(on, WAIT));
        let source = house.guest("g", CHURN);
        // The target is another host's: its journals are in another folder.
        let target = there.receiver(&["--stop-at", if phase == "running" { "running" } else { "ready" }]);
        let migrating = house.migrating("g", &target);
        target.await_stop();
        source.kill();
        drop(migrating);
        house.json(&["run", "--id=g"]).failed(1, &["`g`", &target.listen, "ferry recover g"]);
        let done = recover(&house, &["--source-runs", "--reason", "x"]);
        done.failed(1, &["--source-runs", "the source's process is gone"]);
        match phase {
            "running" => {
                target.resume();
                target.await_state("running");
                if number == 0 {
                    let done = recover(&house, &[]);
                    assert_eq!(
                        (done.status, &matter(&done)["end"]),
                        (0, &"target-has-it".into()),
                        "{done:?}"
                    );
                } else {
                    // A choice that is refused settles it as well: the target was asked.
                    let done = recover(&house, &["--abandon", "--reason", "x"]);
                    done.failed(1, &["answers that it has the guest"]);
                }
                assert!(target.check() > 0);
            }
            "ready" => {
                target.resume();
                target.await_state("waiting");
                if number == 0 {
                    let done = recover(&house, &[]);
                    assert_eq!(
                        (done.status, &matter(&done)["end"]),
                        (0, &"nobody-has-it".into()),
                        "{done:?}"
                    );
                } else {
                    recover(&house, &["--target-runs", "--reason", "x"]).failed(1, &["never took the guest"]);
                }
            }
            _ => {
                target.kill();
                let done = recover(&house, &[]);
                assert_eq!((done.status, &matter(&done)["choices"]), (6, &json!(["target-runs", "abandon"])));
                assert_eq!(recover(&house, &["--abandon", "--reason", "all burned"]).status, 0);
                assert_eq!(journaled(&house, "all burned"), 1);
            }
        }
        // It is settled here: the name is free.
        assert_eq!(recover(&house, &[]).document()["matters"], json!([]));
        let reborn = house.guest_without_journal("g", CHURN);
        assert_eq!(reborn.status()["epoch"], 3);
    });
}

fn a_target_that_died_is_settled_on_its_own_host(on: &'static str) {
    let (house, there) = (House::hasty(on, WAIT), House::hasty(on, WAIT));
    let source = house.guest("g", CHURN);
    let target = there.receiver(&["--stop-at", "running"]);
    let migrating = house.migrating("g", &target);
    target.await_stop();
    target.kill();
    migrating.end().failed(6, &["nobody answers"]);
    there.json(&["run", "--id=g"]).failed(1, &["may have run here", "ferry recover g"]);
    let done = recover(&there, &[]);
    let shown = matter(&done);
    assert_eq!((done.status, &shown["side"]), (6, &"target".into()), "{done:?}");
    recover(&there, &["--target-runs", "--reason", "x"]).failed(1, &["the target's process is gone"]);
    assert_eq!(recover(&there, &["--source-runs", "--reason", "it never served"]).status, 0);
    assert_eq!(recover(&there, &[]).document()["open"], false);
    assert_eq!(recover(&house, &["--source-runs", "--reason", "it never served"]).status, 0);
    assert!(source.check() > 0);
    source.signal(Signal::TERM);
}

/// A guest whose custody is in `g.ferry.partial`, because another file got its name meanwhile.
pub(crate) fn doubtful_file(on: &'static str, house: &House) -> (Process, PathBuf) {
    let guest = house.guest("g", &[CHURN, &["--stop-at", "ready"]].concat());
    let path = house.path("g.ferry");
    let words = ["migrate", "g", "--to", &format!("file:{}", path.display()), "--wait", "--output=json"];
    let migrating = house.start(house.command(&words));
    guest.await_stop();
    std::fs::write(&path, on).unwrap();
    guest.resume();
    migrating.end().failed(6, &["custody is in", "g.ferry.partial"]);
    assert_eq!(guest.status()["state"], "ambiguous");
    (guest, house.path("g.ferry.partial"))
}

fn custody_of_a_file_is_where_the_file_says(on: &'static str) {
    each(&["there", "not there", "--source-runs", "--target-runs", "--abandon"], |&case| {
        let house = House::hasty(on, WAIT);
        let (guest, partial) = doubtful_file(on, &house);
        let reason = ["--reason", "seen in the file"];
        match case {
            "there" => {
                for wrong in ["--source-runs", "--abandon"] {
                    let done = recover(&house, &[&[wrong], &reason[..]].concat());
                    done.failed(1, &["would be wrong", "g.ferry.partial"]);
                }
                let done = recover(&house, &[]);
                assert_eq!((done.status, &matter(&done)["end"]), (0, &"moved".into()), "{done:?}");
                assert_eq!(guest.end().status, 0);
                let taker = house.reading(&format!("file:{}", partial.display()), &[], true);
                assert!(taker.check() > 0);
                assert_eq!(taker.status()["epoch"], 2);
            }
            "not there" => {
                let file = std::fs::File::options().write(true).open(&partial).unwrap();
                file.set_len(file.metadata().unwrap().len() - 4).unwrap();
                recover(&house, &[&["--target-runs"], &reason[..]].concat()).failed(1, &["would be wrong"]);
                assert!(partial.exists(), "what is refused changes nothing");
                let done = recover(&house, &[]);
                assert_eq!((done.status, &matter(&done)["end"]), (0, &"kept".into()), "{done:?}");
                assert!(!partial.exists(), "nobody can take it from there any more");
                runs_again(&house, guest);
            }
            choice => {
                std::fs::remove_file(&partial).unwrap();
                let done = recover(&house, &[]);
                assert_eq!(
                    (done.status, matter(&done)["choices"].as_array().unwrap().len()),
                    (6, 3),
                    "{done:?}"
                );
                let done = recover(&house, &[&[choice], &reason[..]].concat());
                assert_eq!(done.status, 0, "{done:?}");
                assert_eq!(journaled(&house, "seen in the file"), 1);
                if choice == "--source-runs" {
                    runs_again(&house, guest);
                } else {
                    assert_eq!(guest.end().status, 0);
                }
            }
        }
        house.runners();
    });
}

/// Under an epoch above the one that was given, and it can be moved.
pub(crate) fn runs_again(house: &House, guest: Process) {
    assert_eq!((&guest.status()["state"], &guest.status()["epoch"]), (&"running".into(), &3.into()));
    assert!(guest.check() > 0);
    let target = house.receiver(&[]);
    assert_eq!(house.moves("g", guest, &target)["epoch"], 4);
}

fn a_source_that_died_over_a_file_is_settled_by_the_file(on: &'static str) {
    for given in [false, true] {
        let house = House::hasty(on, WAIT);
        let (guest, partial) = if given {
            doubtful_file(on, &house)
        } else {
            let guest = house.guest("g", &[CHURN, &["--stop-at", "given"]].concat());
            let path = house.path("g.ferry");
            let place = format!("file:{}", path.display());
            let migrating = house.start(house.command(&["migrate", "g", "--to", &place, "--wait"]));
            guest.await_stop();
            drop(migrating);
            (guest, house.path("g.ferry.partial"))
        };
        guest.kill();
        house.json(&["run", "--id=g"]).failed(1, &["ferry recover g"]);
        let done = recover(&house, &[]);
        let end = if given { "target-has-it" } else { "nobody-has-it" };
        assert_eq!((done.status, &matter(&done)["end"]), (0, &end.into()), "{done:?}");
        assert!(partial.exists(), "it is the person's to remove");
        assert_eq!(recover(&house, &[]).document()["open"], false);
    }
}
