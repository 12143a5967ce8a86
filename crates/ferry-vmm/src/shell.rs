//! A VM and its vCPUs under a guest's contract, before there is memory.
//!
//! The target makes one while it judges an offer: every setting of the contract is applied and read back
//! there, and what cannot be kept is a finding. Once the offer is accepted memory is built into that very
//! VM. A guest that is born gets its contract the same way.

#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64 as arch;
#[cfg(target_arch = "x86_64")]
use x86 as arch;

pub(crate) use arch::{Controller, take_controller};

use std::sync::Arc;

use ferry_contract::{BirthRequest, Contract, Features, Finding, Profile};
use ferry_kvm::{Deviation, DirtyRing, apply_contract, force_contract, judge_contract};
use ferry_migrate::MachineError;
use ferry_protocol::MachineDescription;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::VmmError;
use crate::backend::DirtyKind;

/// A VM with vCPUs that are what the contract says, and nothing else.
pub(crate) struct Shell {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) vcpus: Vec<VcpuFd>,
    pub(crate) contract: Contract,
    /// Its interrupt controller, where that is a device of its own.
    pub(crate) controller: Controller,
    /// Its dirty rings, if it is to have them: KVM makes them with the vCPUs.
    pub(crate) ring: Option<DirtyRing>,
}

impl Shell {
    /// For a guest that is born here: with this contract, or with all that the host offers.
    pub(crate) fn born(
        kvm: &Kvm,
        vcpus: u32,
        contract: Option<&Contract>,
        dirty: DirtyKind,
    ) -> Result<Self, VmmError> {
        let profile = ferry_kvm::probe::probe_for(kvm, contract)?;
        let features = contract
            .map_or(Features::Offered(Vec::new()), |contract| Features::Contract(Box::new(contract.clone())));
        let contract = Contract::birth(&profile, &BirthRequest { vcpus, features })?;
        Self::build(kvm, contract, &profile, dirty)
    }

    /// For a guest that is offered: probes this host anew and holds the contract against it. With the
    /// notices, or with the findings that forbid it.
    pub(crate) fn offered(
        kvm: &Kvm,
        machine: &MachineDescription,
        dirty: DirtyKind,
    ) -> Result<(Self, Vec<Finding>), Vec<Finding>> {
        let unmade = |error: VmmError| vec![error.to_finding()];
        // What cannot be read is refused below.
        let read = Contract::from_bytes(&machine.contract).ok();
        let profile =
            ferry_kvm::probe::probe_for(kvm, read.as_ref()).map_err(|error| unmade(error.into()))?;
        let (contract, notices) = judge_contract(&machine.contract, machine.vcpus, &profile)?;
        let shell = Self::build(kvm, contract, &profile, dirty).map_err(unmade)?;
        Ok((shell, notices))
    }

    /// For a guest about whom nobody is asked: its contract goes into KVM as far as KVM takes it. With what it
    /// does not take.
    pub(crate) fn by_force(
        kvm: &Kvm,
        machine: &MachineDescription,
    ) -> Result<(Self, Vec<Deviation>), MachineError> {
        let unmade = |error: VmmError| MachineError::with_source("the guest's VM cannot be made", error);
        let contract = Contract::from_bytes(&machine.contract)
            .map_err(|error| MachineError::with_source("the guest's contract cannot be read", error))?;
        let (vm, controller) = arch::create_vm(kvm, &contract).map_err(unmade)?;
        let vm = Arc::new(vm);
        let (mut vcpus, mut found) = (Vec::new(), Vec::new());
        for index in 0..machine.vcpus {
            let vcpu = vm
                .create_vcpu(index.into())
                .map_err(|source| unmade(VmmError::Kvm { step: "create a vCPU", source }))?;
            found.extend(force_contract(&vm, &vcpu, index, &contract));
            vcpus.push(vcpu);
        }
        let controller = arch::ready(controller, &vcpus, &contract).map_err(unmade)?;
        Ok((Self { vm, vcpus, contract, controller, ring: None }, found))
    }

    fn build(kvm: &Kvm, contract: Contract, profile: &Profile, dirty: DirtyKind) -> Result<Self, VmmError> {
        let (vm, controller) = arch::create_vm(kvm, &contract)?;
        let vm = Arc::new(vm);
        let ring = match dirty {
            DirtyKind::Log => None,
            DirtyKind::Ring => Some(DirtyRing::enable(&vm, DirtyRing::ENTRIES)?),
        };
        let mut vcpus = Vec::new();
        for index in 0..contract.vcpus() {
            let vcpu = vm
                .create_vcpu(index.into())
                .map_err(|source| VmmError::Kvm { step: "create a vCPU", source })?;
            apply_contract(&vm, &vcpu, index, &contract, profile)?;
            vcpus.push(vcpu);
        }
        let controller = arch::ready(controller, &vcpus, &contract)?;
        Ok(Self { vm, vcpus, contract, controller, ring })
    }
}
