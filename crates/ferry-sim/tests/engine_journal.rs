//! What both sides write down, when, and what follows when it cannot be written; processes that follow
//! others; persons and witnesses that decide.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use engine_support::{
    CHURN, Direction, Fate, Journal as Runs, Pass, Proxy, Transport, Waiting, Watching, fresh_address,
    is_kept, is_undisturbed, journal, move_to, options, quick, running, unique, until,
};
use ferry_migrate::journal::{Journal, JournalError, StateFolder, Volatile};
use ferry_migrate::{
    Custody, Decider, Listener, Machine, MemoryWitness, MigrateOptions, Migration, ReceiveOptions, Report,
    Witness, Word,
};
use ferry_protocol::journal::{Choice, Past, Record};
use ferry_protocol::message::ReasonKind;
use ferry_protocol::{
    Cause, Claim, ClaimAnswer, Epoch, InstanceId, PersonsChoice, SourceOutcome, SourcePhase,
};
use ferry_sim::{SimBuilder, SimMachine, SimOptions};

/// A journal whose writes fail where a test wants it, and which says what was written.
#[derive(Debug)]
struct Disk {
    inner: Volatile,
    fails: fn(&Record) -> bool,
    /// How often it still fails.
    times: AtomicUsize,
}

impl Disk {
    fn failing(times: usize, fails: fn(&Record) -> bool) -> Arc<Self> {
        Arc::new(Self { inner: Volatile::new(InstanceId(unique())), fails, times: times.into() })
    }
}

impl Journal for Disk {
    fn instance(&self) -> InstanceId {
        self.inner.instance()
    }

    fn write(&self, record: &Record) -> Result<(), JournalError> {
        let left = self.times.load(Ordering::SeqCst);
        if left > 0 && (self.fails)(record) {
            self.times.store(left - 1, Ordering::SeqCst);
            return Err(JournalError::new(Path::new("/full"), io::ErrorKind::StorageFull.into()));
        }
        self.inner.write(record)
    }

    fn note(&self, record: &Record) {
        self.inner.note(record);
    }

    fn past(&self) -> Result<Past, JournalError> {
        Ok(Past::default())
    }
}

/// The kinds of what was written, in order.
fn kinds(records: &[Record]) -> Vec<&'static str> {
    let kind = |record: &Record| match record {
        Record::Born(_) => "born",
        Record::MayBeGiven(_) => "may be given",
        Record::MayRun(_) => "may run",
        Record::Refused(_) => "refused",
        Record::Decided(_) => "decided",
        Record::Kept(_) => "kept",
        Record::Moved(_) => "moved",
        Record::Runs(_) => "runs",
        Record::Released(_) => "released",
        Record::Ended(_) => "ended",
        Record::Waived(_) => "waived",
        Record::Floor(_) => "floor",
    };
    records.iter().map(kind).collect()
}

fn receives(at: &ferry_migrate::Address, journal: Arc<dyn Journal>, runs: &Arc<Runs>) -> Waiting {
    let options = ReceiveOptions { timeouts: quick(), ..ReceiveOptions::new(journal) };
    let listener = Listener::bind(at, false).unwrap();
    Waiting::on(listener, options, SimBuilder::new(runs.options()), Watching::default())
}

#[test]
fn both_sides_have_written_before_the_first_page_and_write_nothing_while_the_guest_is_paused() {
    let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
    let (ours, theirs) = (journal(), journal());
    let mut source = running(CHURN, runs.options());
    let at = fresh_address(Transport::Unix, folder.path());
    let waiting = receives(&at, theirs.clone(), &runs);
    let how = MigrateOptions { journal: ours.clone(), ..options(&source, &at, 2) };
    let seen: Arc<Mutex<Vec<(SourcePhase, usize, usize)>>> = Arc::default();
    let (noted, a, b) = (Arc::clone(&seen), Arc::clone(&ours), Arc::clone(&theirs));
    let observer = Watching::source(move |phase| {
        noted.lock().unwrap().push((phase, a.records().len(), b.records().len()));
    });
    let (report, _) = Migration::new(how).run(&mut source, &observer);
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    for (phase, ours, theirs) in seen.lock().unwrap().iter() {
        match phase {
            SourcePhase::Connect | SourcePhase::Hello | SourcePhase::Offer => {
                assert_eq!((*ours, *theirs), (0, 0), "{phase:?}");
            }
            SourcePhase::Rounds
            | SourcePhase::Pause
            | SourcePhase::LastRound
            | SourcePhase::State
            | SourcePhase::Ready
            | SourcePhase::Given => assert_eq!((*ours, *theirs), (1, 1), "{phase:?}"),
            _ => {}
        }
    }
    is_undisturbed(&mut waiting.arrived().machine);
    assert_eq!(kinds(&ours.records()), ["may be given", "moved"]);
    assert_eq!(kinds(&theirs.records()), ["may run", "runs", "released"]);
    let Record::MayBeGiven(given) = &ours.records()[0] else { panic!() };
    assert_eq!((given.to, given.address.as_str()), (Some(theirs.instance()), at.to_string().as_str()));
}

#[test]
fn a_source_that_cannot_write_keeps_its_guest_and_never_paused_it() {
    let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
    let mut source = running(CHURN, runs.options());
    let waiting = receives(&fresh_address(Transport::Unix, folder.path()), journal(), &runs);
    let disk = Disk::failing(1, |record| matches!(record, Record::MayBeGiven(_)));
    let how = MigrateOptions { journal: disk.clone(), ..options(&source, &waiting.address, 2) };
    let (report, _) = Migration::new(how).run(&mut source, &());
    let SourceOutcome::Kept { cause: Cause::Machine(text) } = &report.outcome else { panic!("{report:?}") };
    assert!(text.contains("/full cannot be used"), "{text}");
    assert_eq!((report.downtime, report.rounds), (None, 0));
    is_kept(&mut source);
    let how = MigrateOptions { journal: disk, ..options(&source, &waiting.address, 3) };
    until("the target's end of the failed session", || waiting.seen.sessions() > 0);
    let (report, _) = Migration::new(how).run(&mut source, &());
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    is_undisturbed(&mut waiting.arrived().machine);
}

#[test]
fn a_target_that_cannot_write_says_so_before_any_page() {
    let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
    let mut source = running(CHURN, runs.options());
    let disk = Disk::failing(1, |record| matches!(record, Record::MayRun(_)));
    let waiting = receives(&fresh_address(Transport::Unix, folder.path()), disk, &runs);
    let (report, _) = Migration::new(options(&source, &waiting.address, 2)).run(&mut source, &());
    let SourceOutcome::Kept { cause: Cause::Peer(reason) } = &report.outcome else { panic!("{report:?}") };
    assert!(reason.kind == ReasonKind::Machine && reason.text.contains("/full cannot be used"), "{reason:?}");
    assert_eq!((report.downtime, report.rounds), (None, 0));
    move_to(&mut source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}

/// The epochs under which the guest ran.
fn distinct(runs: &Runs) -> Vec<u64> {
    let mut epochs = runs.epochs();
    epochs.dedup();
    epochs
}

/// Loses custody's message, and what comes after it, until the proxy leads on again.
fn custody_lost(pass: &Pass<'_>) -> Fate {
    let is_custody = pass.direction == Direction::ToTarget && pass.frame.name() == "custody";
    if is_custody { Fate::CutBefore } else { Fate::Pass }
}

fn answer_lost(pass: &Pass<'_>) -> Fate {
    let is_answer = pass.direction == Direction::ToSource && pass.frame.name() == "running";
    if is_answer && pass.link == 0 { Fate::CutBefore } else { Fate::Pass }
}

#[test]
fn a_refusal_that_cannot_be_written_is_not_told_and_a_later_question_tries_again() {
    let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
    let mut source = running(CHURN, runs.options());
    let disk = Disk::failing(3, |record| matches!(record, Record::Refused(_)));
    let theirs = Arc::clone(&disk);
    let waiting = receives(&fresh_address(Transport::Unix, folder.path()), disk, &runs);
    let proxy = Proxy::new(&fresh_address(Transport::Unix, folder.path()), &waiting.address, custody_lost);
    let (report, _) = Migration::new(options(&source, &proxy.address, 2)).run(&mut source, &());
    assert!(matches!(&report.outcome, SourceOutcome::Kept { cause: Cause::Peer(_) }), "{report:?}");
    assert!(proxy.accepted() >= 4, "it asked until it was answered");
    assert_eq!(theirs.times.load(Ordering::SeqCst), 0);
    assert_eq!(kinds(&theirs.inner.records()), ["may run", "refused"]);
    is_kept(&mut source);
    move_to(&mut source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}

/// A migration whose outcome is open.
struct Doubt {
    moving: JoinHandle<(Report, Option<Custody>, SimMachine)>,
    seen: Arc<Watching>,
    decider: Decider,
    proxy: Proxy,
}

impl Doubt {
    /// The link dies with custody or with its answer, and new ones are closed at once.
    fn new(
        source: SimMachine,
        how: impl FnOnce(&SimMachine, &Proxy) -> MigrateOptions,
        proxy: Proxy,
    ) -> Self {
        let mut source = source;
        let mut how = how(&source, &proxy);
        how.config.timeouts.settle = engine_support::SHORT;
        let migration = Migration::new(how);
        let decider = migration.decider();
        let dead = proxy.switch();
        let seen = Arc::new(Watching::source(move |phase| {
            if phase == SourcePhase::Ready {
                dead.store(true, Ordering::SeqCst);
            }
        }));
        let watching = Arc::clone(&seen);
        let moving = std::thread::spawn(move || {
            let (report, custody) = migration.run(&mut source, &*watching);
            (report, custody, source)
        });
        seen.wait("that the outcome is ambiguous", |told| told.ambiguous > 0);
        Self { moving, seen, decider, proxy }
    }

    fn decide(&self, choice: Choice) {
        let choice = PersonsChoice::new(choice, "the other host burned", 7).unwrap();
        assert!(self.decider.decide(choice));
    }
}

/// A target that took the guest or did not, and is gone; the source asks one that follows it.
fn follows(took: bool) -> (Doubt, Waiting, Arc<Runs>, tempfile::TempDir) {
    let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
    let state = StateFolder::open(&folder.path().join("state")).unwrap();
    let first = Arc::new(state.begin(InstanceId(unique())).unwrap());
    let its_life = Arc::downgrade(&first);
    let source = running(CHURN, runs.options());
    let elsewhere = Arc::new(Runs::default());
    let its_runs = if took { &runs } else { &elsewhere };
    let waiting = receives(&fresh_address(Transport::Unix, folder.path()), first, its_runs);
    let way = waiting.address.clone();
    let rule = if took { answer_lost } else { custody_lost };
    let proxy = Proxy::new(&fresh_address(Transport::Unix, folder.path()), &way, rule);
    let doubt = Doubt::new(source, |source, proxy| options(source, &proxy.address, 2), proxy);
    if took {
        drop(waiting.arrived());
    } else {
        // It never hears of custody: the next one on its address is another process.
        until("the first one's end", || waiting.seen.sessions() > 0);
        let mut other = running(CHURN, SimOptions::default());
        move_to(&mut other, &waiting.address, 9);
        drop(waiting.arrived());
    }
    // As long as it holds its journal it lives, and others say so.
    until("the first one's end", || its_life.strong_count() == 0);
    let second = Arc::new(state.begin(InstanceId(unique())).unwrap());
    let waiting = receives(&fresh_address(Transport::Unix, folder.path()), second, &runs);
    doubt.proxy.lead_to(&waiting.address);
    doubt.proxy.set_dead(false);
    (doubt, waiting, runs, folder)
}

#[test]
fn a_process_that_follows_one_that_refused_refuses_in_its_place() {
    let (doubt, waiting, runs, _folder) = follows(false);
    let (report, _, mut source) = doubt.moving.join().unwrap();
    assert!(matches!(&report.outcome, SourceOutcome::Kept { cause: Cause::Peer(_) }), "{report:?}");
    is_kept(&mut source);
    // The epochs of the process before it can never be taken here.
    let (report, _) = Migration::new(options(&source, &waiting.address, 9)).run(&mut source, &());
    let SourceOutcome::Kept { cause: Cause::Peer(reason) } = &report.outcome else { panic!("{report:?}") };
    assert!(reason.kind == ReasonKind::OldEpoch && reason.text.contains("not above 9"), "{reason:?}");
    move_to(&mut source, &waiting.address, 10);
    is_undisturbed(&mut waiting.arrived().machine);
    runs.epochs();
}

#[test]
fn a_process_that_follows_one_that_may_have_run_it_never_refuses_and_a_person_decides() {
    let (doubt, waiting, runs, _folder) = follows(true);
    doubt.seen.wait("what the journal says", |told| told.words.contains(&Word::MayHaveRun));
    assert!(!doubt.moving.is_finished());
    doubt.decide(Choice::TargetRuns);
    doubt.seen.wait("that the choice is wrong", |told| !told.choices_refused.is_empty());
    let refused = doubt.seen.told().choices_refused.swap_remove(0);
    assert!(refused.contains("its process is gone, and the guest with it"), "{refused}");
    doubt.decide(Choice::SourceRuns);
    let (report, _, mut source) = doubt.moving.join().unwrap();
    let decided = SourceOutcome::Kept { cause: Cause::Decided(Choice::SourceRuns) };
    assert_eq!((report.outcome, report.raised_to), (decided, Some(Epoch(3))));
    is_kept(&mut source);
    // It runs above what the target may have run.
    assert_eq!(distinct(&runs), [1, 2, 3]);
    let (report, _) = Migration::new(options(&source, &waiting.address, 3)).run(&mut source, &());
    assert!(matches!(report.outcome, SourceOutcome::Kept { .. }), "its epoch was used: {report:?}");
    until("the target's end of the failed session", || waiting.seen.sessions() > 0);
    move_to(&mut source, &waiting.address, 4);
    is_undisturbed(&mut waiting.arrived().machine);
}

#[test]
fn a_choice_is_written_before_it_is_followed() {
    for (choice, kept) in [(Choice::TargetRuns, false), (Choice::Abandon, false), (Choice::SourceRuns, true)]
    {
        let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
        let source = running(CHURN, runs.options());
        let waiting = receives(&fresh_address(Transport::Unix, folder.path()), journal(), &runs);
        let proxy =
            Proxy::new(&fresh_address(Transport::Unix, folder.path()), &waiting.address, custody_lost);
        let disk = Disk::failing(1, |record| matches!(record, Record::Decided(_)));
        let ours = Arc::clone(&disk);
        let how = |source: &SimMachine, proxy: &Proxy| MigrateOptions {
            journal: disk,
            ..options(source, &proxy.address, 2)
        };
        let doubt = Doubt::new(source, how, proxy);
        doubt.seen.wait("that nobody can be asked", |told| {
            told.words.iter().any(|word| matches!(word, Word::NoLink(_)))
        });
        doubt.decide(choice);
        doubt.seen.wait("that it cannot be written", |told| !told.choices_refused.is_empty());
        assert!(!doubt.moving.is_finished());
        doubt.decide(choice);
        let (report, custody, mut source) = doubt.moving.join().unwrap();
        assert_eq!(custody, None);
        match report.outcome {
            SourceOutcome::Moved { epoch } => assert_eq!((choice, epoch), (Choice::TargetRuns, Epoch(2))),
            SourceOutcome::Abandoned { epoch } => assert_eq!((choice, epoch), (Choice::Abandon, Epoch(2))),
            SourceOutcome::Kept { cause } => assert_eq!(cause, Cause::Decided(Choice::SourceRuns)),
            other => panic!("{other:?}"),
        }
        let decided = ours.inner.records().into_iter().find_map(|record| match record {
            Record::Decided(decided) => Some(decided),
            _ => None,
        });
        let decided = decided.unwrap();
        assert_eq!((decided.choice, decided.reason.as_str()), (choice, "the other host burned"));
        if kept {
            // The guest ran before its new epoch was noted.
            assert_eq!(kinds(&ours.inner.records()), ["may be given", "decided", "kept", "runs"]);
            is_kept(&mut source);
        } else {
            assert!(source.pause().is_err(), "it does not run here");
            assert!(!runs.runs());
        }
    }
}

#[test]
fn a_choice_before_custody_was_given_is_refused() {
    let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
    let mut source = running(CHURN, runs.options());
    let waiting = receives(&fresh_address(Transport::Unix, folder.path()), journal(), &runs);
    let migration = Migration::new(options(&source, &waiting.address, 2));
    let decider = migration.decider();
    let seen = Watching::source(move |phase| {
        if phase == SourcePhase::Hello {
            assert!(decider.decide(PersonsChoice::new(Choice::Abandon, "no", 0).unwrap()));
        }
    });
    let (report, _) = migration.run(&mut source, &seen);
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    let told = seen.told().choices_refused;
    assert!(told.len() == 1 && told[0].contains("custody was not given"), "{told:?}");
    is_undisturbed(&mut waiting.arrived().machine);
}

/// A store that can be out of reach.
#[derive(Debug, Default)]
struct Store {
    records: MemoryWitness,
    unreached: AtomicUsize,
}

impl Witness for Store {
    fn claim(&self, claim: &Claim, holder: InstanceId) -> ClaimAnswer {
        let left = self.unreached.load(Ordering::SeqCst);
        if left > 0 {
            self.unreached.store(left - 1, Ordering::SeqCst);
            return ClaimAnswer::Unreached("no route".into());
        }
        self.records.claim(claim, holder)
    }
}

/// A witness decides whatever the link does; nobody is asked.
fn with_witness(rule: fn(&Pass<'_>) -> Fate, unreached: usize) -> (Report, Arc<Runs>, (InstanceId, Epoch)) {
    let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
    let store = Arc::new(Store { unreached: unreached.into(), ..Store::default() });
    let mut source = running(CHURN, runs.options());
    let (ours, theirs) = (journal(), journal());
    store.records.record("guest".parse().unwrap(), ours.instance(), Epoch(1));
    let listener = Listener::bind(&fresh_address(Transport::Unix, folder.path()), false).unwrap();
    let witness: Arc<dyn Witness> = Arc::clone(&store) as Arc<dyn Witness>;
    let receive = ReceiveOptions {
        witness: Some(Arc::clone(&witness)),
        timeouts: quick(),
        ..ReceiveOptions::new(theirs.clone())
    };
    let waiting = Waiting::on(listener, receive, SimBuilder::new(runs.options()), Watching::default());
    let proxy = Proxy::new(&fresh_address(Transport::Unix, folder.path()), &waiting.address, rule);
    let mut how = options(&source, &proxy.address, 2);
    (how.journal, how.witness) = (ours.clone(), Some(witness));
    how.config.witness = Some(Epoch(1));
    let (report, _) = Migration::new(how).run(&mut source, &());
    let holder = store.records.holder(&"guest".parse().unwrap()).unwrap();
    match &report.outcome {
        SourceOutcome::Moved { .. } => {
            assert_eq!(holder, (theirs.instance(), Epoch(2)));
            is_undisturbed(&mut waiting.arrived().machine);
        }
        SourceOutcome::Kept { .. } => {
            assert_eq!(holder, (ours.instance(), Epoch(3)));
            is_kept(&mut source);
        }
        other => panic!("{other:?}"),
    }
    runs.epochs();
    (report, runs, holder)
}

#[test]
fn a_witness_settles_what_the_link_cannot() {
    for unreached in [0, 3] {
        let (report, runs, _) = with_witness(|_| Fate::Pass, unreached);
        assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
        assert_eq!(distinct(&runs), [1, 2]);
        let (report, runs, _) = with_witness(custody_lost, unreached);
        // Also where the target refuses before the witness can be reached.
        let is_kept =
            matches!(&report.outcome, SourceOutcome::Kept { cause: Cause::Witness(_) | Cause::Peer(_) });
        assert!(is_kept, "{report:?}");
        assert_eq!((distinct(&runs), report.raised_to), (vec![1, 3], Some(Epoch(3))));
        let (report, ..) = with_witness(answer_lost, unreached);
        assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    }
}

#[test]
fn a_target_without_the_sources_witness_takes_nothing() {
    let (folder, runs) = (tempfile::tempdir().unwrap(), Arc::new(Runs::default()));
    let mut source = running(CHURN, runs.options());
    let waiting = receives(&fresh_address(Transport::Unix, folder.path()), journal(), &runs);
    let mut how = options(&source, &waiting.address, 2);
    how.config.witness = Some(Epoch(1));
    how.witness = Some(Arc::new(MemoryWitness::default()));
    let (report, _) = Migration::new(how).run(&mut source, &());
    let SourceOutcome::Kept { cause: Cause::Peer(reason) } = &report.outcome else { panic!("{report:?}") };
    assert!(reason.text.contains("names a witness"), "{reason:?}");
    is_kept(&mut source);
    move_to(&mut source, &waiting.address, 3);
    is_undisturbed(&mut waiting.arrived().machine);
}
