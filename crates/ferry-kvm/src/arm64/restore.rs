//! A captured machine, put into a fresh one in the order that KVM's own rules set.
//!
//! Before this come: the VM, all its vCPUs with the features and registers that the guest's contract gives
//! them, SVE finalised, and the GIC initialised: its registers can be written only then, and KVM says
//! EBUSY while any vCPU runs.

use std::time::Instant;

use ferry_state::arm64::{
    Counter, GicCpuInterface, GicDistributor, GicIts, GicLines, GicRedistributor, KNOWN_SECTIONS, MpState,
    Registers, VcpuEvents,
};
use ferry_state::{MachineState, Part, Section, StateError};
use kvm_bindings::{kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;

use super::capture::failed;
use super::gic::{Affinity, Gic, MPIDR};
use super::its::{self, GITS_CTLR, Its};
use super::registers::{self, Stage, TIMER_COUNT};
use super::tables::{self, Outcome};
use super::{Clocks, Notice, StateIoError};
use crate::probe::arm64::counter_frequency;

/// Refuses a state that has needed sections of unknown parts or of vCPUs beyond `vcpus`, or any of an interrupt
/// controller where there is none: the guest will look for it, used or not. For the state of vCPUs and VM, without
/// that of devices.
pub(super) fn check_sections(
    state: &MachineState,
    vcpus: u32,
    gic: Option<&Gic>,
) -> Result<(), StateIoError> {
    state.refuse_unknown(KNOWN_SECTIONS)?;
    let here = gic.map_or(0, |gic| gic.its().len());
    for section in &state.sections {
        let (name, index) = (section.name.as_str(), section.index);
        if gic.is_none() && name.starts_with("arm64.gic_") {
            return Err(StateIoError::NoGic { section: name.to_owned(), index });
        }
        let bound = match name {
            GicIts::NAME if index as usize >= here => {
                return Err(StateIoError::NoIts { section: name.to_owned(), index, here });
            }
            GicIts::NAME => continue,
            GicDistributor::NAME | Counter::NAME => 1,
            _ => vcpus,
        };
        if index >= bound && !section.needed.is_empty() {
            return Err(StateIoError::NoSuchVcpu { section: name.to_owned(), index, vcpus });
        }
    }
    Ok(())
}

/// Sets the counter, for all vCPUs, by the first.
pub(super) fn counter(vcpu: &VcpuFd, state: &MachineState) -> Result<(), StateIoError> {
    let counter: Counter = state.require(0)?;
    let (guest_hz, host_hz) = (counter.frequency_hz, counter_frequency());
    if guest_hz != host_hz {
        return Err(StateIoError::CounterFrequency { guest_hz, host_hz });
    }
    // Before the timers, whose compare values mean something on this counter. From now on it counts.
    let start = Instant::now();
    let clocks = Clocks::of(state, 1)?;
    clocks.put_back_virtual(vcpu)?;
    let reads = registers::read(vcpu, TIMER_COUNT)
        .map_err(failed("KVM_GET_ONE_REG", "the virtual counter", 0))?
        .number()
        .unwrap_or(0);
    // KVM passes over the write where the VMM has set an offset for the VM (KVM_ARM_SET_COUNTER_OFFSET).
    let ticks = start.elapsed().as_nanos() * u128::from(host_hz) / 1_000_000_000;
    // A thousandth of a second more: the clock that measures is not the counter itself.
    if u128::from(reads.wrapping_sub(counter.value)) > ticks + u128::from(host_hz) / 1000 {
        return Err(StateIoError::CounterNotKept { value: counter.value, reads });
    }
    clocks.put_back_physical(vcpu);
    Ok(())
}

/// Puts the registers and events of one index into a fresh vCPU.
pub(super) fn vcpu(
    vcpu: &VcpuFd,
    index: u32,
    state: &MachineState,
    notices: &mut Vec<Notice>,
) -> Result<(), StateIoError> {
    let section = required(state, Registers::NAME, index)?;
    let sent: Registers = section.read()?;
    // If what the contract has set is not the guest's, nothing else is right.
    check_given(vcpu, index, section, &sent)?;
    for stage in Stage::WRITTEN {
        for (id, value) in sent.iter().filter(|(id, _)| registers::stage(*id) == Some(stage)) {
            let Err(source) = registers::write(vcpu, id, value) else { continue };
            // A register of a kind that this KVM takes no write of may well hold what it must.
            let holds = registers::read(vcpu, id).is_ok_and(|held| held == *value);
            if !holds && section.needs(id.key()) {
                let (register, value) = (id, value.clone());
                return Err(StateIoError::RegisterRefused { index, register, value, source });
            }
            if !holds {
                notices.push(Notice::RegisterSkipped { index, register: id, value: value.clone() });
            }
        }
    }
    check_kept(vcpu, index, section, &sent)?;
    events(vcpu, index, state)
}

/// Puts the events of one index into a vCPU, after its registers: an error that waits is taken by what they say.
pub(super) fn events(vcpu: &VcpuFd, index: u32, state: &MachineState) -> Result<(), StateIoError> {
    let events: VcpuEvents = state.require(index)?;
    let mut wanted = kvm_vcpu_events::default();
    wanted.exception.serror_pending = events.serror_pending.into();
    wanted.exception.serror_has_esr = events.serror_has_esr.into();
    wanted.exception.serror_esr = events.serror_esr;
    vcpu.set_vcpu_events(&wanted).map_err(failed("KVM_SET_VCPU_EVENTS", "the events", index))
}

/// Compares what the contract has set with what the guest had. What is not needed is on the source what its KVM
/// gave the vCPU under the same contract, and may be absent here. `MPIDR_EL1` is in no contract: the VMM that made
/// the vCPU has set it, and it must be the guest's, needed or not.
fn check_given(vcpu: &VcpuFd, index: u32, section: &Section, sent: &Registers) -> Result<(), StateIoError> {
    let given = |id| registers::stage(id) == Some(Stage::Given);
    for (id, value) in sent.iter().filter(|(id, _)| given(*id) && (section.needs(id.key()) || *id == MPIDR)) {
        let has = registers::read(vcpu, id).ok();
        if has.as_ref() != Some(value) {
            let (register, value) = (id, value.clone());
            return Err(StateIoError::NotGiven { index, register, value, has });
        }
    }
    Ok(())
}

/// Reads back what is needed.
fn check_kept(vcpu: &VcpuFd, index: u32, section: &Section, sent: &Registers) -> Result<(), StateIoError> {
    for (id, value) in sent.iter().filter(|(id, _)| section.needs(id.key()) && registers::lasts(*id)) {
        let reads = registers::read(vcpu, id)
            .map_err(|source| failed("KVM_GET_ONE_REG", &id.to_string(), index)(source))?;
        if reads != *value {
            let (register, value) = (id, value.clone());
            return Err(StateIoError::RegisterNotKept { index, register, value, reads });
        }
    }
    Ok(())
}

/// Puts the distributor back, before what is each vCPU's own: it says how interrupts are handled at all.
pub(super) fn distributor(
    gic: &Gic,
    state: &MachineState,
    outcome: &mut Outcome,
) -> Result<(), StateIoError> {
    let section = required(state, GicDistributor::NAME, 0)?;
    let part: GicDistributor = section.read()?;
    let read = || {
        gic.distributor().map(|it| it.values).map_err(failed(
            "KVM_GET_DEVICE_ATTR",
            "the GIC's distributor",
            0,
        ))
    };
    let set = |offset, value| gic.set_distributor(offset, value);
    tables::apply(section, &part.values, &gic.distributor_words(), read, set, outcome)
}

/// Puts back what the interrupt controller has of one vCPU.
pub(super) fn gic_of_vcpu(
    gic: &Gic,
    vcpu: &VcpuFd,
    index: u32,
    state: &MachineState,
    outcome: &mut Outcome,
) -> Result<(), StateIoError> {
    let affinity = Affinity::of(vcpu).map_err(failed("KVM_GET_ONE_REG", "MPIDR_EL1", index))?;
    let unread = |what| failed("KVM_GET_DEVICE_ATTR", what, index);
    let section = required(state, GicRedistributor::NAME, index)?;
    let part: GicRedistributor = section.read()?;
    let read = || gic.redistributor(affinity).map(|it| it.values).map_err(unread("the GIC's redistributor"));
    let set = |offset, value| gic.set_redistributor(affinity, offset, value);
    tables::apply(section, &part.values, &Gic::redistributor_words(), read, set, outcome)?;
    let section = required(state, GicCpuInterface::NAME, index)?;
    let part: GicCpuInterface = section.read()?;
    let read = || gic.cpu_interface(affinity).map(|it| it.values).map_err(unread("the GIC's CPU interface"));
    let set = |number, value| gic.set_cpu_interface(affinity, number, value);
    tables::apply(section, &part.values, &Gic::cpu_interface_numbers(), read, set, outcome)?;
    // The levels of lines last: a latch that was written is kept, and the line adds to it (arm-vgic-v3.rst,
    // KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO).
    let section = required(state, GicLines::NAME, index)?;
    let part: GicLines = section.read()?;
    let read = || gic.lines(index, affinity).map(|it| it.values).map_err(unread("the GIC's lines"));
    let set = |first, value| gic.set_lines(affinity, first, value);
    tables::apply(section, &part.values, &gic.line_words(index), read, set, outcome)
}

/// Puts the interrupt translation services back. After the redistributors: they say where the tables of LPIs are,
/// and KVM reads there, with the services' own tables, which LPIs are enabled and which wait.
pub(super) fn all_its(gic: &Gic, state: &MachineState, outcome: &mut Outcome) -> Result<(), StateIoError> {
    (0..).zip(gic.its()).try_for_each(|(index, its)| one_its(its, index, state, outcome))
}

fn one_its(its: &Its, index: u32, state: &MachineState, outcome: &mut Outcome) -> Result<(), StateIoError> {
    let read = || its.registers().map_err(failed("KVM_GET_DEVICE_ATTR", "the ITS", index));
    let section = required(state, GicIts::NAME, index)?;
    let (part, now): (GicIts, GicIts) = (section.read()?, read()?);
    tables::refuse_unwritten(section, &its::ORDER)?;
    let (control, before): (Vec<u32>, Vec<u32>) = its::ORDER.iter().partition(|it| **it == GITS_CTLR);
    let set = |offset, value| its.set(offset, value);
    // The tables are there also when the guest has switched the ITS off.
    tables::write(section, &part.values, &now.values, &before, set, outcome);
    if let Err(source) = its.restore_tables() {
        outcome.refused.push(StateIoError::ItsTablesUnread { index, source });
    }
    tables::write(section, &part.values, &now.values, &control, set, outcome);
    tables::check_kept(section, &part.values, &read()?.values, outcome);
    Ok(())
}

/// Whether the vCPU runs, at the very end: with this it is whole.
pub(super) fn mp_state(vcpu: &VcpuFd, index: u32, state: &MachineState) -> Result<(), StateIoError> {
    let part: MpState = state.require(index)?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: part.mp_state }).map_err(failed(
        "KVM_SET_MP_STATE",
        "whether it runs",
        index,
    ))
}

fn required<'a>(
    state: &'a MachineState,
    name: &'static str,
    index: u32,
) -> Result<&'a Section, StateIoError> {
    let missing = || StateError::MissingSection { section: name, index };
    Ok(state.section(name, index)?.ok_or_else(missing)?)
}
