//! The contract of a guest on x86-64 against a host's profile: register by register, by the tables of
//! `rules.rs`.

use super::{bit_list, finding, refusal};
use crate::birth::x86::{HYPERV_SIGNATURE, with_hyperv};
use crate::contract::X86Contract;
use crate::cpuid::{self, CpuidEntry, Register, not_of_vm};
use crate::profile::X86Profile;
use crate::rules::{self, Kind, MsrKind};
use crate::verdict::{Finding, FindingKind, Layer, Verdict};

/// Whether a guest with this contract can run on the x86-64 host of this profile, with every reason found.
pub(super) fn compare_x86(contract: &X86Contract, profile: &X86Profile) -> Verdict {
    let mut findings = Vec::new();
    vcpus(contract, profile, &mut findings);
    let reach = profile.probe_guest.cpuid_settings_reach;
    let told = if reach { &contract.cpuid } else { contract.told() };
    cpuid_offered(told, profile, &mut findings);
    if !reach {
        cpuid_read(contract, profile, &mut findings);
    }
    for msr in &contract.feature_msrs {
        findings.extend(feature_msr(msr.index, msr.value, profile));
    }
    sizes(contract, profile, &mut findings);
    tsc(contract, profile, &mut findings);
    super::verdict(findings)
}

fn vcpus(contract: &X86Contract, profile: &X86Profile, findings: &mut Vec<Finding>) {
    let limits = &profile.limits;
    let most = limits.vcpus_max.min(limits.vcpu_id_end);
    if contract.vcpus > most {
        let values = (contract.vcpus.to_string(), format!("runs at most {most}"));
        let remedy = format!("choose a host whose KVM runs {} vCPUs", contract.vcpus);
        findings.push(refusal("vCPUs", Layer::Kernel, values, "vCPUs would be missing", remedy));
    }
    let apic_id = contract.vcpus.saturating_sub(1);
    if apic_id > limits.apic_id_max {
        let values = (format!("{apic_id:#x}"), format!("delivers up to {:#x}", limits.apic_id_max));
        let effect = "some vCPUs could not be interrupted";
        findings.push(refusal(
            "APIC ids",
            Layer::Kernel,
            values,
            effect,
            "choose a host with KVM_CAP_X2APIC_API",
        ));
    }
}

/// Features that KVM is known to emulate where the processor lacks them: MOVBE, RDPID (`KVM_GET_EMULATED_CPUID`).
/// MWAIT, the third, follows run-time state and is no part of a contract.
const EMULATED: [(u32, Register, u32); 2] = [(1, Register::Ecx, 1 << 22), (7, Register::Ecx, 1 << 22)];

/// CPUID bits that a capability stands for instead of `KVM_GET_SUPPORTED_CPUID`: the TSC deadline
/// timer (Documentation/virt/kvm/api.rst, 4.46).
const KVM_CAP_TSC_DEADLINE_TIMER: u32 = 72;
const TSC_DEADLINE: u32 = 1 << 24;

/// The bits of a register for which a capability of the host stands.
pub(crate) fn by_capability(profile: &X86Profile, leaf: u32, register: Register) -> u32 {
    let timer = profile.capability(KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    if timer && leaf == 1 && register == Register::Ecx { TSC_DEADLINE } else { 0 }
}

/// Guest physical address bits, which only newer kernels say: 0 stands for as many as the processor has (APM:
/// `Fn8000_0008_EAX`, `GuestPhysAddrSize`).
fn by_what_is_left_out(supported: &[CpuidEntry], leaf: u32, register: Register) -> u32 {
    let bits = cpuid::value(supported, 0x8000_0008, 0, Register::Eax);
    let of_guests = bits & 0x00ff_0000;
    let is_left_out = leaf == 0x8000_0008 && register == Register::Eax && of_guests == 0;
    if is_left_out { (bits & 0xff) << 16 } else { 0 }
}

/// What KVM is told, against what it supports or emulates.
fn cpuid_offered(told: &[CpuidEntry], profile: &X86Profile, findings: &mut Vec<Finding>) {
    let hyperv = has_hyperv(told).then(|| with_hyperv(profile));
    let supported = hyperv.as_deref().unwrap_or(&profile.cpuid.supported);
    for entry in told {
        for register in Register::ALL {
            let has = entry.register(register) & !not_of_vm(entry.leaf, entry.subleaf, register);
            if has == 0 {
                continue;
            }
            let offered = cpuid::value(supported, entry.leaf, entry.subleaf, register)
                | by_capability(profile, entry.leaf, register)
                | by_what_is_left_out(supported, entry.leaf, register);
            let emulated = emulated(profile, entry, register) & !offered;
            for (rule, mask) in rules::of_cpuid(entry.leaf, entry.subleaf, register) {
                let field = Field { entry, register, mask, has: has & mask, offered: offered & mask };
                findings.extend(field.judge(rule, emulated & mask));
            }
        }
    }
}

/// Whether the leaf of the hypervisor's signature is Hyper-V's.
fn has_hyperv(list: &[CpuidEntry]) -> bool {
    cpuid::entry(list, 0x4000_0000, 0)
        .is_some_and(|entry| [entry.ebx, entry.ecx, entry.edx] == HYPERV_SIGNATURE)
}

fn emulated(profile: &X86Profile, entry: &CpuidEntry, register: Register) -> u32 {
    let known =
        EMULATED.iter().filter(|(leaf, r, _)| (*leaf, *r) == (entry.leaf, register) && entry.subleaf == 0);
    let known = known.fold(0, |mask, (_, _, bits)| mask | bits);
    cpuid::value(&profile.cpuid.emulated, entry.leaf, entry.subleaf, register) & known
}

/// One field of a register, with the guest's value and the target's.
struct Field<'a> {
    entry: &'a CpuidEntry,
    register: Register,
    mask: u32,
    has: u32,
    offered: u32,
}

impl Field<'_> {
    fn judge(&self, rule: &rules::Rule, emulated: u32) -> Vec<Finding> {
        let lost = match rule.kind {
            Kind::Settable => false,
            Kind::Exact => self.has != self.offered,
            Kind::AtMost => self.has > self.offered,
            Kind::Bits => return self.bits(emulated),
        };
        if !lost {
            return Vec::new();
        }
        let effect = match rule.kind {
            Kind::AtMost => "the guest counts on more than there is",
            _ => "the guest counts on another value",
        };
        let remedy = "start the guest with the target's value in its contract, or choose another target";
        let effect = format!("{effect} ({})", rule.source);
        vec![refusal(self.subject(self.mask), Layer::Processor, self.values(), effect, remedy)]
    }

    fn bits(&self, emulated: u32) -> Vec<Finding> {
        let missing = self.has & !self.offered;
        let (lost, slow) = (missing & !emulated, missing & emulated);
        let mut findings = Vec::new();
        if lost != 0 {
            let effect = "the guest counts on features that are not there";
            let remedy =
                "start the guest without these bits in its contract, or choose a target that has them";
            findings.push(refusal(self.subject(lost), Layer::Processor, self.values(), effect, remedy));
        }
        if slow != 0 {
            let effect = "KVM emulates these instructions there: they work, and are slow";
            let remedy = "nothing, or choose a target whose processor has them";
            let subject = self.subject(slow);
            findings.push(finding(
                FindingKind::Notice,
                subject,
                Layer::Processor,
                self.values(),
                effect,
                remedy,
            ));
        }
        findings
    }

    fn subject(&self, bits: u32) -> String {
        let name = cpuid::name(self.entry.leaf, self.entry.subleaf, self.register);
        if bits == u32::MAX { name } else { format!("{name}[{}]", bit_list(bits.into())) }
    }

    fn values(&self) -> (String, String) {
        (format!("{:#010x}", self.has), format!("{:#010x}", self.offered))
    }
}

/// Where settings do not reach the guest it must read there what it reads now.
fn cpuid_read(contract: &X86Contract, profile: &X86Profile, findings: &mut Vec<Finding>) {
    let reads = &profile.probe_guest.cpuid;
    let mut keys: Vec<(u32, u32)> = contract.cpuid.iter().chain(reads).map(CpuidEntry::key).collect();
    keys.sort_unstable();
    keys.dedup();
    let before = findings.len();
    for (leaf, subleaf) in keys {
        for register in Register::ALL {
            let [has, sees] =
                [&contract.cpuid, reads].map(|list| cpuid::value(list, leaf, subleaf, register));
            if has != sees {
                let values = (format!("{has:#010x}"), format!("shows {sees:#010x}"));
                let effect = "CPUID settings do not reach a guest there: it would read the target's value";
                let remedy = "choose a host where they do (`cpuid_settings_reach` in its profile), or one whose probe guest reads the same";
                findings.push(refusal(
                    cpuid::name(leaf, subleaf, register),
                    Layer::Kernel,
                    values,
                    effect,
                    remedy,
                ));
            }
        }
    }
    if findings.len() == before {
        findings.push(finding(
            FindingKind::Notice,
            "CPUID",
            Layer::Kernel,
            ("what it reads".to_owned(), "shows the same, whatever it is told".to_owned()),
            "nothing: a guest reads the same there",
            "nothing; on a host where CPUID settings reach the guest this would be certain",
        ));
    }
}

fn feature_msr(index: u32, has: u64, profile: &X86Profile) -> Option<Finding> {
    let offered = profile.feature_msr(index);
    let sees = offered.unwrap_or(0);
    // The halves of a pair of controls: what must be 1, what may be 1.
    let [must, may] = [0xffff_ffff, 0xffff_ffff_0000_0000_u64];
    let wrong = match rules::of_msr(index) {
        MsrKind::Settable | MsrKind::Derived => 0,
        MsrKind::Bits => has & !sees,
        MsrKind::Exact => has ^ sees,
        MsrKind::Controls => (sees & !has & must) | (has & !sees & may),
    };
    if wrong == 0 {
        return None;
    }
    let target = offered.map_or_else(|| "has no such MSR".to_owned(), |value| format!("{value:#018x}"));
    Some(refusal(
        format!("MSR {index:#x}[{}]", bit_list(wrong)),
        Layer::Processor,
        (format!("{has:#018x}"), target),
        "the guest counts on what this MSR promises",
        "start the guest with these bits as the target has them, or choose another target",
    ))
}

fn sizes(contract: &X86Contract, profile: &X86Profile, findings: &mut Vec<Finding>) {
    let bytes = |has: u64, fits: u64| (format!("{has} bytes"), format!("takes {fits} bytes"));
    let (has, fits) = (contract.xsave_area_bytes, profile.xsave.area_bytes);
    if has > fits {
        let effect = "extended state would be lost";
        let remedy = "choose a host with the same extended state components";
        findings.push(refusal("XSAVE area", Layer::Processor, bytes(has, fits), effect, remedy));
    }
    let (has, fits) = (contract.nested_state_bytes, profile.nested_state_bytes);
    if contract.is_nesting() && has > fits {
        let effect = "guests of the guest would be lost";
        let remedy = "start the guest without VMX and SVM, or choose a host whose KVM nests";
        findings.push(refusal("nested state", Layer::Kernel, bytes(has, fits), effect, remedy));
    }
}

/// KVM's rule (`kvm_set_tsc_khz` in arch/x86/kvm/x86.c): within the tolerance the host's own rate is
/// taken as the guest's; outside, the processor must scale. A faster rate without scaling is caught
/// up at exits, which a guest sees as jumps; a slower one is refused.
fn tsc(contract: &X86Contract, profile: &X86Profile, findings: &mut Vec<Finding>) {
    let (has, offers) = (contract.tsc_frequency_khz, profile.tsc.frequency_khz);
    let reach = profile.probe_guest.tsc_settings_reach;
    let tolerance = u64::from(offers) * u64::from(profile.tsc.tolerance_ppm) / 1_000_000;
    let is_near = u64::from(has.abs_diff(offers)) <= tolerance;
    let values = (format!("{has} kHz"), format!("counts at {offers} kHz"));
    let can_scale = profile.tsc.scales && reach;
    if !is_near && !can_scale {
        let effect = "the guest's time would run at another speed";
        let remedy = "choose a host of the guest's TSC frequency, or one that scales it";
        findings.push(refusal("TSC frequency", Layer::Processor, values, effect, remedy));
    }
    if !reach {
        let values = ("its own count".to_owned(), "shows its own".to_owned());
        let effect = "TSC settings do not reach a guest there: RDTSC jumps at the move";
        let remedy = "choose a host where they do (`tsc_settings_reach` in its profile) if the guest uses the TSC as its clock";
        findings.push(finding(FindingKind::Notice, "TSC", Layer::Kernel, values, effect, remedy));
    }
}
