//! A machine that takes a guest whatever KVM says, and writes down what it said.

use std::sync::{Arc, Mutex, PoisonError};

use ferry_contract::Verdict;
use ferry_kvm::Deviation;
use ferry_memory::{GuestRam, PageSet};
use ferry_migrate::{Builder, Custody, Harvest, Machine, MachineError, ResumeError};
use ferry_protocol::{GuestId, MachineDescription};
use ferry_state::{MachineState, Resources};
use ferry_vmm::{KvmBuilder, KvmGuest};

/// What was found so far; the builder and its machine write here.
pub(crate) type Found = Arc<Mutex<Vec<Deviation>>>;

/// Builds machines by force.
pub(crate) struct ForcedBuilder {
    pub(crate) builder: KvmBuilder,
    pub(crate) found: Found,
}

/// A machine that was built by force.
pub(crate) struct Forced {
    pub(crate) guest: KvmGuest,
    found: Found,
}

fn add(found: &Found, more: Vec<Deviation>) {
    found.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
}

impl Builder for ForcedBuilder {
    type Machine = Forced;

    /// Nobody is asked.
    fn judge(&mut self, _: &MachineDescription) -> Verdict {
        Verdict::accept()
    }

    fn build(&mut self, machine: &MachineDescription) -> Result<Forced, MachineError> {
        let (guest, found) = self.builder.build_by_force(machine)?;
        add(&self.found, found);
        Ok(Forced { guest, found: Arc::clone(&self.found) })
    }
}

impl Machine for Forced {
    fn description(&self) -> MachineDescription {
        self.guest.description()
    }

    fn ram(&self) -> GuestRam {
        self.guest.ram()
    }

    fn start_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.guest.start_dirty_tracking()
    }

    fn harvest_dirty(&mut self, when: Harvest, into: &mut PageSet) -> Result<(), MachineError> {
        self.guest.harvest_dirty(when, into)
    }

    fn stop_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.guest.stop_dirty_tracking()
    }

    fn pause(&mut self) -> Result<Custody, MachineError> {
        self.guest.pause()
    }

    fn resume(&mut self, custody: Custody) -> Result<(), ResumeError> {
        self.guest.resume(custody)
    }

    fn capture(&mut self) -> Result<MachineState, MachineError> {
        self.guest.capture()
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let found = self.guest.force(state)?;
        add(&self.found, found);
        Ok(())
    }

    fn capture_devices(&mut self) -> Result<MachineState, MachineError> {
        self.guest.capture_devices()
    }

    fn restore_devices(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.guest.restore_devices(state)
    }

    fn release_resources(&mut self) -> Result<Resources, MachineError> {
        self.guest.release_resources()
    }

    fn take_resources(&mut self, guest: &GuestId, resources: &Resources) -> Result<(), MachineError> {
        self.guest.take_resources(guest, resources)
    }
}
