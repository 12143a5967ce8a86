//! A machine's state as a whole: all its vCPUs, the interrupt controller, the counter.

use ferry_migrate::MachineError;
use ferry_state::{MachineState, Section};
use kvm_ioctls::{Kvm, VmFd};

use super::capture::{self, SharedGicValues, VcpuValues};
use super::gic::Gic;
use super::tables::Outcome;
use super::{Clocks, Notice, StateIoError, forced, registers, restore};
use crate::machine::failed;
use crate::{Deviation, Vcpus};

/// What the machine held at its creation.
#[derive(Debug)]
pub(crate) struct KvmState {
    vcpus: Vec<VcpuValues>,
    gic: Option<(Gic, SharedGicValues)>,
}

impl KvmState {
    /// Looks at a machine whose vCPUs have what their contract gives them and nothing else yet.
    pub(crate) fn at_creation(_: &Kvm, _: &VmFd, vcpus: &mut impl Vcpus) -> Result<Self, MachineError> {
        let vcpus = read_vcpus(vcpus, None)?;
        match (0..).zip(&vcpus).find(|(_, values)| registers::has_memory_tags(values.registers())) {
            Some((index, _)) => Err(failed("this VM cannot move", StateIoError::MemoryTags { index })),
            None => Ok(Self { vcpus, gic: None }),
        }
    }

    /// Looks at its interrupt controller as well.
    pub(crate) fn use_gic(&mut self, gic: Gic, vcpus: &mut impl Vcpus) -> Result<(), MachineError> {
        let shared = SharedGicValues::read(&gic).map_err(unread)?;
        self.vcpus = read_vcpus(vcpus, Some(&gic))?;
        self.gic = Some((gic, shared));
        Ok(())
    }

    /// Captures all vCPUs and the VM, which stand still.
    pub(crate) fn capture(&self, _: &VmFd, vcpus: &mut impl Vcpus) -> Result<MachineState, MachineError> {
        let gic = self.gic.as_ref().map(|(gic, _)| gic);
        let now = read_vcpus(vcpus, gic)?;
        if now.iter().any(|values| !registers::has_physical_timer(values.registers())) {
            tracing::warn!(notice = %Notice::PhysicalTimerLeft, "captured with a notice");
        }
        let mut sections = Vec::new();
        for ((index, now), created) in (0..).zip(&now).zip(&self.vcpus) {
            sections.extend(now.sections(index, created).map_err(|error| unread(error.into()))?);
        }
        if let Some((gic, created)) = &self.gic {
            let now = SharedGicValues::read(gic).map_err(unread)?;
            sections.extend(now.sections(created).map_err(|error| unread(error.into()))?);
        }
        vcpus.with_vcpu(0, &mut |vcpu| {
            let counter = capture::counter(vcpu).map_err(unread)?;
            // No baseline: where it stands is always the guest's.
            sections.push(Section::of(&counter, 0, None).map_err(|error| unread(error.into()))?);
            Ok(())
        })?;
        MachineState::from_sections(sections).map_err(|error| unread(error.into()))
    }

    /// Puts a state into a machine that has never run.
    pub(crate) fn restore(
        &self,
        _: &VmFd,
        vcpus: &mut impl Vcpus,
        state: &MachineState,
    ) -> Result<(), MachineError> {
        let refused = |error: StateIoError| failed("the guest's state cannot be restored here", error);
        let (count, gic) = (vcpus.count(), self.gic.as_ref().map(|(gic, _)| gic));
        restore::check_sections(state, count, gic).map_err(refused)?;
        let mut outcome = Outcome::default();
        vcpus.with_vcpu(0, &mut |vcpu| restore::counter(vcpu, state).map_err(refused))?;
        for index in 0..count {
            vcpus.with_vcpu(index, &mut |vcpu| {
                restore::vcpu(vcpu, index, state, &mut outcome.notices).map_err(refused)
            })?;
        }
        if let Some(gic) = gic {
            restore::distributor(gic, state, &mut outcome).map_err(refused)?;
            for index in 0..count {
                vcpus.with_vcpu(index, &mut |vcpu| {
                    restore::gic_of_vcpu(gic, vcpu, index, state, &mut outcome).map_err(refused)
                })?;
            }
            restore::all_its(gic, state, &mut outcome).map_err(refused)?;
        }
        for index in 0..count {
            vcpus.with_vcpu(index, &mut |vcpu| restore::mp_state(vcpu, index, state).map_err(refused))?;
        }
        for notice in outcome.notices().map_err(refused)? {
            tracing::info!(%notice, "restored with a notice");
        }
        Ok(())
    }

    /// Puts in what KVM takes of a state, and says what it does not.
    pub(crate) fn force(
        &self,
        _: &VmFd,
        vcpus: &mut impl Vcpus,
        state: &MachineState,
    ) -> Result<Vec<Deviation>, MachineError> {
        let unread = |error| failed("the guest's state cannot be read", error);
        let gic = self.gic.as_ref().map(|(gic, _)| gic);
        let mut found = Vec::new();
        vcpus.with_vcpu(0, &mut |vcpu| {
            found.extend(forced::counter(vcpu, state));
            Ok(())
        })?;
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                found.extend(forced::vcpu(vcpu, index, state).map_err(unread)?);
                Ok(())
            })?;
        }
        found.extend(gic.map(|gic| forced::distributor(gic, state)).unwrap_or_default());
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                found.extend(gic.map(|gic| forced::gic_of_vcpu(gic, vcpu, index, state)).unwrap_or_default());
                Ok(())
            })?;
        }
        found.extend(gic.map(|gic| forced::all_its(gic, state)).unwrap_or_default());
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                found.extend(forced::mp_state(vcpu, index, state));
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Writes into guest memory what KVM holds of it and gives out nowhere else: the tables of the ITSs, and which
    /// LPIs wait. All vCPUs stand still, and so do the devices, which send LPIs.
    pub(crate) fn write_tables(&self) -> Result<(), MachineError> {
        let Some((gic, _)) = self.gic.as_ref().filter(|(gic, _)| !gic.its().is_empty()) else {
            return Ok(());
        };
        let unwritten = |error| failed("the tables of the guest's interrupts cannot be written", error);
        for (index, its) in (0..).zip(gic.its()) {
            its.save_tables()
                .map_err(|source| unwritten(StateIoError::ItsTablesUnwritten { index, source }))?;
        }
        let unsaved = capture::failed("KVM_SET_DEVICE_ATTR", "which LPIs wait", 0);
        gic.save_pending_tables().map_err(|source| unwritten(unsaved(source)))
    }

    /// Puts the clocks back to where they stood.
    #[expect(
        clippy::unused_self,
        reason = "guests of another architecture have what their KVM can do looked at"
    )]
    pub(crate) fn set_clocks(
        &self,
        clocks: &Clocks,
        _: &VmFd,
        vcpus: &mut impl Vcpus,
    ) -> Result<(), MachineError> {
        let refused = |error| failed("the guest's clocks cannot be put back", error);
        vcpus.with_vcpu(0, &mut |vcpu| clocks.put_back(vcpu).map_err(refused))
    }

    /// A guest on arm64 need not be told: its clock is the counter, and Linux has no word for it there.
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "guests of another architecture are told"
    )]
    pub(crate) fn note_pause(&self, _: &mut impl Vcpus) -> Result<(), MachineError> {
        Ok(())
    }
}

fn read_vcpus(vcpus: &mut impl Vcpus, gic: Option<&Gic>) -> Result<Vec<VcpuValues>, MachineError> {
    let mut values = Vec::new();
    for index in 0..vcpus.count() {
        vcpus.with_vcpu(index, &mut |vcpu| {
            values.push(VcpuValues::read(vcpu, index, gic).map_err(unread)?);
            Ok(())
        })?;
    }
    Ok(values)
}

fn unread(error: StateIoError) -> MachineError {
    failed("the machine's state cannot be read", error)
}
