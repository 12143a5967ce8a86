//! What a VMM implements so that the engine can move its guests.
//!
//! [`Machine`] is the whole contact between the engine and a guest, on both sides of a migration;
//! [`Builder`] makes the machine on the target. The engine calls one method at a time, from one
//! thread. On the source the calls come in this order:
//!
//! ```text
//! description, ram                         before anything moves
//! start_dirty_tracking                     before the first page is read
//! harvest_dirty(Live) …                    once a round
//! pause                                    stops vCPUs and devices, gives back the custody
//! release_resources                        locks on shared disks and the like; listed in the state
//! harvest_dirty(Paused)                    the last round
//! capture                                  vCPUs, VM, devices
//!        … the target says ready, custody passes …
//! ```
//!
//! If anything fails before custody passes: `take_resources` (only if they were released), `resume`
//! (only if it was paused), `stop_dirty_tracking`. On the target: [`Builder::judge`],
//! [`Builder::build`], pages arrive in [`Machine::ram`],
//! [`take_resources`](Machine::take_resources) with what the source let go of,
//! [`restore`](Machine::restore), [`restore_devices`](Machine::restore_devices), and after custody
//! [`resume`](Machine::resume) and [`announce`](Machine::announce). If anything fails before custody:
//! [`release_resources`](Machine::release_resources), and the machine is dropped.

use std::error::Error;
use std::sync::Arc;

use ferry_contract::Verdict;
use ferry_memory::{GuestRam, PageSet};
use ferry_protocol::{GuestId, MachineDescription};
use ferry_state::{MachineState, Resources};

use crate::{Custody, DiskImage};

/// A guest's machine, as the engine sees it.
///
/// Implementations own their threads and file descriptors; the engine owns none of them. A method
/// that fails leaves the machine as it was, unless it says otherwise.
pub trait Machine: Send {
    /// What the target must build to take this guest, without its disks. Constant for the life of the machine.
    fn description(&self) -> MachineDescription;

    /// The guest's memory. The handle stays valid while the guest runs and writes to it.
    fn ram(&self) -> GuestRam;

    /// Starts to note which pages the guest writes. Pages written after this call returns, by vCPUs
    /// or by devices, must appear in a later harvest.
    fn start_dirty_tracking(&mut self) -> Result<(), MachineError>;

    /// Adds to `into` every page written since the last harvest (the first time: since the start
    /// of tracking; a page too many is allowed, a page too few never), and forgets them.
    ///
    /// With [`Harvest::Live`] the guest runs: when this returns, a write to a harvested page must
    /// be noted again, because the engine reads the page after the harvest. With
    /// [`Harvest::Paused`] nothing writes any more, and tracking need not go on.
    fn harvest_dirty(&mut self, when: Harvest, into: &mut PageSet) -> Result<(), MachineError>;

    /// Ends dirty tracking and its costs. Called after a migration that failed.
    fn stop_dirty_tracking(&mut self) -> Result<(), MachineError>;

    /// Stops every vCPU, completes exits that were under way, then stops every device that does
    /// something by itself and hands what it buffered to the host, and gives back the custody under
    /// which the guest ran.
    ///
    /// When this returns nothing changes guest memory or state any more, and what only one host may
    /// hold is not used any more. A state that can be had in guest memory alone (the tables of arm64's interrupt
    /// translation services) is written there before this returns, so that the last harvest finds it. If it fails
    /// the guest still runs.
    fn pause(&mut self) -> Result<Custody, MachineError>;

    /// Runs the guest, from where it was paused or restored. If it fails the guest does not run and
    /// the custody comes back inside the error.
    fn resume(&mut self, custody: Custody) -> Result<(), ResumeError>;

    /// The state of the paused machine's vCPUs and VM. Does not touch guest memory.
    fn capture(&mut self) -> Result<MachineState, MachineError>;

    /// Puts a captured state into a machine that has never run. Everything that is marked as needed
    /// must be applied, or this must fail; a machine on which it failed is discarded.
    ///
    /// Guest memory is complete when this is called, and the state comes from the other side:
    /// refuse what does not make sense.
    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError>;

    /// The state of the paused machine's devices. There is no default: a machine whose devices have
    /// nothing to save says so with an empty state.
    fn capture_devices(&mut self) -> Result<MachineState, MachineError>;

    /// Puts the devices' state back; as [`restore`](Machine::restore), and called after it.
    fn restore_devices(&mut self, state: &MachineState) -> Result<(), MachineError>;

    /// Lets go of what only one host may hold (locks on shared disks), and says what it was: the
    /// engine tells the target with the state. The source calls it after the pause; the target
    /// when nothing becomes of a migration. If it fails everything is still held. A machine that
    /// holds nothing keeps the default.
    fn release_resources(&mut self) -> Result<Resources, MachineError> {
        Ok(Resources::default())
    }

    /// Takes what only one host may hold, for this guest: all of the list or nothing. The target
    /// calls it before it restores; the source, with what it let go of, before it resumes after a
    /// migration that failed. The error names the resource and who holds it. A machine without
    /// resources keeps the default, which takes an empty list; others forward to a
    /// [`ResourceSet`](crate::ResourceSet).
    fn take_resources(&mut self, guest: &GuestId, resources: &Resources) -> Result<(), MachineError> {
        let _ = guest;
        match resources.released.first() {
            None => Ok(()),
            Some(first) => Err(MachineError::new(format!(
                "the guest needs the resource `{first}`, and this machine takes none"
            ))),
        }
    }

    /// The images of the guest's disks. Constant for the life of the machine. On the source those that move with the
    /// guest if it is asked for; on the target those that [`DiskPlaces::make`](crate::DiskPlaces::make) gave the builder
    /// for the [`disks`](MachineDescription::disks) of the description, or those that it found where both hosts see them.
    /// The engine brings them to the disk ([`DiskImage::sync`]), beside the rounds and after the pause, also where they stay.
    /// A machine whose disks never move keeps the default.
    fn disk_images(&self) -> Vec<Arc<DiskImage>> {
        Vec::new()
    }

    /// Tells the network where the guest is now. Called on the target, once the guest runs. Must not wait: the source is
    /// told after it.
    fn announce(&mut self) {}
}

/// Whether the guest runs during a harvest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Harvest {
    /// The guest runs and goes on writing.
    Live,
    /// The guest is paused: this is the last harvest.
    Paused,
}

/// Makes machines on the target.
pub trait Builder: Send {
    /// The machine that it makes.
    type Machine: Machine;

    /// Holds an offered machine against this host, without building memory. Everything that can be
    /// found wrong is found here, before a page is sent.
    fn judge(&mut self, machine: &MachineDescription) -> Verdict;

    /// Whether it makes images for the [`disks`](MachineDescription::disks) of a description; a guest that brings its
    /// disks is refused otherwise.
    fn takes_disks(&self) -> bool {
        false
    }

    /// Builds the machine with its memory and vCPUs; it does not run. Its memory reads as zero.
    fn build(&mut self, machine: &MachineDescription) -> Result<Self::Machine, MachineError>;
}

/// Told when vCPUs start and stop to run; tests hang their journal on it.
pub trait RunWatch: Send + Sync {
    /// The guest is about to run under this custody.
    fn starts(&self, custody: &Custody);
    /// The guest stopped: no vCPU runs any more.
    fn stops(&self, custody: &Custody);
}

/// A machine could not do what the engine asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct MachineError {
    what: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl MachineError {
    /// What could not be done, with what, in one sentence.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// The same with the error that caused it.
    pub fn with_source(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }
}

/// A guest could not be resumed; here is its custody back.
#[derive(Debug, thiserror::Error)]
#[error("the guest could not be resumed")]
pub struct ResumeError {
    /// The right to try again.
    pub custody: Custody,
    /// Why it failed.
    #[source]
    pub source: MachineError,
}
