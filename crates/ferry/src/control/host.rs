//! A process that has a guest: what it knows, and its main loop.
//!
//! The main thread owns the guest's fate: it runs migrations and ends the process. Threads of the
//! control socket read what it publishes in [`Shared`] and hand it jobs.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use ferry_contract::Contract;
use ferry_migrate::oneway::{Place, PlaceError};
use ferry_migrate::{Answering, Canceller, Custody, Machine, Migration};
use ferry_protocol::message::MAX_LANES;
use ferry_protocol::{Cause, Epoch, GuestId, MachineDescription, SessionId, SourceConfig, SourceOutcome};
use ferry_vmm::{AnyGuest, CheckReport, DirtyKind, Guest, GuestReport, fresh_seed};

use super::observer::MoveObserver;
use super::route::Route;
use super::{Reply, Request};
use crate::cli::TestArgs;
use crate::error::{CliError, Kind};
use crate::form::{ArrivalForm, MigrationReport, State, Status};
use crate::size::Millis;

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

/// A migration that can begin.
#[derive(Debug)]
pub(crate) struct Planned {
    migration: Migration,
    id: GuestId,
    epoch: Epoch,
    verify: bool,
    to: String,
}

/// What all threads of the process see.
#[derive(Debug)]
pub(crate) struct Shared {
    facts: Mutex<Facts>,
    guest: Mutex<Option<AnyGuest>>,
    /// Who wants to hear of the migration under way; and the handle that ends it.
    audience: Mutex<Audience>,
    /// Whether the process stopped itself already, where a test wanted it.
    pub(crate) has_stopped: AtomicBool,
    pub(crate) jobs: Sender<Job>,
    pub(crate) test: TestArgs,
}

/// The clients of the migration under way.
#[derive(Debug, Default)]
struct Audience {
    listeners: Vec<Listener>,
    canceller: Option<Canceller>,
}

/// The most clients that watch one migration.
const MAX_LISTENERS: usize = 32;

#[derive(Debug)]
struct Facts {
    id: Option<GuestId>,
    backend: &'static str,
    state: State,
    phase: Option<&'static str>,
    epoch: Option<Epoch>,
    /// The highest epoch that this process used or offered.
    highest: Epoch,
    machine: Option<MachineDescription>,
    dirty: Option<DirtyKind>,
    report: Option<GuestReport>,
    listen: Option<String>,
    last_migration: Option<MigrationReport>,
    arrival: Option<ArrivalForm>,
}

impl Shared {
    pub(crate) fn new(
        id: Option<GuestId>,
        backend: &'static str,
        jobs: Sender<Job>,
        test: TestArgs,
    ) -> Arc<Self> {
        let facts = Facts {
            id,
            backend,
            state: State::Waiting,
            phase: None,
            epoch: None,
            highest: Epoch::BIRTH,
            machine: None,
            dirty: None,
            report: None,
            listen: None,
            last_migration: None,
            arrival: None,
        };
        Arc::new(Self {
            facts: Mutex::new(facts),
            guest: Mutex::new(None),
            audience: Mutex::default(),
            has_stopped: AtomicBool::new(false),
            jobs,
            test,
        })
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest runs here from now on.
    pub(crate) fn adopt(&self, guest: AnyGuest, id: &GuestId, epoch: Epoch) {
        let (machine, report, dirty) = (guest.description(), guest.report(), guest.dirty_kind());
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(guest);
        let mut facts = self.facts();
        facts.id = Some(id.clone());
        facts.state = State::Running;
        facts.phase = None;
        facts.epoch = Some(epoch);
        facts.highest = facts.highest.max(epoch);
        facts.machine = Some(machine);
        facts.dirty = dirty;
        facts.report = Some(report);
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
            backend: facts.backend.into(),
            state: facts.state,
            phase: facts.phase.map(Into::into),
            custody: has_custody(facts.state, facts.phase),
            epoch: facts.epoch.map(|epoch| epoch.0),
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

    fn audience(&self) -> MutexGuard<'_, Audience> {
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

    /// Prepares a migration: a fresh session and an epoch that was never used.
    pub(crate) fn plan(&self, request: &Request, passed: Option<OwnedFd>) -> Result<Planned, CliError> {
        let Request::Migrate {
            to,
            downtime_limit_ms,
            timeout_ms,
            verify,
            lanes,
            bandwidth_limit_bytes_per_second: bandwidth,
            ..
        } = request
        else {
            return Err(CliError::usage("that is no migration"));
        };
        let place: Place = to.parse().map_err(|error: PlaceError| CliError::usage(error.to_string()))?;
        if !(1..=MAX_LANES).contains(lanes) {
            return Err(CliError::usage(format!("{lanes} lanes are not to be had: give 1 to {MAX_LANES}")));
        }
        let route = Route::new(place, passed)?;
        route.check_lanes(*lanes)?;
        let millis = |value: f64| value.to_string().parse::<Millis>().map_err(CliError::usage);
        let (downtime_limit, total) = (millis(*downtime_limit_ms)?.0, millis(*timeout_ms)?.0);
        let mut facts = self.facts();
        if facts.state == State::Migrating {
            return Err(CliError::plain("the guest is being moved already: wait until that is over"));
        }
        let found = (facts.machine.clone(), facts.id.clone(), facts.state);
        let (Some(machine), Some(id), State::Running) = found else {
            let state = facts.state.name();
            return Err(CliError::plain(format!(
                "no guest that could be moved runs here: this process is `{state}`"
            )));
        };
        facts.highest = facts.highest.next();
        facts.state = State::Migrating;
        let mut config = SourceConfig::new(id.clone(), SessionId(fresh_seed()), facts.highest, machine);
        config.verify = *verify;
        config.lanes = *lanes;
        config.bandwidth_limit = *bandwidth;
        config.downtime_limit = downtime_limit;
        config.timeouts = self.test.timeouts();
        config.timeouts.total = total;
        let (epoch, verify) = (config.epoch, config.verify);
        Ok(Planned { migration: route.migration(config), id, epoch, verify, to: to.clone() })
    }

    fn finished(&self, report: &MigrationReport, state: State) {
        let mut facts = self.facts();
        facts.state = state;
        facts.phase = None;
        facts.last_migration = Some(report.clone());
    }
}

/// How a process with a guest ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The guest was moved away.
    Moved(Box<MigrationReport>),
    /// A client or a signal asked for it.
    Stopped,
}

/// Serves the guest until it is moved away or ended.
pub(crate) fn serve(
    shared: &Shared,
    jobs: &Receiver<Job>,
    answering: Option<Answering>,
) -> Result<End, CliError> {
    // A guest that could not be resumed keeps its custody here; without it nothing could run it.
    let mut held: Option<Custody> = None;
    let end = loop {
        match jobs.recv_timeout(LOOK) {
            Ok(Job::Migrate(wanted)) => {
                let Some((report, custody, heard)) = migrate(shared, *wanted) else { continue };
                held = custody.or(held);
                if report.outcome == "moved" {
                    await_clients(&heard);
                    break End::Moved(Box::new(report));
                }
            }
            Ok(Job::Stop { replies, heard }) => {
                drop(shared.guest.lock().unwrap_or_else(PoisonError::into_inner).take());
                let _ = replies.send(Reply::Stopped);
                drop(replies);
                await_clients(&[heard]);
                break End::Stopped;
            }
            Err(RecvTimeoutError::Timeout) => look_after(shared)?,
            Err(RecvTimeoutError::Disconnected) => break End::Stopped,
        }
    };
    drop((held, answering));
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

/// Notices a guest that ended by itself.
fn look_after(shared: &Shared) -> Result<(), CliError> {
    let status = shared.status();
    match (status.state, status.stopped) {
        (State::Running, Some(why)) => {
            shared.enter(State::Ended, None);
            let id = status.id.unwrap_or_default();
            Err(CliError::plain(format!("the guest `{id}` ended by itself: {why}")))
        }
        _ => Ok(()),
    }
}

/// Moves the guest; nothing happens without one. The report also says who is still to hear it.
fn migrate(shared: &Shared, wanted: Move) -> Option<(MigrationReport, Option<Custody>, Vec<Receiver<()>>)> {
    let mut seat = shared.guest.lock().unwrap_or_else(PoisonError::into_inner);
    let Planned { migration, id, epoch, verify, to } = wanted.planned;
    let guest = seat.as_mut()?;
    let started = wanted.client.replies.clone();
    // Whoever hears that it started can watch and cancel it.
    *shared.audience() = Audience { listeners: vec![wanted.client], canceller: Some(migration.canceller()) };
    let _ = started.send(Reply::Started { epoch: epoch.0 });
    drop(started);
    let (report, custody) = migration.run(guest, &MoveObserver::new(shared));
    let who = (id.as_str(), shared.facts().backend, guest.dirty_kind());
    let form = MigrationReport::new(who, &to, verify, &report);
    let state = match &report.outcome {
        SourceOutcome::Moved { .. } | SourceOutcome::Abandoned { .. } => State::Moved,
        SourceOutcome::Kept { .. } => State::Running,
        SourceOutcome::Held { .. } => State::Held,
        // It stays paused here: whoever has the file may run it.
        SourceOutcome::Doubtful { .. } => State::Ambiguous,
    };
    if state == State::Moved {
        drop(seat.take());
    }
    drop(seat);
    shared.finished(&form, state);
    let listeners = std::mem::take(&mut *shared.audience()).listeners;
    let told = listeners.into_iter().map(|Listener { replies, heard }| {
        let _ = replies.send_timeout(Reply::Report(Box::new(form.clone())), LAST_REPLY);
        heard
    });
    let heard = told.collect();
    Some((form, custody, heard))
}

/// The error that a report is for whoever waited for it.
pub(crate) fn error_of(report: &MigrationReport) -> CliError {
    let reason = report.reason.clone().unwrap_or_default();
    if report.outcome == "doubtful" {
        let message = format!("who may run the guest `{}` is not known: {reason}", report.id);
        return CliError::new(Kind::Ambiguous, message);
    }
    let guest = match report.outcome.as_str() {
        "held" => "is paused on this host",
        _ => "still runs on this host",
    };
    let message = format!("the guest `{}` was not moved to {} and {guest}: {reason}", report.id, report.to);
    CliError { kind: Kind::of_status(report.exit_status), message, findings: report.findings.clone() }
}

/// The cause that a session without a guest gives; kept here so that its words stay together.
pub(crate) fn session_failed(cause: &Cause) -> String {
    format!("a guest was offered and not taken: {cause}; still waiting")
}
