//! What happened, in plain words, one line an event.

use ferry_protocol::Time;

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

/// Microseconds as milliseconds with three places.
pub(crate) fn millis(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}
