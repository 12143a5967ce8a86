//! A captured state, put into a fresh machine whatever of it is refused on the way, and what is needed of it read
//! back: see [`Deviation`].
//!
//! The order is that of `restore.rs`. A register counts if it is needed, that is, if it does not hold what
//! the vCPU held at its creation on its source.

use ferry_state::arm64::{Counter, Registers};
use ferry_state::{MachineState, Part, StateError};
use kvm_ioctls::VcpuFd;

use super::gic::Gic;
use super::registers::{self, Stage};
use super::tables::Outcome;
use super::{StateIoError, restore};
use crate::Deviation;

/// Sets the counter.
pub(super) fn counter(vcpu: &VcpuFd, state: &MachineState) -> Option<Deviation> {
    refusal(Counter::NAME, restore::counter(vcpu, state))
}

/// Puts what KVM takes of the registers of one index into a vCPU. An error is one of the state's form.
pub(super) fn vcpu(vcpu: &VcpuFd, index: u32, state: &MachineState) -> Result<Vec<Deviation>, StateError> {
    let missing = StateError::MissingSection { section: Registers::NAME, index };
    let section = state.section(Registers::NAME, index)?.ok_or(missing)?;
    let sent: Registers = section.read()?;
    let mut found = Vec::new();
    for stage in Stage::WRITTEN {
        for (id, value) in sent.iter().filter(|(id, _)| registers::stage(*id) == Some(stage)) {
            if let Err(error) = registers::write(vcpu, id, value)
                && section.needs(id.key())
            {
                found.push(Deviation::Refused { what: id.to_string(), error: error.to_string() });
            }
        }
    }
    for (id, value) in sent.iter().filter(|(id, _)| section.needs(id.key()) && registers::lasts(*id)) {
        // One that cannot be read was refused above.
        if let Ok(reads) = registers::read(vcpu, id)
            && reads != *value
        {
            let (what, reads) = (id.to_string(), reads.to_string());
            found.push(Deviation::Changed { what, set: value.to_string(), reads });
        }
    }
    found.extend(refusal("the events", restore::events(vcpu, index, state)));
    Ok(found)
}

/// Puts the distributor in.
pub(super) fn distributor(gic: &Gic, state: &MachineState) -> Vec<Deviation> {
    all("the GIC's distributor", |outcome| restore::distributor(gic, state, outcome))
}

/// Puts in what the interrupt controller has of one vCPU.
pub(super) fn gic_of_vcpu(gic: &Gic, vcpu: &VcpuFd, index: u32, state: &MachineState) -> Vec<Deviation> {
    all("the GIC of a vCPU", |outcome| restore::gic_of_vcpu(gic, vcpu, index, state, outcome))
}

/// Puts the interrupt translation services in.
pub(super) fn all_its(gic: &Gic, state: &MachineState) -> Vec<Deviation> {
    all("the ITS", |outcome| restore::all_its(gic, state, outcome))
}

/// Says whether the vCPU runs.
pub(super) fn mp_state(vcpu: &VcpuFd, index: u32, state: &MachineState) -> Option<Deviation> {
    refusal("whether it runs", restore::mp_state(vcpu, index, state))
}

fn refusal(what: &str, result: Result<(), StateIoError>) -> Option<Deviation> {
    result.err().map(|error| Deviation::Refused { what: what.to_owned(), error: error.to_string() })
}

/// All that is refused of a part, and what ends it early.
fn all(what: &str, restore: impl FnOnce(&mut Outcome) -> Result<(), StateIoError>) -> Vec<Deviation> {
    let mut outcome = Outcome::default();
    let ended = refusal(what, restore(&mut outcome));
    let refused = outcome.refused.into_iter().filter_map(|error| refusal(what, Err(error)));
    refused.chain(ended).collect()
}
