//! What happened, in plain words, one line an event.

use ferry_protocol::{SourceOutcome, TargetOutcome, Time};

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Telling {
    /// Nothing: the fastest.
    Nothing,
    /// What a person would tell of it: faults, phases, who runs the guest.
    Story,
    /// Every message, job and decision as well.
    Steps,
}

/// The lines told so far.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    telling: Telling,
    pub(crate) lines: Vec<String>,
}

impl Story {
    pub(crate) fn new(telling: Telling) -> Self {
        Self { telling, lines: Vec::new() }
    }

    /// Tells what matters.
    pub(crate) fn tell(&mut self, now: Time, line: impl FnOnce() -> String) {
        self.put(Telling::Story, now, line);
    }

    /// Tells a step.
    pub(crate) fn step(&mut self, now: Time, line: impl FnOnce() -> String) {
        self.put(Telling::Steps, now, line);
    }

    fn put(&mut self, least: Telling, now: Time, line: impl FnOnce() -> String) {
        if self.telling >= least {
            self.lines.push(format!("at {}: {}", millis(now.0), line()));
        }
    }
}

/// How a move ended, in words.
pub(crate) fn ends(outcome: &SourceOutcome) -> String {
    match outcome {
        SourceOutcome::Moved { epoch } => format!("the target has the guest, under epoch {epoch}"),
        SourceOutcome::Kept { cause } => format!("the guest stays: {cause}"),
        SourceOutcome::Held { obstacle, .. } => {
            format!("the guest is here and cannot be resumed: {obstacle}")
        }
        SourceOutcome::Abandoned { .. } => "a person gave the guest up".into(),
        SourceOutcome::Doubtful { known, .. } => format!("nobody knows: {known}"),
    }
}

/// How a session ended on the target, in words.
pub(crate) fn session_ends(outcome: &TargetOutcome) -> String {
    match outcome {
        TargetOutcome::Runs { released: true, .. } => "the source let the guest go".into(),
        TargetOutcome::Runs { .. } => "the guest runs, and the source may still ask".into(),
        TargetOutcome::NotTaken { cause, .. } => format!("the guest was not taken: {cause}"),
    }
}

/// Microseconds as milliseconds with three places.
pub(crate) fn millis(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}
