//! A device's thread: event-manager waits for what wakes it, then the device has its turn.
//!
//! Each device has its own, so that a slow disk holds no network up.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use ferry_memory::PageSet;
use ferry_migrate::{MachineError, Saved};
use ferry_state::Section;

use super::device::{Backend, Device};

/// A device with its thread, as the engine has it; dropping it ends the thread.
pub(super) struct Thread<B: Backend> {
    device: Arc<Device<B>>,
    handle: Option<JoinHandle<()>>,
}

impl<B: Backend> Thread<B> {
    /// Starts it.
    pub(super) fn start(device: Arc<Device<B>>) -> Result<Self, MachineError> {
        let what = "the thread of a device cannot be started";
        let mut manager = EventManager::new().map_err(|error| MachineError::with_source(what, error))?;
        let wake = Wake { device: Arc::clone(&device), failure: None };
        let id = manager.add_subscriber(wake);
        let failure = manager.subscriber_mut(id).map(|wake| wake.failure.take());
        match failure {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Err(MachineError::with_source(what, error)),
        }
        let its = Arc::clone(&device);
        let handle = std::thread::Builder::new()
            .name(format!("{}-{}", B::NAME, device.place()))
            .spawn(move || run(&its, &mut manager))
            .map_err(|error| MachineError::with_source(what, error))?;
        Ok(Self { device, handle: Some(handle) })
    }
}

impl<B: Backend> Drop for Thread<B> {
    fn drop(&mut self) {
        self.device.leave();
        if self.handle.take().is_some_and(|handle| handle.join().is_err()) {
            tracing::error!(device = B::NAME, "a device's thread panicked");
        }
    }
}

impl<B: Backend> ferry_migrate::Device for Thread<B> {
    fn name(&self) -> String {
        B::NAME.to_owned()
    }

    fn index(&self) -> u32 {
        self.device.place()
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        self.device.save()
    }

    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        self.device.restore(section)
    }

    fn harvest_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.device.harvest_dirty(into)
    }

    fn quiesce(&mut self) -> Result<(), MachineError> {
        self.device.quiesce()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.device.resume()
    }

    fn announce(&mut self) {
        self.device.announce();
    }
}

fn run<B: Backend>(device: &Device<B>, manager: &mut EventManager<Wake<B>>) {
    while !device.is_leaving() {
        let due = device.turn();
        if let Err(error) = manager.run_with_timeout(milliseconds(due)) {
            // Cannot be: the descriptors stay open and the memory is there.
            tracing::error!(device = B::NAME, %error, "a device's thread ends");
            return;
        }
    }
}

/// As epoll has it: rounded up, and -1 for no end.
fn milliseconds(due: Option<Duration>) -> i32 {
    due.map_or(-1, |due| i32::try_from(due.as_micros().div_ceil(1000)).unwrap_or(i32::MAX))
}

/// What wakes the thread.
struct Wake<B> {
    device: Arc<Device<B>>,
    failure: Option<event_manager::Error>,
}

impl<B: Backend> MutEventSubscriber for Wake<B> {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let kick = self.device.kick_event();
        if events.fd() == kick.as_raw_fd()
            && let Err(error) = kick.read()
        {
            tracing::trace!(%error, "a device's eventfd");
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let kicked = ops.add(Events::new(self.device.kick_event(), EventSet::IN));
        // Told once for all that came: what a turn leaves there would wake the thread for ever.
        let source = self.device.with_backend(|backend| backend.source().map(|fd| fd.as_raw_fd()));
        let more =
            source.map_or(Ok(()), |fd| ops.add(Events::new_raw(fd, EventSet::IN | EventSet::EDGE_TRIGGERED)));
        self.failure = kicked.and(more).err();
    }
}
