//! Many moves of one guest, and many sessions that fail: nothing is lost and nothing is left behind.

use std::time::Duration;

use crate::support::house::{CHURN, House};
use crate::support::peers::{Caller, Manner, garbled, server};
use crate::support::{let_pass, wait_until};

on_both! {
    a_guest_moves_to_and_fro,
    sessions_that_fail_leave_nothing_behind_on_a_target,
    migrations_that_fail_leave_nothing_behind_on_a_source,
    processes_die_at_any_moment,
}

fn a_guest_moves_to_and_fro(on: &'static str) {
    const MOVES: usize = 30;
    let house = House::new(on);
    let socket = format!("unix:{}", house.path("target").display());
    let mut at = house.guest("g", &["--memory=16M", "--rate=64M", "--working-set=4M"]);
    let mut turns = at.status()["progress"].as_u64().unwrap();
    for number in 0..MOVES {
        let to = house.receiver_at(if number % 2 == 0 { "127.0.0.1:0" } else { &socket }, &[]);
        house.moves("g", at, &to);
        let status = to.status();
        assert_eq!((&status["faults"], &status["first_fault"]), (&0.into(), &serde_json::Value::Null));
        assert!(status["progress"].as_u64().unwrap() >= turns, "move {number}: {status}");
        turns = status["progress"].as_u64().unwrap();
        at = to;
    }
    assert_eq!(at.status()["epoch"], MOVES + 1);
    assert_eq!(house.runners().len(), MOVES + 1);
    let sockets: Vec<_> = std::fs::read_dir(house.sockets()).unwrap().flatten().collect();
    assert_eq!(sockets.len(), 1, "one process is left: {sockets:?}");
}

fn sessions_that_fail_leave_nothing_behind_on_a_target(on: &'static str) {
    let house = House::hasty(on, Duration::from_secs(2));
    let target = house.receiver(&[]);
    let fail = |number: u64| {
        let mut caller = Caller::connect(&target.listen);
        match number % 4 {
            0 => caller.say(b"GET / HTTP/1.1\r\n\r\n"),
            1 => caller.say(&garbled()),
            2 => {
                caller.hello((1, 1), "g", 100 + number);
                caller.offer_nonsense();
            }
            _ => drop(move_that_is_cut_off(&house, &target.listen, number)),
        }
        caller.await_end();
        target.await_state("waiting");
    };
    // The first of each kind fills what is kept for later ones.
    (0..4).for_each(fail);
    settles(&target, (0, 0), 0);
    let before = target.holdings();
    (4..14).for_each(fail);
    settles(&target, before, 1);
    let source = house.guest_without_journal("last", CHURN);
    house.moves("last", source, &target);
}

/// A source that is killed while its pages cross.
fn move_that_is_cut_off(house: &House, to: &str, number: u64) -> String {
    let id = format!("cut-{number}");
    let source = house.guest_without_journal(&id, &[CHURN, &["--stop-at=last-round"]].concat());
    house.json(&["migrate", &id, "--to", to]).document();
    source.await_stop();
    source.kill();
    id
}

/// Waits until a process has no more descriptors and threads than `before`, give or take `slack`
/// threads that are about to end; with nothing to compare with, until they stay the same.
fn settles(process: &crate::support::process::Process, before: (usize, usize), slack: usize) {
    let mut last = process.holdings();
    let mut calm = 0;
    wait_until("descriptors and threads are let go of", || {
        let now = process.holdings();
        calm = if now == last { calm + 1 } else { 0 };
        last = now;
        let is_within = now.0 <= before.0 && now.1 <= before.1 + slack;
        let_pass(Duration::from_millis(20));
        if before == (0, 0) { calm > 60 } else { is_within }
    });
}

fn migrations_that_fail_leave_nothing_behind_on_a_source(on: &'static str) {
    let house = House::hasty(on, Duration::from_millis(500));
    let source = house.guest("g", CHURN);
    let peers = [
        server(Manner::Closes),
        server(Manner::Says(garbled())),
        server(Manner::Silent),
        "127.0.0.1:1".into(),
    ];
    let fail = |number: usize| {
        let done = house.migrate("g", &peers[number % peers.len()]);
        assert!(matches!(done.status, 1 | 4 | 7), "{done:?}");
    };
    (0..4).for_each(fail);
    settles(&source, (0, 0), 0);
    let before = source.holdings();
    (4..16).for_each(fail);
    settles(&source, before, 0);
    let target = house.receiver(&[]);
    house.moves("g", source, &target);
    assert_eq!(house.runners().len(), 2);
}

/// Not at the beginning of a phase, but whenever it comes.
fn processes_die_at_any_moment(on: &'static str) {
    for number in 0..8_u64 {
        let house = House::hasty(on, Duration::from_millis(400));
        let source = house.guest("g", &["--memory=32M", "--rate=64M", "--working-set=8M"]);
        let target = house.receiver(&[]);
        let migrating = house.migrating("g", &target);
        // A spread over the length of a move, with the time that the program needs to start.
        let_pass(Duration::from_micros(3_000 + 4_500 * number));
        let kills_source = number % 2 == 0;
        let (dead, alive) = if kills_source { (source, target) } else { (target, source) };
        let dead_pid = dead.pid();
        dead.kill();
        let done = migrating.end();
        if kills_source {
            // Its client hears of the end, unless the guest had moved.
            assert!(matches!(done.status, 0 | 1), "{done:?}");
            wait_until("the target settles", || {
                let state = alive.status()["state"].take();
                state == "waiting" || state == "running"
            });
            let runs = alive.status()["state"] == "running";
            assert!(done.status == 1 || runs, "{done:?}");
            assert!(!runs || alive.check() > 0);
        } else {
            match done.status {
                0 => assert_eq!(house.runners().last(), Some(&dead_pid), "it died after the move"),
                1 | 4 => assert!(alive.check() > 0),
                6 => assert_eq!(alive.status()["state"], "ambiguous"),
                _ => panic!("{done:?}"),
            }
        }
        assert!(house.runners().len() <= 2);
    }
}
