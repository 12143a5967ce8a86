//! An observer that remembers, and that a test can wait for.

use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ferry_migrate::{Observer, Progress, Word};
use ferry_protocol::{Cause, SourcePhase, TargetOutcome, TargetPhase};

use super::PATIENCE;

/// What was told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) source: Vec<SourcePhase>,
    pub(crate) target: Vec<TargetPhase>,
    pub(crate) finished: Vec<TargetOutcome>,
    pub(crate) progress: Vec<Progress>,
    pub(crate) stalled: u32,
    pub(crate) ambiguous: u32,
    pub(crate) words: Vec<Word>,
    pub(crate) choices_refused: Vec<String>,
}

type OnSource = Box<dyn Fn(SourcePhase) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Watching {
    told: Mutex<Told>,
    changed: Condvar,
    on_source: Option<OnSource>,
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).fmt(f)
    }
}

impl Watching {
    /// The engine waits in `on_source` whenever the source enters a phase.
    pub(crate) fn source(on_source: impl Fn(SourcePhase) + Send + Sync + 'static) -> Self {
        Self { on_source: Some(Box::new(on_source)), ..Self::default() }
    }

    pub(crate) fn told(&self) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until something was told.
    pub(crate) fn wait(&self, what: &str, done: impl Fn(&Told) -> bool) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, PATIENCE, |told| !done(told));
        let (told, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "{what} was not told: {told:?}");
    }

    /// Waits for the end of the nth session, counted from 0; why the guest was not taken.
    pub(crate) fn not_taken(&self, nth: usize) -> Cause {
        self.wait("the end of a session", |told| told.finished.len() > nth);
        match self.told().finished.swap_remove(nth) {
            TargetOutcome::NotTaken { cause, .. } => cause,
            other @ TargetOutcome::Runs { .. } => panic!("{other:?}"),
        }
    }

    /// How many sessions are over.
    pub(crate) fn sessions(&self) -> usize {
        self.told().finished.len()
    }

    fn note(&self, note: impl FnOnce(&mut Told)) {
        note(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Observer for Watching {
    fn source_phase(&self, phase: SourcePhase) {
        self.note(|told| told.source.push(phase));
        if let Some(on_source) = &self.on_source {
            on_source(phase);
        }
    }

    fn target_phase(&self, phase: TargetPhase) {
        self.note(|told| told.target.push(phase));
    }

    fn progress(&self, progress: &Progress) {
        self.note(|told| told.progress.push(progress.clone()));
    }

    fn stalled(&self, _predicted: Duration) {
        self.note(|told| told.stalled += 1);
    }

    fn ambiguous(&self) {
        self.note(|told| told.ambiguous += 1);
    }

    fn word(&self, word: &Word) {
        self.note(|told| told.words.push(word.clone()));
    }

    fn choice_refused(&self, why: &str) {
        self.note(|told| told.choices_refused.push(why.to_owned()));
    }

    fn target_finished(&self, outcome: &TargetOutcome) {
        self.note(|told| told.finished.push(outcome.clone()));
    }
}
