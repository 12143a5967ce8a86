//! Custody over a link that fails: whatever frame is lost, one side runs the guest, never both.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use engine_support::{
    CHURN, Direction, Fate, Journal, Pass, Proxy, TRANSPORTS, Transport, Waiting, Watching, fresh_address,
    is_kept, is_undisturbed, move_to, options, quick, running, until,
};
use ferry_migrate::{Machine, Migration};
use ferry_protocol::{Cause, SourceOutcome, TimerName};
use ferry_sim::SimMachine;

/// Where frames of a migration are lost: the direction, the frame's name, and which of that name.
type Place = (Direction, &'static str, u32);

/// What became of a migration of whose frames one was lost.
fn lose(place: Place, fate: Fate, transport: Transport) -> (SourceOutcome, Vec<Place>) {
    let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
    let mut source = running(CHURN, journal.options());
    let at = fresh_address(transport, folder.path());
    let waiting = Waiting::at(&at, journal.options(), quick());
    let passed: Arc<Mutex<Vec<Place>>> = Arc::default();
    let seen = Arc::clone(&passed);
    let rule = move |pass: &Pass<'_>| {
        let mut seen = seen.lock().unwrap();
        let (direction, name) = (pass.direction, pass.frame.name());
        let before = seen.iter().filter(|(d, n, _)| (*d, *n) == (direction, name)).count();
        let here = (direction, name, u32::try_from(before).unwrap());
        seen.push(here);
        // What is asked afterwards, over other links, passes.
        if here == place && pass.link == 0 { fate } else { Fate::Pass }
    };
    let proxy = Proxy::new(&fresh_address(transport, folder.path()), &waiting.address, rule);

    let mut how = options(&source, &proxy.address, 2);
    let soon = engine_support::SHORT;
    (how.config.timeouts.hello, how.config.timeouts.verdict) = (soon, soon);
    (how.config.timeouts.build, how.config.timeouts.ready) = (soon, soon);
    let (report, custody) = Migration::new(how).run(&mut source, &());
    assert_eq!(custody, None, "{report:?}");
    let passed = passed.lock().unwrap().clone();
    drop(proxy);
    match &report.outcome {
        SourceOutcome::Moved { epoch } => {
            assert_eq!(epoch.0, 2);
            is_undisturbed(&mut waiting.arrived().machine);
            assert!(source.pause().is_err(), "it does not run here");
            assert!(journal.epochs().contains(&2));
        }
        SourceOutcome::Kept { .. } => {
            is_kept(&mut source);
            assert!(journal.epochs().iter().all(|epoch| *epoch == 1));
            // The target takes the next attempt.
            let unknown = place == (Direction::ToTarget, "hello", 0) && fate != Fate::CutAfter;
            move_again(&mut source, waiting, usize::from(!unknown));
            assert!(journal.epochs().contains(&3));
        }
        other @ (SourceOutcome::Held { .. }
        | SourceOutcome::Doubtful { .. }
        | SourceOutcome::Abandoned { .. }) => {
            panic!("{place:?} {fate:?}: {other:?}")
        }
    }
    (report.outcome, passed)
}

/// A target that still waits for what was lost turns a source away: it tries until it is free.
fn move_again(source: &mut SimMachine, waiting: Waiting, sessions: usize) {
    until("the target's end of the failed session", || waiting.seen.sessions() >= sessions);
    move_to(source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}

/// Every place of a migration, once each; of frames that come often the first and the second.
fn places() -> Vec<Place> {
    let nowhere = (Direction::ToTarget, "nothing", 0);
    let (outcome, passed) = lose(nowhere, Fate::Pass, Transport::Unix);
    assert!(matches!(outcome, SourceOutcome::Moved { .. }));
    let mut seen = BTreeSet::new();
    passed
        .into_iter()
        .filter(|(direction, name, nth)| {
            *nth < 2 && seen.insert((*direction == Direction::ToTarget, *name, *nth))
        })
        .collect()
}

#[test]
fn a_link_that_is_cut_at_any_frame_settles_when_it_heals() {
    let places = places();
    assert!(places.len() >= 15, "{places:?}");
    for (index, &place) in places.iter().enumerate() {
        for fate in [Fate::CutBefore, Fate::CutAfter] {
            let transport = TRANSPORTS[index % 2];
            let (outcome, passed) = lose(place, fate, transport);
            if !passed.contains(&place) {
                continue; // how many frames of pages there are is the guest's to say
            }
            let (_, name, _) = place;
            // Custody decides: what is cut before it arrives leaves the guest here, what is cut after
            // that moves it.
            let custody_came = match name {
                "custody" => fate == Fate::CutAfter,
                "running" | "release" => true,
                // The source answers with custody at once, which may be through before the link is cut. If it is not,
                // it may have been given all the same: then it was refused.
                "ready" if fate == Fate::CutAfter => matches!(outcome, SourceOutcome::Moved { .. }),
                _ => false,
            };
            let moved = matches!(outcome, SourceOutcome::Moved { .. });
            assert_eq!(moved, custody_came, "{place:?} {fate:?}: {outcome:?}");
            if let SourceOutcome::Kept { cause } = outcome {
                let lost = matches!(cause, Cause::LinkLost(_) | Cause::Peer(_));
                assert!(lost, "{place:?} {fate:?}: {cause:?}");
            }
        }
    }
}

#[test]
fn a_message_that_vanishes_times_out_by_name_or_settles() {
    use Direction::{ToSource, ToTarget};
    let cases = [
        ((ToTarget, "hello", 0), Some(TimerName::Hello)),
        ((ToSource, "hello", 0), Some(TimerName::Hello)),
        ((ToTarget, "offer", 0), Some(TimerName::Verdict)),
        ((ToSource, "verdict", 0), None),
        ((ToSource, "built", 0), Some(TimerName::Build)),
        ((ToTarget, "state-end", 0), Some(TimerName::Ready)),
        ((ToSource, "ready", 0), Some(TimerName::Ready)),
    ];
    for (index, (place, timer)) in cases.into_iter().enumerate() {
        let (outcome, _) = lose(place, Fate::Drop, TRANSPORTS[index % 2]);
        let SourceOutcome::Kept { cause } = outcome else { panic!("{place:?}: {outcome:?}") };
        match timer {
            Some(timer) => assert_eq!(cause, Cause::TimedOut(timer), "{place:?}"),
            None => assert!(matches!(cause, Cause::Misbehaved(_)), "{place:?}: {cause:?}"),
        }
    }
    // Around custody the question settles it.
    let (outcome, _) = lose((ToTarget, "custody", 0), Fate::Drop, Transport::Unix);
    assert!(matches!(outcome, SourceOutcome::Kept { cause: Cause::Peer(_) }), "{outcome:?}");
    let (outcome, _) = lose((ToSource, "running", 0), Fate::Drop, Transport::Tcp);
    assert!(matches!(outcome, SourceOutcome::Moved { .. }), "{outcome:?}");
}

/// Cuts the link for good at this frame of the first link, until it is told to heal.
fn dead_after(place: &'static str, fate: Fate, dead: Arc<AtomicBool>) -> impl Fn(&Pass<'_>) -> Fate {
    move |pass: &Pass<'_>| {
        if pass.link == 0 && dead.load(Ordering::SeqCst) {
            Fate::CutBefore // what was on its way back
        } else if pass.link == 0 && pass.frame.name() == place {
            dead.store(true, Ordering::SeqCst);
            fate
        } else {
            Fate::Pass
        }
    }
}

#[test]
fn a_source_that_hears_nothing_for_ever_never_resumes() {
    let cases = [
        ("custody", Fate::CutBefore, false),
        ("custody", Fate::CutAfter, true),
        ("running", Fate::CutBefore, true),
    ];
    for (index, (place, fate, moves)) in cases.into_iter().enumerate() {
        let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
        let transport = TRANSPORTS[index % 2];
        let mut source = running(CHURN, journal.options());
        let at = fresh_address(transport, folder.path());
        let waiting = Waiting::at(&at, journal.options(), quick());
        let cut = Arc::new(AtomicBool::new(false));
        let rule = dead_after(place, fate, Arc::clone(&cut));
        let proxy = Proxy::new(&fresh_address(transport, folder.path()), &waiting.address, rule);
        // New links die until it is told otherwise; the first one was made before.
        let mut how = options(&source, &proxy.address, 2);
        how.config.timeouts.settle = engine_support::SHORT;
        let migration = Migration::new(how);
        let canceller = migration.canceller();
        let seen = Arc::new(Watching::source({
            let dead = proxy.switch();
            move |phase| {
                if phase == ferry_protocol::SourcePhase::Ready {
                    dead.store(true, Ordering::SeqCst);
                }
            }
        }));
        let watching = Arc::clone(&seen);
        let moving = std::thread::spawn(move || {
            let (report, custody) = migration.run(&mut source, &*watching);
            assert_eq!(custody, None);
            (report, source)
        });
        seen.wait("that the outcome is ambiguous", |told| told.ambiguous > 0);
        let asked = proxy.accepted();
        until("more questions", || proxy.accepted() > asked + 5);
        assert!(!moving.is_finished());
        assert!(canceller.cancel(), "a cancel is heard, and changes nothing");
        assert!(cut.load(Ordering::SeqCst));
        assert_eq!(journal.epochs().len(), if moves { 2 } else { 1 }, "the source did not resume");
        assert_eq!(journal.runs(), moves, "nobody runs it, or the target does");
        until("more questions", || proxy.accepted() > asked + 10);
        assert_eq!(seen.told().ambiguous, 1, "it is said once");

        proxy.set_dead(false);
        let (report, mut source) = moving.join().unwrap();
        if moves {
            assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
            let mut arrived = waiting.arrived();
            is_undisturbed(&mut arrived.machine);
            assert!(arrived.answering.is_some(), "the source's word had not come");
        } else {
            assert!(matches!(report.outcome, SourceOutcome::Kept { .. }), "{report:?}");
            is_kept(&mut source);
            move_again(&mut source, waiting, 1);
        }
        journal.epochs();
    }
}

#[test]
fn another_process_at_the_same_address_settles_nothing() {
    let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
    let mut source = running(CHURN, journal.options());
    let waiting = Waiting::at(&fresh_address(Transport::Unix, folder.path()), journal.options(), quick());
    let other = Waiting::at(&fresh_address(Transport::Unix, folder.path()), journal.options(), quick());
    let rule = dead_after("running", Fate::CutBefore, Arc::default());
    let proxy = Proxy::new(&fresh_address(Transport::Unix, folder.path()), &waiting.address, rule);
    let way = proxy.way();
    let elsewhere = other.address.clone();
    let mut how = options(&source, &proxy.address, 2);
    how.config.timeouts.settle = engine_support::PATIENCE;
    let migration = Migration::new(how);
    let seen = Arc::new(Watching::source(move |phase| {
        if phase == ferry_protocol::SourcePhase::Ready {
            *way.lock().unwrap() = elsewhere.clone();
        }
    }));
    let watching = Arc::clone(&seen);
    let moving = std::thread::spawn(move || migration.run(&mut source, &*watching));
    // Said at once: nothing that the other process could answer would settle it.
    seen.wait("that the outcome is ambiguous", |told| told.ambiguous == 1);
    assert!(!moving.is_finished() && !other.is_over());
    proxy.lead_to(&waiting.address);
    let (report, custody) = moving.join().unwrap();
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }) && custody.is_none(), "{report:?}");
    let mut machine = waiting.arrived().machine;
    is_undisturbed(&mut machine);
    // And the other one is free for a guest.
    move_to(&mut machine, &other.address, 3);
    is_undisturbed(&mut other.arrived().machine);
    journal.epochs();
}
