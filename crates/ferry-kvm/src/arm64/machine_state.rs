//! A machine's state as a whole: all its vCPUs, the interrupt controller, the counter.

use ferry_migrate::MachineError;
use ferry_state::arm64::GicDistributor;
use ferry_state::{MachineState, Section};
use kvm_ioctls::{Kvm, VmFd};

use super::capture::{self, VcpuValues};
use super::gic::Gic;
use super::{StateIoError, restore};
use crate::Vcpus;
use crate::machine::failed;

/// What the machine held at its creation.
#[derive(Debug)]
pub(crate) struct KvmState {
    vcpus: Vec<VcpuValues>,
    gic: Option<(Gic, GicDistributor)>,
}

impl KvmState {
    /// Looks at a machine whose vCPUs have what their contract gives them and nothing else yet.
    pub(crate) fn at_creation(_: &Kvm, _: &VmFd, vcpus: &mut impl Vcpus) -> Result<Self, MachineError> {
        Ok(Self { vcpus: read_vcpus(vcpus, None)?, gic: None })
    }

    /// Looks at its interrupt controller as well.
    pub(crate) fn use_gic(&mut self, gic: Gic, vcpus: &mut impl Vcpus) -> Result<(), MachineError> {
        let distributor = capture::distributor(&gic).map_err(unread)?;
        self.vcpus = read_vcpus(vcpus, Some(&gic))?;
        self.gic = Some((gic, distributor));
        Ok(())
    }

    /// Captures all vCPUs and the VM, which stand still.
    pub(crate) fn capture(&self, _: &VmFd, vcpus: &mut impl Vcpus) -> Result<MachineState, MachineError> {
        let gic = self.gic.as_ref().map(|(gic, _)| gic);
        let now = read_vcpus(vcpus, gic)?;
        let mut sections = Vec::new();
        for ((index, now), created) in (0..).zip(&now).zip(&self.vcpus) {
            sections.extend(now.sections(index, created).map_err(|error| unread(error.into()))?);
        }
        if let Some((gic, created)) = &self.gic {
            let distributor = capture::distributor(gic).map_err(unread)?;
            let section = Section::of(&distributor, 0, Some(created));
            sections.push(section.map_err(|error| unread(error.into()))?);
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
        restore::check_sections(state, count, gic.is_some()).map_err(refused)?;
        let mut notices = Vec::new();
        vcpus.with_vcpu(0, &mut |vcpu| restore::counter(vcpu, state).map_err(refused))?;
        for index in 0..count {
            vcpus.with_vcpu(index, &mut |vcpu| {
                restore::vcpu(vcpu, index, state, &mut notices).map_err(refused)
            })?;
        }
        if let Some(gic) = gic {
            restore::distributor(gic, state, &mut notices).map_err(refused)?;
            for index in 0..count {
                vcpus.with_vcpu(index, &mut |vcpu| {
                    restore::gic_of_vcpu(gic, vcpu, index, state, &mut notices).map_err(refused)
                })?;
            }
        }
        for index in 0..count {
            vcpus.with_vcpu(index, &mut |vcpu| restore::mp_state(vcpu, index, state).map_err(refused))?;
        }
        for notice in notices {
            tracing::info!(%notice, "restored with a notice");
        }
        Ok(())
    }

    /// A guest on arm64 need not be told: its clock is the counter, which stood still.
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
