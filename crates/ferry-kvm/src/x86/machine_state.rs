//! A machine's state as a whole: all its vCPUs, then the VM, by the calls of [`x86`].

use ferry_migrate::MachineError;
use ferry_state::MachineState;
use kvm_ioctls::{Kvm, VmFd};

use crate::machine::failed;
use crate::x86::{self, Clocks, FirstTsc, StateIoError, VcpuBaseline, VmBaseline, X86Caps, vm};
use crate::{Deviation, Vcpus};

/// What KVM can do for one machine's state, and what the machine held at its creation.
#[derive(Debug)]
pub(crate) struct KvmState {
    caps: X86Caps,
    vm: VmBaseline,
    vcpus: Vec<VcpuBaseline>,
}

impl KvmState {
    /// Looks at a machine whose vCPUs have their CPUID and nothing else yet.
    pub(crate) fn at_creation(kvm: &Kvm, vm: &VmFd, vcpus: &mut impl Vcpus) -> Result<Self, MachineError> {
        let unread = |error| failed("the state of the new machine cannot be read", error);
        let mut caps = X86Caps::prepare(kvm, vm).map_err(unread)?;
        let baseline = VmBaseline::capture(vm).map_err(unread)?;
        let mut baselines = Vec::new();
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                baselines.push(VcpuBaseline::capture(vcpu, index, &mut caps).map_err(unread)?);
                Ok(())
            })?;
        }
        Ok(Self { caps, vm: baseline, vcpus: baselines })
    }

    /// Captures all vCPUs and the VM, which stand still.
    pub(crate) fn capture(&self, vm: &VmFd, vcpus: &mut impl Vcpus) -> Result<MachineState, MachineError> {
        let unread = |error| failed("the guest's state cannot be captured", error);
        let (mut sections, mut first) = (Vec::new(), FirstTsc::default());
        for (index, baseline) in (0..vcpus.count()).zip(&self.vcpus) {
            vcpus.with_vcpu(index, &mut |vcpu| {
                let captured = x86::capture_vcpu(vcpu, index, Some(baseline), &self.caps, &mut first);
                sections.extend(captured.map_err(unread)?);
                Ok(())
            })?;
        }
        sections.extend(x86::capture_vm(vm, Some(&self.vm)).map_err(unread)?);
        MachineState::from_sections(sections).map_err(|error| unread(error.into()))
    }

    /// Puts a state into a machine that has never run.
    pub(crate) fn restore(
        &self,
        vm: &VmFd,
        vcpus: &mut impl Vcpus,
        state: &MachineState,
    ) -> Result<(), MachineError> {
        let refused = |error: StateIoError| failed("the guest's state cannot be restored here", error);
        x86::check_sections(state, vcpus.count()).map_err(refused)?;
        let (mut notices, mut first) = (Vec::new(), FirstTsc::default());
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                let restored = x86::restore_vcpu(vcpu, index, state, &self.caps, &mut first);
                notices.extend(restored.map_err(refused)?);
                Ok(())
            })?;
        }
        notices.extend(x86::restore_vm(vm, state).map_err(refused)?);
        for notice in notices {
            tracing::info!(%notice, "restored with a notice");
        }
        Ok(())
    }

    /// Puts in what KVM takes of a state, and says what it does not.
    pub(crate) fn force(
        &self,
        vm: &VmFd,
        vcpus: &mut impl Vcpus,
        state: &MachineState,
    ) -> Result<Vec<Deviation>, MachineError> {
        let unread = |error| failed("the guest's state cannot be read", error);
        let (mut found, mut first) = (Vec::new(), FirstTsc::default());
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                found.extend(x86::force_vcpu(vcpu, index, state, &self.caps, &mut first).map_err(unread)?);
                Ok(())
            })?;
        }
        found.extend(x86::force_vm(vm, state).map_err(unread)?);
        Ok(found)
    }

    /// Puts the clocks back to where they stood.
    pub(crate) fn set_clocks(
        &self,
        clocks: &Clocks,
        vm: &VmFd,
        vcpus: &mut impl Vcpus,
    ) -> Result<(), MachineError> {
        let refused = |error| failed("the guest's clocks cannot be put back", error);
        let mut passed = 0;
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                clocks.put_back(vcpu, index, &self.caps, &mut passed).map_err(refused)
            })?;
        }
        vm::set_clock(vm, &clocks.clock).map_err(refused)
    }

    /// On x86-64 KVM keeps nothing in tables of the guest's.
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "guests of another architecture have such tables"
    )]
    pub(crate) fn write_tables(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Tells the vCPUs that they were paused, before they run on.
    pub(crate) fn note_pause(&self, vcpus: &mut impl Vcpus) -> Result<(), MachineError> {
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                x86::note_pause(vcpu, index, &self.caps)
                    .map_err(|error| failed("the guest's clock cannot be told of the pause", error))
            })?;
        }
        Ok(())
    }
}
