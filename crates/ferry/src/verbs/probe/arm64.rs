//! What is said of an arm64 host's profile.

use ferry_contract::arm64::{RegisterClass, RegisterKind};
use ferry_contract::{Arm64Profile, FeatureSet};

use super::Rows;

/// Where `MIDR_EL1` says the implementer and the part (DDI 0487, D24.2, `MIDR_EL1`).
const IMPLEMENTER: u32 = 24;
const PART: u32 = 4;

pub(super) fn rows(profile: &Arm64Profile) -> Rows {
    let there = profile.capabilities.iter().filter(|capability| capability.vm > 0).count();
    let processors = profile.processors.iter().map(|processor| {
        let (implementer, part) = (processor.midr >> IMPLEMENTER & 0xff, processor.midr >> PART & 0xfff);
        format!("MIDR {:#x} (implementer {implementer:#x}, part {part:#x})", processor.midr)
    });
    let granules = profile.granules_bytes.iter().map(|bytes| format!("{}K", bytes >> 10));
    let hertz = profile.counter_frequency_hz;
    let mut rows = vec![
        ("kernel", format!("{} {}", profile.kernel.release, profile.kernel.version)),
        ("processors", list(processors)),
        (
            "KVM",
            format!(
                "API {}, {there} of {} capabilities",
                profile.kvm_api_version,
                profile.capabilities.len()
            ),
        ),
        ("addresses", format!("{} bits of a guest's physical addresses", profile.ipa_bits)),
        ("granules", list(granules)),
        ("counter", hertz.map_or_else(unknown, |hertz| format!("{hertz} Hz"))),
        ("interrupts", interrupts(profile)),
        ("masks", masks(profile)),
        ("vCPUs", format!("{} at most", profile.vcpus_max)),
    ];
    rows.extend(profile.feature_sets.iter().map(|set| ("vCPU with", feature_set(set))));
    rows
}

fn unknown() -> String {
    "not known".to_owned()
}

fn list(values: impl Iterator<Item = String>) -> String {
    let text = values.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "none".to_owned() } else { text }
}

fn interrupts(profile: &Arm64Profile) -> String {
    let Some(versions) = &profile.gic_versions else { return unknown() };
    let its = if profile.gic_its == Some(true) { ", with ITS" } else { "" };
    format!("{}{its}", list(versions.iter().map(|version| format!("GICv{version}"))))
}

/// Of which ranges KVM says which bits may be written.
fn masks(profile: &Arm64Profile) -> String {
    let told = || list(profile.mask_ranges.iter().map(u32::to_string));
    match profile.mask_ranges.as_slice() {
        [] => "KVM tells none: what may be written was found by trying".to_owned(),
        [0] => "of the feature ID registers".to_owned(),
        _ => format!("of the ranges {}, of which this build knows 0", told()),
    }
}

fn feature_set(set: &FeatureSet) -> String {
    let features = set.features.iter().map(|feature| feature.name());
    let of = |class| set.registers.iter().filter(|register| register.id.class() == class).count();
    let lowerable = set.registers.iter().filter(|register| {
        let taken = register.lowering.as_ref().is_some_and(|lowering| !lowering.taken.is_empty());
        taken && register.id.class() == RegisterClass::Feature
    });
    let mut parts = vec![format!(
        "{} registers, {} of them of features ({} can be lowered), {} of firmware",
        set.registers.len(),
        of(RegisterClass::Feature),
        lowerable.count(),
        of(RegisterClass::Firmware),
    )];
    parts.extend(set.registers.iter().filter_map(|register| {
        let value =
            register.value.as_ref().filter(|_| matches!(register.id.kind(), RegisterKind::Services(_)));
        Some(format!("{} {}", register.id.name(), value?))
    }));
    if let (Some(least), Some(most)) = (set.sve_vector_bits.first(), set.sve_vector_bits.last()) {
        parts.push(format!("vectors of {least} to {most} bits"));
    }
    format!("{}: {}", features.collect::<Vec<_>>().join(" "), parts.join(", "))
}
