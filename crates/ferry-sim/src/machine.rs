//! A simulated guest behind the trait [`Machine`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferry_memory::{GuestRam, PageRange, PageSet};
use ferry_migrate::{Custody, Harvest, Machine, MachineError, ResourceSet, ResumeError, RunWatch};
use ferry_protocol::{GuestId, MachineDescription};
use ferry_state::{MachineState, Resources};

use crate::config::SimConfig;
use crate::faults::{Call, SimFaults};
use crate::page::Fault;
use crate::runner::{Runner, RunnerError, Start, Stopped};
use crate::sim_core::{CoreError, SimCore, SimRegisters, Verified};
use crate::state::{capture_core, capture_port, restore_core, restore_port};

/// Pages that a check looks at before the guest may step again.
const VERIFY_CHUNK_PAGES: u64 = 256;

/// What belongs to one machine in one process, and is not carried with the guest.
#[derive(Clone, Default)]
pub struct SimOptions {
    /// Which call fails, if any.
    pub faults: SimFaults,
    /// Told when the guest starts and stops to run.
    pub watch: Option<Arc<dyn RunWatch>>,
}

impl fmt::Debug for SimOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimOptions")
            .field("faults", &self.faults)
            .field("watch", &self.watch.is_some())
            .finish()
    }
}

/// How a guest is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimReport {
    /// The workload's name.
    pub payload: &'static str,
    /// Steps since the guest's birth; they move with it.
    pub progress: u64,
    /// Pages that were held against what was written there last.
    pub pages_checked: u64,
    /// Pages that were found otherwise.
    pub faults: u64,
    /// The first of them.
    pub first_fault: Option<Fault>,
    /// Why the guest ended by itself, if it did.
    pub stopped: Option<String>,
}

/// Where the core is.
#[derive(Debug)]
enum Place {
    /// Here: the guest does not run.
    Here(Box<SimCore>),
    /// With the thread that runs it.
    Running(Runner),
    /// Gone with a thread that panicked.
    Lost,
}

/// What the last report said.
#[derive(Debug, Default)]
struct Told {
    progress: u64,
    /// What the workload saw by itself, which moves with the guest.
    seen: Verified,
    /// What the checks found that this machine was asked for.
    asked: Verified,
    stopped: Option<String>,
}

/// What a machine has lived through; a state is restored only into one that has never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Fresh,
    Restored,
    Ran,
}

/// A machine in software: one simulated vCPU, memory, a debug port, and a thread that runs them.
///
/// Between [`resume`](Machine::resume) and [`pause`](Machine::pause) the thread owns the core and
/// the custody; dropping the machine stops the thread.
///
/// ```
/// use std::time::Duration;
/// use ferry_migrate::{Custody, Machine};
/// use ferry_sim::{SimConfig, SimMachine, SimOptions, Workload};
///
/// let workload = Workload::Churn { working_set_bytes: 1 << 16, rate_bytes_per_second: 1 << 24 };
/// let config = SimConfig { seed: 7, memory_bytes: 1 << 20, workload };
/// let mut machine = SimMachine::born(config, SimOptions::default())?;
/// machine.resume(Custody::born("guest".parse()?))?;
/// assert_eq!(machine.verify(Duration::from_secs(5))?.faults, 0);
/// let custody = machine.pause()?;
/// # drop(custody);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SimMachine {
    config: SimConfig,
    description: MachineDescription,
    ram: GuestRam,
    place: Place,
    life: Life,
    told: Mutex<Told>,
    resources: ResourceSet,
    faults: SimFaults,
    watch: Option<Arc<dyn RunWatch>>,
}

impl fmt::Debug for SimMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimMachine")
            .field("config", &self.config)
            .field("place", &self.place)
            .field("life", &self.life)
            .field("resources", &self.resources)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl SimMachine {
    /// A guest at its birth, or a machine for one that comes from elsewhere. It does not run yet, and
    /// holds no resource: [`take_resources`](Machine::take_resources) comes first.
    pub fn born(config: SimConfig, options: SimOptions) -> Result<Self, MachineError> {
        let unbuilt = |error| MachineError::with_source("the simulated machine could not be built", error);
        let core = SimCore::born(config).map_err(unbuilt)?;
        let description = config.description().map_err(|error| unbuilt(error.into()))?;
        Ok(Self {
            config,
            description,
            ram: core.ram().clone(),
            place: Place::Here(Box::new(core)),
            life: Life::Fresh,
            told: Mutex::default(),
            resources: ResourceSet::new(),
            faults: options.faults,
            watch: options.watch,
        })
    }

    /// What the guest is.
    pub fn config(&self) -> &SimConfig {
        &self.config
    }

    /// How the guest is doing, while it runs and while it is paused. Of a machine that does not answer
    /// it is the last report, with that as the reason why it stopped.
    pub fn report(&self) -> SimReport {
        let looked = self.peek(|core| {
            let checked = core.pages_checked();
            (core.registers().clone(), checked, core.ended().map(str::to_owned))
        });
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match looked {
            Ok((registers, checked, ended)) => {
                let SimRegisters { steps, faults, first_fault, .. } = registers;
                told.progress = steps;
                told.seen = Verified { pages: checked, faults, first_fault };
                told.stopped = ended;
            }
            Err(error) => told.stopped = Some(error.to_string()),
        }
        let mut all = told.seen;
        all.add(&told.asked);
        SimReport {
            payload: self.config.workload.name(),
            progress: told.progress,
            pages_checked: all.pages,
            faults: all.faults,
            first_fault: all.first_fault,
            stopped: told.stopped.clone(),
        }
    }

    /// Holds all of the workload's pages against what was written there last. The guest, if it runs,
    /// goes on between one part of the pages and the next.
    pub fn verify(&self, timeout: Duration) -> Result<Verified, MachineError> {
        let began = Instant::now();
        let pages = self.config.checked_pages();
        let mut all = Verified::default();
        let mut first = 0;
        while first < pages {
            if began.elapsed() >= timeout {
                let text =
                    format!("the check of {pages} pages did not end within {timeout:?}: {first} are done");
                return Err(MachineError::new(text));
            }
            let range = PageRange { first, count: VERIFY_CHUNK_PAGES };
            let part = self.peek(move |core| core.verify_pages(range))?.map_err(unreadable)?;
            all.add(&part);
            first += VERIFY_CHUNK_PAGES;
        }
        self.told.lock().unwrap_or_else(PoisonError::into_inner).asked.add(&all);
        Ok(all)
    }

    /// The [`digest`](SimCore::digest) of the paused guest, to be held against that of an undisturbed
    /// [`SimCore`] which ran as many steps.
    pub fn digest(&self) -> Result<u64, MachineError> {
        match &self.place {
            Place::Here(core) => core.digest().map_err(unreadable),
            Place::Running(_) => Err(runs()),
            Place::Lost => Err(lost()),
        }
    }

    /// Looks at the core, wherever it is.
    fn peek<T, F>(&self, look: F) -> Result<T, MachineError>
    where
        T: Send + 'static,
        F: FnOnce(&SimCore) -> T + Send + 'static,
    {
        match &self.place {
            Place::Here(core) => Ok(look(core)),
            Place::Running(runner) => runner.ask(move |core| look(core)).map_err(unanswered),
            Place::Lost => Err(lost()),
        }
    }

    /// Does something to the core, wherever it is.
    fn change<T, F>(&mut self, change: F) -> Result<T, MachineError>
    where
        T: Send + 'static,
        F: FnOnce(&mut SimCore) -> T + Send + 'static,
    {
        match &mut self.place {
            Place::Here(core) => Ok(change(core)),
            Place::Running(runner) => runner.ask(change).map_err(unanswered),
            Place::Lost => Err(lost()),
        }
    }

    /// The core of a paused guest.
    fn paused(&mut self) -> Result<&mut SimCore, MachineError> {
        match &mut self.place {
            Place::Here(core) => Ok(core),
            Place::Running(_) => Err(runs()),
            Place::Lost => Err(lost()),
        }
    }

    /// Why the guest may not be resumed now, if so.
    fn resumable(&mut self) -> Result<(), MachineError> {
        self.faults.meet(Call::Resume)?;
        self.paused()?;
        self.resources.missing()
    }
}

impl Machine for SimMachine {
    fn description(&self) -> MachineDescription {
        self.description.clone()
    }

    fn ram(&self) -> GuestRam {
        self.ram.clone()
    }

    fn start_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.faults.meet(Call::StartDirtyTracking)?;
        self.change(SimCore::start_tracking)
    }

    fn harvest_dirty(&mut self, when: Harvest, into: &mut PageSet) -> Result<(), MachineError> {
        self.faults.meet(Call::HarvestDirty)?;
        if when == Harvest::Paused {
            self.paused()?;
        }
        // Found out before the pages are forgotten.
        if into.layout() != self.ram.layout() {
            return Err(foreign());
        }
        let mut dirty = PageSet::empty(self.ram.layout());
        let dirty = self.change(move |core| core.harvest(&mut dirty).map(|()| dirty))?;
        let dirty =
            dirty.map_err(|error| MachineError::with_source("written pages were not noted", error))?;
        if into.union(&dirty) { Ok(()) } else { Err(foreign()) }
    }

    fn stop_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.faults.meet(Call::StopDirtyTracking)?;
        self.change(SimCore::stop_tracking)
    }

    fn pause(&mut self) -> Result<Custody, MachineError> {
        self.faults.meet(Call::Pause)?;
        match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Running(runner) => {
                let Stopped { core, custody } = runner.stop().ok_or_else(lost)?;
                self.place = Place::Here(core);
                Ok(custody)
            }
            Place::Here(core) => {
                self.place = Place::Here(core);
                Err(MachineError::new("the guest does not run: there is nothing to pause"))
            }
            Place::Lost => Err(lost()),
        }
    }

    fn resume(&mut self, custody: Custody) -> Result<(), ResumeError> {
        if let Err(source) = self.resumable() {
            return Err(ResumeError { custody, source });
        }
        let core = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Here(core) => core,
            other => {
                self.place = other;
                return Err(ResumeError { custody, source: runs() });
            }
        };
        match Runner::start(Start { core, custody, watch: self.watch.clone() }) {
            Ok(runner) => {
                self.place = Place::Running(runner);
                self.life = Life::Ran;
                Ok(())
            }
            Err((Start { core, custody, .. }, error)) => {
                self.place = Place::Here(core);
                Err(ResumeError { custody, source: unanswered(error) })
            }
        }
    }

    fn capture(&mut self) -> Result<MachineState, MachineError> {
        self.faults.meet(Call::Capture)?;
        let core = self.paused()?;
        capture_core(core)
            .map_err(|e| MachineError::with_source("the processor's state could not be written", e))
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.faults.meet(Call::Restore)?;
        if self.life != Life::Fresh {
            return Err(MachineError::new(
                "a state goes into a machine that has never run and holds no other state",
            ));
        }
        let restored = restore_core(self.paused()?, state);
        restored.map_err(|e| MachineError::with_source("the processor's state was refused", e))?;
        self.life = Life::Restored;
        Ok(())
    }

    fn capture_devices(&mut self) -> Result<MachineState, MachineError> {
        self.faults.meet(Call::CaptureDevices)?;
        let core = self.paused()?;
        capture_port(core)
            .map_err(|e| MachineError::with_source("the debug port's state could not be written", e))
    }

    fn restore_devices(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.faults.meet(Call::RestoreDevices)?;
        if self.life != Life::Restored {
            return Err(MachineError::new(
                "the devices' state comes after the processor's and before the guest runs",
            ));
        }
        let restored = restore_port(self.paused()?, state);
        restored.map_err(|e| MachineError::with_source("the debug port's state was refused", e))
    }

    fn release_resources(&mut self) -> Result<Resources, MachineError> {
        self.faults.meet(Call::ReleaseResources)?;
        self.paused()?;
        self.resources.release()
    }

    fn take_resources(&mut self, guest: &GuestId, resources: &Resources) -> Result<(), MachineError> {
        self.faults.meet(Call::TakeResources)?;
        self.resources.take(guest, resources)
    }
}

fn runs() -> MachineError {
    MachineError::new("the guest runs: pause it first")
}

fn foreign() -> MachineError {
    MachineError::new("the page set has another layout than the guest memory")
}

fn lost() -> MachineError {
    MachineError::new("the simulated machine's thread panicked, and the guest is lost with it")
}

fn unanswered(error: RunnerError) -> MachineError {
    MachineError::with_source("the simulated machine does not answer", error)
}

fn unreadable(error: CoreError) -> MachineError {
    MachineError::with_source("guest memory could not be read", error)
}
