//! Whether a machine's guest runs, and under which custody: a machine runs one guest, under epochs that only grow.

use std::sync::Arc;

use ferry_migrate::{Custody, MachineError, RunWatch};
use ferry_protocol::{Epoch, GuestId};

/// Who may run the guest, and whether it does.
///
/// It is declared behind the vCPUs, so that it tells the watch of the stop only once they are gone.
#[derive(Default)]
pub(crate) struct Run {
    /// Held exactly while the guest runs.
    pub(crate) custody: Option<Custody>,
    /// The guest of the first custody, and the highest epoch so far.
    pub(crate) bound: Option<(GuestId, Epoch)>,
    pub(crate) watch: Option<Arc<dyn RunWatch>>,
}

impl Run {
    /// Whether the guest may be run under this custody.
    pub(crate) fn admits(&self, custody: &Custody) -> Result<(), MachineError> {
        if let Some(held) = &self.custody {
            return Err(MachineError::new(format!("guest {} runs already", held.guest())));
        }
        match &self.bound {
            Some((guest, _)) if guest != custody.guest() => Err(MachineError::new(format!(
                "this machine holds guest {guest}, the custody is of guest {}",
                custody.guest()
            ))),
            Some((guest, epoch)) if *epoch > custody.epoch() => Err(MachineError::new(format!(
                "guest {guest} has run under epoch {epoch}, the custody is of the older epoch {}",
                custody.epoch()
            ))),
            _ => Ok(()),
        }
    }

    /// Before the first vCPU is let go.
    pub(crate) fn starts(&mut self, custody: &Custody) {
        self.bound = Some((custody.guest().clone(), custody.epoch()));
        if let Some(watch) = &self.watch {
            watch.starts(custody);
        }
    }

    /// Once no vCPU runs any more.
    pub(crate) fn stops(&self, custody: &Custody) {
        if let Some(watch) = &self.watch {
            watch.stops(custody);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // The vCPUs were dropped before, so none runs.
        if let Some(custody) = self.custody.take() {
            self.stops(&custody);
        }
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("custody", &self.custody)
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}
