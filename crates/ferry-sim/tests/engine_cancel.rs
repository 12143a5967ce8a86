//! The user's end of a migration at each phase, and guests that write faster than the link carries.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine_support::{
    CHURN, Direction, Fate, Journal, MIB, Pass, Proxy, TRANSPORTS, Transport, Waiting, Watching, cause_of,
    fresh_address, hold_disks, is_kept, is_undisturbed, move_to, options, quick, running, until,
};
use ferry_migrate::{Canceller, Migration};
use ferry_protocol::message::ReasonKind;
use ferry_protocol::{Cause, SourceOutcome, SourcePhase, TargetPhase, TimerName};
use ferry_sim::{SimConfig, SimOptions, Workload};

/// Phases in which a cancel keeps the guest, in order.
const BEFORE_CUSTODY: [SourcePhase; 9] = [
    SourcePhase::Connect,
    SourcePhase::Hello,
    SourcePhase::Offer,
    SourcePhase::Build,
    SourcePhase::Rounds,
    SourcePhase::Pause,
    SourcePhase::LastRound,
    SourcePhase::State,
    SourcePhase::Ready,
];

/// An observer that lets another thread cancel at the beginning of this phase, and waits for it.
fn cancels_at(wanted: SourcePhase) -> (Watching, impl FnOnce(Canceller) + Send) {
    let (ask, asked) = channel::<()>();
    let (done, cancelled) = channel::<()>();
    let ends = Mutex::new((ask, cancelled));
    let seen = Watching::source(move |phase| {
        if phase == wanted {
            let ends = ends.lock().unwrap();
            ends.0.send(()).unwrap();
            ends.1.recv().unwrap();
        }
    });
    let deed = move |canceller: Canceller| {
        asked.recv().unwrap();
        assert!(canceller.cancel());
        done.send(()).unwrap();
    };
    (seen, deed)
}

#[test]
fn a_cancel_before_custody_keeps_the_guest_at_each_phase() {
    for (transport, phase) in TRANSPORTS.into_iter().flat_map(|t| BEFORE_CUSTODY.map(|phase| (t, phase))) {
        let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
        let mut source = running(CHURN, journal.options());
        hold_disks(&mut source, folder.path());
        let waiting = Waiting::at(&fresh_address(transport, folder.path()), journal.options(), quick());
        // The word that the target is ready is held back: in that phase the cancel is to be the first.
        let rule = move |pass: &Pass<'_>| match pass.frame.name() {
            "ready" if phase == SourcePhase::Ready && pass.link == 0 => Fate::Drop,
            _ => Fate::Pass,
        };
        let proxy = Proxy::new(&fresh_address(transport, folder.path()), &waiting.address, rule);

        let migration = Migration::new(options(&source, &proxy.address, 2));
        let canceller = migration.canceller();
        let (seen, cancel) = cancels_at(phase);
        let (report, custody) = std::thread::scope(|scope| {
            scope.spawn(move || cancel(canceller));
            migration.run(&mut source, &seen)
        });
        assert_eq!(cause_of(&report), Cause::Cancelled, "in phase {}", phase.name());
        assert_eq!(custody, None);
        let was_paused = phase >= SourcePhase::Pause;
        assert_eq!(report.downtime.is_some(), was_paused, "in phase {}: {report:?}", phase.name());
        is_kept(&mut source);
        let told = waiting.seen.not_taken(0);
        // A target that may have taken the lock sees the end of the stream before the reason, or it
        // comes too late for the lock.
        let fits = matches!(&told, Cause::Peer(reason) if reason.kind == ReasonKind::Cancelled)
            || (phase >= SourcePhase::State && matches!(told, Cause::LinkLost(_) | Cause::Machine(_)));
        assert!(fits, "in phase {}: {told:?}", phase.name());

        move_to(&mut source, &proxy.address, 3);
        is_undisturbed(&mut waiting.arrived().machine);
        journal.epochs();
    }
}

#[test]
fn locks_that_the_target_took_come_back_after_a_cancel() {
    let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
    let mut source = running(CHURN, journal.options());
    hold_disks(&mut source, folder.path());
    let waiting = Waiting::at(&fresh_address(Transport::Unix, folder.path()), journal.options(), quick());
    let rule = |pass: &Pass<'_>| if pass.frame.name() == "ready" { Fate::Drop } else { Fate::Pass };
    let proxy = Proxy::new(&fresh_address(Transport::Unix, folder.path()), &waiting.address, rule);
    let migration = Migration::new(options(&source, &proxy.address, 2));
    let canceller = migration.canceller();
    let target = Arc::clone(&waiting.seen);
    let (report, custody) = std::thread::scope(|scope| {
        scope.spawn(move || {
            target.wait("that the target is ready", |told| told.target.contains(&TargetPhase::Ready));
            assert!(canceller.cancel());
        });
        migration.run(&mut source, &())
    });
    assert_eq!(custody, None, "{report:?}");
    assert_eq!(cause_of(&report), Cause::Cancelled);
    is_kept(&mut source);
    until("the end of the session", || waiting.seen.sessions() > 0);
    move_to(&mut source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}

#[test]
fn a_cancel_after_custody_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = running(CHURN, SimOptions::default());
    let waiting = Waiting::plain(Transport::Tcp, folder.path());
    let migration = Migration::new(options(&source, &waiting.address, 2));
    let canceller = migration.canceller();
    let late = canceller.clone();
    let (seen, cancel) = cancels_at(SourcePhase::Given);
    let (report, _) = std::thread::scope(|scope| {
        scope.spawn(move || cancel(canceller));
        migration.run(&mut source, &seen)
    });
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    assert!(!late.cancel(), "nobody hears it any more");
    is_undisturbed(&mut waiting.arrived().machine);
}

/// A link that carries so many bytes a second, and no more.
fn slow(bytes_per_second: u64) -> impl Fn(&Pass<'_>) -> Fate {
    let due = Mutex::new(Instant::now());
    let (never, nothing) = channel::<()>();
    let pacing = Mutex::new((never, nothing));
    move |pass: &Pass<'_>| {
        if pass.direction == Direction::ToTarget {
            let bytes = u64::try_from(pass.frame.bytes().len()).unwrap();
            let mut due = due.lock().unwrap();
            *due = (*due).max(Instant::now()) + Duration::from_micros(bytes * 1_000_000 / bytes_per_second);
            let pacing = pacing.lock().unwrap();
            assert!(pacing.1.recv_timeout(due.saturating_duration_since(Instant::now())).is_err());
        }
        Fate::Pass
    }
}

#[test]
fn a_guest_that_writes_faster_than_the_link_carries_stalls_and_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let workload = Workload::Churn { working_set_bytes: 2 * MIB, rate_bytes_per_second: 256 * MIB };
    let config = SimConfig { memory_bytes: 4 * MIB, workload, ..CHURN };
    let mut source = running(config, SimOptions::default());
    let waiting = Waiting::plain(Transport::Unix, folder.path());
    let proxy = Proxy::new(&fresh_address(Transport::Unix, folder.path()), &waiting.address, slow(24 * MIB));
    let mut how = options(&source, &proxy.address, 2);
    how.config.timeouts.total = Duration::from_secs(2);
    how.config.downtime_limit = Duration::from_millis(1);
    let seen = Watching::default();
    let (report, custody) = Migration::new(how).run(&mut source, &seen);
    assert_eq!(custody, None);
    assert_eq!(cause_of(&report), Cause::TimedOut(TimerName::Total));
    assert!(report.total < Duration::from_secs(4), "{report:?}");
    assert_eq!(report.downtime, None, "it was never paused");
    let told = seen.told();
    assert!(told.stalled > 0, "after {} rounds: {report:?}", report.rounds);
    let last = told.progress.iter().rfind(|progress| progress.phase == SourcePhase::Rounds).unwrap();
    assert!(last.expected_downtime.unwrap() > Duration::from_millis(1), "{last:?}");
    assert!(last.dirty_bytes_per_second.unwrap() > 0, "{last:?}");
    is_kept(&mut source);
    drop(proxy);
    until("the end of the session", || waiting.seen.sessions() > 0);
    move_to(&mut source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}

#[test]
fn a_cancel_is_heard_soon_on_a_slow_link() {
    let folder = tempfile::tempdir().unwrap();
    let workload = Workload::Idle { patterned_bytes: 16 * MIB };
    let config = SimConfig { memory_bytes: 16 * MIB, workload, ..CHURN };
    let mut source = running(config, SimOptions::default());
    let waiting = Waiting::plain(Transport::Unix, folder.path());
    let proxy = Proxy::new(&fresh_address(Transport::Unix, folder.path()), &waiting.address, slow(2 * MIB));
    let migration = Migration::new(options(&source, &proxy.address, 2));
    let canceller = migration.canceller();
    let seen = Arc::new(Watching::default());
    let watching = Arc::clone(&seen);
    let (report, took) = std::thread::scope(|scope| {
        let cancelling = scope.spawn(move || {
            // When the chunks have found their size.
            let enough = |bytes: u64| bytes > 2 * MIB;
            watching.wait("pages", |told| told.progress.last().is_some_and(|p| enough(p.data_bytes)));
            let began = Instant::now();
            assert!(canceller.cancel());
            began
        });
        let (report, _) = migration.run(&mut source, &*seen);
        (report, cancelling.join().unwrap().elapsed())
    });
    assert_eq!(cause_of(&report), Cause::Cancelled);
    assert!(took < Duration::from_millis(1500), "{took:?} after the cancel");
    is_kept(&mut source);
    drop(proxy);
}
