//! All that an arm64 host offers, as a contract: what its registers say on a vCPU of the features chosen.
//!
//! A vCPU has PSCI 0.2, and pointer authentication where the host has it; a performance monitor, SVE and EL2
//! are there if they are wished for.

use std::collections::BTreeMap;

use super::{BirthError, Wish};
use crate::arm64::{RegisterId, RegisterKind, RegisterValue};
use crate::contract::arm64::has_cache;
use crate::contract::{Arm64Contract, CONTRACT_FORMAT, KVM_AARCH64};
use crate::profile::{Arm64Profile, FeatureSet, VcpuFeature};

/// Bits of a guest's physical addresses unless the host has fewer: as many as a VM has that is made without
/// a number (Documentation/virt/kvm/api.rst, 4.2).
const IPA_BITS: u32 = 40;

/// Registers whose services are older than themselves: what a host has that lacks them is written down,
/// because on a later one they would say something else.
const SERVICES: [u64; 3] = [0x6030_0000_0016_0000, 0x6030_0000_0016_0001, 0x6030_0000_0016_0002];

pub(super) fn offered(
    profile: &Arm64Profile,
    vcpus: u32,
    wishes: &[Wish],
) -> Result<Arm64Contract, BirthError> {
    let set = chosen(profile, wishes)?;
    let listed = set.registers.iter().filter(|register| register.id.is_of_contract());
    let mut registers: BTreeMap<RegisterId, RegisterValue> =
        listed.filter_map(|register| Some((register.id, register.value.clone()?))).collect();
    for id in SERVICES.into_iter().filter_map(|id| RegisterId::new(id).ok()) {
        if !registers.contains_key(&id)
            && let Some(value) = profile.unlisted(id)
        {
            registers.insert(id, value.into());
        }
    }
    let said = registers.clone();
    registers.retain(|id, _| match id.kind() {
        // What a cache is like that is not there, nobody asks.
        RegisterKind::Cache(cache) => has_cache(&said, cache),
        _ => true,
    });
    Ok(Arm64Contract {
        format: CONTRACT_FORMAT.to_owned(),
        kind: KVM_AARCH64.to_owned(),
        vcpus,
        features: set.features.clone(),
        ipa_bits: IPA_BITS.min(profile.ipa_bits),
        gic_version: set.gic_version,
        counter_frequency_hz: profile.counter_frequency_hz,
        registers,
    })
}

/// The set of features that a guest gets.
fn chosen<'a>(profile: &'a Arm64Profile, wishes: &[Wish]) -> Result<&'a FeatureSet, BirthError> {
    use VcpuFeature::{HasEl2, PmuV3, Psci02, PtrauthAddress, PtrauthGeneric, Sve};
    let mut wanted = vec![Psci02];
    for wish in wishes {
        wanted.push(match wish {
            Wish::Pmu => PmuV3,
            Wish::Sve => Sve,
            Wish::El2 => HasEl2,
            Wish::Hyperv => return Err(BirthError::NotOffered(*wish)),
        });
    }
    wanted.sort();
    wanted.dedup();
    let with = |more: &[VcpuFeature]| {
        let mut features = [&wanted, more].concat();
        features.sort();
        profile.feature_sets.iter().find(|set| set.features == features)
    };
    let found = with(&[PtrauthAddress, PtrauthGeneric]).or_else(|| with(&[]));
    found.ok_or_else(|| wishes.last().map_or(BirthError::NoVcpu, |wish| BirthError::NotOffered(*wish)))
}
