//! A virtio device behind memory: registers, queues, interrupt and thread; what it does with its requests is
//! its [`Backend`]'s affair.
//!
//! Who reaches it: the vCPUs' threads read and write its registers ([`MmioDevice`]), its own thread
//! answers requests ([`Device::turn`]), the engine makes it quiet, saves and restores it. The registers have a lock of their own, which is never held while a
//! request is under way: a vCPU that acknowledges an interrupt does not wait for a slow disk. The order of the
//! locks is back, then front.
//!
//! A request is taken, answered and given back under the lock `back`; so who holds it finds no
//! request under way. Whoever wants it makes the thread's turn end after the request at hand, or in the middle of a long
//! one, which is then done again; and kicks the thread afterwards: it looks at every queue then. Therefore no notification is
//! ever lost, be it the guest's before a move or one that the turn left.
//!
//! What may take long without end, a disk's flush, is an [`Errand`], which the thread does between two turns, without the
//! lock: the request for which it is done is still the guest's, and is asked anew afterwards, here or where the guest is then.
//!
//! The interrupt is a level: its line is high while `InterruptStatus` is not 0, and it is set by `KVM_IRQ_LINE`,
//! for the reasons that the serial port gives. When the guest goes on, here or elsewhere, the line is set again from
//! that register: nothing is lost by it, and nothing comes twice.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_memory::PageSet;
use ferry_migrate::{MachineError, Saved};
use ferry_state::device::VirtioTransport;
use ferry_state::{Part, Section};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::chain::Malformed;
use super::complaints::Complaints;
use super::memory::DeviceMemory;
use super::registers::{Effect, Registers};
use super::ring::{Progress, Ring};
use super::turn::{Shared, Turn};
use super::turnstile::{Held, Turnstile};
use crate::mmio::MmioDevice;

/// How long a pause waits for the request at hand: longer takes only storage that does not answer.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a device of one kind does with its requests.
pub(super) trait Backend: Send + 'static {
    /// What is saved of it.
    type State: Part;

    /// Its name among the machine's devices.
    const NAME: &'static str;

    /// `DeviceID` (virtio 1.2, 5).
    const ID: u32;

    /// The most entries of each queue, powers of two.
    const QUEUES: &'static [u16];

    /// What it offers beside the features of every device.
    fn features(&self) -> u64;

    /// What drivers read from its configuration space.
    fn config(&self) -> Vec<u8>;

    /// Answers the requests that wait.
    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<(), Malformed>;

    /// The driver has reset the device.
    fn reset(&mut self) {}

    /// What is to be done before its next turn; then [`errand_done`](Self::errand_done), unless the driver has reset the device.
    fn errand(&mut self) -> Option<Errand> {
        None
    }

    /// What [`errand`](Self::errand) gave was done.
    fn errand_done(&mut self) {}

    /// What it holds of the guest.
    fn save(&self, transport: VirtioTransport) -> Self::State;

    /// Takes what another one saved, and gives the transport's part back; or says why it cannot be this one's.
    fn restore(&mut self, state: Self::State) -> Result<VirtioTransport, MachineError>;

    /// What else wakes its thread when it can be read, whenever more comes.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// When it wants a turn without being woken.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// The guest has come here, and a turn follows: the network is to be told.
    fn announce(&mut self) {}
}

/// What may take long; only the device's thread waits for it.
pub(super) type Errand = Box<dyn FnOnce() + Send>;

/// An interrupt's line.
pub(super) trait Line: Send {
    /// Raises or lowers it; both may come twice.
    fn set(&self, level: bool) -> io::Result<()>;
}

/// A device; the vCPUs, the engine and its thread share it.
pub(super) struct Device<B> {
    place: u32,
    memory: DeviceMemory,
    front: Mutex<Front>,
    back: Turnstile<Back<B>>,
    kick: EventFd,
    is_leaving: AtomicBool,
    /// The guest has come here, and the backend does not know yet.
    is_announced: AtomicBool,
}

/// What the vCPUs reach at any time.
pub(super) struct Front {
    pub(super) registers: Registers,
    line: Box<dyn Line>,
    is_high: bool,
}

/// What answers requests.
struct Back<B> {
    backend: B,
    rings: Vec<Option<Ring>>,
    /// The life of the registers to which the rings belong.
    life: u64,
    /// From its creation to the first resume, and from each pause to the next resume.
    is_quiet: bool,
    complaints: Complaints,
}

impl Front {
    /// Sets the line to what the registers say, if it is not so.
    pub(super) fn set_line(&mut self) {
        let level = self.registers.interrupts() != 0;
        if level != self.is_high {
            match self.line.set(level) {
                Ok(()) => self.is_high = level,
                Err(error) => tracing::error!(%error, level, "a virtio device's interrupt cannot be set"),
            }
        }
    }
}

impl<B: Backend> Device<B> {
    /// A quiet device at birth, in this place on the bus.
    pub(super) fn new(
        backend: B,
        place: u32,
        memory: GuestMemoryMmap,
        line: Box<dyn Line>,
    ) -> Result<Self, MachineError> {
        let memory = DeviceMemory::new(memory)
            .map_err(|error| MachineError::with_source("no device can use this memory", error))?;
        let kick = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|error| MachineError::with_source("an eventfd for a device cannot be had", error))?;
        let registers = Registers::new(B::ID, backend.features(), B::QUEUES, backend.config());
        let back = Back {
            backend,
            rings: no_rings::<B>(),
            life: 0,
            is_quiet: true,
            complaints: Complaints::default(),
        };
        Ok(Self {
            place,
            memory,
            front: Mutex::new(Front { registers, line, is_high: false }),
            back: Turnstile::new(back),
            kick,
            is_leaving: AtomicBool::new(false),
            is_announced: AtomicBool::new(false),
        })
    }

    /// Where it is on the bus.
    pub(super) fn place(&self) -> u32 {
        self.place
    }

    /// What wakes the thread: a guest's notification writes here, too.
    pub(super) fn kick_event(&self) -> &EventFd {
        &self.kick
    }

    /// Wakes the thread.
    pub(super) fn kick(&self) {
        if let Err(error) = self.kick.write(1) {
            // It is full: the thread is woken already.
            tracing::trace!(%error, "a device's eventfd");
        }
    }

    /// Ends the thread.
    pub(super) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.kick();
    }

    /// Whether the thread is to end.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Uses the backend, with no request under way.
    pub(super) fn with_backend<T>(&self, act: impl FnOnce(&mut B) -> T) -> T {
        let done = act(&mut self.lock_back().backend);
        self.kick();
        done
    }

    /// The guest has come here: the network is to be told, at once and without waiting for a request.
    pub(super) fn announce(&self) {
        self.is_announced.store(true, Ordering::Release);
        self.kick();
    }

    /// Answers the requests that wait, unless the device is quiet. When it wants its next turn.
    pub(super) fn turn(&self) -> Option<Duration> {
        loop {
            let mut back = self.back.lock();
            if back.is_quiet {
                return None;
            }
            if self.is_announced.swap(false, Ordering::AcqRel) {
                back.backend.announce();
            }
            self.serve(&mut back);
            let Some(errand) = back.backend.errand() else {
                return back.backend.due().map(|due| due.saturating_duration_since(Instant::now()));
            };
            let life = back.life;
            drop(back);
            errand();
            let mut back = self.back.lock();
            if back.life == life {
                back.backend.errand_done();
            }
        }
    }

    fn serve(&self, back: &mut Back<B>) {
        let mut turn = Turn { device: self.as_shared(), rings: &mut back.rings };
        if let Err(problem) = back.backend.serve(&mut turn) {
            self.stop(back, &problem);
        }
    }

    /// A turn of another than the thread: `begin` gives the backend what only the caller has, `end` takes what is
    /// left of it. None while the device is quiet.
    pub(super) fn turn_with<T>(
        &self,
        begin: impl FnOnce(&mut B),
        end: impl FnOnce(&mut B) -> T,
    ) -> Option<T> {
        let mut back = self.lock_back();
        if back.is_quiet {
            return None;
        }
        begin(&mut back.backend);
        self.serve(&mut back);
        let done = end(&mut back.backend);
        drop(back);
        self.kick();
        Some(done)
    }

    fn as_shared(&self) -> Shared<'_> {
        Shared {
            memory: &self.memory,
            front: &self.front,
            waiting: self.back.waiting(),
            is_leaving: &self.is_leaving,
            is_announced: &self.is_announced,
        }
    }

    fn lock_front(&self) -> MutexGuard<'_, Front> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the request at hand; whoever calls this kicks the thread afterwards.
    fn lock_back(&self) -> Held<'_, Back<B>> {
        self.back.hurry()
    }

    /// Makes the rings what the registers say.
    fn settle(&self) {
        let mut back = self.lock_back();
        let mut front = self.lock_front();
        if back.life != front.registers.life() {
            back.life = front.registers.life();
            back.rings = no_rings::<B>();
            back.backend.reset();
            front.registers.configure(back.backend.config());
        }
        let event_idx = front.registers.has(VIRTIO_RING_F_EVENT_IDX);
        let mut problem = None;
        for (queue, ring) in back.rings.iter_mut().enumerate() {
            match front.registers.queue_in_use(queue) {
                None => *ring = None,
                Some(_) if ring.is_some() => {}
                Some(place) => match Ring::new(&self.memory, &place, Progress::default(), event_idx) {
                    Ok(made) => *ring = Some(made),
                    Err(error) => problem = Some(error),
                },
            }
        }
        front.set_line();
        drop(front);
        if let Some(problem) = problem {
            self.stop(&mut back, &problem);
        }
        drop(back);
        self.kick();
    }

    /// Stops the device until its driver resets it.
    fn stop(&self, back: &mut Back<B>, problem: &Malformed) {
        back.rings = no_rings::<B>();
        let mut front = self.lock_front();
        front.registers.break_down();
        front.set_line();
        if let Some(unsaid) = back.complaints.may_say(Instant::now()) {
            let (device, place) = (B::NAME, self.place);
            tracing::warn!(device, place, unsaid, %problem, "a device stops until its driver resets it");
        }
    }
}

fn no_rings<B: Backend>() -> Vec<Option<Ring>> {
    B::QUEUES.iter().map(|_| None).collect()
}

impl<B: Backend> MmioDevice for Device<B> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock_front().registers.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut front = self.lock_front();
        let effect = front.registers.write(offset, data);
        if effect == Effect::Interrupt {
            front.set_line();
        }
        drop(front);
        match effect {
            Effect::Nothing | Effect::Interrupt => {}
            Effect::Notify => self.kick(),
            Effect::Settle => self.settle(),
            Effect::Refused => {
                self.stop(&mut self.lock_back(), &Malformed::Features);
                self.kick();
            }
        }
    }
}

/// The engine's side: what [`ferry_migrate::Device`] asks for.
impl<B: Backend> Device<B> {
    /// What the quiet device holds of the guest.
    pub(super) fn save(&self) -> Result<Saved, MachineError> {
        let back = self.lock_back();
        if !back.is_quiet {
            self.kick();
            return Err(MachineError::new(
                "the device goes on, so what it holds cannot be saved: make it quiet first",
            ));
        }
        let front = self.lock_front();
        let progress = |queue: usize| {
            let ring = back.rings.get(queue).and_then(Option::as_ref);
            ring.map_or_else(Progress::default, Ring::progress)
        };
        // Needed is all of it, at birth as well: the guest has found the device, or will.
        Saved::part(&back.backend.save(front.registers.save(progress)), None)
    }

    /// Takes what another one saved.
    pub(super) fn restore(&self, section: &Section) -> Result<(), MachineError> {
        let refused =
            |error| MachineError::with_source(format!("this is no state of a {} device", B::NAME), error);
        let state: B::State = section.read().map_err(refused)?;
        let mut back = self.lock_back();
        let transport = back.backend.restore(state)?;
        let mut front = self.lock_front();
        let registers =
            front.registers.restore(&transport, back.backend.config()).map_err(MachineError::new)?;
        let event_idx = registers.has(VIRTIO_RING_F_EVENT_IDX);
        for (queue, (ring, saved)) in back.rings.iter_mut().zip(&transport.queues).enumerate() {
            if saved.next_available != saved.next_used {
                // No device here has one under way when it is quiet; the guest would wait for its answer for ever.
                return Err(MachineError::new(format!(
                    "queue {queue} of the device was saved in the middle of a request ({} taken, {} answered)",
                    saved.next_available, saved.next_used
                )));
            }
            let progress = Progress { available: saved.next_available, used: saved.next_used };
            let place = registers.queue_in_use(queue);
            let made = place.map(|place| Ring::new(&self.memory, &place, progress, event_idx)).transpose();
            *ring = made.map_err(|error| {
                MachineError::with_source(format!("queue {queue} of the device cannot be"), error)
            })?;
        }
        back.life = registers.life();
        front.registers = registers;
        Ok(())
    }

    /// Adds the pages that it wrote since the last call.
    pub(super) fn harvest_dirty(&self, into: &mut PageSet) -> Result<(), MachineError> {
        self.memory.harvest(into)
    }

    /// Ends what it does by itself. If it fails the device goes on.
    pub(super) fn quiesce(&self) -> Result<(), MachineError> {
        self.quiesce_within(QUIESCE_TIMEOUT)
    }

    pub(super) fn quiesce_within(&self, limit: Duration) -> Result<(), MachineError> {
        if let Some(mut back) = self.back.hurry_within(limit) {
            back.is_quiet = true;
            return Ok(());
        }
        // The turn may have ended for this after all.
        self.kick();
        Err(MachineError::new(format!(
            "a request of the guest was not answered within {limit:?}: what lies behind the device hangs; see to it and try again"
        )))
    }

    /// Lets it go on.
    pub(super) fn resume(&self) -> Result<(), MachineError> {
        let mut back = self.lock_back();
        let mut front = self.lock_front();
        let level = front.registers.interrupts() != 0;
        front.line.set(level).map_err(|error| {
            MachineError::with_source("the interrupt of a virtio device cannot be set", error)
        })?;
        front.is_high = level;
        back.is_quiet = false;
        self.kick();
        Ok(())
    }
}
