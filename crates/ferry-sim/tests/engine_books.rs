//! Journals of one folder, read by several processes: names that are taken once, processes that answer
//! for others, takers of files that are gone.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;

use engine_support::{
    CHURN, PATIENCE, Transport, Waiting, Watching, fresh_address, is_kept, is_undisturbed, journal, options,
    quick, running, unique, until,
};
use ferry_contract::Verdict;
use ferry_migrate::journal::{FileJournal, Journal, JournalError, StateFolder, Volatile};
use ferry_migrate::oneway::{Origin, Sink, TakeError, TakeOptions, survey, take};
use ferry_migrate::{
    Arrived, Asked, Builder, Listener, Machine, MachineError, MigrateOptions, Migration, ReceiveOptions, ask,
};
use ferry_protocol::journal::{MayBeGiven, MayRun, OfGuest, Past, PastAnswer, Record};
use ferry_protocol::message::{Known, OfEpoch};
use ferry_protocol::{
    Cause, Epoch, GuestId, InstanceId, MachineDescription, SessionId, SourceConfig, SourceOutcome,
};
use ferry_sim::{Call, SimBuilder, SimFaults, SimMachine, SimOptions};

fn guest() -> GuestId {
    "guest".parse().unwrap()
}

/// The journals of a host.
fn host(folder: &Path) -> StateFolder {
    StateFolder::open(&folder.join("state")).unwrap()
}

fn begins(host: &StateFolder) -> Arc<FileJournal> {
    Arc::new(host.begin(InstanceId(unique())).unwrap())
}

fn listens(folder: &Path, journal: Arc<dyn Journal>) -> Waiting {
    let receive = ReceiveOptions { timeouts: quick(), ..ReceiveOptions::new(journal) };
    let listener = Listener::bind(&fresh_address(Transport::Unix, folder), false).unwrap();
    Waiting::on(listener, receive, SimBuilder::new(SimOptions::default()), Watching::default())
}

/// Builds once everybody has been judged.
struct Together {
    inner: SimBuilder,
    judged: Arc<Barrier>,
}

impl Builder for Together {
    type Machine = SimMachine;

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        self.inner.judge(machine)
    }

    fn build(&mut self, machine: &MachineDescription) -> Result<SimMachine, MachineError> {
        self.judged.wait();
        self.inner.build(machine)
    }
}

#[test]
fn of_two_targets_that_take_guests_of_one_name_at_once_one_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let (host, judged) = (host(folder.path()), Arc::new(Barrier::new(2)));
    // A process has its journal as long as it lives.
    let journals = [0, 1].map(|_| begins(&host));
    let waiting = journals.each_ref().map(|journal| {
        let receive = ReceiveOptions { timeouts: quick(), ..ReceiveOptions::new(journal.clone()) };
        let listener = Listener::bind(&fresh_address(Transport::Unix, folder.path()), false).unwrap();
        let inner = SimBuilder::new(SimOptions::default());
        let builder = Together { inner, judged: Arc::clone(&judged) };
        Waiting::on(listener, receive, builder, Watching::default())
    });
    // Two guests of other hosts: neither knows of the other.
    let moving = waiting.each_ref().map(|waiting| {
        let mut source = running(CHURN, SimOptions::default());
        let how = options(&source, &waiting.address, 2);
        std::thread::spawn(move || {
            let (report, _) = Migration::new(how).run(&mut source, &());
            (report, source)
        })
    });
    until("the end of both moves", || moving.iter().all(JoinHandle::is_finished));
    let (mut won, mut lost) = (0, 0);
    for (moving, waiting) in moving.into_iter().zip(waiting) {
        let (report, mut source) = moving.join().unwrap();
        match &report.outcome {
            SourceOutcome::Moved { .. } => {
                won += 1;
                is_undisturbed(&mut waiting.arrived().machine);
            }
            SourceOutcome::Kept { cause: Cause::Peer(reason) } => {
                lost += 1;
                assert!(reason.text.contains("a process that lives has a guest `guest`"), "{reason:?}");
                assert_eq!((report.downtime, report.rounds), (None, 0), "before any page");
                is_kept(&mut source);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((won, lost), (1, 1));
}

/// What a process at this address answers for the one that was given custody.
fn asked(given: OfEpoch, to: InstanceId, waiting: &Waiting) -> Asked {
    let address = waiting.address.to_string();
    ask(&MayBeGiven { guest: guest(), of: given, to: Some(to), address }, PATIENCE)
}

#[test]
fn a_process_answers_for_another_that_lives_what_that_one_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let first = begins(&host);
    let mut source = running(CHURN, SimOptions::default());
    let waiting = listens(folder.path(), first.clone());
    let how = options(&source, &waiting.address, 2);
    let of = OfEpoch { session: how.config.session, epoch: Epoch(2) };
    let (report, _) = Migration::new(how).run(&mut source, &());
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    let mut arrived = waiting.arrived();
    // Its source let go and died before it could note that; the address is another process's now.
    let other = listens(folder.path(), begins(&host));
    assert_eq!(asked(of, first.instance(), &other), Asked::Runs);
    is_undisturbed(&mut arrived.machine);
    let undecided = begins(&host);
    let of = OfEpoch { session: SessionId(1), epoch: Epoch(7) };
    undecided.write(&Record::MayRun(MayRun { guest: guest(), of })).unwrap();
    // Journals are read at most so often.
    let lives = Asked::Unknown(Known::Lives);
    until("the look into the journals", || asked(of, undecided.instance(), &other) == lives);
    undecided.write(&Record::Refused(OfGuest { guest: guest(), epoch: Epoch(7) })).unwrap();
    until("the refusal", || matches!(asked(of, undecided.instance(), &other), Asked::Refused(_)));
    assert_eq!(asked(of, InstanceId(unique()), &other), Asked::Unknown(Known::NoTrace));
}

/// A source's journal that looks at its target's when it is written that the guest moved.
#[derive(Debug)]
struct Attentive {
    inner: Volatile,
    theirs: Arc<Volatile>,
    /// What the target had written by then.
    seen: Mutex<Option<Vec<Record>>>,
}

impl Journal for Attentive {
    fn instance(&self) -> InstanceId {
        self.inner.instance()
    }

    fn write(&self, record: &Record) -> Result<(), JournalError> {
        if let Record::Moved(_) = record {
            *self.seen.lock().unwrap() = Some(self.theirs.records());
        }
        self.inner.write(record)
    }

    fn note(&self, record: &Record) {
        self.inner.note(record);
    }

    fn past(&self) -> Result<Past, JournalError> {
        self.inner.past()
    }
}

#[test]
fn that_the_guest_moved_lasts_before_the_target_hears_that_it_was_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = journal();
    let inner = Volatile::new(InstanceId(unique()));
    let ours = Arc::new(Attentive { inner, theirs: theirs.clone(), seen: Mutex::default() });
    let mut source = running(CHURN, SimOptions::default());
    let waiting = listens(folder.path(), theirs);
    let how = MigrateOptions { journal: ours.clone(), ..options(&source, &waiting.address, 2) };
    let (report, _) = Migration::new(how).run(&mut source, &());
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    is_undisturbed(&mut waiting.arrived().machine);
    let seen = ours.seen.lock().unwrap().take().unwrap();
    let is = |test: fn(&Record) -> bool| seen.iter().any(test);
    assert!(is(|record| matches!(record, Record::MayRun(_))), "{seen:?}");
    assert!(!is(|record| matches!(record, Record::Released(_))), "{seen:?}");
}

/// A file with a guest, written by a process of this host that is gone.
fn saved(folder: &Path, host: &StateFolder) -> PathBuf {
    let path = folder.join("guest.ferry");
    let mut machine = running(CHURN, SimOptions::default());
    let mut config = SourceConfig::new(guest(), SessionId(unique()), Epoch(2), machine.description());
    config.timeouts = quick();
    let (report, _) = Migration::one_way(Sink::file(&path), config, begins(host)).run(&mut machine, &());
    assert_eq!(report.outcome, SourceOutcome::Moved { epoch: Epoch(2) });
    path
}

fn takes<B: Builder>(
    path: &Path,
    journal: Arc<dyn Journal>,
    builder: &mut B,
) -> Result<Arrived<B::Machine>, TakeError> {
    let options = TakeOptions { journal, expected: None, copy: None, timeouts: quick() };
    take(Origin::File(path.into()), options, builder, &())
}

fn builder() -> SimBuilder {
    SimBuilder::new(SimOptions::default())
}

/// What another process of the host would say of the guest's taking, and whether anything is open of it.
fn said(host: &StateFolder, of: &dyn Journal) -> (Option<PastAnswer>, usize) {
    let lives = host.lives().unwrap();
    (lives.past().answer(of.instance(), &guest(), Epoch(2)), lives.open(None).len())
}

#[test]
fn who_takes_a_guest_from_a_file_writes_it_down_before_the_file_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let path = saved(folder.path(), &host);
    let duplicate = folder.path().join("duplicate.ferry");
    std::fs::copy(&path, &duplicate).unwrap();

    // Nothing is taken that cannot be written down.
    let full = Arc::new(Full(Volatile::new(InstanceId(unique()))));
    let error = takes(&path, full, &mut builder()).unwrap_err();
    assert!(matches!(&error, TakeError::NotTaken(text) if text.contains("/full")), "{error:?}");
    assert_eq!(survey(&path).unwrap().taken, None);

    // Killed before it marked the file: it may be taken by another.
    let killed = begins(&host);
    let of = OfEpoch { session: SessionId(1), epoch: Epoch(2) };
    killed.write(&Record::MayRun(MayRun { guest: guest(), of })).unwrap();
    killed.note(&Record::Released(OfGuest { guest: guest(), epoch: Epoch(2) }));
    drop(killed);

    let journal = begins(&host);
    let mut arrived = takes(&path, journal.clone(), &mut builder()).unwrap();
    is_undisturbed(&mut arrived.machine);
    assert_eq!(said(&host, &*journal), (Some(PastAnswer::Took), 0));
    // A duplicate carries no mark; the journals tell.
    let error = takes(&duplicate, begins(&host), &mut builder()).unwrap_err();
    assert!(error.to_string().contains("a process that lives has a guest of this name"), "{error}");
    let dead = journal.instance();
    drop((arrived, journal));
    let lives = host.lives().unwrap();
    assert_eq!(lives.past().answer(dead, &guest(), Epoch(2)), Some(PastAnswer::MayHaveRun));
    assert_eq!(lives.open(None), [], "nobody waits for its word");
    let error = takes(&duplicate, begins(&host), &mut builder()).unwrap_err();
    let TakeError::Used { highest, .. } = error else { panic!("{error:?}") };
    assert_eq!(highest, Epoch(2));
    assert_eq!(survey(&duplicate).unwrap().taken, None);
}

#[test]
fn an_old_file_is_not_taken_where_its_guest_went_on() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let path = saved(folder.path(), &host);
    begins(&host).write(&Record::Born(OfGuest { guest: guest(), epoch: Epoch(3) })).unwrap();
    let error = takes(&path, begins(&host), &mut builder()).unwrap_err();
    assert!(matches!(&error, TakeError::Used { highest: Epoch(3), .. }), "{error:?}");
    assert!(error.to_string().contains("--clone"), "{error}");
}

#[test]
fn a_guest_that_cannot_be_started_is_refused_in_the_journal_and_stays_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let path = saved(folder.path(), &host);
    let journal = begins(&host);
    let options = SimOptions { faults: SimFaults::always(Call::Resume), ..SimOptions::default() };
    takes(&path, journal.clone(), &mut SimBuilder::new(options)).unwrap_err();
    assert_eq!(said(&host, &*journal), (Some(PastAnswer::NeverRan), 0));
    drop(journal);
    is_undisturbed(&mut takes(&path, begins(&host), &mut builder()).unwrap().machine);
}

/// A journal on a full disk.
#[derive(Debug)]
struct Full(Volatile);

impl Journal for Full {
    fn instance(&self) -> InstanceId {
        self.0.instance()
    }

    fn write(&self, _: &Record) -> Result<(), JournalError> {
        Err(JournalError::new(Path::new("/full"), io::ErrorKind::StorageFull.into()))
    }

    fn note(&self, _: &Record) {}

    fn past(&self) -> Result<Past, JournalError> {
        self.0.past()
    }
}
