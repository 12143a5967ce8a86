//! The target's pump: it carries out what [`Target`] decides, for one process that waits for a guest.
//!
//! One thread accepts links, one a link reads it (pages go straight into guest memory there), and the
//! caller's thread decides and does all jobs. A session that fails frees everything and the process
//! waits for the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_contract::{Finding, FindingKind, Layer};
use ferry_memory::{GuestRam, PAGE_SIZE, PageRange, PageSet};
use ferry_protocol::journal::Record;
use ferry_protocol::{
    DiskSpan, Epoch, GuestId, MachineDescription, RegionSpan, Target, TargetAction, TargetEvent,
    TargetOutcome, TargetPhase, Timeouts,
};

use crate::intake::Received;
use crate::journal::Journal;
use crate::link::Listener;
use crate::report::{Arrival, Observer, cpu_time};
use crate::source::sentence;
use crate::witness::Witness;
use crate::{Builder, DiskImage, Machine, MachineError, disk};

mod books;
mod desk;
mod doors;

pub(crate) use books::Books;
pub(crate) use desk::Desk;
use doors::Doors;

/// How a process waits for a guest.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    /// Where this process writes what it must not forget, and reads what those before it wrote.
    pub journal: Arc<dyn Journal>,
    /// Who decides when the two sides cannot; sources that name one are turned away without it.
    pub witness: Option<Arc<dyn Witness>>,
    /// The only guest that is taken; any, if none is named.
    pub expected: Option<GuestId>,
    /// How long each wait may last.
    pub timeouts: Timeouts,
}

impl ReceiveOptions {
    /// Any guest, the default waits, no witness.
    pub fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, witness: None, expected: None, timeouts: Timeouts::default() }
    }
}

/// A process that waits for a guest.
#[derive(Debug)]
pub struct Reception {
    doors: Doors,
}

/// A guest that arrived and runs here.
#[derive(Debug)]
pub struct Arrived<M> {
    /// Its machine.
    pub machine: M,
    /// Its name.
    pub guest: GuestId,
    /// The epoch under which it runs.
    pub epoch: Epoch,
    /// What it took.
    pub arrival: Arrival,
    /// Answers the source's questions, if it may still have some; keep it as long as the guest.
    pub answering: Option<Answering>,
}

/// Answers a source that does not know yet that the guest runs here. It ends by itself when the
/// source lets the guest go, and frees the address.
#[derive(Debug)]
pub struct Answering {
    _stop: crossbeam_channel::Sender<()>,
}

impl Reception {
    /// Waits on a listener. What earlier processes wrote is read here, after the address was taken: the
    /// process that had it before is gone.
    pub fn new(listener: Listener, options: ReceiveOptions) -> Result<Self, MachineError> {
        let ReceiveOptions { journal, witness, expected, timeouts } = options;
        let silence = timeouts.silence;
        let past = journal
            .past()
            .map_err(|error| MachineError::with_source("what earlier processes did is not known", error))?;
        let mut target = Target::new(journal.instance(), expected, timeouts).with_past(past);
        if witness.is_some() {
            target = target.with_witness();
        }
        let doors = Doors::open(listener, target, Books { journal, witness }, silence)
            .map_err(|error| MachineError::with_source("no guest can be waited for", error))?;
        Ok(Self { doors })
    }

    /// Waits until a guest arrived and runs here. Sessions that fail are told to the observer, and
    /// the wait goes on. It ends without a guest only when the listener is broken.
    pub fn wait<B: Builder>(
        self,
        builder: &mut B,
        observer: &dyn Observer,
    ) -> Result<Arrived<B::Machine>, MachineError> {
        Pump::new(self.doors, builder, observer).drive().map_err(|(_, error)| error)
    }
}

/// Carries out what the target decides, whatever brings the frames.
pub(crate) struct Pump<'a, B: Builder, D: Desk> {
    doors: D,
    builder: &'a mut B,
    observer: &'a dyn Observer,
    machine: Option<B::Machine>,
    /// The guest's memory, and the images that come with it.
    ram: Option<GuestRam>,
    images: Vec<Arc<DiskImage>>,
    figures: Option<Figures>,
}

/// What the pump measures of one session.
#[derive(Debug)]
struct Figures {
    began: Instant,
    build: Duration,
    journal: Duration,
    restore: Duration,
    resume: Duration,
    runs: Option<Instant>,
    /// Processor time of this process when the machine stood, and when the guest ran.
    cpu: (Duration, Duration),
}

impl<'a, B: Builder, D: Desk> Pump<'a, B, D> {
    pub(crate) fn new(doors: D, builder: &'a mut B, observer: &'a dyn Observer) -> Self {
        Self { doors, builder, observer, machine: None, ram: None, images: Vec::new(), figures: None }
    }

    /// Runs until a guest arrived, or until nothing comes any more.
    pub(crate) fn drive(mut self) -> Result<Arrived<B::Machine>, (D, MachineError)> {
        let mut phase = TargetPhase::Waiting;
        self.observer.target_phase(phase);
        loop {
            let event = match self.doors.next_event() {
                Ok(event) => event,
                Err(error) => return Err((self.doors, error)),
            };
            let mut events = std::collections::VecDeque::from([event]);
            while let Some(event) = events.pop_front() {
                tracing::trace!(?event, phase = phase.name(), "target");
                // Not only when the source lets go: the network must not wait for a source that has died, nor for the
                // journal's disk.
                if event == TargetEvent::GuestRuns
                    && let Some(machine) = &mut self.machine
                {
                    machine.announce();
                }
                let actions = self.doors.step(event);
                self.tell_phase(&mut phase);
                for action in actions {
                    if let TargetAction::Finish(outcome) = action {
                        self.observer.target_finished(&outcome);
                        if let TargetOutcome::Runs { guest, epoch, released } = outcome {
                            return self.arrived(guest, epoch, released);
                        }
                    } else {
                        events.extend(self.carry_out(action));
                    }
                }
            }
        }
    }

    fn tell_phase(&mut self, told: &mut TargetPhase) {
        let phase = self.doors.phase();
        if phase != *told {
            *told = phase;
            tracing::debug!(phase = phase.name(), "target");
            self.observer.target_phase(phase);
        }
    }

    fn carry_out(&mut self, action: TargetAction) -> Option<TargetEvent> {
        let began = Instant::now();
        let done = match action {
            TargetAction::Send(link, message) => {
                self.doors.send(link, &message);
                return None;
            }
            TargetAction::Close(link) => {
                self.doors.close(link);
                return None;
            }
            TargetAction::TakeLane(link) => {
                self.doors.take_lane(link);
                return None;
            }
            TargetAction::Judge(machine) => {
                let figures = Figures {
                    began,
                    build: Duration::ZERO,
                    journal: Duration::ZERO,
                    restore: Duration::ZERO,
                    resume: Duration::ZERO,
                    runs: None,
                    cpu: (Duration::ZERO, Duration::ZERO),
                };
                self.figures = Some(figures);
                let mut verdict = self.builder.judge(&machine);
                verdict.findings.extend(self.doors.objection());
                verdict.findings.extend(self.stays_without_disks(&machine));
                Ok(TargetEvent::Judged(verdict))
            }
            TargetAction::Build { machine, written } => self.build(&machine, &written).map(|()| {
                self.measure(|figures| {
                    figures.build = began.elapsed();
                    figures.cpu.0 = cpu_time();
                });
                TargetEvent::Built
            }),
            TargetAction::HashMemory => self.hash_memory().map(TargetEvent::Hashed),
            TargetAction::Restore { sections } => self.restore(sections).map(|()| {
                self.measure(|figures| figures.restore = began.elapsed());
                TargetEvent::Restored
            }),
            TargetAction::RunGuest { guest, epoch } => self.run_guest(guest, epoch).map(|()| {
                self.measure(|figures| {
                    figures.resume = began.elapsed();
                    figures.runs = Some(Instant::now());
                    figures.cpu.1 = cpu_time();
                });
                TargetEvent::GuestRuns
            }),
            TargetAction::Discard => {
                self.discard();
                return None;
            }
            TargetAction::Journal(record) => {
                let written = self.doors.write(&record).map_err(|error| sentence(&error));
                if let Record::MayRun(_) = record {
                    self.measure(|figures| figures.journal = began.elapsed());
                }
                Ok(TargetEvent::JournalDone(written))
            }
            TargetAction::Note(record) => {
                self.doors.note(&record);
                return None;
            }
            TargetAction::Claim(claim) => Ok(TargetEvent::Claimed(self.doors.claim(&claim))),
            TargetAction::Finish(_) => return None,
        };
        Some(done.unwrap_or_else(|error| {
            tracing::warn!(error = sentence(&error), "a job failed");
            TargetEvent::Failed(sentence(&error))
        }))
    }

    /// Why a guest that brings its disks cannot be taken.
    fn stays_without_disks(&self, machine: &MachineDescription) -> Option<Finding> {
        (!machine.disks.is_empty() && !self.builder.takes_disks()).then(|| Finding {
            kind: FindingKind::Refusal,
            subject: "disks".to_owned(),
            layer: Layer::Vmm,
            guest: format!("{} that come with it", machine.disks.len()),
            target: "has a VMM that makes no images for them".to_owned(),
            effect: "the guest would have no disk".to_owned(),
            remedy:
                "put the images where both hosts see them, and move the guest without copying its storage"
                    .to_owned(),
        })
    }

    fn build(&mut self, offered: &MachineDescription, written: &[RegionSpan]) -> Result<(), MachineError> {
        let machine = self.builder.build(offered)?;
        let found = machine.disk_images();
        let image = |span: &DiskSpan| {
            found.iter().find(|image| image.is(span)).map(Arc::clone).ok_or_else(|| {
                MachineError::new(format!("the machine that was built has no image for disk {}", span.disk))
            })
        };
        self.images = offered.disks.iter().map(image).collect::<Result<_, _>>()?;
        let ram = disk::beside(machine.ram(), &self.images)?;
        provide(&ram, written);
        self.doors.open_intake(ram.clone());
        (self.ram, self.machine) = (Some(ram), Some(machine));
        Ok(())
    }

    fn hash_memory(&self) -> Result<[u8; 32], MachineError> {
        let ram = self.ram.as_ref().ok_or_else(|| MachineError::new("no machine was built"))?;
        ram.hash().map_err(|error| MachineError::with_source("the guest cannot be hashed", error))
    }

    fn restore(&mut self, sections: u32) -> Result<(), MachineError> {
        let arrived = self.doors.state(sections).map_err(MachineError::new)?;
        let guest = self.doors.guest().ok_or_else(|| MachineError::new("the session is over"))?;
        // A guest must not run on a disk that a power cut takes away.
        let settled = self.images.iter().try_for_each(|image| image.settle());
        settled.map_err(|error| MachineError::with_source("the guest's disk is not complete", error))?;
        self.with_machine(|machine| {
            // First, because a device may look at what the lock protects.
            machine.take_resources(&guest, &arrived.resources)?;
            machine.restore(&arrived.machine)?;
            machine.restore_devices(&arrived.devices)
        })?;
        // Last, because what they replace is not touched for a guest that cannot come.
        let placed = self.images.iter().try_for_each(|image| image.place());
        placed.map_err(|error| MachineError::with_source("the guest's disk cannot have its name", error))
    }

    /// The custody that is made here is the only one: the source consumed its own before it sent the
    /// message that led here.
    fn run_guest(&mut self, guest: GuestId, epoch: Epoch) -> Result<(), MachineError> {
        let custody = self.doors.custody(guest, epoch);
        self.with_machine(|machine| {
            // A custody that comes back runs nothing: the epoch is refused, and the source takes its
            // own back.
            machine.resume(custody).map_err(|error| error.source)
        })?;
        for image in &self.images {
            image.keep();
        }
        Ok(())
    }

    fn discard(&mut self) {
        if let Some(mut machine) = self.machine.take()
            && let Err(error) = machine.release_resources()
        {
            tracing::warn!(error = sentence(&error), "resources of a guest that was not taken");
        }
        self.doors.drop_intake();
        // With them new images are removed, and what they replaced has its name again.
        (self.ram, self.images) = (None, Vec::new());
        self.figures = None;
    }

    fn with_machine<T>(
        &mut self,
        job: impl FnOnce(&mut B::Machine) -> Result<T, MachineError>,
    ) -> Result<T, MachineError> {
        self.machine.as_mut().map_or_else(|| Err(MachineError::new("no machine was built")), job)
    }

    fn measure(&mut self, note: impl FnOnce(&mut Figures)) {
        if let Some(figures) = &mut self.figures {
            note(figures);
        }
    }

    fn arrived(
        mut self,
        guest: GuestId,
        epoch: Epoch,
        released: bool,
    ) -> Result<Arrived<B::Machine>, (D, MachineError)> {
        let Some(machine) = self.machine.take() else {
            return Err((self.doors, MachineError::new("no machine was built")));
        };
        // The guest runs on its new images: it never needs those that they replaced. Their blocks may take long to free,
        // and nobody waits any more.
        self.images.iter().for_each(|image| image.forget_replaced());
        let received: Received = self.doors.received();
        let arrival = self.figures.take().map_or_else(
            || Arrival {
                received,
                total: Duration::ZERO,
                build: Duration::ZERO,
                journal: Duration::ZERO,
                restore: Duration::ZERO,
                resume: Duration::ZERO,
                cpu: Duration::ZERO,
            },
            |figures| Arrival {
                received,
                total: figures.runs.map_or(Duration::ZERO, |at| at - figures.began),
                build: figures.build,
                journal: figures.journal,
                restore: figures.restore,
                resume: figures.resume,
                cpu: figures.cpu.1.saturating_sub(figures.cpu.0),
            },
        );
        let answering = if released { Ok(None) } else { self.doors.answering() };
        let answering = answering.unwrap_or_else(|error| {
            // The guest runs: a source that asks hears nothing, and a person will look.
            tracing::error!(error = sentence(&error), "nobody answers the source's questions");
            None
        });
        Ok(Arrived { machine, guest, epoch, arrival, answering })
    }
}

/// Provides memory where pages will come, before the source sends the first one: a page that must be
/// provided while it is received costs more than the copy. The ranges are only the source's word.
fn provide(ram: &GuestRam, written: &[RegionSpan]) {
    let mut pages = PageSet::empty(ram.layout());
    for span in written {
        let range = PageRange { first: span.start / PAGE_SIZE, count: span.length / PAGE_SIZE };
        // What lies outside memory is nobody's page; the rounds will say so.
        let _ = pages.insert(range);
    }
    let ranges: Vec<_> = pages.ranges().collect();
    if let Err(error) = ram.populate(&ranges) {
        tracing::warn!(error = sentence(&error), "memory is provided as pages come");
    }
}
