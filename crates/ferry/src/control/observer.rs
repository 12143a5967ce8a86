//! What happens in a migration, told to whoever waits for it and to the process's own status.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferry_migrate::{Observer, Progress, Word};
use ferry_protocol::{SourcePhase, TargetOutcome, TargetPhase};

use super::Reply;
use super::host::Shared;
use crate::form::{ProgressForm, State};
use crate::output;

/// At most one progress line in this time, phases apart.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The source's side.
#[derive(Debug)]
pub(crate) struct MoveObserver<'a> {
    shared: &'a Shared,
    stalled: AtomicBool,
    last: Mutex<(Option<Instant>, Option<SourcePhase>)>,
}

impl<'a> MoveObserver<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Self { shared, stalled: AtomicBool::new(false), last: Mutex::new((None, None)) }
    }
}

impl Observer for MoveObserver<'_> {
    fn source_phase(&self, phase: SourcePhase) {
        if phase != SourcePhase::Done {
            self.shared.enter(State::Migrating, Some(phase.name()));
        }
        stop_at(self.shared, phase.name());
    }

    fn progress(&self, progress: &Progress) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_due = last.0.is_none_or(|at| now.duration_since(at) >= PROGRESS_EVERY);
        if is_due || last.1 != Some(progress.phase) {
            *last = (Some(now), Some(progress.phase));
            let form = ProgressForm::new(progress, self.stalled.load(Ordering::Relaxed));
            // A client that does not read misses progress, never the report.
            self.shared.tell(&Reply::Progress(form));
        }
    }

    fn stalled(&self, _predicted: Duration) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    fn ambiguous(&self) {
        self.shared.enter(State::Ambiguous, Some(SourcePhase::Asking.name()));
        let message =
            "custody was given and nobody answers who runs the guest: it stays paused here, and this \
                       side goes on asking; look at `ferry status` on the target, then at `ferry recover` here"
                .to_owned();
        output::note(&format!("ferry: {message}"));
        self.shared.tell(&Reply::Ambiguous { message });
    }

    fn word(&self, word: &Word) {
        self.shared.hear(word.to_string());
    }

    fn choice_refused(&self, why: &str) {
        self.shared.refuse_choice(why);
    }
}

/// The target's side.
#[derive(Debug)]
pub(crate) struct ArrivalObserver<'a> {
    pub(crate) shared: &'a Shared,
}

impl Observer for ArrivalObserver<'_> {
    fn target_phase(&self, phase: TargetPhase) {
        match phase {
            // The session is over because the source let the guest go: it is handed over next.
            TargetPhase::Waiting if self.shared.has_custody() => {}
            TargetPhase::Waiting => self.shared.enter(State::Waiting, None),
            _ => self.shared.enter(State::Receiving, Some(phase.name())),
        }
        stop_at(self.shared, phase.name());
    }

    fn target_finished(&self, outcome: &TargetOutcome) {
        if let TargetOutcome::NotTaken { cause, .. } = outcome {
            output::note(&format!("ferry: a guest was offered and not taken: {cause}; still waiting"));
        }
    }
}

/// A test's hook: the process stops itself, once, and whoever tests kills or continues it.
fn stop_at(shared: &Shared, phase: &str) {
    let is_there = shared.test.stop_at.as_deref() == Some(phase);
    if is_there && !shared.has_stopped.swap(true, Ordering::AcqRel) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }
}
