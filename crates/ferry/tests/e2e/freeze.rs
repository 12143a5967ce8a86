//! Either process stops for longer than every wait and then goes on, in every phase: the outcome
//! settles, and never do two processes run the guest.

use std::time::Duration;

use crate::support::house::{CHURN, House};
use crate::support::process::Process;
use crate::support::{each, let_pass};

on_both! {
    a_source_that_was_stopped_goes_on,
    a_target_that_was_stopped_goes_on,
}

/// How long every wait lasts: many times as long as an honest side needs, on a busy machine too.
const WAIT: Duration = Duration::from_secs(3);

/// Longer than any wait.
const STOP: Duration = Duration::from_secs(4);

fn a_source_that_was_stopped_goes_on(on: &'static str) {
    let phases =
        ["connect", "hello", "offer", "build", "rounds", "pause", "last-round", "state", "ready", "given"];
    each(&phases, |&phase| {
        let house = House::hasty(on, WAIT);
        let source = house.guest("g", &[CHURN, &["--stop-at", phase]].concat());
        let target = house.receiver(&[]);
        let migrating = house.migrating("g", &target);
        source.await_stop();
        let_pass(STOP);
        source.resume();
        let done = migrating.end();
        if phase == "connect" {
            // Nobody waited for it yet.
            assert_eq!(done.document()["outcome"], "moved");
            assert_eq!(source.end().status, 0);
            assert!(target.check() > 0);
        } else {
            stays_and_moves_later(&house, source, target, done.status, phase);
        }
        assert_eq!(house.runners().len(), 2);
    });
}

fn a_target_that_was_stopped_goes_on(on: &'static str) {
    let phases = ["hello", "offer", "build", "receive", "restore", "ready", "taking", "running"];
    each(&phases, |&phase| {
        let house = House::hasty(on, WAIT);
        let source = house.guest("g", CHURN);
        let target = house.receiver(&["--stop-at", phase]);
        let migrating = house.migrating("g", &target);
        target.await_stop();
        let done = migrating.end();
        if matches!(phase, "taking" | "running") {
            done.failed(6, &["nobody answers"]);
            assert_eq!(source.status()["state"], "ambiguous");
            target.resume();
            // It goes on asking, so it learns how it ended.
            let done = source.end();
            assert!(done.status == 0 && done.output.contains(r#""outcome":"moved""#), "{done:?}");
            target.await_state("running");
            assert!(target.check() > 0);
        } else {
            target.resume();
            stays_and_moves_later(&house, source, target, done.status, phase);
        }
        assert_eq!(house.runners().len(), 2);
    });
}

/// The source runs the guest, which is whole; the target waits on and takes it the next time.
fn stays_and_moves_later(house: &House, source: Process, target: Process, status: i32, phase: &str) {
    assert!(matches!(status, 4 | 7), "status {status} for `{phase}`");
    assert_eq!(source.status()["state"], "running");
    assert!(source.check() > 0);
    assert_eq!(house.runners(), [source.pid()]);
    target.await_state("waiting");
    house.moves("g", source, &target);
    drop(target);
}
