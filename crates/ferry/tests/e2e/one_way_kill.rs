//! Either process of a one-way move is killed in every phase: what becomes of the guest is what
//! `docs/guarantees.md` says of files and descriptors, and never do two processes run it.

use std::time::Duration;

use crate::support::each;
use crate::support::house::{CHURN, House};
use crate::support::process::Process;

on_both! {
    a_source_that_writes_a_file_is_killed,
    a_source_that_writes_into_a_pipe_is_killed,
    a_reader_of_a_file_is_killed,
    a_reader_of_a_pipe_is_killed,
}

/// How long every wait lasts; none is to run out.
const WAIT: Duration = Duration::from_secs(20);

/// How long a reader waits for a source that was killed, where the pipe does not tell it at once.
const SILENCE: Duration = Duration::from_secs(4);

/// The phases of a source that nobody answers: it enters `given` before custody is written, and `done` after.
const SOURCE: [&str; 7] = ["rounds", "pause", "last-round", "state", "ready", "given", "done"];

/// The phases of a reader: it enters `taking` once the mark is in the file.
const READER: [&str; 8] = ["hello", "offer", "build", "receive", "restore", "ready", "taking", "running"];

fn stopping(house: &House, phase: &str) -> Process {
    house.guest("g", &[CHURN, &["--stop-at", phase]].concat())
}

fn is_taken_whole(house: &House, taker: &Process) {
    taker.await_state("running");
    let status = taker.status();
    assert_eq!((&status["id"], &status["epoch"]), (&"g".into(), &2.into()), "{status}");
    assert!(taker.check() > 0);
    assert_eq!(house.runners().last(), Some(&taker.pid()));
}

fn a_source_that_writes_a_file_is_killed(on: &'static str) {
    each(&SOURCE, |&phase| {
        let house = House::hasty(on, WAIT);
        let source = stopping(&house, phase);
        let (file, partial) = (house.path("snapshot"), house.path("snapshot.partial"));
        let place = format!("file:{}", file.display());
        let migrating = house.migrating_to("g", &place, &[]);
        source.await_stop();
        source.kill();
        migrating.end().failed(1, &["closed the connection"]);
        let inspect = |path: &std::path::Path| house.json(&["inspect", path.to_str().unwrap()]).document();
        if phase == "done" {
            assert!(!partial.exists());
            assert_eq!(inspect(&file)["custody"], "present");
            // Where the host died with custody on the disk and the name not.
            std::fs::rename(&file, &partial).unwrap();
            is_taken_whole(&house, &house.reading(&format!("{place}.partial"), &[], true));
            assert_eq!(house.runners().len(), 2);
            return;
        }
        assert!(!file.exists(), "{phase}");
        let found = inspect(&partial);
        assert_eq!((&found["custody"], &found["complete"]), (&"absent".into(), &false.into()), "{found}");
        let partial_place = format!("{place}.partial");
        let from_partial = ["receive", "--backend", on, "--from", &partial_place];
        house.json(&from_partial).failed(1, &["snapshot.partial"]);
        house.json(&[&from_partial[..], &["--clone", "--id=copy"]].concat()).failed(1, &[]);
        assert_eq!(house.runners().len(), 1, "nobody runs it");
        // The file shows that nobody has it, or nothing is open: its name is free again.
        assert_eq!(house.json(&["recover", "g"]).document()["open"], false, "{phase}");
        // What is left is not written over, and does not keep the guest, born again, from another place.
        let again = house.guest_without_journal("g", CHURN);
        house.migrate("g", &place).failed(1, &["snapshot.partial is there already", "ferry inspect"]);
        assert!(again.check() > 0);
        std::fs::remove_file(&partial).unwrap();
        house.migrate("g", &place).document();
    });
}

fn a_source_that_writes_into_a_pipe_is_killed(on: &'static str) {
    each(&SOURCE, |&phase| {
        let house = House::hasty(on, SILENCE);
        let source = stopping(&house, phase);
        let pipe = house.pipe("pipe");
        let reader = house.reading_a_pipe(&pipe, &[]);
        let migrating = house.migrating_into_a_pipe("g", &pipe, &[]);
        source.await_stop();
        source.kill();
        migrating.end().failed(1, &["closed the connection"]);
        if phase == "done" {
            is_taken_whole(&house, &reader.ready("arrived"));
        } else {
            let done = reader.end();
            done.failed(1, &["fd:0, byte "]);
            assert_eq!(house.runners().len(), 1, "nobody runs it");
        }
    });
}

fn a_reader_of_a_file_is_killed(on: &'static str) {
    each(&READER, |&phase| {
        let house = House::hasty(on, WAIT);
        let source = house.guest("g", CHURN);
        let place = format!("file:{}", house.path("snapshot").display());
        house.migrate("g", &place).document();
        assert_eq!(source.end().status, 0);
        let duplicate = house.path("duplicate");
        std::fs::copy(house.path("snapshot"), &duplicate).unwrap();
        let reader = house.begins_to_read(&place, &["--stop-at", phase], true);
        reader.await_stop();
        let pid = reader.pid();
        reader.kill();
        // Nobody waits for its word.
        assert_eq!(house.json(&["recover", "g"]).document()["matters"], serde_json::json!([]), "{phase}");
        if !matches!(phase, "taking" | "running") {
            is_taken_whole(&house, &house.reading(&place, &[], true));
            assert_eq!(house.runners().len(), 2, "{phase}");
            return;
        }
        // The mark says who took it; whether the guest ran there is for a person to judge.
        assert_eq!(house.runners().contains(&pid), phase == "running");
        let again = house.json(&["receive", "--backend", on, "--from", &place]);
        again.failed(1, &["was taken already", &format!("process {pid} "), "--clone"]);
        let copy = house.reading(&place, &["--clone", "--id=copy"], false);
        assert!(copy.check() > 0);
        assert_eq!(copy.status()["epoch"], 1);
        // The name is free, above what was used; and no duplicate of the file is taken after that.
        assert_eq!(house.guest_without_journal("g", CHURN).status()["epoch"], 3, "{phase}");
        let again = ["receive", "--backend", on, "--from", &format!("file:{}", duplicate.display())];
        house.json(&again).failed(1, &["has epoch 2", "had epoch 3", "--clone"]);
    });
}

fn a_reader_of_a_pipe_is_killed(on: &'static str) {
    each(&READER, |&phase| {
        let house = House::hasty(on, WAIT);
        let source = house.guest("g", CHURN);
        let pipe = house.pipe("pipe");
        let reader = house.reading_a_pipe(&pipe, &["--stop-at", phase]);
        let migrating = house.migrating_into_a_pipe("g", &pipe, &[]);
        reader.await_stop();
        let pid = reader.pid();
        if matches!(phase, "hello" | "offer" | "build" | "receive") {
            // Most of the guest is still to come, more than a pipe holds.
            reader.kill();
            migrating.end().failed(4, &["`g` was not moved", "still runs on this host"]);
            source.await_state("running");
            assert!(source.check() > 0);
            assert_eq!(house.runners(), [source.pid()]);
            let fresh = house.receiver(&[]);
            house.moves("g", source, &fresh);
            return;
        }
        // All of it is in the pipe: the guest has the reader's fate.
        assert_eq!(migrating.end().document()["outcome"], "moved", "{phase}");
        assert_eq!(source.end().status, 0);
        reader.kill();
        assert_eq!(house.runners().contains(&pid), phase == "running");
        assert!(house.json(&["status"]).document()["guests"].as_array().unwrap().is_empty());
    });
}
