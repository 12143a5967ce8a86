//! The counters of a paused machine, read and put back: for a guest whose time stands still.
//!
//! Both are one for all vCPUs. Timers are held against them when a vCPU is entered (`kvm_timer_vcpu_load` in the
//! kernel's `arch/arm64/kvm/arch_timer.c`), so nothing is to be done about them.

use ferry_contract::arm64::RegisterValue;
use ferry_migrate::MachineError;
use ferry_state::arm64::{Counter, Registers};
use ferry_state::{MachineState, StateError};
use kvm_ioctls::{VcpuFd, VmFd};

use super::StateIoError;
use super::capture::failed;
use super::registers::{self, PHYSICAL_COUNT, TIMER_COUNT};
use crate::{Vcpus, machine};

/// Where the counters of a machine stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clocks {
    virtual_count: RegisterValue,
    /// None where KVM gives out none.
    physical_count: Option<RegisterValue>,
}

impl Clocks {
    /// Those of a captured machine.
    pub(crate) fn of(state: &MachineState, _: u32) -> Result<Self, StateError> {
        let counter: Counter = state.require(0)?;
        let physical_count = state.require::<Registers>(0)?.value(PHYSICAL_COUNT).cloned();
        Ok(Self { virtual_count: counter.value.into(), physical_count })
    }

    /// Those of a machine that stands still.
    pub(crate) fn read(_: &VmFd, vcpus: &mut impl Vcpus) -> Result<Self, MachineError> {
        let mut clocks = None;
        vcpus.with_vcpu(0, &mut |vcpu| {
            let unread = |error| machine::failed("the guest's counter cannot be read", error);
            let virtual_count = registers::read(vcpu, TIMER_COUNT).map_err(unread)?;
            let physical_count = registers::read(vcpu, PHYSICAL_COUNT).ok();
            clocks = Some(Self { virtual_count, physical_count });
            Ok(())
        })?;
        clocks.ok_or_else(|| MachineError::new("a machine without vCPUs has no clock"))
    }

    /// Puts them back, for all vCPUs, by the first.
    pub(super) fn put_back(&self, vcpu: &VcpuFd) -> Result<(), StateIoError> {
        self.put_back_virtual(vcpu)?;
        self.put_back_physical(vcpu);
        Ok(())
    }

    pub(super) fn put_back_virtual(&self, vcpu: &VcpuFd) -> Result<(), StateIoError> {
        let refused = failed("KVM_SET_ONE_REG", "the virtual counter", 0);
        registers::write(vcpu, TIMER_COUNT, &self.virtual_count).map_err(refused)
    }

    /// Guests of kernels before 6.4 see the host's physical counter, which no one can set.
    pub(super) fn put_back_physical(&self, vcpu: &VcpuFd) {
        if let Some(physical) = &self.physical_count
            && let Err(error) = registers::write(vcpu, PHYSICAL_COUNT, physical)
        {
            tracing::debug!(%error, "the physical counter stays the host's");
        }
    }
}
