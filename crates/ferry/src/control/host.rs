//! A process that has a guest: what it knows, and its main loop.
//!
//! The main thread owns the guest's fate: it runs migrations and ends the process. Threads of the
//! control socket read what it publishes in [`Shared`] and hand it jobs.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use ferry_contract::Contract;
use ferry_migrate::journal::Journal;
use ferry_migrate::{Answering, Canceller, Custody, Decider, Machine};
use ferry_protocol::{Epoch, GuestId, MachineDescription, PersonsChoice, SourceOutcome};
use ferry_vmm::{AnyBuilder, AnyGuest, CheckReport, DirtyKind, Guest, GuestReport, SerialPort};

use super::Reply;
use super::deciding::{self, Doubt};
use super::looking;
use super::observer::MoveObserver;
use super::planning::Planned;
use crate::cli::TestArgs;
use crate::error::CliError;
use crate::form::{ArrivalForm, DoubtForm, MigrationReport, State, Status};
use crate::terminal::Console;

/// How long a guest may take to verify all its pages.
const CHECK: Duration = Duration::from_secs(120);

/// How often the main loop looks whether the guest ended by itself.
const LOOK: Duration = Duration::from_millis(500);

/// How long a question waits before it tries again to have the guest to itself.
const BETWEEN_TRIES: Duration = Duration::from_millis(2);

/// Something for the main loop to do.
#[derive(Debug)]
pub(crate) enum Job {
    Migrate(Box<Move>),
    Decide(Option<PersonsChoice>, Listener),
    Stop { replies: Sender<Reply>, heard: Receiver<()> },
}

/// How long the process waits, before it ends, until a client has its last reply.
const LAST_REPLY: Duration = Duration::from_secs(6);

/// A migration that a client asked for.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) planned: Planned,
    pub(crate) client: Listener,
}

/// A client that hears of a migration. `heard` is disconnected once it has its last reply.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) replies: Sender<Reply>,
    pub(crate) heard: Receiver<()>,
}

/// What all threads of the process see.
#[derive(Debug)]
pub(crate) struct Shared {
    facts: Mutex<Facts>,
    pub(super) guest: Mutex<Option<AnyGuest>>,
    /// That of the guest, for what is typed.
    serial: Mutex<Option<SerialPort>>,
    /// The terminal, while it is the guest's, and what of the guest's output is under way.
    pub(crate) console: Console,
    /// Who wants to hear of the migration under way; and the handle that ends it.
    audience: Mutex<Audience>,
    /// Whether the process stopped itself already, where a test wanted it.
    pub(crate) has_stopped: AtomicBool,
    pub(crate) jobs: Sender<Job>,
    pub(super) journal: Arc<dyn Journal>,
    pub(crate) test: TestArgs,
}

/// The clients of the migration under way.
#[derive(Debug, Default)]
pub(super) struct Audience {
    listeners: Vec<Listener>,
    canceller: Option<Canceller>,
    pub(super) decider: Option<Decider>,
    /// Who made a choice that is being followed.
    pub(super) chose: Option<Listener>,
}

/// The most clients that watch one migration.
const MAX_LISTENERS: usize = 32;

#[derive(Debug)]
pub(super) struct Facts {
    pub(super) id: Option<GuestId>,
    backend: &'static str,
    pub(super) state: State,
    phase: Option<&'static str>,
    pub(super) epoch: Option<Epoch>,
    /// Custody that was given away, while it is not known who runs the guest.
    pub(super) doubt: Option<DoubtForm>,
    /// The highest epoch that this process used or offered.
    pub(super) highest: Epoch,
    pub(super) machine: Option<MachineDescription>,
    /// How many disks the guest has.
    pub(super) disks: usize,
    dirty: Option<DirtyKind>,
    report: Option<GuestReport>,
    listen: Option<String>,
    pub(super) last_migration: Option<MigrationReport>,
    arrival: Option<ArrivalForm>,
}

impl Shared {
    pub(crate) fn new(
        id: Option<GuestId>,
        backend: &'static str,
        jobs: Sender<Job>,
        journal: Arc<dyn Journal>,
        test: TestArgs,
    ) -> Arc<Self> {
        let facts = Facts {
            id,
            backend,
            state: State::Waiting,
            phase: None,
            epoch: None,
            doubt: None,
            highest: Epoch::BIRTH,
            machine: None,
            disks: 0,
            dirty: None,
            report: None,
            listen: None,
            last_migration: None,
            arrival: None,
        };
        Arc::new(Self {
            facts: Mutex::new(facts),
            guest: Mutex::new(None),
            serial: Mutex::new(None),
            console: Console::default(),
            audience: Mutex::default(),
            has_stopped: AtomicBool::new(false),
            jobs,
            journal,
            test,
        })
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest runs here from now on.
    pub(crate) fn adopt(&self, guest: AnyGuest, id: &GuestId, epoch: Epoch) {
        let (machine, report, dirty) = (guest.description(), guest.report(), guest.dirty_kind());
        let disks = guest.disk_images().len();
        self.has_serial(&guest);
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(guest);
        let mut facts = self.facts();
        facts.id = Some(id.clone());
        facts.state = State::Running;
        facts.phase = None;
        facts.epoch = Some(epoch);
        facts.highest = facts.highest.max(epoch);
        facts.machine = Some(machine);
        facts.disks = disks;
        facts.dirty = dirty;
        facts.report = Some(report);
    }

    /// What is typed goes to this guest from now on.
    pub(super) fn has_serial(&self, guest: &AnyGuest) {
        *self.serial.lock().unwrap_or_else(PoisonError::into_inner) = guest.serial().cloned();
    }

    /// Gives input to the guest's serial port; how many bytes it took.
    pub(crate) fn type_in(&self, input: &[u8]) -> usize {
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        serial.as_ref().map_or(0, |port| port.send(input))
    }

    /// Whether the guest runs here, and no migration is under way.
    pub(super) fn is_running(&self) -> bool {
        self.where_it_is().0 == State::Running
    }

    pub(crate) fn listens(&self, address: String) {
        self.facts().listen = Some(address);
    }

    pub(crate) fn arrived(&self, arrival: ArrivalForm) {
        self.facts().arrival = Some(arrival);
    }

    /// The socket's file at which a guest is awaited.
    pub(crate) fn unix_listener(&self) -> Option<PathBuf> {
        let facts = self.facts();
        let waits = matches!(facts.state, State::Waiting | State::Receiving);
        facts.listen.as_ref().filter(|_| waits)?.strip_prefix("unix:").map(PathBuf::from)
    }

    pub(crate) fn enter(&self, state: State, phase: Option<&'static str>) {
        let mut facts = self.facts();
        facts.state = state;
        facts.phase = phase;
    }

    /// Whether this process may run the guest.
    pub(crate) fn has_custody(&self) -> bool {
        let (state, phase) = self.where_it_is();
        has_custody(state, phase)
    }

    fn where_it_is(&self) -> (State, Option<&'static str>) {
        let facts = self.facts();
        (facts.state, facts.phase)
    }

    /// What is known now; the guest's figures are as old as the migration that is under way.
    pub(crate) fn status(&self) -> Status {
        let fresh = match self.guest.try_lock() {
            Ok(guest) => guest.as_ref().map(Guest::report),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => None,
        };
        let mut facts = self.facts();
        if fresh.is_some() {
            facts.report = fresh;
        }
        let report = facts.report.as_ref();
        Status {
            id: facts.id.as_ref().map(ToString::to_string),
            pid: std::process::id(),
            instance: self.journal.instance().to_string(),
            backend: facts.backend.into(),
            state: facts.state,
            phase: facts.phase.map(Into::into),
            custody: has_custody(facts.state, facts.phase),
            epoch: facts.epoch.map(|epoch| epoch.0),
            doubt: facts.doubt.clone(),
            memory_bytes: facts.machine.as_ref().map(MachineDescription::memory_bytes),
            memory_pages: report.and_then(|report| report.memory_pages.clone()),
            memory_pages_reason: report.and_then(|report| report.memory_pages_reason.clone()),
            cpus: facts.machine.as_ref().map(|machine| machine.vcpus),
            dirty_source: facts.dirty.map(|dirty| dirty.name().to_owned()),
            payload: report.map(|report| report.payload.clone()),
            progress: report.map(|report| report.progress),
            pages_checked: report.map(|report| report.pages_checked),
            faults: report.map(|report| report.faults),
            first_fault: report.and_then(|report| report.first_fault.clone()),
            stopped: report.and_then(|report| report.stopped.clone()),
            listen: facts.listen.clone(),
            last_migration: facts.last_migration.clone(),
            arrival: facts.arrival.clone(),
        }
    }

    pub(super) fn audience(&self) -> MutexGuard<'_, Audience> {
        self.audience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who listens. Who does not read misses progress.
    pub(crate) fn tell(&self, reply: &Reply) {
        for listener in &self.audience().listeners {
            let _ = listener.replies.try_send(reply.clone());
        }
    }

    /// Listens to the migration under way; without one the last report is all there is to hear.
    pub(crate) fn watch(&self, listener: Listener) {
        let mut audience = self.audience();
        let reply = if audience.canceller.is_none() {
            let facts = self.facts();
            let nothing =
                || Reply::error(&CliError::plain("no migration is under way here, and none was before"));
            facts.last_migration.clone().map_or_else(nothing, |report| Reply::Report(Box::new(report)))
        } else if audience.listeners.len() >= MAX_LISTENERS {
            Reply::error(&CliError::plain(format!("{MAX_LISTENERS} clients watch this migration already")))
        } else {
            audience.listeners.push(listener);
            return;
        };
        let _ = listener.replies.try_send(reply);
    }

    /// Tells the migration under way to end.
    pub(crate) fn cancel(&self) -> Result<(), CliError> {
        let canceller = self.audience().canceller.clone();
        let none = || CliError::plain("no migration is under way here that could be cancelled");
        let canceller = canceller.ok_or_else(none)?;
        if !self.has_custody() {
            return Err(CliError::plain(
                "it is too late to cancel: custody of the guest was given to the target",
            ));
        }
        if canceller.cancel() { Ok(()) } else { Err(none()) }
    }

    /// What the guest may see.
    pub(crate) fn contract(&self) -> Result<Contract, CliError> {
        let facts = self.facts();
        let bytes = facts.machine.as_ref().map(|machine| machine.contract.as_slice()).unwrap_or_default();
        if bytes.is_empty() {
            let text = "no guest with a contract is here: one in the simulated machine sees no processor";
            return Err(CliError::plain(text));
        }
        Contract::from_bytes(bytes).map_err(|error| CliError::of(&error))
    }

    /// Lets the guest verify itself.
    pub(crate) fn check(&self) -> Result<CheckReport, CliError> {
        let seat = self.seat()?;
        let guest = seat.as_ref().ok_or_else(|| CliError::plain("no guest is here to verify itself"))?;
        guest.verify(CHECK).map_err(|error| CliError::of(&error))
    }

    /// The guest, once no other question has it.
    fn seat(&self) -> Result<MutexGuard<'_, Option<AnyGuest>>, CliError> {
        loop {
            let (state, phase) = self.where_it_is();
            // A guest that runs already is handed over within moments, when its source let it go.
            let arrives = state == State::Receiving && has_custody(state, phase);
            match self.guest.try_lock() {
                Ok(seat) if seat.is_some() || !arrives => return Ok(seat),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                // Another client's question is over soon; a migration may take long.
                Err(TryLockError::WouldBlock) if state != State::Running => {
                    let text = "the guest cannot be asked to verify itself while it is being moved";
                    return Err(CliError::plain(text));
                }
                Ok(_) | Err(TryLockError::WouldBlock) => std::thread::park_timeout(BETWEEN_TRIES),
            }
        }
    }

    pub(super) fn finished(&self, report: &MigrationReport, state: State) {
        let mut facts = self.facts();
        facts.state = state;
        facts.phase = None;
        facts.last_migration = Some(report.clone());
        if state != State::Ambiguous {
            facts.doubt = None;
        }
        if let Some(epoch) = report.raised_to.map(Epoch) {
            facts.epoch = Some(epoch);
            facts.highest = facts.highest.max(epoch);
        }
    }
}

/// How a process with a guest ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The guest was moved away.
    Moved(Box<MigrationReport>),
    /// The guest switched itself off.
    Off,
    /// A client or a signal asked for it.
    Stopped,
}

/// Serves the guest until it is moved away or ended. The builder makes it a new machine when it restarts.
pub(crate) fn serve(
    shared: &Shared,
    jobs: &Receiver<Job>,
    builder: &mut AnyBuilder,
    answering: Option<Answering>,
) -> Result<End, CliError> {
    let end = attend(shared, jobs, builder);
    shared.let_go();
    drop(answering);
    end
}

fn attend(shared: &Shared, jobs: &Receiver<Job>, builder: &mut AnyBuilder) -> Result<End, CliError> {
    // A guest that could not be resumed keeps its custody here; without it nothing could run it.
    let mut held: Option<Custody> = None;
    let mut doubt: Option<Doubt> = None;
    let end = loop {
        let mut unheard = Vec::new();
        match jobs.recv_timeout(LOOK) {
            Ok(Job::Migrate(wanted)) => {
                if let Some(over) = migrate(shared, *wanted) {
                    held = over.custody.or(held);
                    doubt = over.doubt;
                    if over.report.is_gone() {
                        await_clients(&over.heard);
                        break End::Moved(Box::new(over.report));
                    }
                    unheard = over.heard;
                }
            }
            Ok(Job::Decide(choice, Listener { replies, heard })) => {
                let (gone, custody) = deciding::settle(shared, &mut doubt, choice, &replies);
                drop(replies);
                held = custody.or(held);
                unheard.push(heard);
                if let Some(report) = gone {
                    await_clients(&unheard);
                    break End::Moved(Box::new(report));
                }
            }
            Ok(Job::Stop { replies, heard }) => {
                shared.note_end();
                drop(shared.guest.lock().unwrap_or_else(PoisonError::into_inner).take());
                let _ = replies.send(Reply::Stopped);
                drop(replies);
                await_clients(&[heard]);
                break End::Stopped;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break End::Stopped,
        }
        // Also after a job, or clients that ask often would keep the process from it.
        let looked = looking::look_after(shared, builder);
        if !matches!(looked, Ok(None)) {
            await_clients(&unheard);
        }
        if let Some(end) = looked? {
            break end;
        }
    };
    drop(held);
    Ok(end)
}

/// The process ends next: a reply that is not written by then is lost.
fn await_clients(all: &[Receiver<()>]) {
    let until = Instant::now() + LAST_REPLY;
    for heard in all {
        let _ = heard.recv_deadline(until);
    }
}

/// Whether a process in this state may run the guest. A source that gave custody away and asks who
/// runs the guest may not; a target that started the guest may.
fn has_custody(state: State, phase: Option<&'static str>) -> bool {
    match state {
        State::Running | State::Held | State::Ended => true,
        State::Migrating => !matches!(phase, Some("given" | "asking")),
        State::Receiving => phase == Some("running"),
        State::Waiting | State::Ambiguous | State::Moved => false,
    }
}

/// What a migration left.
struct Over {
    report: MigrationReport,
    custody: Option<Custody>,
    doubt: Option<Doubt>,
    /// Who is still to hear the report.
    heard: Vec<Receiver<()>>,
}

/// Moves the guest; nothing happens without one.
fn migrate(shared: &Shared, wanted: Move) -> Option<Over> {
    let mut seat = shared.guest.lock().unwrap_or_else(PoisonError::into_inner);
    let Planned { migration, of, id, epoch, verify, copies_storage, to, guest_time } = wanted.planned;
    let guest = seat.as_mut()?;
    guest.set_guest_time(guest_time);
    let started = wanted.client.replies.clone();
    let decider = migration.decider();
    // Whoever hears that it started can watch and cancel it.
    *shared.audience() = Audience {
        listeners: vec![wanted.client],
        canceller: Some(migration.canceller()),
        decider: Some(decider.clone()),
        chose: None,
    };
    shared.facts().doubt = Some(DoubtForm::new(epoch, &to));
    let _ = started.send(Reply::Started { epoch: epoch.0 });
    drop(started);
    let (report, custody) = migration.run(guest, &MoveObserver::new(shared));
    let who = (id.as_str(), shared.facts().backend, guest.dirty_kind());
    let mut form = MigrationReport::new(who, &to, verify, &report);
    if copies_storage {
        form.disk_bytes = guest.disk_images().iter().map(|image| image.bytes()).sum();
    }
    let state = match &report.outcome {
        SourceOutcome::Moved { .. } | SourceOutcome::Abandoned { .. } => State::Moved,
        SourceOutcome::Kept { .. } => State::Running,
        SourceOutcome::Held { .. } => State::Held,
        // It stays paused here: whoever has the file may run it.
        SourceOutcome::Doubtful { .. } => State::Ambiguous,
    };
    if form.is_gone() {
        drop(seat.take());
    }
    drop(seat);
    shared.finished(&form, state);
    let Audience { listeners, chose, .. } = std::mem::take(&mut *shared.audience());
    let told = listeners.into_iter().chain(chose).map(|Listener { replies, heard }| {
        let _ = replies.send_timeout(Reply::Report(Box::new(form.clone())), LAST_REPLY);
        heard
    });
    let heard = told.collect();
    let doubt = (state == State::Ambiguous).then(|| Doubt { of, guest: id, to, decider });
    Some(Over { report: form, custody, doubt, heard })
}
