//! Links that are cut, held up, slowed down and healed in every phase of a move of the real program: the
//! outcome settles by itself, and a move that failed is invisible but for a pause.

use std::time::Duration;

use crate::support::house::{CHURN, House};
use crate::support::links::{Proxy, Way};
use crate::support::{each, let_pass, wait_until};

on_both! {
    a_link_that_is_cut_settles_when_it_heals,
    a_link_that_is_held_up_settles_when_it_heals,
    a_slow_link_loses_nothing,
}

/// How long every wait lasts.
const WAIT: Duration = Duration::from_secs(2);

const PHASES: [&str; 10] =
    ["connect", "hello", "offer", "build", "rounds", "pause", "last-round", "state", "ready", "given"];

fn a_link_that_is_cut_settles_when_it_heals(on: &'static str) {
    each(&PHASES, |phase| settles(on, phase, Way::Cut, Duration::from_millis(300)));
}

fn a_link_that_is_held_up_settles_when_it_heals(on: &'static str) {
    // As long as no wait lasts, and longer than any.
    let cases: Vec<_> = PHASES.into_iter().flat_map(|phase| [(phase, 100), (phase, 2500)]).collect();
    each(&cases, |&(phase, held)| settles(on, phase, Way::Held, Duration::from_millis(held)));
}

fn a_slow_link_loses_nothing(on: &'static str) {
    each(&["connect", "rounds", "given"], |phase| {
        settles(on, phase, Way::Slow(Duration::from_millis(20)), Duration::from_millis(400));
    });
}

/// The link is that bad from the beginning of a phase, for so long.
fn settles(on: &'static str, phase: &str, way: Way, lasts: Duration) {
    let house = House::hasty(on, WAIT);
    // On KVM the guest looks at its own clock, and would see more than a pause.
    let payload: &[&str] = if on == "kvm" { &["--memory=16M", "--payload=clock"] } else { CHURN };
    let source = house.guest("g", &[payload, &["--stop-at", phase]].concat());
    let turns = source.status()["progress"].as_u64().unwrap();
    let target = house.receiver(&[]);
    let proxy = Proxy::to(&target.listen);
    let words = ["migrate", "g", "--to", &proxy.address, "--wait", "--output=json"];
    let migrating = house.start(house.command(&words));
    source.await_stop();
    proxy.set(way);
    source.resume();
    let_pass(lasts);
    proxy.set(Way::Open);
    let done = migrating.end();
    assert!(matches!(done.status, 0 | 1 | 4 | 6 | 7), "`{phase}` {way:?}: {done:?}");
    // Whatever was said then, now it is one of the two.
    let has_moved = || target.status()["state"] == "running";
    let is_kept = || !has_moved() && source.is_alive() && source.status()["state"] == "running";
    wait_until("it settles", || has_moved() || is_kept());
    let to = if has_moved() {
        assert_eq!(source.end().status, 0, "`{phase}` {way:?}");
        target
    } else {
        assert_ne!(done.status, 0, "`{phase}` {way:?}");
        let told = source.status();
        assert_eq!((&told["epoch"], &told["faults"]), (&1.into(), &0.into()), "{told}");
        assert!(told["progress"].as_u64().unwrap() >= turns, "{told}");
        assert_eq!(house.runners(), [source.pid()], "`{phase}` {way:?}");
        // The listener is free, and the next try succeeds, over the same link.
        target.await_state("waiting");
        let report = house.migrate("g", &proxy.address).document();
        assert_eq!((&report["outcome"], &report["verified"]), (&"moved".into(), &true.into()), "{report}");
        assert_eq!(source.end().status, 0);
        target
    };
    to.await_state("running");
    let told = to.status();
    assert_eq!((&told["faults"], &told["first_fault"]), (&0.into(), &serde_json::Value::Null), "{told}");
    assert_eq!(house.runners().len(), 2, "`{phase}` {way:?}");
}
