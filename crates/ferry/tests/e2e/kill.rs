//! Either process is killed in every phase: the outcome is the one of the table in
//! `docs/guarantees.md`, and never do two processes run the guest.

use std::time::Duration;

use crate::support::each;
use crate::support::house::{CHURN, House};
use crate::support::process::{Done, Process};

on_both! {
    a_source_that_stops_is_killed,
    a_target_dies_while_the_source_stops,
    a_target_that_stops_is_killed,
    a_source_dies_while_the_target_stops,
    another_target_listens_where_one_died,
    a_guest_whose_process_was_killed_can_be_born_again,
}

/// How long every wait lasts; it runs out only where nobody answers.
const WAIT: Duration = Duration::from_secs(3);

/// The phases of a source up to the point of no return, and of a target.
const SOURCE: [&str; 10] =
    ["connect", "hello", "offer", "build", "rounds", "pause", "last-round", "state", "ready", "given"];
const TARGET: [&str; 8] = ["hello", "offer", "build", "receive", "restore", "ready", "taking", "running"];

/// Both processes and `migrate --wait`, with one of the two stopped in a phase.
struct Scene {
    house: House,
    source: Process,
    target: Process,
    migrating: Process,
}

impl Scene {
    fn source_stops_at(on: &'static str, phase: &str) -> Self {
        let scene = Self::start(on, &["--stop-at", phase], &[]);
        scene.source.await_stop();
        scene
    }

    fn target_stops_at(on: &'static str, phase: &str) -> Self {
        let scene = Self::start(on, &[], &["--stop-at", phase]);
        scene.target.await_stop();
        scene
    }

    fn start(on: &'static str, source: &[&str], target: &[&str]) -> Self {
        let house = House::hasty(on, WAIT);
        let source = house.guest("g", &[CHURN, source].concat());
        let target = house.receiver(target);
        let migrating = house.migrating("g", &target);
        Self { house, source, target, migrating }
    }
}

fn a_source_that_stops_is_killed(on: &'static str) {
    each(&SOURCE, |phase| {
        let Scene { house, source, target, migrating } = Scene::source_stops_at(on, phase);
        source.kill();
        nobody_has_it(&house, target, &migrating.end());
    });
}

fn a_source_dies_while_the_target_stops(on: &'static str) {
    each(&TARGET, |&phase| {
        let Scene { house, source, target, migrating } = Scene::target_stops_at(on, phase);
        source.kill();
        target.resume();
        let done = migrating.end();
        if matches!(phase, "taking" | "running") {
            done.failed(1, &["closed the connection"]);
            assert_eq!(target.document()["arrived"]["epoch"], 2);
            target.await_state("running");
            assert!(target.check() > 0);
            let fresh = house.receiver(&[]);
            house.moves("g", target, &fresh);
            assert_eq!(house.runners().len(), 3);
        } else {
            nobody_has_it(&house, target, &done);
        }
    });
}

fn a_target_dies_while_the_source_stops(on: &'static str) {
    each(&SOURCE, |&phase| {
        let Scene { house, source, target, migrating } = Scene::source_stops_at(on, phase);
        target.kill();
        source.resume();
        match phase {
            "connect" => source_has_it(&house, source, &migrating.end(), 1),
            "given" => nobody_knows(&house, &source, &migrating.end()),
            _ => source_has_it(&house, source, &migrating.end(), 4),
        }
    });
}

fn a_target_that_stops_is_killed(on: &'static str) {
    each(&TARGET, |&phase| {
        let Scene { house, source, target, migrating } = Scene::target_stops_at(on, phase);
        target.kill();
        match phase {
            "taking" | "running" => nobody_knows(&house, &source, &migrating.end()),
            _ => source_has_it(&house, source, &migrating.end(), 4),
        }
    });
}

fn another_target_listens_where_one_died(on: &'static str) {
    each(&["connect", "hello", "rounds", "given"], |&phase| {
        let house = House::hasty(on, WAIT);
        let source = house.guest("g", &[CHURN, &["--stop-at", phase]].concat());
        let address = format!("unix:{}", house.path("target").display());
        let first = house.receiver_at(&address, &[]);
        let migrating = house.migrating("g", &first);
        source.await_stop();
        first.kill();
        let second = house.receiver_at(&address, &[]);
        source.resume();
        match phase {
            "connect" => {
                assert_eq!(migrating.end().document()["outcome"], "moved");
                assert_eq!(source.end().status, 0);
                assert!(second.check() > 0);
            }
            "given" => nobody_knows(&house, &source, &migrating.end()),
            _ => {
                source_stays(&house, &source, &migrating.end(), 4);
                house.moves("g", source, &second);
            }
        }
        house.runners();
    });
}

/// A guest of the same name that is born anew runs under an epoch above all that were used, so the
/// receiver that refused one takes it at once.
fn a_guest_whose_process_was_killed_can_be_born_again(on: &'static str) {
    let Scene { house, source, target, migrating } = Scene::source_stops_at(on, "rounds");
    source.kill();
    target.await_error("was offered and not taken");
    drop(migrating);
    let source = house.guest_without_journal("g", CHURN);
    assert_eq!(source.status()["epoch"], 3);
    assert_eq!(house.migrate("g", &target.listen).document()["epoch"], 4);
    assert_eq!(source.end().status, 0);
    assert!(target.check() > 0);
}

/// The source's process is gone with its guest; the target goes on waiting, for any guest.
fn nobody_has_it(house: &House, target: Process, done: &Done) {
    done.failed(1, &["closed the connection"]);
    target.await_state("waiting");
    assert_eq!(target.status()["custody"], false);
    assert_eq!(house.runners().len(), 1);
    let other = house.guest_without_journal("other", CHURN);
    house.moves("other", other, &target);
    drop(target);
}

/// The source still runs the guest, which is whole and can be moved again.
fn source_has_it(house: &House, source: Process, done: &Done, status: i32) {
    source_stays(house, &source, done, status);
    let fresh = house.receiver(&[]);
    house.moves("g", source, &fresh);
    assert_eq!(house.runners().len(), 2);
}

fn source_stays(house: &House, source: &Process, done: &Done, status: i32) {
    done.failed(status, &["`g` was not moved", "still runs on this host"]);
    let told = source.status();
    assert_eq!(
        (&told["state"], &told["custody"], &told["epoch"]),
        (&"running".into(), &true.into(), &1.into())
    );
    assert_eq!(told["last_migration"]["outcome"], "kept");
    assert!(source.check() > 0);
    assert_eq!(house.runners(), [source.pid()]);
}

/// The source keeps the guest paused and goes on asking; a person is told.
fn nobody_knows(house: &House, source: &Process, done: &Done) {
    done.failed(6, &["nobody answers who runs the guest", "ferry status"]);
    let told = source.status();
    assert_eq!((&told["state"], &told["custody"]), (&"ambiguous".into(), &false.into()), "{told}");
    let error = source.ask(&serde_json::json!({"command": "check"}));
    assert!(error["error"]["message"].is_string(), "a paused guest answers nothing: {error}");
    house.json(&["run", "--id=g"]).failed(1, &["`g`", "choose another --id"]);
    house.migrate("g", "127.0.0.1:1").failed(1, &["ambiguous"]);
    // Whatever time passes, it does not run again here.
    assert_eq!(house.runners().first(), Some(&source.pid()));
}
