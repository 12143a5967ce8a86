//! Who waits for whom where a hand-over is open or has failed: guests for disks, persons for answers,
//! deadlines for those who keep a side busy.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use engine_support::{
    CHURN, Direction, Fate, PATIENCE, Pass, Proxy, RawListener, SHORT, Transport, Waiting, Watching,
    cause_of, fresh_address, hold_disks, is_kept, is_undisturbed, journal, move_to, options, quick, running,
    unique, until,
};
use ferry_migrate::journal::{Journal, JournalError, Volatile};
use ferry_migrate::{Decider, Listener, MigrateOptions, Migration, Observer, ReceiveOptions};
use ferry_protocol::journal::{Choice, Past, Record};
use ferry_protocol::{
    Cause, InstanceId, PersonsChoice, SourceOutcome, SourcePhase, TargetPhase, Timeouts, TimerName,
};
use ferry_sim::{SimBuilder, SimOptions};

/// Somebody waits here until it is opened.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn is_open(&self) -> bool {
        *self.open.lock().unwrap()
    }

    fn wait(&self, at_most: Duration) {
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_timeout_while(open, at_most, |open| !*open).unwrap());
    }
}

type Deed = Box<dyn Fn(&Record) + Send + Sync>;

/// A disk that does something before a record is on it.
struct Disk {
    inner: Volatile,
    before: Deed,
}

impl Disk {
    fn new(before: impl Fn(&Record) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { inner: Volatile::new(InstanceId(unique())), before: Box::new(before) })
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Journal for Disk {
    fn instance(&self) -> InstanceId {
        self.inner.instance()
    }

    fn write(&self, record: &Record) -> Result<(), JournalError> {
        (self.before)(record);
        self.inner.write(record)
    }

    fn note(&self, record: &Record) {
        self.inner.note(record);
    }

    fn past(&self) -> Result<Past, JournalError> {
        self.inner.past()
    }
}

/// The guest is paused and the target is ready, when the source cancels or the target waits no longer for
/// custody: the guest goes on while the target's disk still takes the refusal.
#[test]
fn no_paused_guest_waits_for_the_targets_disk() {
    for cancels in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut source = running(CHURN, SimOptions::default());
        hold_disks(&mut source, folder.path());
        let gate = Arc::new(Gate::default());
        let slow = Arc::clone(&gate);
        let disk = Disk::new(move |record| {
            if let Record::Refused(_) = record {
                slow.wait(PATIENCE);
            }
        });
        let custody = if cancels { Timeouts::default().custody } else { SHORT };
        let receive =
            ReceiveOptions { timeouts: Timeouts { custody, ..quick() }, ..ReceiveOptions::new(disk) };
        let listener = Listener::bind(&fresh_address(Transport::Unix, folder.path()), false).unwrap();
        let builder = SimBuilder::new(SimOptions::default());
        let waiting = Waiting::on(listener, receive, builder, Watching::default());
        let rule = |pass: &Pass<'_>| if pass.frame.name() == "ready" { Fate::Drop } else { Fate::Pass };
        let proxy = Proxy::new(&fresh_address(Transport::Unix, folder.path()), &waiting.address, rule);
        let migration = Migration::new(options(&source, &proxy.address, 2));
        let canceller = migration.canceller();
        let target = Arc::clone(&waiting.seen);
        let (report, held) = std::thread::scope(|scope| {
            scope.spawn(move || {
                target.wait("that the target is ready", |told| told.target.contains(&TargetPhase::Ready));
                assert!(!cancels || canceller.cancel());
            });
            migration.run(&mut source, &())
        });
        assert!(!gate.is_open() && held.is_none(), "{report:?}");
        match cause_of(&report) {
            Cause::Cancelled => assert!(cancels),
            Cause::Peer(reason) => assert!(!cancels && reason.text.contains("custody"), "{reason}"),
            other => panic!("{other:?}"),
        }
        is_kept(&mut source);
        gate.open();
        until("the end of the session", || waiting.seen.sessions() > 0);
        move_to(&mut source, &waiting.address, 3);
        is_undisturbed(&mut waiting.arrived().machine);
    }
}

/// The answer comes while the choice is on its way to the disk: it counts, and the journal says so.
#[test]
fn an_answer_goes_before_a_choice_that_is_not_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = running(CHURN, SimOptions::default());
    let waiting = Waiting::at(
        &fresh_address(Transport::Unix, folder.path()),
        SimOptions::default(),
        Timeouts { release: PATIENCE, ..quick() },
    );
    let late = Arc::new(Gate::default());
    let held_up = Arc::clone(&late);
    let proxy = Proxy::new(
        &fresh_address(Transport::Unix, folder.path()),
        &waiting.address,
        move |pass: &Pass<'_>| {
            let is_answer = pass.direction == Direction::ToSource && pass.frame.name() == "running";
            if is_answer && pass.link == 0 {
                return Fate::CutBefore;
            }
            if is_answer {
                held_up.wait(PATIENCE);
            }
            Fate::Pass
        },
    );
    let answers = Arc::clone(&late);
    let disk = Disk::new(move |record| {
        if let Record::Decided(_) = record {
            answers.open();
            // It comes over a link to another thread, and lies before the engine then.
            Gate::default().wait(Duration::from_secs(1));
        }
    });
    let ours = Arc::clone(&disk);
    let mut how = MigrateOptions { journal: disk, ..options(&source, &proxy.address, 2) };
    how.config.timeouts.settle = SHORT;
    let migration = Migration::new(how);
    let decider = migration.decider();
    let seen = Watching::default();
    let (report, _) = std::thread::scope(|scope| {
        scope.spawn(|| {
            seen.wait("that the outcome is ambiguous", |told| told.ambiguous > 0);
            assert!(decider.decide(PersonsChoice::new(Choice::Abandon, "I give up", 7).unwrap()));
        });
        migration.run(&mut source, &seen)
    });
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    let refused = seen.told().choices_refused;
    assert!(matches!(&refused[..], [text] if text.contains("it runs the guest")), "{refused:?}");
    let records = ours.inner.records();
    assert!(
        matches!(records[..], [Record::MayBeGiven(_), Record::Decided(_), Record::Moved(_)]),
        "{records:?}"
    );
    is_undisturbed(&mut waiting.arrived().machine);
}

/// Chooses again whenever a choice is refused.
struct Stubborn {
    decider: Decider,
    until: Instant,
    gave_up: AtomicBool,
}

impl Stubborn {
    fn choose(&self) {
        if Instant::now() < self.until {
            assert!(self.decider.decide(PersonsChoice::new(Choice::Abandon, "at once", 0).unwrap()));
        } else {
            self.gave_up.store(true, Ordering::SeqCst);
        }
    }
}

impl Observer for Stubborn {
    fn source_phase(&self, phase: SourcePhase) {
        if phase == SourcePhase::Hello {
            self.choose();
        }
    }

    fn choice_refused(&self, _: &str) {
        self.choose();
    }
}

#[test]
fn a_wait_ends_also_where_somebody_never_stops_asking_for_something() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = running(CHURN, SimOptions::default());
    let (listener, address) = RawListener::bind(&fresh_address(Transport::Unix, folder.path()));
    let mut how = MigrateOptions { journal: journal(), ..options(&source, &address, 2) };
    how.config.timeouts.hello = SHORT;
    let migration = Migration::new(how);
    let until = Instant::now() + PATIENCE / 2;
    let stubborn = Stubborn { decider: migration.decider(), until, gave_up: AtomicBool::new(false) };
    let report = std::thread::scope(|scope| {
        let silent = scope.spawn(|| listener.accept().unwrap());
        let (report, _) = migration.run(&mut source, &stubborn);
        drop(silent.join().unwrap());
        report
    });
    assert_eq!(cause_of(&report), Cause::TimedOut(TimerName::Hello));
    assert!(!stubborn.gave_up.load(Ordering::SeqCst), "the wait ended only when nobody asked any more");
    is_kept(&mut source);
}
