//! What the tests of the engine share: guests, targets in a thread, an observer that can be waited
//! for, a journal of who runs, peers that write their frames by hand, and a proxy that fails.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod disky;
mod journal;
mod leaks;
mod proxy;
mod raw;
mod victim;
mod watching;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferry_memory::PAGE_SIZE;
use ferry_migrate::journal::Volatile;
use ferry_migrate::{
    Address, Arrived, Builder, Custody, FileLock, FileLockError, Listener, Machine, MachineError,
    MigrateOptions, Migration, ReceiveOptions, Reception, Report,
};
use ferry_protocol::{Cause, Epoch, InstanceId, SessionId, SourceConfig, SourceOutcome, Timeouts};
use ferry_sim::{SimBuilder, SimConfig, SimCore, SimMachine, SimOptions, Workload};
use ferry_state::Resources;

pub(crate) use disky::{Disky, DiskyBuilder};
pub(crate) use journal::Journal;
pub(crate) use leaks::{Leaks, alone};
pub(crate) use proxy::{Direction, Fate, Pass, Proxy};
pub(crate) use raw::{Frame, Raw, RawListener, frame, hello, pages, target_hello, to_target, zeros};
pub(crate) use victim::{TINY, Victim, data, released, round_end, transfer};
pub(crate) use watching::Watching;

/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The timeout of a wait that is meant to end so.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

pub(crate) const MIB: u64 = 1 << 20;

/// A small guest that always writes.
pub(crate) const CHURN: SimConfig = SimConfig {
    seed: 77,
    memory_bytes: 64 * PAGE_SIZE,
    workload: Workload::Churn { working_set_bytes: 16 * PAGE_SIZE, rate_bytes_per_second: 4 << 20 },
};

/// Both kinds of link.
pub(crate) const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Unix];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
}

/// A number that no one else in this process has.
pub(crate) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An address of this kind on which nobody listens yet.
pub(crate) fn fresh_address(transport: Transport, folder: &Path) -> Address {
    match transport {
        Transport::Tcp => "127.0.0.1:0".parse().unwrap(),
        Transport::Unix => Address::Unix(folder.join(format!("{}.sock", unique()))),
    }
}

/// Timeouts that end the waits after custody soon.
pub(crate) fn quick() -> Timeouts {
    Timeouts {
        running: SHORT,
        ask: SHORT,
        ask_interval: Duration::from_millis(20),
        settle: Duration::from_secs(3),
        ..Timeouts::default()
    }
}

/// Waits until `done`; the deed that it waits for is another thread's.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// A guest at its birth that runs and has written its pages.
pub(crate) fn running(config: SimConfig, options: SimOptions) -> SimMachine {
    let mut machine = SimMachine::born(config, options).unwrap();
    machine.resume(Custody::born("guest".parse().unwrap())).unwrap();
    let filled = config.checked_pages();
    until("the filling of the pages", || machine.report().progress >= filled);
    machine
}

/// Lets the guest hold the locks of two disks.
pub(crate) fn hold_disks(machine: &mut SimMachine, folder: &Path) {
    let released =
        ["disk.lock", "data.lock"].map(|name| FileLock::prepare(&folder.join(name)).unwrap()).to_vec();
    machine.take_resources(&"guest".parse().unwrap(), &Resources { released }).unwrap();
}

/// Takes the lock of the second disk as somebody else would.
pub(crate) fn steal(folder: &Path) -> Result<FileLock, FileLockError> {
    let mut lock = FileLock::new(&folder.join("data.lock")).unwrap();
    lock.lock(&"thief".parse().unwrap()).map(|()| lock)
}

/// The guest runs: it makes steps, and its pages are what it wrote.
pub(crate) fn is_well(machine: &SimMachine) {
    let before = machine.report().progress;
    until("a step of the guest", || machine.report().progress > before);
    let checked = machine.verify(PATIENCE).unwrap();
    assert_eq!((checked.faults, checked.first_fault), (0, None));
    let report = machine.report();
    assert_eq!((report.faults, report.stopped), (0, None));
}

/// The guest is well and is the guest that it would be if nobody had ever moved it. It runs on.
pub(crate) fn is_undisturbed(machine: &mut SimMachine) {
    is_well(machine);
    let custody = machine.pause().unwrap();
    let mut undisturbed = SimCore::born(*machine.config()).unwrap();
    undisturbed.step(machine.report().progress).unwrap();
    assert_eq!(machine.digest().unwrap(), undisturbed.digest().unwrap());
    machine.resume(custody).unwrap();
}

/// A source has its guest as before: it runs undisturbed, and its dirty pages are not noted any more.
pub(crate) fn is_kept(machine: &mut SimMachine) {
    let mut pages = ferry_memory::PageSet::empty(machine.ram().layout());
    let harvest = machine.harvest_dirty(ferry_migrate::Harvest::Live, &mut pages);
    assert!(harvest.is_err(), "dirty tracking goes on");
    is_undisturbed(machine);
}

/// A process that waits for a guest, in a thread.
pub(crate) struct Waiting {
    pub(crate) address: Address,
    pub(crate) seen: Arc<Watching>,
    thread: JoinHandle<Result<Arrived<SimMachine>, MachineError>>,
}

impl Waiting {
    pub(crate) fn at(address: &Address, options: SimOptions, timeouts: Timeouts) -> Self {
        Self::watched(address, options, timeouts, Watching::default())
    }

    pub(crate) fn watched(
        address: &Address,
        options: SimOptions,
        timeouts: Timeouts,
        seen: Watching,
    ) -> Self {
        let builder = SimBuilder::new(options).with_memory_limit(1 << 30);
        Self::built_by(address, builder, timeouts, seen)
    }

    pub(crate) fn built_by(
        address: &Address,
        builder: impl Builder<Machine = SimMachine> + 'static,
        timeouts: Timeouts,
        seen: Watching,
    ) -> Self {
        let listener = Listener::bind(address, false).unwrap();
        Self::on(listener, ReceiveOptions { timeouts, ..ReceiveOptions::new(journal()) }, builder, seen)
    }

    /// With everything said.
    pub(crate) fn on(
        listener: Listener,
        options: ReceiveOptions,
        mut builder: impl Builder<Machine = SimMachine> + 'static,
        seen: Watching,
    ) -> Self {
        let address = listener.address().clone();
        let reception = Reception::new(listener, options).unwrap();
        let seen = Arc::new(seen);
        let watching = Arc::clone(&seen);
        let thread = std::thread::spawn(move || reception.wait(&mut builder, &*watching));
        Self { address, seen, thread }
    }

    /// On an address of its own, with nothing special.
    pub(crate) fn plain(transport: Transport, folder: &Path) -> Self {
        Self::at(&fresh_address(transport, folder), SimOptions::default(), quick())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// The guest that arrived.
    pub(crate) fn arrived(self) -> Arrived<SimMachine> {
        until("the arrival of the guest", || self.thread.is_finished());
        self.thread.join().unwrap().unwrap()
    }
}

/// A journal that is forgotten.
pub(crate) fn journal() -> Arc<Volatile> {
    Arc::new(Volatile::new(InstanceId(unique())))
}

/// A migration of this guest to there.
pub(crate) fn options(machine: &SimMachine, to: &Address, epoch: u64) -> MigrateOptions {
    let guest = "guest".parse().unwrap();
    let mut config =
        SourceConfig::new(guest, SessionId(0x5e55_0000 + unique()), Epoch(epoch), machine.description());
    config.timeouts = quick();
    MigrateOptions::new(to.clone(), config, journal())
}

/// Moves the guest and expects that it moved.
pub(crate) fn move_to(machine: &mut SimMachine, to: &Address, epoch: u64) -> Report {
    let (report, custody) = Migration::new(options(machine, to, epoch)).run(machine, &());
    assert_eq!(report.outcome, SourceOutcome::Moved { epoch: Epoch(epoch) });
    assert_eq!(custody, None);
    report
}

/// Tries to move the guest and expects that it was kept; why.
pub(crate) fn fail_to_move(machine: &mut SimMachine, to: &Address, epoch: u64) -> Cause {
    fail_with(machine, to, epoch, |_| {})
}

/// The same with other timeouts.
pub(crate) fn fail_with(
    machine: &mut SimMachine,
    to: &Address,
    epoch: u64,
    tune: impl FnOnce(&mut Timeouts),
) -> Cause {
    let mut how = options(machine, to, epoch);
    tune(&mut how.config.timeouts);
    let (report, custody) = Migration::new(how).run(machine, &());
    assert_eq!(custody, None);
    cause_of(&report)
}

pub(crate) fn cause_of(report: &Report) -> Cause {
    match &report.outcome {
        SourceOutcome::Kept { cause } => cause.clone(),
        other => panic!("{other:?}"),
    }
}

/// A text for people: one sentence, not long, without line breaks or the words of a debugger.
pub(crate) fn is_a_sentence(text: &str) {
    assert!((10..500).contains(&text.len()), "{text:?}");
    let odd = ["\n", "\t", "Some(", "Err(", "{ ", "  "];
    assert!(odd.iter().all(|odd| !text.contains(odd)), "{text:?}");
}
