//! The simulated processor with its memory: a value that steps, without thread, clock or chance.
//!
//! Each step reads and changes registers and memory only by what they hold, so two cores with the
//! same [`SimConfig`] that ran equally many steps are equal, however the steps were split and
//! wherever they ran. [`SimMachine`](crate::SimMachine) paces a core by real time; a simulation of
//! the whole engine steps it by its own.

use ferry_memory::{GuestRam, Layout, PAGE_SIZE, PageRange, PageSet, RamError};
use ferry_state::{MachineState, StateError};

use crate::config::{ConfigError, SimConfig};
use crate::generator::{Generator, join};
use crate::page::{Fault, PAGE_BYTES, Stamp, check_in};
use crate::state::{RestoreError, capture_core, capture_port, restore_core, restore_port};
use crate::walk::{Step, Walk};

/// How the names of devices' sections begin.
const DEVICES: &str = "device/";

/// General registers of the simulated processor.
pub const GENERAL_REGISTERS: usize = 16;

/// The most steps of a guest's life. At a million a second they last for 146,000 years.
pub const MAX_STEPS: u64 = 1 << 62;

/// A step whose number is a multiple of this writes to the debug port.
pub(crate) const PORT_EVERY: u64 = 64;

/// The register file: what the processor holds besides memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SimRegisters {
    /// Steps done since birth: the program counter.
    pub steps: u64,
    /// Sixteen words. Step `n` changes word `n mod 16`, by its neighbour and by what it read from
    /// memory, so a page that is not what it was leaves a trace here.
    pub general: [u64; GENERAL_REGISTERS],
    /// Pages that were found other than they were written, when the workload looked.
    pub faults: u64,
    /// The first of them.
    pub first_fault: Option<Fault>,
}

impl SimRegisters {
    /// The registers at birth.
    pub fn at_birth(seed: u64) -> Self {
        let mut row = Generator::new(seed);
        Self { steps: 0, general: std::array::from_fn(|_| row.next()), faults: 0, first_fault: None }
    }
}

/// The debug port's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DebugPort {
    /// Words that the guest wrote to it: one in 64 steps.
    pub writes: u64,
    /// The last of them.
    pub last: u64,
}

/// What a check of pages found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Verified {
    /// Pages that were looked at.
    pub pages: u64,
    /// Pages that do not hold what the workload wrote there last.
    pub faults: u64,
    /// The first of them.
    pub first_fault: Option<Fault>,
}

impl Verified {
    /// Adds what another check found after this one.
    pub(crate) fn add(&mut self, later: &Self) {
        self.pages = self.pages.saturating_add(later.pages);
        self.faults = self.faults.saturating_add(later.faults);
        self.first_fault = self.first_fault.or(later.first_fault);
    }
}

/// A core that cannot be made or cannot step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// The config makes no guest.
    #[error("the config makes no guest")]
    Config(#[from] ConfigError),
    /// The memory is not laid out as the config says.
    #[error("the guest memory is not laid out as the config says: one region of {memory_bytes} bytes from 0")]
    Layout {
        /// Bytes that the config asks for.
        memory_bytes: u64,
    },
    /// There is no memory, or no page where one should be.
    #[error("guest memory cannot be used")]
    Memory(#[from] RamError),
    /// Nobody asked to note written pages.
    #[error("dirty tracking is off")]
    NotTracking,
    /// The page set is one of another layout.
    #[error("the page set has another layout than the guest memory")]
    ForeignPageSet,
    /// The guest lived its life.
    #[error("the guest has done all of its {MAX_STEPS} steps")]
    LifeOver,
}

/// A simulated processor and its memory.
///
/// ```
/// use ferry_sim::{SimConfig, SimCore, Workload};
///
/// let config =
///     SimConfig { seed: 1, memory_bytes: 1 << 20, workload: Workload::Idle { patterned_bytes: 1 << 16 } };
/// let (mut one, mut other) = (SimCore::born(config)?, SimCore::born(config)?);
/// one.step(100)?;
/// other.step(37)?;
/// other.step(63)?;
/// assert_eq!(one.digest()?, other.digest()?);
/// # Ok::<(), ferry_sim::CoreError>(())
/// ```
#[derive(Debug)]
pub struct SimCore {
    config: SimConfig,
    walk: Walk,
    ram: GuestRam,
    registers: SimRegisters,
    port: DebugPort,
    dirty: Option<PageSet>,
    buffer: Box<[u8; PAGE_BYTES]>,
    ended: Option<String>,
}

impl SimCore {
    /// A core with fresh memory of its own, before its first step.
    pub fn born(config: SimConfig) -> Result<Self, CoreError> {
        let ram = GuestRam::anonymous(&config.layout()?)?;
        Self::with_memory(config, ram)
    }

    /// A core over memory that reads as zero, before its first step.
    pub fn with_memory(config: SimConfig, ram: GuestRam) -> Result<Self, CoreError> {
        if *ram.layout() != config.layout()? {
            return Err(CoreError::Layout { memory_bytes: config.memory_bytes });
        }
        Ok(Self {
            config,
            walk: Walk::new(&config),
            ram,
            registers: SimRegisters::at_birth(config.seed),
            port: DebugPort::default(),
            dirty: None,
            buffer: Box::new([0; PAGE_BYTES]),
            ended: None,
        })
    }

    /// What the guest is.
    pub fn config(&self) -> &SimConfig {
        &self.config
    }

    /// A handle on the guest memory. What is written through it is not noted as dirty.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The register file.
    pub fn registers(&self) -> &SimRegisters {
        &self.registers
    }

    /// The debug port's counters.
    pub fn port(&self) -> &DebugPort {
        &self.port
    }

    /// The processor's section, then the debug port's.
    pub fn capture(&self) -> Result<MachineState, StateError> {
        let (mut state, port) = (capture_core(self)?, capture_port(self)?);
        state.sections.extend(port.sections);
        Ok(state)
    }

    /// Puts a captured state into this core, whose memory is that of the guest already. The state comes
    /// from the other side: what no such guest can hold is refused.
    pub fn restore(&mut self, state: MachineState) -> Result<(), RestoreError> {
        let (devices, processor) =
            state.sections.into_iter().partition(|section| section.name.starts_with(DEVICES));
        restore_core(self, &MachineState::from_sections(processor)?)?;
        restore_port(self, &MachineState::from_sections(devices)?)
    }

    /// Replaces the register file; the caller checked it.
    pub(crate) fn set_registers(&mut self, registers: SimRegisters) {
        self.registers = registers;
    }

    /// Replaces the debug port's counters; the caller checked them.
    pub(crate) fn set_port(&mut self, port: DebugPort) {
        self.port = port;
    }

    /// Pages that the workload has held against what was written there before.
    pub fn pages_checked(&self) -> u64 {
        self.pages_checked_after(self.registers.steps)
    }

    /// The same for a guest of this config after so many steps.
    pub(crate) fn pages_checked_after(&self, steps: u64) -> u64 {
        self.walk.checked(steps)
    }

    /// Steps until every page of the workload is written for the first time.
    pub fn steps_to_fill(&self) -> u64 {
        self.walk.pages().saturating_sub(self.registers.steps)
    }

    /// Why the guest ended by itself: the error of the step that it could not do.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Runs so many steps of the workload. On an error the steps before it are done, and the guest
    /// has [ended](Self::ended).
    pub fn step(&mut self, steps: u64) -> Result<(), CoreError> {
        (0..steps)
            .try_for_each(|_| self.step_once())
            .inspect_err(|error| self.ended = Some(error.to_string()))
    }

    fn step_once(&mut self) -> Result<(), CoreError> {
        let now = self.registers.steps;
        if now >= MAX_STEPS {
            return Err(CoreError::LifeOver);
        }
        let seen = match self.walk.step(now) {
            Step::Fill(stamp) => {
                self.write(stamp)?;
                stamp.page
            }
            Step::Rewrite { old, new } => {
                self.ram.read(old.page * PAGE_SIZE, self.buffer.as_mut_slice())?;
                if let Some(fault) = old.differs(&self.buffer) {
                    self.registers.faults = self.registers.faults.saturating_add(1);
                    self.registers.first_fault.get_or_insert(fault);
                }
                let seen = check_in(&self.buffer);
                self.write(new)?;
                seen
            }
            Step::Beat { page } => {
                self.ram.read(page * PAGE_SIZE, self.buffer.as_mut_slice())?;
                check_in(&self.buffer)
            }
        };
        self.registers.steps = now + 1;
        self.turn(now, seen);
        Ok(())
    }

    /// Turns the registers by what a step saw, and beats on the debug port when it is time.
    fn turn(&mut self, step: u64, seen: u64) {
        let words = GENERAL_REGISTERS as u64;
        let [place, neighbour] = [step, step + 1].map(|at| usize::try_from(at % words).unwrap_or(0));
        let general = &mut self.registers.general;
        general[place] = join(general[place] ^ general[neighbour].rotate_left(17), seen);
        if (step + 1).is_multiple_of(PORT_EVERY) {
            self.port = DebugPort { writes: self.port.writes.wrapping_add(1), last: general[place] };
        }
    }

    /// Writes a page, and notes it while tracking is on.
    fn write(&mut self, stamp: Stamp) -> Result<(), CoreError> {
        stamp.fill(&mut self.buffer);
        self.ram.write(stamp.page * PAGE_SIZE, self.buffer.as_slice())?;
        if let Some(dirty) = &mut self.dirty {
            dirty.insert(PageRange { first: stamp.page, count: 1 });
        }
        Ok(())
    }

    /// Notes every page that is written from now on, beginning with none.
    pub fn start_tracking(&mut self) {
        self.dirty = Some(PageSet::empty(self.layout()));
    }

    /// Adds the pages written since the last harvest to `into`, and forgets them.
    pub fn harvest(&mut self, into: &mut PageSet) -> Result<(), CoreError> {
        let dirty = self.dirty.as_mut().ok_or(CoreError::NotTracking)?;
        if !into.union(dirty) {
            return Err(CoreError::ForeignPageSet);
        }
        dirty.clear();
        Ok(())
    }

    /// Notes no more pages, and forgets those that were noted.
    pub fn stop_tracking(&mut self) {
        self.dirty = None;
    }

    /// Pages that [`verify_pages`](Self::verify_pages) can look at: the workload's, from page 0.
    pub fn checked_pages(&self) -> u64 {
        self.walk.pages()
    }

    /// Holds some of the workload's pages against what was written there last: those of `range` that
    /// lie below [`checked_pages`](Self::checked_pages). Changes nothing.
    pub fn verify_pages(&self, range: PageRange) -> Result<Verified, CoreError> {
        let mut buffer = Box::new([0; PAGE_BYTES]);
        let end = range.first.saturating_add(range.count).min(self.walk.pages());
        let mut verified = Verified::default();
        for page in range.first..end {
            self.ram.read(page * PAGE_SIZE, buffer.as_mut_slice())?;
            let fault = self.walk.holds(page, self.registers.steps).differs(&buffer);
            verified.add(&Verified { pages: 1, faults: u64::from(fault.is_some()), first_fault: fault });
        }
        Ok(verified)
    }

    /// Holds all of the workload's pages against what was written there last. Changes nothing.
    pub fn verify(&self) -> Result<Verified, CoreError> {
        self.verify_pages(PageRange { first: 0, count: self.walk.pages() })
    }

    /// One number for everything that the guest holds: config, registers, debug port, all memory.
    /// It tells guests apart that are not alike by accident; it is no cryptography.
    pub fn digest(&self) -> Result<u64, CoreError> {
        let SimRegisters { steps, general, faults, first_fault } = &self.registers;
        let fault = first_fault.map_or([0; 4], |f| [f.page, f.offset, f.expected, f.found]);
        let words = [self.config.seed, *steps, *faults, self.port.writes, self.port.last];
        let mut digest = words.iter().chain(general).chain(&fault).fold(0, |sum, word| join(sum, *word));
        let mut buffer = Box::new([0; PAGE_BYTES]);
        for page in 0..self.layout().pages() {
            self.ram.read(page * PAGE_SIZE, buffer.as_mut_slice())?;
            let (words, _) = buffer.as_chunks::<8>();
            digest = words.iter().fold(digest, |sum, word| join(sum, u64::from_le_bytes(*word)));
        }
        Ok(digest)
    }

    fn layout(&self) -> &Layout {
        self.ram.layout()
    }
}
