//! Machines that fail at each call of the engine: the outcome, the guest, the locks, the next try.

#![forbid(unsafe_code)]

mod engine_support;

use std::sync::{Arc, Mutex};

use engine_support::{
    CHURN, Journal, Raw, RawListener, TRANSPORTS, Transport, Waiting, Watching, cause_of, fail_to_move,
    fresh_address, hold_disks, is_a_sentence, is_kept, is_undisturbed, move_to, options, quick, running,
    steal,
};
use ferry_contract::Verdict;
use ferry_memory::PAGE_SIZE;
use ferry_migrate::{Builder, FileLock, Machine, MachineError, Migration};
use ferry_protocol::message::ReasonKind;
use ferry_protocol::{Cause, MachineDescription, SourceOutcome, SourcePhase};
use ferry_sim::{Call, SimBuilder, SimConfig, SimFaults, SimMachine, SimOptions, When, Workload};

/// Two live harvests are never needed for it: the second one is the last.
const IDLE: SimConfig = SimConfig { workload: Workload::Idle { patterned_bytes: 16 * PAGE_SIZE }, ..CHURN };

/// Its first machine has faults, the others none.
struct FirstFails {
    first: Option<SimBuilder>,
    others: SimBuilder,
}

impl FirstFails {
    fn new(faults: SimFaults, others: SimOptions) -> Self {
        let first = Some(SimBuilder::new(SimOptions { faults, ..others.clone() }));
        Self { first, others: SimBuilder::new(others) }
    }
}

impl Builder for FirstFails {
    type Machine = SimMachine;

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        self.others.judge(machine)
    }

    fn build(&mut self, machine: &MachineDescription) -> Result<SimMachine, MachineError> {
        match self.first.take() {
            Some(mut first) => first.build(machine),
            None => self.others.build(machine),
        }
    }
}

#[test]
fn a_source_that_cannot_do_its_part_keeps_its_guest() {
    let faults = [
        SimFaults::once(Call::StartDirtyTracking),
        SimFaults::once(Call::HarvestDirty),
        SimFaults::at(Call::HarvestDirty, When::Nth(2)),
        SimFaults::once(Call::Pause),
        SimFaults::once(Call::ReleaseResources),
        SimFaults::once(Call::Capture),
        SimFaults::once(Call::CaptureDevices),
    ];
    for (transport, faults) in TRANSPORTS.into_iter().flat_map(|t| faults.iter().map(move |f| (t, f))) {
        let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
        let mut source = running(IDLE, SimOptions { faults: faults.clone(), ..journal.options() });
        hold_disks(&mut source, folder.path());
        let at = fresh_address(transport, folder.path());
        let waiting = Waiting::at(&at, journal.options(), quick());

        let cause = fail_to_move(&mut source, &waiting.address, 2);
        let Cause::Machine(text) = &cause else { panic!("{faults:?}: {cause:?}") };
        is_a_sentence(text);
        assert!(text.contains("told to fail"), "{text}");
        is_kept(&mut source);
        // The target was told, with the source's own words.
        let Cause::Peer(reason) = waiting.seen.not_taken(0) else { panic!("{:?}", waiting.seen) };
        assert_eq!((reason.kind, &reason.text), (ReasonKind::Machine, text));

        move_to(&mut source, &waiting.address, 3);
        let mut arrived = waiting.arrived();
        is_undisturbed(&mut arrived.machine);
        assert!(journal.epochs().iter().all(|epoch| *epoch != 2), "nobody ran under the failed epoch");
    }
}

#[test]
fn a_target_that_cannot_do_its_part_lets_the_source_keep_the_guest() {
    let calls = [Call::Build, Call::Restore, Call::RestoreDevices, Call::TakeResources, Call::Resume];
    for (transport, call) in TRANSPORTS.into_iter().flat_map(|t| calls.map(|call| (t, call))) {
        let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
        let mut source = running(CHURN, journal.options());
        hold_disks(&mut source, folder.path());
        let at = fresh_address(transport, folder.path());
        let builder = FirstFails::new(SimFaults::always(call), journal.options());
        let waiting = Waiting::built_by(&at, builder, quick(), Watching::default());

        let cause = fail_to_move(&mut source, &waiting.address, 2);
        let Cause::Peer(reason) = &cause else { panic!("{call}: {cause:?}") };
        assert_eq!(reason.kind, ReasonKind::Machine);
        is_a_sentence(&reason.text);
        assert!(reason.text.contains(call.name()), "{call}: {reason:?}");
        assert!(matches!(waiting.seen.not_taken(0), Cause::Machine(text) if text == reason.text));
        is_kept(&mut source);
        assert!(journal.epochs().iter().all(|epoch| *epoch == 1), "{call}: the guest never ran elsewhere");

        move_to(&mut source, &waiting.address, 3);
        is_undisturbed(&mut waiting.arrived().machine);
    }
}

#[test]
fn a_dirty_log_that_cannot_be_ended_changes_no_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let faults = SimFaults::once(Call::StopDirtyTracking);
    let mut source = running(CHURN, SimOptions { faults, ..SimOptions::default() });
    let at = fresh_address(Transport::Unix, folder.path());
    let builder = FirstFails::new(SimFaults::once(Call::Restore), SimOptions::default());
    let waiting = Waiting::built_by(&at, builder, quick(), Watching::default());
    let cause = fail_to_move(&mut source, &waiting.address, 2);
    assert!(matches!(cause, Cause::Peer(_)), "{cause:?}");
    is_undisturbed(&mut source);
    move_to(&mut source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}

#[test]
fn a_guest_that_cannot_be_resumed_is_held_and_its_custody_handed_back() {
    let folder = tempfile::tempdir().unwrap();
    // The first resume is its birth's, the second the one after the failure.
    let faults = SimFaults::at(Call::Resume, When::Nth(2));
    let mut source = running(CHURN, SimOptions { faults, ..SimOptions::default() });
    let at = fresh_address(Transport::Tcp, folder.path());
    let builder = FirstFails::new(SimFaults::once(Call::Restore), SimOptions::default());
    let waiting = Waiting::built_by(&at, builder, quick(), Watching::default());

    let (report, custody) = Migration::new(options(&source, &waiting.address, 2)).run(&mut source, &());
    let SourceOutcome::Held { cause, obstacle } = &report.outcome else { panic!("{report:?}") };
    assert!(matches!(cause, Cause::Peer(_)), "{cause:?}");
    is_a_sentence(obstacle);
    assert!(obstacle.contains("resume"), "{obstacle}");
    let custody = custody.unwrap();
    assert_eq!((custody.guest().as_str(), custody.epoch().0), ("guest", 1));
    source.resume(custody).unwrap();
    is_kept(&mut source);
    move_to(&mut source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}

#[test]
fn a_lock_that_somebody_else_took_meanwhile_holds_the_guest_and_names_the_holder() {
    let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
    let mut source = running(CHURN, journal.options());
    hold_disks(&mut source, folder.path());
    let at = fresh_address(Transport::Unix, folder.path());
    let waiting = Waiting::at(&at, journal.options(), quick());

    // Between the source's letting go and the target's taking.
    let thief: Arc<Mutex<Option<FileLock>>> = Arc::default();
    let (theft, disks) = (Arc::clone(&thief), folder.path().to_owned());
    let seen = Watching::source(move |phase| {
        if phase == SourcePhase::State {
            *theft.lock().unwrap() = Some(steal(&disks).unwrap());
        }
    });
    let (report, custody) = Migration::new(options(&source, &waiting.address, 2)).run(&mut source, &seen);
    let holder = format!("data.lock is held by guest `thief`, process {} on ", std::process::id());
    let SourceOutcome::Held { cause, obstacle } = &report.outcome else { panic!("{report:?}") };
    assert!(matches!(cause, Cause::Peer(reason) if reason.text.contains(&holder)), "{cause:?}");
    is_a_sentence(obstacle);
    assert!(obstacle.contains(&holder), "{obstacle}");
    assert!(!journal.runs(), "nobody runs the guest");

    drop(thief.lock().unwrap().take());
    hold_disks(&mut source, folder.path());
    source.resume(custody.unwrap()).unwrap();
    is_kept(&mut source);
    move_to(&mut source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}

#[test]
fn resources_are_free_after_the_pause_and_taken_before_ready() {
    let (folder, journal) = (tempfile::tempdir().unwrap(), Arc::new(Journal::default()));
    let mut source = running(CHURN, journal.options());
    hold_disks(&mut source, folder.path());
    let at = fresh_address(Transport::Tcp, folder.path());
    let waiting = Waiting::at(&at, journal.options(), quick());
    let held: Arc<Mutex<Vec<(SourcePhase, bool)>>> = Arc::default();
    let (notes, disks) = (Arc::clone(&held), folder.path().to_owned());
    let seen = Watching::source(move |phase| notes.lock().unwrap().push((phase, steal(&disks).is_err())));
    let (report, _) = Migration::new(options(&source, &waiting.address, 2)).run(&mut source, &seen);
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    let mut arrived = waiting.arrived();
    is_undisturbed(&mut arrived.machine);
    assert!(steal(folder.path()).is_err(), "the target holds it");
    for (phase, held) in held.lock().unwrap().iter() {
        match phase {
            // While the target restores it may be either side of its taking.
            SourcePhase::Ready => {}
            SourcePhase::State => assert!(!held, "the source let go of it"),
            _ => assert!(held, "in phase {}", phase.name()),
        }
    }
}

#[test]
fn a_failure_after_the_link_was_lost_is_not_taken_for_that_of_the_resume() {
    let folder = tempfile::tempdir().unwrap();
    let faults = SimFaults::once(Call::Capture);
    let mut source = running(CHURN, SimOptions { faults, ..SimOptions::default() });
    let (listener, address) = RawListener::bind(&fresh_address(Transport::Unix, folder.path()));
    let link: Arc<Mutex<Option<Raw>>> = Arc::default();
    let made = Arc::clone(&link);
    let target = std::thread::spawn(move || {
        let mut peer = listener.accept().unwrap();
        *made.lock().unwrap() = Some(peer.twin());
        peer.accept_all();
        while peer.listen().is_some() {}
    });
    // The link is cut when the last pages are there and the end of the round is not.
    let seen = Watching::source(move |phase| {
        if phase == SourcePhase::State {
            link.lock().unwrap().as_ref().unwrap().close(std::net::Shutdown::Both);
        }
    });
    let (report, custody) = Migration::new(options(&source, &address, 2)).run(&mut source, &seen);
    target.join().unwrap();
    assert_eq!(custody, None);
    assert!(matches!(cause_of(&report), Cause::LinkLost(_)), "{report:?}");
    is_kept(&mut source);
}
