//! A captured machine, put into a fresh one in the order that KVM's own rules set.
//!
//! Before this come: the VM, all its vCPUs with the features and registers that the guest's contract gives
//! them, SVE finalised, and the GIC initialised: its registers can be written only then, and KVM says
//! EBUSY while any vCPU runs.

use std::collections::BTreeMap;

use ferry_state::arm64::{
    Counter, GicCpuInterface, GicDistributor, GicLines, GicRedistributor, KNOWN_SECTIONS, MpState, Registers,
    VcpuEvents,
};
use ferry_state::{MachineState, Part, Section, StateError};
use kvm_bindings::{kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::capture::failed;
use super::gic::{Affinity, Gic};
use super::registers::{self, PHYSICAL_COUNT, Stage, TIMER_COUNT};
use super::{Notice, StateIoError};
use crate::probe::arm64::counter_frequency;

/// Refuses a state that has needed sections of unknown parts, of vCPUs beyond `vcpus`, or of an interrupt
/// controller where there is none. For the state of vCPUs and VM, without that of devices.
pub(super) fn check_sections(state: &MachineState, vcpus: u32, has_gic: bool) -> Result<(), StateIoError> {
    state.refuse_unknown(KNOWN_SECTIONS)?;
    for section in state.sections.iter().filter(|section| !section.needed.is_empty()) {
        let (name, index) = (section.name.as_str(), section.index);
        let bound = if [GicDistributor::NAME, Counter::NAME].contains(&name) { 1 } else { vcpus };
        if index >= bound {
            return Err(StateIoError::NoSuchVcpu { section: name.to_owned(), index, vcpus });
        }
        if !has_gic && name.starts_with("arm64.gic_") {
            return Err(StateIoError::NoGic { section: name.to_owned(), index });
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
    registers::write(vcpu, TIMER_COUNT, &counter.value.into()).map_err(failed(
        "KVM_SET_ONE_REG",
        "the virtual counter",
        0,
    ))?;
    // Guests of kernels before 6.4 see the host's physical counter, which no one can set.
    let registers: Registers = state.require(0)?;
    if let Some(physical) = registers.value(PHYSICAL_COUNT)
        && let Err(error) = registers::write(vcpu, PHYSICAL_COUNT, physical)
    {
        tracing::debug!(%error, "the physical counter stays the host's");
    }
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
    // What the contract has set comes first: if that is not the guest's, nothing else is right.
    for stage in [Stage::Given, Stage::Plain, Stage::Vectors, Stage::Counts, Stage::Acting] {
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
    // After the registers: an error that waits is taken by what they say.
    let events: VcpuEvents = state.require(index)?;
    let mut wanted = kvm_vcpu_events::default();
    wanted.exception.serror_pending = events.serror_pending.into();
    wanted.exception.serror_has_esr = events.serror_has_esr.into();
    wanted.exception.serror_esr = events.serror_esr;
    vcpu.set_vcpu_events(&wanted).map_err(failed("KVM_SET_VCPU_EVENTS", "the events", index))
}

/// Reads back what is needed.
fn check_kept(vcpu: &VcpuFd, index: u32, section: &Section, sent: &Registers) -> Result<(), StateIoError> {
    let lasting = |id| registers::stage(id).is_some() && !registers::counts_by_itself(id);
    for (id, value) in sent.iter().filter(|(id, _)| section.needs(id.key()) && lasting(*id)) {
        let reads = registers::read(vcpu, id).map_err(failed("KVM_GET_ONE_REG", &id.to_string(), index))?;
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
    notices: &mut Vec<Notice>,
) -> Result<(), StateIoError> {
    let section = required(state, GicDistributor::NAME, 0)?;
    let part: GicDistributor = section.read()?;
    let now = gic.distributor().map_err(failed("KVM_GET_DEVICE_ATTR", "the GIC's distributor", 0))?.values;
    apply(section, &part.values, &now, gic.distributor_words(), notices, |offset, value| {
        gic.set_distributor(offset, value)
    })
}

/// Puts back what the interrupt controller has of one vCPU.
pub(super) fn gic_of_vcpu(
    gic: &Gic,
    vcpu: &VcpuFd,
    index: u32,
    state: &MachineState,
    notices: &mut Vec<Notice>,
) -> Result<(), StateIoError> {
    let affinity = Affinity::of(vcpu).map_err(failed("KVM_GET_ONE_REG", "MPIDR_EL1", index))?;
    let unread = |what| failed("KVM_GET_DEVICE_ATTR", what, index);
    let section = required(state, GicRedistributor::NAME, index)?;
    let part: GicRedistributor = section.read()?;
    let now = gic.redistributor(affinity).map_err(unread("the GIC's redistributor"))?.values;
    apply(section, &part.values, &now, Gic::redistributor_words(), notices, |offset, value| {
        gic.set_redistributor(affinity, offset, value)
    })?;
    let section = required(state, GicCpuInterface::NAME, index)?;
    let part: GicCpuInterface = section.read()?;
    let now = gic.cpu_interface(affinity).map_err(unread("the GIC's CPU interface"))?.values;
    apply(section, &part.values, &now, Gic::cpu_interface_numbers(), notices, |number, value| {
        gic.set_cpu_interface(affinity, number, value)
    })?;
    // The levels of lines last: a latch that was written is kept, and the line adds to it (arm-vgic-v3.rst,
    // KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO).
    let section = required(state, GicLines::NAME, index)?;
    let part: GicLines = section.read()?;
    let now = gic.lines(index, affinity).map_err(unread("the GIC's lines"))?.values;
    apply(section, &part.values, &now, now.keys().copied(), notices, |first, value| {
        gic.set_lines(affinity, first, value)
    })
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

/// Writes what of a table is not there `now`, in this order. What is needed must be taken, and be among what this
/// build writes. (Some registers read back otherwise than what was written though that is what they held:
/// `GICR_PROPBASER` gets attributes.)
fn apply<V: Copy + PartialEq + std::fmt::LowerHex>(
    section: &Section,
    values: &BTreeMap<u32, V>,
    now: &BTreeMap<u32, V>,
    order: impl IntoIterator<Item = u32>,
    notices: &mut Vec<Notice>,
    set: impl Fn(u32, V) -> Result<(), errno::Error>,
) -> Result<(), StateIoError> {
    let index = section.index;
    let mut written = Vec::new();
    for number in order {
        let Some(&value) = values.get(&number) else { continue };
        written.push(number);
        if now.get(&number) == Some(&value) {
            continue;
        }
        let what = format!("{value:#x} in {} {number:#x}", section.name);
        match set(number, value) {
            Ok(()) => {}
            Err(source) if section.needs(number) => {
                return Err(failed("KVM_SET_DEVICE_ATTR", &what, index)(source));
            }
            Err(_) => notices.push(Notice::GicSkipped { index, what }),
        }
    }
    match section.needed.iter().find(|number| !written.contains(number)) {
        None => Ok(()),
        Some(&field) => {
            let section = section.name.clone();
            Err(StateError::UnknownNeededField { section, index, field }.into())
        }
    }
}

fn required<'a>(
    state: &'a MachineState,
    name: &'static str,
    index: u32,
) -> Result<&'a Section, StateIoError> {
    let missing = || StateError::MissingSection { section: name, index };
    Ok(state.section(name, index)?.ok_or_else(missing)?)
}
