//! Handles by which other threads steer a migration.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use ferry_protocol::{Epoch, PersonsChoice, SourceEvent};
use ferry_state::Resources;

use super::Incoming;
use crate::Custody;
use crate::custody::Given;

/// How long a wish waits for room among the messages that the pump is about to read.
const HEARING: Duration = Duration::from_secs(1);

/// Lets another thread end a migration.
#[derive(Debug, Clone)]
pub struct Canceller {
    events: Sender<Incoming>,
}

impl Canceller {
    pub(super) fn new(events: Sender<Incoming>) -> Self {
        Self { events }
    }

    /// Asks for the end; false if the engine did not hear it, because the migration is over or
    /// because it is stuck. It has no effect once custody was given.
    pub fn cancel(&self) -> bool {
        say(&self.events, SourceEvent::Cancel)
    }
}

/// Lets a person decide what became of a guest, where the two sides cannot settle it.
#[derive(Debug, Clone)]
pub struct Decider {
    events: Sender<Incoming>,
    doubtful: Slot,
}

impl Decider {
    pub(super) fn new(events: Sender<Incoming>, doubtful: Slot) -> Self {
        Self { events, doubtful }
    }

    /// After [`SourceOutcome::Doubtful`](ferry_protocol::SourceOutcome::Doubtful) alone, and once: the
    /// custody of which it was not known whether it is in the file. Take it only after it was seen that
    /// nobody can have it from there, nor will, or because a person said so and that is in the journal;
    /// `epoch` is above the one that was offered. What was let go of after the pause must be taken again
    /// before the guest is resumed.
    pub fn take_back(&self, epoch: Epoch) -> Option<(Custody, Resources)> {
        let (given, released) = self.doubtful.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some((given.back(Some(epoch)), released))
    }

    /// Tells the engine; false if it did not hear it, because the migration is over or because it is
    /// stuck. A choice that is followed ends the migration; one that is not is told to
    /// [`Observer::choice_refused`](crate::Observer::choice_refused).
    pub fn decide(&self, choice: PersonsChoice) -> bool {
        say(&self.events, SourceEvent::Decide(choice))
    }
}

/// Custody that was written into a file, as it seems.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Option<(Given, Resources)>>>);

impl Slot {
    pub(super) fn keep(&self, given: Given, released: Resources) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((given, released));
    }
}

fn say(events: &Sender<Incoming>, event: SourceEvent) -> bool {
    events.send_timeout(Incoming { link: 0, event }, HEARING).is_ok()
}
