//! Whole migrations over real sockets: guests that move while they run, and the figures of a move.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::sync::Arc;
use std::time::Duration;

use engine_support::{
    CHURN, Journal, MIB, PATIENCE, TRANSPORTS, Transport, Waiting, Watching, fresh_address, is_undisturbed,
    move_to, options, quick, running, until,
};
use ferry_memory::PAGE_SIZE;
use ferry_migrate::{Address, Arrived, Machine, Migration, Report};
use ferry_protocol::{Epoch, SourceOutcome, SourcePhase, TargetOutcome, TargetPhase};
use ferry_sim::{SimConfig, SimMachine, SimOptions, Workload};

fn churn(memory_bytes: u64, working_set_bytes: u64) -> SimConfig {
    let workload = Workload::Churn { working_set_bytes, rate_bytes_per_second: 32 * MIB };
    SimConfig { seed: memory_bytes, memory_bytes, workload }
}

fn idle(memory_bytes: u64, patterned_bytes: u64) -> SimConfig {
    SimConfig { seed: memory_bytes, memory_bytes, workload: Workload::Idle { patterned_bytes } }
}

/// Moves a guest of this config once and looks at everything that was told.
fn move_once(config: SimConfig, verify: bool, transport: Transport) -> (Report, Arrived<SimMachine>) {
    let folder = tempfile::tempdir().unwrap();
    let mut source = running(config, SimOptions::default());
    let waiting = Waiting::plain(transport, folder.path());
    let seen = Watching::default();
    let mut how = options(&source, &waiting.address, 2);
    how.config.verify = verify;
    let (report, custody) = Migration::new(how).run(&mut source, &seen);
    assert_eq!(report.outcome, SourceOutcome::Moved { epoch: Epoch(2) });
    assert_eq!(custody, None, "the source has nothing left that could run the guest");
    assert_eq!(source.report().progress, source.report().progress, "and it does not run here");

    let target_saw = Arc::clone(&waiting.seen);
    let mut arrived = waiting.arrived();
    is_undisturbed(&mut arrived.machine);
    assert!(arrived.machine.report().progress > source.report().progress);
    assert_eq!((arrived.guest.as_str(), arrived.epoch), ("guest", Epoch(2)));
    figures_add_up(&config, verify, &report, &arrived);
    phases_are_told(&seen, &target_saw);
    if transport == Transport::Unix {
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the socket file is gone");
    }
    (report, arrived)
}

fn figures_add_up(config: &SimConfig, verify: bool, report: &Report, arrived: &Arrived<SimMachine>) {
    let parts = report.downtime_parts;
    let all = [
        parts.pause,
        parts.release_resources,
        parts.harvest,
        parts.last_round,
        parts.verify,
        parts.state,
        parts.ready,
        parts.custody,
    ];
    let downtime = report.downtime.unwrap();
    assert!(all.iter().sum::<Duration>() <= downtime, "{report:?}");
    assert!(downtime <= report.total && report.setup <= report.total, "{report:?}");
    assert_eq!(parts.verify > Duration::ZERO, verify);
    assert!(parts.custody > Duration::ZERO && parts.state > Duration::ZERO, "{report:?}");
    assert!(report.rounds >= 2, "a live one and the last one: {report:?}");

    let received = arrived.arrival.received;
    assert_eq!(received.rounds, report.rounds);
    assert_eq!(received.data_pages * PAGE_SIZE, report.data_bytes);
    assert_eq!(received.zero_pages * PAGE_SIZE, report.zero_bytes);
    // Pages that nobody ever touched are all that is zero, and go once, without their bytes.
    assert_eq!(report.zero_bytes, config.memory_bytes - config.workload.checked_bytes());
    assert!(report.data_bytes >= config.workload.checked_bytes(), "{report:?}");
    assert!(report.throughput_bytes_per_second > 0);
    assert!(report.verdict.as_ref().is_some_and(|verdict| verdict.findings.is_empty()));
    let arrival = arrived.arrival;
    assert!(arrival.build + arrival.restore + arrival.resume <= arrival.total, "{arrival:?}");
}

fn phases_are_told(source: &Watching, target: &Watching) {
    use SourcePhase as S;
    use TargetPhase as T;
    let told = source.told();
    assert_eq!(
        told.source,
        [
            S::Connect,
            S::Hello,
            S::Offer,
            S::Build,
            S::Rounds,
            S::Pause,
            S::LastRound,
            S::State,
            S::Ready,
            S::Given,
            S::Done
        ]
    );
    let bytes = |progress: &ferry_migrate::Progress| progress.data_bytes + progress.zero_bytes;
    assert!(told.progress.is_sorted_by_key(bytes), "what was sent never shrinks");
    assert!(told.progress.iter().any(|progress| progress.round_left_bytes == 0));
    assert_eq!((told.ambiguous, told.stalled), (0, 0));
    let told = target.told();
    let phases =
        [T::Waiting, T::Hello, T::Offer, T::Build, T::Receive, T::Restore, T::Ready, T::Taking, T::Running];
    assert_eq!(told.target[..phases.len()], phases);
    assert!(matches!(told.finished[..], [TargetOutcome::Runs { released: true, .. }]), "{told:?}");
}

#[test]
fn a_churning_guest_moves_while_it_runs() {
    for transport in TRANSPORTS {
        for verify in [false, true] {
            move_once(churn(4 * MIB, 2 * MIB), verify, transport);
        }
    }
}

#[test]
fn an_idle_guest_sends_each_page_once() {
    for transport in TRANSPORTS {
        for verify in [false, true] {
            let (report, _) = move_once(idle(32 * MIB, 24 * MIB), verify, transport);
            assert_eq!(report.data_bytes, 24 * MIB, "no page was sent twice");
            assert_eq!(report.rounds, 2);
        }
    }
}

#[test]
fn a_large_guest_with_untouched_pages_moves() {
    let (report, arrived) = move_once(churn(256 * MIB, 24 * MIB), true, Transport::Tcp);
    println!("256 MiB, verified: {report:?}\n{:?}", arrived.arrival);
    let (report, _) = move_once(idle(128 * MIB, 32 * MIB), false, Transport::Unix);
    println!("128 MiB, idle: {:?}, {:?}", report.downtime, report.downtime_parts);
}

#[test]
fn a_guest_of_one_page_moves() {
    for transport in TRANSPORTS {
        move_once(idle(PAGE_SIZE, PAGE_SIZE), true, transport);
    }
}

#[test]
fn a_guest_goes_to_and_fro_and_its_epoch_grows() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::default());
    let mut machine = running(CHURN, journal.options());
    // The same two addresses all the time: each is free again when its guest has left.
    let homes: Vec<Address> = TRANSPORTS.iter().map(|kind| fresh_address(*kind, folder.path())).collect();
    let mut progress = 0;
    for turn in 0..20_u64 {
        let home = &homes[usize::try_from(turn % 2).unwrap()];
        let waiting = Waiting::at(home, journal.options(), quick());
        move_to(&mut machine, &waiting.address, turn + 2);
        let arrived = waiting.arrived();
        assert!(arrived.answering.is_none(), "the source let it go");
        machine = arrived.machine;
        assert_eq!(arrived.epoch, Epoch(turn + 2));
        until("its life going on", || machine.report().progress > progress);
        progress = machine.report().progress;
    }
    is_undisturbed(&mut machine);
    assert_eq!(machine.verify(PATIENCE).unwrap().faults, 0);
    assert_eq!(journal.epochs()[..21], (1..=21).collect::<Vec<_>>());
    let custody = machine.pause().unwrap();
    assert_eq!(custody.epoch(), Epoch(21));
}
