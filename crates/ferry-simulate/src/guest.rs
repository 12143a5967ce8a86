//! A guest's machine in one process: real pages, dirty tracking, state, stepped by the world's time.

use ferry_memory::{PAGE_SIZE, PageRange, PageSet, RamError};
use ferry_protocol::{Epoch, MachineDescription, Time};
use ferry_sim::{CoreError, RestoreError, SimConfig, SimCore};
use ferry_state::{MachineState, Section, StateError};

/// The right to run the guest, as the engine's type `Custody`: consumed when it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Custody {
    /// It is here.
    Here(Epoch),
    /// It was given away, and this is what comes back on a refusal.
    Given(Epoch),
    /// It never was here.
    None,
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Guest {
    core: SimCore,
    pub(crate) custody: Custody,
    /// Its vCPUs run, or may run any moment.
    pub(crate) running: bool,
    /// Whether dirty tracking is on.
    pub(crate) tracked: bool,
    /// Pages that it writes in a second.
    pub(crate) rate: u64,
    /// Up to when it has stepped.
    stepped: Time,
}

impl Guest {
    /// A guest at birth, its pages written for the first time.
    pub(crate) fn born(config: SimConfig, rate: u64) -> Result<Self, CoreError> {
        let mut core = SimCore::born(config)?;
        core.step(core.steps_to_fill())?;
        Ok(Self::of(core, rate))
    }

    /// A machine for a guest that comes from elsewhere.
    pub(crate) fn built(machine: &MachineDescription, rate: u64) -> Result<Self, String> {
        let config = SimConfig::from_description(machine).map_err(|error| error.to_string())?;
        let core = SimCore::born(config).map_err(|error| error.to_string())?;
        Ok(Self::of(core, rate))
    }

    fn of(core: SimCore, rate: u64) -> Self {
        Self { core, custody: Custody::None, running: false, tracked: false, rate, stepped: Time::ZERO }
    }

    /// Steps a running guest up to now.
    pub(crate) fn catch_up(&mut self, now: Time) -> Result<(), CoreError> {
        if !self.running || now <= self.stepped {
            return Ok(());
        }
        let due = u64::try_from(now.since(self.stepped).as_micros()).unwrap_or(0) * self.rate / 1_000_000;
        if due > 0 {
            // What is left of a step's time is kept.
            let spent = due * 1_000_000 / self.rate.max(1);
            self.stepped = Time(self.stepped.0 + spent);
            self.core.step(due)?;
        }
        Ok(())
    }

    /// Its vCPUs run from now on.
    pub(crate) fn run(&mut self, now: Time) {
        (self.running, self.stepped) = (true, now);
    }

    /// It does not step before that time: its process is stopped.
    pub(crate) fn rest(&mut self, until: Time) {
        self.stepped = self.stepped.max(until);
    }

    pub(crate) fn start_log(&mut self) {
        self.core.start_tracking();
        self.tracked = true;
    }

    pub(crate) fn stop_log(&mut self) {
        self.core.stop_tracking();
        self.tracked = false;
    }

    pub(crate) fn harvest(&mut self, into: &mut PageSet) -> Result<(), CoreError> {
        self.core.harvest(into)
    }

    /// Every page.
    pub(crate) fn all_pages(&self) -> PageSet {
        PageSet::full(self.core.ram().layout())
    }

    /// What a page holds now; none if it is zero.
    pub(crate) fn page(&self, page: u64) -> Result<Option<Vec<u8>>, CoreError> {
        let mut data = vec![0; usize::try_from(PAGE_SIZE).unwrap_or(0)];
        self.core.ram().read(page * PAGE_SIZE, &mut data)?;
        Ok(data.iter().any(|&byte| byte != 0).then_some(data))
    }

    /// A page that came from the source.
    pub(crate) fn put(&mut self, page: u64, data: Option<&[u8]>) -> Result<(), CoreError> {
        match data {
            Some(data) => self.core.ram().write(page * PAGE_SIZE, data)?,
            None => self.core.ram().zero(PageRange { first: page, count: 1 })?,
        }
        Ok(())
    }

    pub(crate) fn hash(&self) -> Result<[u8; 32], RamError> {
        self.core.ram().hash()
    }

    pub(crate) fn capture(&self) -> Result<Vec<Section>, StateError> {
        Ok(self.core.capture()?.sections)
    }

    pub(crate) fn restore(&mut self, sections: Vec<Section>) -> Result<(), RestoreError> {
        self.core.restore(MachineState::from_sections(sections)?)
    }

    /// One number for everything that it holds.
    pub(crate) fn digest(&self) -> Result<u64, CoreError> {
        self.core.digest()
    }

    /// The same of a guest that nobody ever moved and that made as many steps.
    pub(crate) fn undisturbed(&self) -> Result<u64, CoreError> {
        let mut core = SimCore::born(*self.core.config())?;
        core.step(self.steps())?;
        core.digest()
    }

    /// Steps since birth.
    pub(crate) fn steps(&self) -> u64 {
        self.core.registers().steps
    }

    /// What the target must build.
    pub(crate) fn description(&self) -> Result<MachineDescription, String> {
        self.core.config().description().map_err(|error| error.to_string())
    }
}
