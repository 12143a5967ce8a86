//! The profile of an arm64 host: a vCPU for each useful set of features, its registers, and what KVM lets be
//! written to them.
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst: 4.82 `KVM_ARM_VCPU_INIT`, 4.84
//! `KVM_GET_REG_LIST`, 4.119 `KVM_ARM_VCPU_FINALIZE`, 4.139 `KVM_ARM_GET_REG_WRITABLE_MASKS`;
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst.

mod capabilities;
mod ioctls;
pub(crate) use ioctls::register_list;
mod lowering;
mod processor;
mod registers;
mod vcpu;

#[cfg(test)]
mod tests;

use std::arch::asm;

use ferry_contract::arm64::{RegisterId, RegisterValue, SystemRegister};
use ferry_contract::{Arm64Profile, Contract, Extra, FeatureSet, PROFILE_FORMAT, VcpuFeature, granules};
use kvm_bindings::{
    KVM_CAP_ARM_PMU_V3, KVM_CAP_ARM_PTRAUTH_ADDRESS, KVM_CAP_ARM_PTRAUTH_GENERIC,
    KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES, KVM_CAP_ARM_SVE, KVM_CAP_ARM_VM_IPA_SIZE, KVM_CAP_MAX_VCPUS,
    KVM_CAP_NR_VCPUS,
};
use kvm_ioctls::{Kvm, VmFd};

use super::capabilities::check;
use super::error::failed;
use super::{ProbeError, host};
use capabilities::{CAPABILITIES, KVM_CAP_ARM_EL2, KVM_CAP_ARM_EL2_E2H0, NEWER};
use vcpu::Fresh;

/// Bits of guest-physical addresses where a VM is asked for without a number, and on a KVM that cannot be
/// asked (api.rst, 4.2 `KVM_CREATE_VM`).
const IPA_BITS: u32 = 40;

/// What KVM refuses that makes no vCPU with some features.
const INIT: &str = "KVM_ARM_VCPU_INIT";

/// Makes this arm64 host's profile.
pub(super) fn probe(kvm: &Kvm) -> Result<Arm64Profile, ProbeError> {
    let vm = vcpu::create_vm(kvm)?;
    with_sets(kvm, &vm, sets(&vm))
}

/// The same with the vCPUs of one guest alone, whether or not [`sets`] has them. If KVM makes none such, with all.
pub(super) fn probe_for(kvm: &Kvm, contract: Option<&Contract>) -> Result<Arm64Profile, ProbeError> {
    use VcpuFeature::{Psci02, PtrauthAddress, PtrauthGeneric};
    let vm = vcpu::create_vm(kvm)?;
    let wanted = match contract {
        Some(Contract::Arm64(contract)) => vec![contract.features.clone()],
        // As a guest is born that wishes for nothing.
        _ => vec![vec![Psci02, PtrauthAddress, PtrauthGeneric], vec![Psci02]],
    };
    for features in wanted {
        match with_sets(kvm, &vm, vec![features]) {
            Err(ProbeError::Ioctl { ioctl: INIT, .. }) => {}
            probed => return probed,
        }
    }
    with_sets(kvm, &vm, sets(&vm))
}

fn with_sets(kvm: &Kvm, vm: &VmFd, sets: Vec<Vec<VcpuFeature>>) -> Result<Arm64Profile, ProbeError> {
    let value = |capability: u32| u32::try_from(check(vm, capability)).unwrap_or(u32::MAX);
    let gic_versions = vcpu::gic_versions(kvm)?;
    let feature_sets = feature_sets(kvm, sets, gic_versions.contains(&3))?;
    let mmfr0 = feature_sets
        .first()
        .and_then(|set| set.register(RegisterId::system(SystemRegister::ID_AA64MMFR0_EL1)));
    let mmfr0 = mmfr0.and_then(|register| register.value.as_ref()).and_then(RegisterValue::number);
    let vcpus_recommended = value(KVM_CAP_NR_VCPUS);
    let profile = Arm64Profile {
        format: PROFILE_FORMAT.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        kernel: host::kernel(),
        processors: processor::all()?,
        modules: host::modules()?,
        kvm_api_version: u32::try_from(kvm.get_api_version()).unwrap_or(0),
        capabilities: super::capabilities::all(&[CAPABILITIES, NEWER].concat(), kvm, vm),
        ipa_bits: match value(KVM_CAP_ARM_VM_IPA_SIZE) {
            0 => IPA_BITS,
            bits => bits,
        },
        page_bytes: Some(rustix::param::page_size() as u64),
        granules_bytes: mmfr0.map(granules).unwrap_or_default(),
        counter_frequency_hz: Some(counter_frequency()),
        gic_its: Some(vcpu::has_its(kvm)?),
        gic_versions: Some(gic_versions),
        mask_ranges: mask_ranges(vm),
        vcpus_recommended: Some(vcpus_recommended),
        vcpus_max: match value(KVM_CAP_MAX_VCPUS) {
            0 => vcpus_recommended,
            most => most,
        },
        feature_sets,
        extra: Extra::new(),
    };
    profile.check().map_err(ProbeError::Sense)?;
    Ok(profile)
}

/// The ranges of which KVM tells the writable masks: a bit each.
fn mask_ranges(vm: &VmFd) -> Vec<u32> {
    let ranges = check(vm, KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES);
    (0..64).filter(|range| ranges >> range & 1 == 1).collect()
}

/// How often a second this host's counter counts: `CNTFRQ_EL0`, which Linux lets programs read (arch/arm64/kernel/traps.c reads it for them where it must).
pub fn counter_frequency() -> u64 {
    let hertz: u64;
    // SAFETY: the instruction reads a register into another and touches no memory.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags)) };
    hertz
}

/// The sets of features that are of use here: PSCI alone, with each of what KVM has beside it, with all of
/// it, and with EL2 on top.
fn sets(vm: &VmFd) -> Vec<Vec<VcpuFeature>> {
    use VcpuFeature::{HasEl2, HasEl2E2h0, PmuV3, Psci02, PtrauthAddress, PtrauthGeneric, Sve};
    let has = |capability: u32| check(vm, capability) > 0;
    let mut single: Vec<&[VcpuFeature]> = Vec::new();
    if has(KVM_CAP_ARM_PMU_V3) {
        single.push(&[PmuV3]);
    }
    if has(KVM_CAP_ARM_SVE) {
        single.push(&[Sve]);
    }
    // KVM gives a guest both or neither (arch/arm64/kvm/arm.c).
    if has(KVM_CAP_ARM_PTRAUTH_ADDRESS) && has(KVM_CAP_ARM_PTRAUTH_GENERIC) {
        single.push(&[PtrauthAddress, PtrauthGeneric]);
    }
    let with = |more: &[&[VcpuFeature]]| -> Vec<VcpuFeature> {
        std::iter::once(Psci02).chain(more.concat()).collect()
    };
    let mut sets = vec![with(&[]), with(&single)];
    sets.extend(single.iter().map(|features| with(&[features])));
    if has(KVM_CAP_ARM_EL2) {
        sets.push(with(&[&single.concat(), &[HasEl2]]));
    }
    if has(KVM_CAP_ARM_EL2_E2H0) {
        sets.push(with(&[&single.concat(), &[HasEl2, HasEl2E2h0]]));
    }
    sets.sort();
    sets.dedup();
    sets
}

/// What vCPUs of each set have. A set that KVM refuses together is none that it offers.
fn feature_sets(kvm: &Kvm, sets: Vec<Vec<VcpuFeature>>, gic: bool) -> Result<Vec<FeatureSet>, ProbeError> {
    let mut found = Vec::new();
    for features in sets {
        let fresh = match Fresh::make(kvm, &features, gic) {
            Ok(fresh) => fresh,
            Err(ProbeError::Ioctl { ioctl: INIT, source, .. }) => {
                tracing::info!(?features, %source, "KVM makes no vCPU with these features");
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut registers = registers::all(&fresh)?;
        lowering::try_all(&mut registers, || Fresh::make(kvm, &features, gic))?;
        found.push(FeatureSet {
            gic_version: gic.then_some(3),
            sve_vector_bits: registers::sve_vector_bits(&registers),
            features,
            registers,
            extra: Extra::new(),
        });
    }
    if found.is_empty() {
        return Err(failed(INIT, "a vCPU with any features")(vmm_sys_util::errno::Error::new(libc::EINVAL)));
    }
    Ok(found)
}
