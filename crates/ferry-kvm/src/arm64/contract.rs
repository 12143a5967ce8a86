//! A guest's contract applied to a vCPU, with everything read back.
//!
//! Before this come the VM, with as many bits of addresses as the contract says, its vCPUs, and the device of its
//! interrupt controller if it has one, which need not be initialised yet: `ID_AA64PFR0_EL1` says which GIC a guest
//! has. Then each vCPU gets:
//!
//! 1. its features, and all but the first that they start powered off (`KVM_ARM_VCPU_INIT`);
//! 2. the lengths of its vectors, which are fixed before anything of SVE can be read;
//! 3. what the firmware offers, then `CTR_EL0`, by which KVM judges the caches (`validate_cache_topology` in
//!    `arch/arm64/kvm/sys_regs.c`), then the other registers, then the caches.
//!
//! Registers that KVM lists and the contract does not have are set to what they say to the guest all the same:
//! see [`Arm64Contract::says`]. Reading back comes last: a write may change what an earlier one set.

use ferry_contract::arm64::{RegisterClass, RegisterId, RegisterKind, RegisterValue, SystemRegister};
use ferry_contract::{Arm64Contract, Arm64Profile, Contract, Profile, VcpuFeature};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;

use super::{registers, vcpu as making};
use crate::{ContractApplyError, Deviation};

/// Gives a vCPU what the contract says, and reads it back. The vCPU has run nothing yet.
pub fn apply_contract(
    vm: &VmFd,
    vcpu: &VcpuFd,
    index: u32,
    contract: &Contract,
    profile: &Profile,
) -> Result<(), ContractApplyError> {
    let (Contract::Arm64(contract), Profile::Arm64(profile)) = (contract, profile) else {
        return Err(ContractApplyError::Kind { kind: contract.kind().to_owned() });
    };
    let fresh = Fresh { vcpu, contract };
    fresh.init(vm, index)?;
    fresh.set_vectors()?;
    fresh.finalize()?;
    let wanted = fresh.wanted()?;
    fresh.refuse_absent(&wanted, profile)?;
    for (id, value) in &wanted {
        fresh.set(*id, value)?;
    }
    wanted.iter().try_for_each(|(id, value)| fresh.check(*id, value))
}

/// Gives a fresh vCPU all of the contract that KVM takes.
pub fn force_contract(vm: &VmFd, vcpu: &VcpuFd, index: u32, contract: &Contract) -> Vec<Deviation> {
    let refused = |what: &str, error: String| Deviation::Refused { what: what.to_owned(), error };
    let Contract::Arm64(contract) = contract else {
        return vec![refused("the contract", "it is for another kind of machine".to_owned())];
    };
    let fresh = Fresh { vcpu, contract };
    let kind = |error: ContractApplyError| refused("a vCPU of the contract's kind", error.to_string());
    if let Err(error) = fresh.init(vm, index) {
        return vec![kind(error)];
    }
    let vectors = RegisterId::SVE_VECTOR_LENGTHS;
    let lengths = fresh.set_vectors().err().map(|error| refused(&vectors.to_string(), error.to_string()));
    let wanted = match fresh.finalize().and_then(|()| fresh.wanted()) {
        Ok(wanted) => wanted,
        Err(error) => return lengths.into_iter().chain([kind(error)]).collect(),
    };
    let listed = |id: &RegisterId| wanted.iter().any(|(there, _)| there == id);
    // One that says 0 gives the guest nothing that it could miss.
    let absent = contract
        .registers
        .iter()
        .filter(|(id, value)| !listed(id) && **id != vectors && value.number() != Some(0));
    let absent = absent.map(|(id, _)| refused(&id.to_string(), "KVM does not list it".to_owned()));
    let mut found: Vec<Deviation> = lengths.into_iter().chain(absent).collect();
    let mut taken = Vec::new();
    for (id, value) in wanted {
        match fresh.set(id, &value) {
            Ok(()) => taken.push((id, value)),
            Err(error) => found.push(refused(&id.to_string(), error.to_string())),
        }
    }
    for (id, value) in taken {
        if let Err(ContractApplyError::NotKept { subject, set, reads }) = fresh.check(id, &value) {
            found.push(Deviation::Changed { what: subject, set, reads });
        }
    }
    found
}

/// A vCPU that is to become what a contract says.
struct Fresh<'a> {
    vcpu: &'a VcpuFd,
    contract: &'a Arm64Contract,
}

impl Fresh<'_> {
    /// Gives it its features.
    fn init(&self, vm: &VmFd, index: u32) -> Result<(), ContractApplyError> {
        let mut features = VcpuFeature::bits(&self.contract.features);
        if index > 0 {
            // The first starts the others (PSCI, `CPU_ON`).
            features |= VcpuFeature::bits(&[VcpuFeature::PowerOff]);
        }
        making::init(vm, self.vcpu, features).map_err(unmade)
    }

    /// Sets the lengths of its vectors, if it has any.
    fn set_vectors(&self) -> Result<(), ContractApplyError> {
        let lengths = RegisterId::SVE_VECTOR_LENGTHS;
        let Some(value) = self.contract.registers.get(&lengths) else { return Ok(()) };
        self.set(lengths, value)?;
        self.check(lengths, value)
    }

    /// Fixes its vectors.
    fn finalize(&self) -> Result<(), ContractApplyError> {
        if !self.contract.features.contains(&VcpuFeature::Sve) {
            return Ok(());
        }
        making::finalize_sve(self.vcpu).map_err(unmade)
    }

    /// What the registers that this KVM lists are to say, in the order in which they are set.
    fn wanted(&self) -> Result<Vec<(RegisterId, RegisterValue)>, ContractApplyError> {
        let unread = |source| ContractApplyError::Refused {
            ioctl: "KVM_GET_REG_LIST",
            what: "the list of registers".to_owned(),
            source,
        };
        let ids = registers::list(self.vcpu).map_err(unread)?;
        let ids = ids.into_iter().filter(|id| id.is_of_contract() && *id != RegisterId::SVE_VECTOR_LENGTHS);
        let mut wanted: Vec<_> = ids.filter_map(|id| Some((id, self.contract.says(id)?))).collect();
        wanted.sort_by_key(|(id, _)| (rank(*id), *id));
        Ok(wanted)
    }

    /// Refuses a register that this KVM does not list and that the guest would miss.
    fn refuse_absent(
        &self,
        listed: &[(RegisterId, RegisterValue)],
        profile: &Arm64Profile,
    ) -> Result<(), ContractApplyError> {
        for (id, value) in &self.contract.registers {
            let there = listed.iter().any(|(there, _)| there == id) || *id == RegisterId::SVE_VECTOR_LENGTHS;
            let unlisted = profile.unlisted(*id);
            if !there && (unlisted.is_none() || unlisted != value.number()) {
                return Err(refused("KVM_GET_REG_LIST", *id, value)(errno::Error::new(libc::ENOENT)));
            }
        }
        Ok(())
    }

    /// Sets a register that says something else.
    fn set(&self, id: RegisterId, value: &RegisterValue) -> Result<(), ContractApplyError> {
        let own = registers::read(self.vcpu, id).map_err(refused("KVM_GET_ONE_REG", id, value))?;
        if own == *value {
            return Ok(());
        }
        registers::write(self.vcpu, id, value).map_err(refused("KVM_SET_ONE_REG", id, value))
    }

    fn check(&self, id: RegisterId, value: &RegisterValue) -> Result<(), ContractApplyError> {
        let reads = registers::read(self.vcpu, id).map_err(refused("KVM_GET_ONE_REG", id, value))?;
        if reads == *value {
            return Ok(());
        }
        let (set, reads) = (value.to_string(), reads.to_string());
        Err(ContractApplyError::NotKept { subject: id.to_string(), set, reads })
    }
}

fn unmade((ioctl, source): making::Refused) -> ContractApplyError {
    ContractApplyError::Refused { ioctl, what: "the features".to_owned(), source }
}

/// When a register is set among the others.
fn rank(id: RegisterId) -> u8 {
    match id.kind() {
        _ if id.class() == RegisterClass::Firmware => 0,
        RegisterKind::System(SystemRegister::CTR_EL0) => 1,
        RegisterKind::Cache(_) => 3,
        _ => 2,
    }
}

fn refused(
    ioctl: &'static str,
    id: RegisterId,
    value: &RegisterValue,
) -> impl FnOnce(errno::Error) -> ContractApplyError + use<> {
    let what = format!("{value} in {id}");
    move |source| ContractApplyError::Refused { ioctl, what, source }
}
