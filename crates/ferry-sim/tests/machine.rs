//! The machine behind the trait: a guest that moves while it runs, custody, resources, and calls
//! that fail on demand.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_memory::{PAGE_SIZE, PageSet};
use ferry_migrate::{Builder, Custody, FileLock, Harvest, Machine, MachineError, RunWatch};
use ferry_protocol::GuestId;
use ferry_sim::{Call, SimBuilder, SimConfig, SimCore, SimFaults, SimMachine, SimOptions, Workload};
use ferry_state::{MachineState, Resources};

const PATIENCE: Duration = Duration::from_secs(20);

const CHURN: SimConfig = SimConfig {
    seed: 77,
    memory_bytes: 512 * PAGE_SIZE,
    workload: Workload::Churn { working_set_bytes: 300 * PAGE_SIZE, rate_bytes_per_second: 64 << 20 },
};

const IDLE: SimConfig = SimConfig { workload: Workload::Idle { patterned_bytes: 300 * PAGE_SIZE }, ..CHURN };

fn custody() -> Custody {
    Custody::born("guest".parse().unwrap())
}

/// The lock of a disk in this folder.
fn disk(folder: &Path) -> Resources {
    Resources { released: vec![FileLock::prepare(&folder.join("disk.lock")).unwrap()] }
}

fn guest() -> GuestId {
    "guest".parse().unwrap()
}

fn born(config: SimConfig) -> SimMachine {
    SimMachine::born(config, SimOptions::default()).unwrap()
}

fn blank(config: SimConfig, options: SimOptions) -> SimMachine {
    SimBuilder::new(options).build(&config.description().unwrap()).unwrap()
}

/// Waits until the guest has done so many steps.
fn wait_for(machine: &SimMachine, steps: u64) {
    let began = Instant::now();
    while machine.report().progress < steps {
        assert!(began.elapsed() < PATIENCE, "{:?}", machine.report());
        std::thread::yield_now();
    }
}

fn copy(pages: &PageSet, from: &SimMachine, to: &SimMachine) {
    let mut bytes = [0; 4096];
    for page in pages.chunks(1) {
        from.ram().read(page.first * PAGE_SIZE, &mut bytes).unwrap();
        to.ram().write(page.first * PAGE_SIZE, &bytes).unwrap();
    }
}

fn full_text(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", full_text(source)))
}

/// Moves a running guest the way the engine does; the guest is paused on both sides afterwards.
fn move_over(source: &mut SimMachine, target: &mut SimMachine) -> Custody {
    let layout = source.ram().layout().clone();
    source.start_dirty_tracking().unwrap();
    copy(&PageSet::full(&layout), source, target);
    for _ in 0..3 {
        wait_for(source, source.report().progress + 40);
        let mut dirty = PageSet::empty(&layout);
        source.harvest_dirty(Harvest::Live, &mut dirty).unwrap();
        copy(&dirty, source, target);
    }
    wait_for(source, source.report().progress + 40);
    let custody = source.pause().unwrap();
    let released = source.release_resources().unwrap();
    let mut dirty = PageSet::empty(&layout);
    source.harvest_dirty(Harvest::Paused, &mut dirty).unwrap();
    assert!(!dirty.is_empty());
    copy(&dirty, source, target);
    target.take_resources(&guest(), &released).unwrap();
    target.restore(&source.capture().unwrap()).unwrap();
    target.restore_devices(&source.capture_devices().unwrap()).unwrap();
    custody
}

#[test]
fn a_guest_that_moved_while_it_ran_is_the_guest_that_did_not() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut target) = (born(CHURN), blank(CHURN, SimOptions::default()));
    source.take_resources(&guest(), &disk(folder.path())).unwrap();
    source.resume(custody()).unwrap();
    wait_for(&source, 400);
    let custody = move_over(&mut source, &mut target);
    assert_eq!(target.digest().unwrap(), source.digest().unwrap());

    target.resume(custody).unwrap();
    wait_for(&target, source.report().progress + 1000);
    assert_eq!(target.verify(PATIENCE).unwrap().faults, 0);
    drop(target.pause().unwrap());

    let report = target.report();
    assert_eq!((report.payload, report.faults, report.stopped), ("churn", 0, None));
    assert_eq!(report.pages_checked, report.progress - 300 + 300, "steps after the filling, and one check");
    let mut undisturbed = SimCore::born(CHURN).unwrap();
    undisturbed.step(report.progress).unwrap();
    assert_eq!(target.digest().unwrap(), undisturbed.digest().unwrap());
}

#[test]
fn a_page_that_was_not_sent_is_found_on_the_target() {
    let (mut source, mut target) = (born(CHURN), blank(CHURN, SimOptions::default()));
    source.resume(custody()).unwrap();
    wait_for(&source, 400);
    let custody = move_over(&mut source, &mut target);
    target.ram().write(17 * PAGE_SIZE, &[0; 4096]).unwrap();
    target.resume(custody).unwrap();
    wait_for(&target, source.report().progress + 700);
    let report = target.report();
    assert_eq!((report.faults, report.first_fault.unwrap().page), (1, 17));
}

#[test]
fn an_idle_guest_beats_and_its_memory_stays_clean() {
    let mut machine = born(IDLE);
    machine.resume(custody()).unwrap();
    wait_for(&machine, 300);
    machine.start_dirty_tracking().unwrap();
    wait_for(&machine, 303);
    let mut dirty = PageSet::empty(machine.ram().layout());
    machine.harvest_dirty(Harvest::Live, &mut dirty).unwrap();
    assert!(dirty.is_empty());
    machine.stop_dirty_tracking().unwrap();
    assert!(machine.harvest_dirty(Harvest::Live, &mut dirty).is_err());
    let checked = machine.verify(PATIENCE).unwrap();
    assert_eq!((checked.pages, checked.faults), (300, 0));
    assert!(machine.verify(Duration::ZERO).unwrap_err().to_string().contains("300 pages"));
}

#[test]
fn churn_is_never_faster_than_its_rate() {
    let workload =
        Workload::Churn { working_set_bytes: 8 * PAGE_SIZE, rate_bytes_per_second: 1000 * PAGE_SIZE };
    let mut machine = born(SimConfig { workload, ..CHURN });
    let began = Instant::now();
    machine.resume(custody()).unwrap();
    wait_for(&machine, 108);
    let progress = machine.report().progress;
    let allowed = 8.0 + began.elapsed().as_secs_f64() * 1000.0;
    assert!(Duration::from_millis(99) < began.elapsed(), "a hundred pages at a thousand a second");
    assert!(f64::from(u32::try_from(progress).unwrap()) <= allowed, "{progress} of {allowed}");
}

#[test]
fn the_custody_is_out_of_reach_while_the_guest_runs_and_comes_back_whole() {
    let mut machine = born(CHURN);
    assert!(machine.pause().unwrap_err().to_string().contains("nothing to pause"));
    machine.resume(custody()).unwrap();

    let refused = machine.resume(custody()).unwrap_err();
    assert_eq!(refused.custody, custody());
    assert!(refused.source.to_string().contains("the guest runs"));
    let mut dirty = PageSet::empty(machine.ram().layout());
    machine.start_dirty_tracking().unwrap();
    let too_early: [Result<(), MachineError>; 5] = [
        machine.capture().map(drop),
        machine.capture_devices().map(drop),
        machine.harvest_dirty(Harvest::Paused, &mut dirty),
        machine.release_resources().map(drop),
        machine.digest().map(drop),
    ];
    for result in too_early {
        assert!(result.unwrap_err().to_string().contains("the guest runs"));
    }

    wait_for(&machine, 1);
    let back = machine.pause().unwrap();
    assert_eq!(back, custody());
    let paused_at = machine.report().progress;
    machine.resume(back).unwrap();
    wait_for(&machine, paused_at + 1);
}

#[test]
fn a_state_goes_only_into_a_machine_that_never_ran() {
    let mut source = born(CHURN);
    source.resume(custody()).unwrap();
    wait_for(&source, 400);
    let custody = source.pause().unwrap();
    let (core, devices) = (source.capture().unwrap(), source.capture_devices().unwrap());

    let mut target = blank(CHURN, SimOptions::default());
    assert!(target.restore_devices(&devices).is_err(), "devices come after the processor");
    assert!(target.restore(&MachineState::default()).is_err());
    assert!(target.restore(&devices).is_err());
    target.restore(&core).unwrap();
    assert!(target.restore(&core).is_err(), "it holds a state already");
    assert!(target.restore_devices(&core).is_err());
    target.restore_devices(&devices).unwrap();
    target.resume(custody).unwrap();
    drop(target.pause().unwrap());
    assert!(target.restore(&core).is_err());
    assert!(target.restore_devices(&devices).is_err());
    assert!(source.restore(&core).is_err(), "nor into the source");
}

/// What a watch saw: `true` for a start.
#[derive(Default)]
struct Journal(Mutex<Vec<(bool, String)>>);

impl RunWatch for Journal {
    fn starts(&self, custody: &Custody) {
        self.0.lock().unwrap().push((true, custody.guest().to_string()));
    }
    fn stops(&self, custody: &Custody) {
        self.0.lock().unwrap().push((false, custody.guest().to_string()));
    }
}

#[test]
fn the_watch_sees_every_stretch_of_running() {
    let journal = Arc::new(Journal::default());
    let options = SimOptions {
        faults: SimFaults::once(Call::Resume),
        watch: Some(Arc::clone(&journal) as Arc<dyn RunWatch>),
    };
    let seen = || journal.0.lock().unwrap().iter().map(|(start, _)| *start).collect::<Vec<_>>();
    let mut machine = SimMachine::born(CHURN, options).unwrap();
    let custody = machine.resume(custody()).unwrap_err().custody;
    assert_eq!(seen(), [false; 0], "it did not run");
    machine.resume(custody).unwrap();
    assert_eq!(seen(), [true]);
    let custody = machine.pause().unwrap();
    assert_eq!(seen(), [true, false]);
    machine.resume(custody).unwrap();
    drop(machine);
    assert_eq!(seen(), [true, false, true, false], "a dropped machine stops");
    assert!(journal.0.lock().unwrap().iter().all(|(_, guest)| guest == "guest"));
}

#[test]
fn only_the_holder_of_the_resource_runs() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    let (mut source, mut target) = (born(CHURN), blank(CHURN, SimOptions::default()));
    source.take_resources(&guest(), &disk).unwrap();
    let refused = target.take_resources(&guest(), &disk).unwrap_err();
    let text = full_text(&refused);
    assert!(text.contains(&format!("held by guest `guest`, process {} on ", std::process::id())), "{text}");
    let refused = target.resume(custody()).unwrap_err();
    assert!(refused.source.to_string().contains("take_resources comes before resume"));
    assert_eq!(source.release_resources().unwrap(), disk);
    target.take_resources(&guest(), &disk).unwrap();
    assert!(source.resume(custody()).is_err());
    target.resume(refused.custody).unwrap();
    assert!(source.take_resources(&guest(), &disk).is_err());
    drop(target);
    source.take_resources(&guest(), &disk).unwrap();
    source.resume(custody()).unwrap();
}

/// Makes one call on a machine that is ready for it.
fn make(call: Call, machine: &mut SimMachine) -> Result<(), MachineError> {
    let mut pages = PageSet::empty(machine.ram().layout());
    let mut elsewhere = born(CHURN);
    match call {
        Call::StartDirtyTracking => machine.start_dirty_tracking(),
        Call::HarvestDirty => machine.harvest_dirty(Harvest::Paused, &mut pages),
        Call::StopDirtyTracking => machine.stop_dirty_tracking(),
        Call::Pause => machine.pause().map(drop),
        Call::Resume => machine.resume(custody()).map_err(|error| error.source),
        Call::Capture => machine.capture().map(drop),
        Call::Restore => machine.restore(&elsewhere.capture().unwrap()),
        Call::CaptureDevices => machine.capture_devices().map(drop),
        Call::RestoreDevices => machine.restore_devices(&elsewhere.capture_devices().unwrap()),
        Call::ReleaseResources => machine.release_resources().map(drop),
        Call::TakeResources => machine.take_resources(&guest(), &Resources::default()),
        _ => panic!("{call} is no call on a machine"),
    }
}

#[test]
fn each_call_fails_when_it_is_told_to_and_leaves_the_machine_as_it_was() {
    let calls = Call::ALL.into_iter().filter(|call| *call != Call::Build);
    for call in calls {
        let mut machine = blank(CHURN, SimOptions { faults: SimFaults::once(call), ..SimOptions::default() });
        if call == Call::HarvestDirty {
            machine.start_dirty_tracking().unwrap();
        }
        if call == Call::RestoreDevices {
            make(Call::Restore, &mut machine).unwrap();
        }
        if call == Call::Pause {
            machine.resume(custody()).unwrap();
        }
        let error = make(call, &mut machine).unwrap_err().to_string();
        assert!(error.contains(call.name()), "{error}");
        if call == Call::Pause {
            let progress = machine.report().progress;
            wait_for(&machine, progress + 1);
        }
        make(call, &mut machine).unwrap_or_else(|error| panic!("{call} again: {error}"));
    }
}

#[test]
fn a_call_that_always_fails_never_works() {
    let faults = "capture:always".parse().unwrap();
    let mut machine = blank(CHURN, SimOptions { faults, ..SimOptions::default() });
    assert!((0..5).all(|_| machine.capture().is_err()));
    machine.capture_devices().unwrap();
}

#[test]
fn a_harvest_into_a_foreign_set_loses_no_page() {
    let mut machine = born(CHURN);
    machine.start_dirty_tracking().unwrap();
    machine.resume(custody()).unwrap();
    wait_for(&machine, 300);
    let small = SimConfig { memory_bytes: 300 * PAGE_SIZE, ..CHURN };
    let mut foreign = PageSet::empty(&small.layout().unwrap());
    assert!(machine.harvest_dirty(Harvest::Live, &mut foreign).is_err());
    let mut dirty = PageSet::empty(machine.ram().layout());
    machine.harvest_dirty(Harvest::Live, &mut dirty).unwrap();
    assert_eq!(dirty.count(), 300);
}

#[test]
fn a_guest_that_can_do_no_more_steps_says_so_and_can_still_be_paused() {
    // A state whose first field, the number of steps, is the last one that is allowed.
    let mut state = born(CHURN).capture().unwrap();
    let section = &mut state.sections[0];
    assert_eq!(section.body[..3], [0xa4, 0x00, 0x00]);
    section.body.splice(2..3, [0x1b, 0x40, 0, 0, 0, 0, 0, 0, 0]);
    section.needed = vec![0];

    let mut machine = blank(CHURN, SimOptions::default());
    machine.restore(&state).unwrap();
    machine.resume(custody()).unwrap();
    let began = Instant::now();
    while machine.report().stopped.is_none() {
        assert!(began.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    assert!(machine.report().stopped.unwrap().contains("all of its"));
    assert_eq!(machine.pause().unwrap(), custody());

    // One step more is no guest's.
    *state.sections[0].body.get_mut(10).unwrap() = 1;
    assert!(blank(CHURN, SimOptions::default()).restore(&state).is_err());
}
