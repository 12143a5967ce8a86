//! The clocks of a paused machine, read and put back: for a guest whose time stands still.
//!
//! The TSCs are put back by their offsets, where KVM has that attribute, and so stay as far from one another as they
//! were. The deadlines of the LAPICs' timers are written again, because KVM has turned each into an instant of the host
//! (`start_apic_timer` in arch/x86/kvm/lapic.c); one that passed during the pause waits for its time again. The PIT, and a
//! LAPIC's timer in its other modes, count on during a pause: what runs out in it comes that much early.

use ferry_migrate::MachineError;
use ferry_state::x86::{Clock, IA32_TSC, Msrs, TscOffset};
use ferry_state::{MachineState, Part, StateError};
use kvm_ioctls::{VcpuFd, VmFd};

use super::msrs::{self, IA32_TSC_DEADLINE};
use super::{StateIoError, X86Caps, tsc, vm};
use crate::Vcpus;
use crate::machine::failed;

/// The MSRs of time.
const TIME: [u32; 2] = [IA32_TSC, IA32_TSC_DEADLINE];

/// Where the clocks of a machine stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clocks {
    /// The TSC of vCPU 0.
    pub(super) tsc: u64,
    /// The deadline of each vCPU's timer; 0 where it has none.
    pub(super) deadlines: Vec<u64>,
    /// The kvmclock.
    pub(super) clock: Clock,
}

impl Clocks {
    /// Those of a captured machine with so many vCPUs.
    pub(crate) fn of(state: &MachineState, vcpus: u32) -> Result<Self, StateError> {
        let mut clocks = Self { clock: state.require(0)?, ..Self::default() };
        for index in 0..vcpus {
            clocks.note(index, &state.require(index)?);
        }
        Ok(clocks)
    }

    /// Those of a machine that stands still.
    pub(crate) fn read(vm: &VmFd, vcpus: &mut impl Vcpus) -> Result<Self, MachineError> {
        let unread = |error| failed("the guest's clocks cannot be read", error);
        let mut clocks = Self::default();
        for index in 0..vcpus.count() {
            vcpus.with_vcpu(index, &mut |vcpu| {
                clocks.note(index, &msrs::read(vcpu, index, &TIME).map_err(unread)?.0);
                Ok(())
            })?;
        }
        clocks.clock = vm::clock(vm).map_err(unread)?;
        Ok(clocks)
    }

    fn note(&mut self, index: u32, msrs: &Msrs) {
        let value = |msr: u32| msrs.values.get(&msr).copied().unwrap_or(0);
        if index == 0 {
            self.tsc = value(IA32_TSC);
        }
        self.deadlines.push(value(IA32_TSC_DEADLINE));
    }

    /// Puts those of a vCPU back. The vCPUs of a VM come from 0 on with the same `passed`, new before vCPU 0, and then the
    /// kvmclock.
    pub(super) fn put_back(
        &self,
        vcpu: &VcpuFd,
        index: u32,
        caps: &X86Caps,
        passed: &mut u64,
    ) -> Result<(), StateIoError> {
        if caps.tsc_offset {
            if index == 0 {
                let now = msrs::read(vcpu, index, &TIME)?.0;
                *passed = now.values.get(&IA32_TSC).map_or(0, |now| now.wrapping_sub(self.tsc));
            }
            let moved =
                tsc::offset(vcpu).and_then(|offset| tsc::set_offset(vcpu, offset.wrapping_sub(*passed)));
            moved.map_err(|source| {
                let (ioctl, section) = ("KVM_SET_DEVICE_ATTR", TscOffset::NAME);
                let fact = "KVM has the attribute and refuses it".to_owned();
                StateIoError::Ioctl { ioctl, section, index, fact, source }
            })?;
        } else {
            if index == 0 {
                tsc::leave_its_own_count(vcpu, index, self.tsc)?;
            }
            // KVM gives the others the offset of vCPU 0, because it is set within the same second.
            msrs::set(vcpu, index, IA32_TSC, self.tsc)?;
        }
        // After the TSC, in which it is counted.
        match usize::try_from(index).ok().and_then(|index| self.deadlines.get(index)) {
            None | Some(0) => Ok(()),
            Some(deadline) => msrs::set(vcpu, index, IA32_TSC_DEADLINE, *deadline),
        }
    }
}
