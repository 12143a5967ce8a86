//! The contract of a guest on arm64 against a host's profile: register by register, those that say features
//! field by field.
//!
//! A vCPU there can say what the guest's contract does if it says so by itself, or if KVM lets it be set: the
//! value is one that is safe (`fields.rs`), its bits may be written by the masks where the kernel has some, and
//! what `probe` tried there (see [`Lowering`]) was taken. A register that KVM does not list is not needed if the
//! guest has there what it has anyway ([`Arm64Profile::unlisted`]); one that the contract does not have says 0.

use std::collections::BTreeSet;

use super::{bit_list, finding, refusal};
use crate::arm64::fields::{self, Field, Safe};
use crate::arm64::{RegisterId, RegisterKind, RegisterValue};
use crate::contract::Arm64Contract;
use crate::profile::{Arm64Profile, Arm64Register, FeatureSet, Lowering, VcpuFeature};
use crate::verdict::{Finding, FindingKind, Layer, Verdict};

/// Whether a guest with this contract can run on the arm64 host of this profile, with every reason found.
pub(super) fn compare_arm64(contract: &Arm64Contract, profile: &Arm64Profile) -> Verdict {
    let mut findings = Vec::new();
    machine(contract, profile, &mut findings);
    match profile.feature_sets.iter().find(|set| set.features == contract.features) {
        Some(set) => registers(contract, profile, set, &mut findings),
        None => findings.push(no_such_vcpu(contract, profile)),
    }
    super::verdict(findings)
}

/// What holds for the whole machine.
fn machine(contract: &Arm64Contract, profile: &Arm64Profile, findings: &mut Vec<Finding>) {
    let (has, most) = (contract.vcpus, profile.vcpus_max);
    if has > most {
        let values = (has.to_string(), format!("runs at most {most}"));
        let remedy = format!("choose a host whose KVM runs {has} vCPUs");
        findings.push(refusal("vCPUs", Layer::Kernel, values, "vCPUs would be missing", remedy));
    }
    let (has, most) = (contract.ipa_bits, profile.ipa_bits);
    if has > most {
        let values = (format!("{has} bits"), format!("has {most}"));
        let effect = "memory and devices above that could not be reached";
        let remedy = format!("start the guest with {most} bits in its contract, or choose another target");
        findings.push(refusal("physical addresses", Layer::Processor, values, effect, remedy));
    }
    findings.extend(counter(contract.counter_frequency_hz, profile.counter_frequency_hz));
    if let Some(version) = contract.gic_version {
        findings.extend(interrupts(version, profile.gic_versions.as_deref()));
    }
}

fn counter(guest: Option<u64>, target: Option<u64>) -> Option<Finding> {
    let shown = |hertz: Option<u64>| hertz.map_or_else(|| "is not known".to_owned(), |it| format!("{it} Hz"));
    let (subject, values) = ("counter frequency", (shown(guest), shown(target)));
    match (guest, target) {
        (Some(guest), Some(target)) if guest == target => None,
        (Some(_), Some(_)) => Some(refusal(
            subject,
            Layer::Processor,
            values,
            "the guest's time would run at another speed, and no KVM changes that",
            "choose a host of the guest's counter frequency",
        )),
        _ => Some(finding(
            FindingKind::Notice,
            subject,
            Layer::Processor,
            values,
            "the guest's time would run at another speed if they differ",
            "probe the hosts themselves: an imported profile does not say it",
        )),
    }
}

fn interrupts(version: u32, target: Option<&[u32]>) -> Option<Finding> {
    let (subject, guest) = ("interrupt controller", format!("a GICv{version}"));
    match target {
        Some(versions) if versions.contains(&version) => None,
        Some(_) => {
            let values = (guest, "emulates none of that version".to_owned());
            let effect = "the guest would have no interrupts";
            Some(refusal(subject, Layer::Kernel, values, effect, "choose a host whose KVM emulates it"))
        }
        None => Some(finding(
            FindingKind::Notice,
            subject,
            Layer::Kernel,
            (guest, "is not known to have one".to_owned()),
            "the guest would have no interrupts if there is none",
            "probe the host itself: an imported profile does not say it",
        )),
    }
}

fn no_such_vcpu(contract: &Arm64Contract, profile: &Arm64Profile) -> Finding {
    let list = |features: &[VcpuFeature]| features.iter().map(|it| it.name()).collect::<Vec<_>>().join(", ");
    let has = |feature: &&VcpuFeature| !profile.feature_sets.iter().any(|set| set.features.contains(feature));
    let missing: Vec<VcpuFeature> = contract.features.iter().filter(has).copied().collect();
    let target = match missing.as_slice() {
        [] => "was not seen to have these together".to_owned(),
        missing => format!("has no {}", list(missing)),
    };
    refusal(
        "vCPU features",
        Layer::Processor,
        (list(&contract.features), target),
        "the guest counts on features that are not there",
        "start the guest without them, or choose a target that has them",
    )
}

fn registers(
    contract: &Arm64Contract,
    profile: &Arm64Profile,
    set: &FeatureSet,
    findings: &mut Vec<Finding>,
) {
    let listed = set.registers.iter().map(|register| register.id).filter(|id| id.is_of_contract());
    let ids: BTreeSet<RegisterId> = contract.registers.keys().copied().chain(listed).collect();
    for id in ids {
        match (contract.says(id), set.register(id)) {
            (Some(says), Some(there)) => judge(id, &says, there, set, findings),
            (Some(says), None) => findings.extend(absent(id, &says, profile)),
            (None, Some(there)) => findings.extend(unsaid(id, there)),
            (None, None) => {}
        }
    }
}

/// A register that the target does not list: needed, unless the guest has there what it has anyway.
fn absent(id: RegisterId, says: &RegisterValue, profile: &Arm64Profile) -> Option<Finding> {
    let unlisted = profile.unlisted(id);
    if unlisted.is_some() && unlisted == says.number() {
        return None;
    }
    let (target, remedy) = match unlisted {
        None => ("has no such register".to_owned(), "choose a target whose KVM has it".to_owned()),
        Some(value) => (
            format!("has no such register, which stands for {value:#x}"),
            start_with(id, value, says.number().is_some_and(|has| value & !has == 0)),
        ),
    };
    let effect = "the guest counts on what this register says";
    Some(refusal(id.name(), Layer::Kernel, (says.to_string(), target), effect, remedy))
}

/// A register by which a guest knows its processor, and of which its contract says nothing.
fn unsaid(id: RegisterId, there: &Arm64Register) -> Option<Finding> {
    // What a cache is like that the guest does not have, it does not see.
    if matches!(id.kind(), RegisterKind::Cache(_)) {
        return None;
    }
    let target = there.value.as_ref().map_or_else(|| "lists it".to_owned(), |value| format!("has {value}"));
    let values = ("nothing in its contract".to_owned(), target);
    let effect = "nobody knows what the guest has seen there";
    let remedy = format!("add {:#018x} to the guest's contract", id.raw());
    Some(refusal(id.name(), Layer::Vmm, values, effect, remedy))
}

/// A register that both have.
fn judge(
    id: RegisterId,
    says: &RegisterValue,
    there: &Arm64Register,
    set: &FeatureSet,
    findings: &mut Vec<Finding>,
) {
    let Some(own) = &there.value else {
        let values = (says.to_string(), "is not known".to_owned());
        let effect = "the guest would notice if KVM there does not take its value";
        let remedy = "probe the host itself: an imported profile does not say it";
        findings.push(finding(FindingKind::Notice, id.name(), Layer::Kernel, values, effect, remedy));
        return;
    };
    if says == own {
        return;
    }
    let (Some(has), Some(offers)) = (says.number(), own.number()) else {
        findings.extend(vector_lengths(id, says, own));
        return;
    };
    match id.kind() {
        RegisterKind::System(register) => {
            for field in fields::of(register) {
                findings.extend(Pair { id, field, has, offers }.judge(there));
            }
        }
        RegisterKind::Services(_) => findings.extend(services(id, has, offers, there)),
        RegisterKind::Firmware(_) => findings.extend(number(id, has, offers, there)),
        _ => findings.extend(cache(id, says, own, set)),
    }
}

/// KVM gives a guest all lengths of the host up to the longest that it is to have, and no other choice
/// (`set_sve_vls` in arch/arm64/kvm/guest.c).
fn vector_lengths(id: RegisterId, says: &RegisterValue, own: &RegisterValue) -> Option<Finding> {
    let last = says.bytes().iter().rposition(|byte| *byte != 0)?;
    let (wanted, offered) = (says.bytes().get(..=last)?, own.bytes().get(..=last)?);
    let top = wanted.last().map_or(0, |byte| u8::MAX >> byte.leading_zeros());
    let same =
        wanted.iter().zip(offered).enumerate().all(|(place, (wanted, offered))| {
            *wanted == if place == last { offered & top } else { *offered }
        });
    (!same).then(|| {
        let values = (says.to_string(), format!("has {own}"));
        let effect = "the guest counts on vectors of other lengths";
        let remedy = "start the guest with lengths that both hosts have, all up to the longest";
        refusal(id.name(), Layer::Processor, values, effect, remedy)
    })
}

/// One field of a register, with the guest's value and the target's own.
struct Pair {
    id: RegisterId,
    field: Field,
    has: u64,
    offers: u64,
}

/// What came of trying less at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Taken,
    Changed,
    Refused,
}

/// What is known of tries within these bits; the worst of it.
fn tried(lowering: Option<&Lowering>, mask: u64) -> Option<Tried> {
    let lowering = lowering?;
    let within =
        |places: &[u32]| places.iter().any(|place| mask.checked_shr(*place).is_some_and(|it| it & 1 == 1));
    if within(&lowering.refused) {
        Some(Tried::Refused)
    } else if within(&lowering.changed) {
        Some(Tried::Changed)
    } else {
        within(&lowering.taken).then_some(Tried::Taken)
    }
}

impl Pair {
    fn judge(&self, there: &Arm64Register) -> Option<Finding> {
        let (has, own) = (self.field.of(self.has), self.field.of(self.offers));
        if has == own {
            return None;
        }
        let tries = tried(there.lowering.as_ref(), self.field.mask());
        // What was seen goes before what is known of such fields: less by one was tried.
        if has.checked_add(1) == Some(own) && tries == Some(Tried::Taken) {
            return None;
        }
        let (layer, effect, but) = if self.field.takes(has, own) {
            let but = self.kept_from(there, tries)?;
            (Layer::Kernel, "the guest would see another value there", but)
        } else {
            let effect = match self.field.safe {
                Safe::Lower | Safe::LowerFrom(_) | Safe::SignedLower => {
                    "the guest counts on more than there is"
                }
                _ => "the guest counts on another value",
            };
            (Layer::Processor, effect, "")
        };
        let values = (format!("{has:#x}"), format!("has {own:#x}{but}"));
        Some(refusal(self.subject(), layer, values, effect, self.remedy(own)))
    }

    /// What keeps KVM from giving the guest a value that would be safe, to be said behind its own.
    fn kept_from(&self, there: &Arm64Register, tries: Option<Tried>) -> Option<&'static str> {
        let fixed = " and no other";
        if self.field.safe == Safe::Any {
            let may = there.writable_mask.is_some_and(|bits| (self.has ^ self.offers) & !bits == 0);
            let was = there.lowering.as_ref().is_some_and(|tries| !tries.taken.is_empty());
            return if may || was { None } else { Some(fixed) };
        }
        match (tries, there.writable_mask) {
            (_, Some(bits)) if bits & self.field.mask() != self.field.mask() => Some(fixed),
            // That less by one was not taken says nothing of the one value that may be.
            (Some(_), Some(_)) if matches!(self.field.safe, Safe::Or(_)) => None,
            (Some(Tried::Taken), _) | (None, Some(_)) => None,
            (Some(Tried::Changed), _) => Some(", takes another and does not keep it"),
            (Some(Tried::Refused), _) => Some(" and takes no other"),
            (None, None) => Some(", and is not known to take another"),
        }
    }

    /// What to do so that the guest can go there. The guest's own host can give it what is less than it has, not
    /// what is more.
    fn remedy(&self, own: u64) -> String {
        let has = self.field.of(self.has);
        if self.field.safe == Safe::Exact && self.field.width == 64 {
            return "choose a host with the guest's processor".to_owned();
        }
        if !self.field.takes(own, has) {
            return format!("choose a target that has {has:#x} there, or takes it");
        }
        format!("start the guest with {own:#x} there ({:#018x}), or choose another target", self.id.raw())
    }

    fn subject(&self) -> String {
        let register = self.id.name();
        match (self.field.name, self.field.width) {
            ("", 64) => register,
            ("", _) => format!("{register}[{}]", bit_list(self.field.mask())),
            (name, _) => format!("{register}.{name}"),
        }
    }
}

/// What to do where a register says something else: the guest's own host can let it say less than it does.
fn start_with(id: RegisterId, value: u64, is_less: bool) -> String {
    if !is_less {
        return "choose another target".to_owned();
    }
    format!("start the guest with {:#018x}={value:#x} in its contract, or choose another target", id.raw())
}

/// A bitmap of hypercall services: those that the target has not are missing, the others must be turned off.
fn services(id: RegisterId, has: u64, offers: u64, there: &Arm64Register) -> Option<Finding> {
    let (missing, surplus) = (has & !offers, offers & !has);
    let stuck = matches!(tried(there.lowering.as_ref(), surplus), Some(Tried::Refused | Tried::Changed));
    let (bits, effect) = match (missing, stuck) {
        (0, false) => return None,
        (0, true) => (surplus, "the guest would be offered services that it did not have"),
        _ => (missing, "the guest counts on services of the hypervisor that are not there"),
    };
    let values = (format!("{has:#x}"), format!("has {offers:#x}"));
    let remedy = start_with(id, has & offers, !stuck);
    Some(refusal(format!("{}[{}]", id.name(), bit_list(bits)), Layer::Kernel, values, effect, remedy))
}

/// A version or a level of the firmware: KVM takes a few whole values. Where nobody tried, lower ones than
/// its own (`kvm_arm_set_fw_reg` in arch/arm64/kvm/hypercalls.c).
fn number(id: RegisterId, has: u64, offers: u64, there: &Arm64Register) -> Option<Finding> {
    let takes = match &there.lowering {
        Some(lowering) => lowering.values_taken.contains(&has),
        None => has < offers,
    };
    if takes {
        return None;
    }
    let values = (format!("{has:#x}"), format!("has {offers:#x} and does not take that"));
    let effect = "the guest counts on what the firmware said";
    let remedy = start_with(id, offers, offers < has);
    Some(refusal(id.name(), Layer::Kernel, values, effect, remedy))
}

/// What a cache is like: KVM takes another where it takes another `CLIDR_EL1`, since the same change (Linux 6.3,
/// 7af0c2534f4c "KVM: arm64: Normalize cache configuration").
fn cache(id: RegisterId, says: &RegisterValue, own: &RegisterValue, set: &FeatureSet) -> Option<Finding> {
    let caches = set.register(RegisterId::system(crate::arm64::SystemRegister::CLIDR_EL1));
    let settable = caches.is_some_and(|register| {
        register.writable_mask.is_some_and(|mask| mask != 0)
            || register.lowering.as_ref().is_some_and(|tries| !tries.taken.is_empty())
    });
    (!settable).then(|| {
        let values = (says.to_string(), format!("has {own} and no other"));
        let effect = "the guest would see another cache";
        let remedy = format!(
            "start the guest with {:#018x}={own} in its contract, or choose another target",
            id.raw()
        );
        refusal(id.name(), Layer::Kernel, values, effect, remedy)
    })
}
