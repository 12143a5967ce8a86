//! All devices of a machine.

use std::collections::BTreeSet;
use std::fmt;

use ferry_memory::PageSet;
use ferry_state::{MAX_NAME_BYTES, MachineState, Section};

use super::{Device, PREFIX};
use crate::{MachineError, sentence};

/// The devices of one machine, by name.
#[derive(Default)]
pub struct DeviceSet {
    devices: Vec<Box<dyn Device>>,
}

impl DeviceSet {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device. Refused are a name that a section cannot have, and the name and index of
    /// another device.
    pub fn add(&mut self, device: impl Device + 'static) -> Result<(), MachineError> {
        let (name, index) = (device.name(), device.index());
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if name.is_empty() || PREFIX.len() + name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
            return Err(MachineError::new(format!(
                "a device cannot be called {name:?}: use 1 to {} characters of a-z, 0-9, '.', '_' and '-'",
                MAX_NAME_BYTES - PREFIX.len()
            )));
        }
        if self.devices.iter().any(|other| (other.name(), other.index()) == (name.clone(), index)) {
            return Err(MachineError::new(format!("there is a device `{name}` with index {index} already")));
        }
        self.devices.push(Box::new(device));
        Ok(())
    }

    /// The state of all quiet devices, a section each, in the order in which they were added.
    pub fn capture(&mut self) -> Result<MachineState, MachineError> {
        let mut sections = Vec::with_capacity(self.devices.len());
        for device in &mut self.devices {
            let saved = device.save().map_err(|error| told(device.as_ref(), "be saved", error))?;
            sections.push(saved.into_section(section_name(device.as_ref()), device.index()));
        }
        MachineState::from_sections(sections)
            .map_err(|error| MachineError::with_source("the devices' states are no state", error))
    }

    /// Restores every device from its section. Refused are a section of a device that is not here when
    /// something in it is needed, and a state without the section of a device that is here: then the
    /// source's machine was another one.
    pub fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let names: Vec<(String, u32)> =
            self.devices.iter().map(|device| (section_name(device.as_ref()), device.index())).collect();
        let known: BTreeSet<(&str, u32)> =
            names.iter().map(|(name, index)| (name.as_str(), *index)).collect();
        let foreign = |section: &&Section| !known.contains(&(section.name.as_str(), section.index));
        for section in state.sections.iter().filter(foreign) {
            let (name, index, needed) = (&section.name, section.index, &section.needed);
            if !needed.is_empty() {
                return Err(MachineError::new(format!(
                    "the guest has the device `{name}` (index {index}) and needs its fields {needed:?}; \
                     this machine has no such device"
                )));
            }
            tracing::warn!(name, index, "the guest's device is not here; nothing of it is needed");
        }
        let there: BTreeSet<(&str, u32)> =
            state.sections.iter().map(|section| (section.name.as_str(), section.index)).collect();
        let missing: Vec<String> =
            known.difference(&there).map(|(name, index)| format!("`{name}` (index {index})")).collect();
        if !missing.is_empty() {
            return Err(MachineError::new(format!(
                "the state has no section of {}: the source's machine has no such device",
                missing.join(", ")
            )));
        }
        for (device, (name, index)) in self.devices.iter_mut().zip(&names) {
            let section = state
                .section(name, *index)
                .map_err(|error| MachineError::with_source("the devices' state is no state", error))?;
            let section = section.ok_or_else(|| MachineError::new(format!("the section {name} is gone")))?;
            device.restore(section).map_err(|error| told(device.as_ref(), "be restored", error))?;
        }
        Ok(())
    }

    /// Adds the pages that devices wrote to guest memory since the last call.
    pub fn harvest_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        for device in &mut self.devices {
            device.harvest_dirty(into).map_err(|error| told(device.as_ref(), "be harvested", error))?;
        }
        Ok(())
    }

    /// Makes every device quiet, in the order in which they were added. If one fails, all go on.
    pub fn quiesce(&mut self) -> Result<(), MachineError> {
        for place in 0..self.devices.len() {
            let Some(device) = self.devices.get_mut(place) else { break };
            if let Err(error) = device.quiesce() {
                let error = told(device.as_ref(), "be made quiet", error);
                for earlier in self.devices.iter_mut().take(place).rev() {
                    warn_of(&earlier.name(), "goes on", earlier.resume());
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets every device go on, the last one first. If one fails, all are quiet.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        for place in (0..self.devices.len()).rev() {
            let Some(device) = self.devices.get_mut(place) else { break };
            if let Err(error) = device.resume() {
                let error = told(device.as_ref(), "go on", error);
                for later in self.devices.iter_mut().skip(place + 1) {
                    warn_of(&later.name(), "is made quiet", later.quiesce());
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tells the network where the guest is now.
    pub fn announce(&mut self) {
        self.devices.iter_mut().for_each(|device| device.announce());
    }
}

impl fmt::Debug for DeviceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.devices.iter().map(|device| (device.name(), device.index()))).finish()
    }
}

fn section_name(device: &dyn Device) -> String {
    format!("{PREFIX}{}", device.name())
}

/// The same error with the device's name.
fn told(device: &dyn Device, what: &str, error: MachineError) -> MachineError {
    let (name, index) = (device.name(), device.index());
    MachineError::with_source(format!("the device `{name}` (index {index}) cannot {what}"), error)
}

/// Of a step back after another device failed; the first error is the one that is told.
fn warn_of(device: &str, what: &str, step_back: Result<(), MachineError>) {
    if let Err(error) = step_back {
        tracing::warn!(device, what, error = sentence(&error), "a device does not do as the others");
    }
}

#[cfg(test)]
mod tests;
