//! What vCPUs, the interrupt controller and the counter hold, read with every vCPU stopped.

use ferry_state::arm64::{
    Counter, GicCpuInterface, GicDistributor, GicIts, GicLines, GicRedistributor, MpState, Registers,
    VcpuEvents,
};
use ferry_state::{Section, StateError};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::gic::{Affinity, Gic};
use super::{StateIoError, registers};
use crate::probe::arm64::counter_frequency;

/// Every part of one vCPU.
#[derive(Debug, Clone)]
pub(super) struct VcpuValues {
    mp_state: MpState,
    events: VcpuEvents,
    registers: Registers,
    gic: Option<GicValues>,
}

/// The interrupt controller's part of one vCPU.
#[derive(Debug, Clone)]
struct GicValues {
    cpu_interface: GicCpuInterface,
    redistributor: GicRedistributor,
    lines: GicLines,
}

impl VcpuValues {
    /// Reads them. Nothing of it changes anything else, so the order is that of the list of parts.
    pub(super) fn read(vcpu: &VcpuFd, index: u32, gic: Option<&Gic>) -> Result<Self, StateIoError> {
        let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE", "whether it runs", index))?;
        let events = vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS", "the events", index))?;
        Ok(Self {
            mp_state: MpState { mp_state: mp_state.mp_state },
            events: VcpuEvents {
                serror_pending: events.exception.serror_pending != 0,
                serror_has_esr: events.exception.serror_has_esr != 0,
                serror_esr: events.exception.serror_esr,
            },
            registers: registers::read_all(vcpu, index)?,
            gic: gic.map(|gic| GicValues::read(gic, vcpu, index)).transpose()?,
        })
    }

    pub(super) fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The sections; needed is what differs from what the vCPU held at its creation.
    pub(super) fn sections(&self, index: u32, created: &Self) -> Result<Vec<Section>, StateError> {
        let mut sections = vec![
            Section::of(&self.mp_state, index, Some(&created.mp_state))?,
            Section::of(&self.events, index, Some(&created.events))?,
            Section::of(&self.registers, index, Some(&created.registers))?,
        ];
        if let Some(gic) = &self.gic {
            let created = created.gic.as_ref();
            sections.extend([
                Section::of(&gic.cpu_interface, index, created.map(|gic| &gic.cpu_interface))?,
                Section::of(&gic.redistributor, index, created.map(|gic| &gic.redistributor))?,
                Section::of(&gic.lines, index, created.map(|gic| &gic.lines))?,
            ]);
        }
        Ok(sections)
    }
}

impl GicValues {
    fn read(gic: &Gic, vcpu: &VcpuFd, index: u32) -> Result<Self, StateIoError> {
        let affinity = Affinity::of(vcpu).map_err(failed("KVM_GET_ONE_REG", "MPIDR_EL1", index))?;
        let unread = |what| failed("KVM_GET_DEVICE_ATTR", what, index);
        Ok(Self {
            cpu_interface: gic.cpu_interface(affinity).map_err(unread("the GIC's CPU interface"))?,
            redistributor: gic.redistributor(affinity).map_err(unread("the GIC's redistributor"))?,
            lines: gic.lines(index, affinity).map_err(unread("the GIC's lines"))?,
        })
    }
}

/// What the interrupt controller has once for all vCPUs.
#[derive(Debug, Clone)]
pub(super) struct SharedGicValues {
    distributor: GicDistributor,
    its: Vec<GicIts>,
}

impl SharedGicValues {
    pub(super) fn read(gic: &Gic) -> Result<Self, StateIoError> {
        let unread = |what, index| failed("KVM_GET_DEVICE_ATTR", what, index);
        let its = (0..).zip(gic.its()).map(|(index, its)| its.registers().map_err(unread("the ITS", index)));
        Ok(Self {
            distributor: gic.distributor().map_err(unread("the GIC's distributor", 0))?,
            its: its.collect::<Result<_, _>>()?,
        })
    }

    /// The sections; needed is what differs from what they held at the machine's creation.
    pub(super) fn sections(&self, created: &Self) -> Result<Vec<Section>, StateError> {
        let mut sections = vec![Section::of(&self.distributor, 0, Some(&created.distributor))?];
        for (index, (its, created)) in (0..).zip(self.its.iter().zip(&created.its)) {
            sections.push(Section::of(its, index, Some(created))?);
        }
        Ok(sections)
    }
}

/// The counter, as vCPU 0 sees it.
pub(super) fn counter(vcpu: &VcpuFd) -> Result<Counter, StateIoError> {
    let value = registers::read(vcpu, registers::TIMER_COUNT).map_err(failed(
        "KVM_GET_ONE_REG",
        "the virtual counter",
        0,
    ))?;
    Ok(Counter { value: value.number().unwrap_or(0), frequency_hz: counter_frequency() })
}

pub(super) fn failed(
    ioctl: &'static str,
    what: &str,
    index: u32,
) -> impl FnOnce(errno::Error) -> StateIoError + use<> {
    let what = what.to_owned();
    move |source| StateIoError::Ioctl { ioctl, what, index, source }
}
