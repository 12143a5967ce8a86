//! How each field of a register is held against what a target offers: one table for CPUID, one for
//! feature MSRs.
//!
//! A rule covers bits of one register of one leaf. Bits that no rule covers are features: a target
//! must have each that the guest has ("what is not known is a refusal"). Names, polarity and
//! dependencies of features are further columns of these tables.
//!
//! Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; the kernel's
//! Documentation/virt/kvm/x86/cpuid.rst; for what KVM lets a VMM set freely, `kvm_check_cpuid` in
//! arch/x86/kvm/cpuid.c: it checks little, and shows what it was told.

use std::ops::RangeInclusive;

use crate::cpuid::Register::{self, Eax, Ebx, Ecx, Edx};

/// How a field is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Each bit is a feature: the target must have every bit that the guest has.
    Bits,
    /// A number that must be the same.
    Exact,
    /// A number of which the target must have at least as much.
    AtMost,
    /// Data that KVM shows as it was told, without anything behind it that the target could lack.
    Settable,
}

/// One row of the table of CPUID.
#[derive(Debug)]
pub(crate) struct Rule {
    leaves: RangeInclusive<u32>,
    /// None: every subleaf.
    subleaves: Option<RangeInclusive<u32>>,
    /// None: all four.
    register: Option<Register>,
    pub(crate) mask: u32,
    pub(crate) kind: Kind,
    /// Where the field is described.
    pub(crate) source: &'static str,
}

const ALL: u32 = u32::MAX;

const fn row(
    leaves: RangeInclusive<u32>,
    register: Option<Register>,
    mask: u32,
    kind: Kind,
    source: &'static str,
) -> Rule {
    Rule { leaves, subleaves: None, register, mask, kind, source }
}

const fn one(leaf: u32, register: Register, mask: u32, kind: Kind, source: &'static str) -> Rule {
    row(leaf..=leaf, Some(register), mask, kind, source)
}

const fn whole(first: u32, last: u32, kind: Kind, source: &'static str) -> Rule {
    row(first..=last, None, ALL, kind, source)
}

const fn sub(
    leaf: u32,
    subleaves: RangeInclusive<u32>,
    register: Option<Register>,
    kind: Kind,
    source: &'static str,
) -> Rule {
    Rule { leaves: leaf..=leaf, subleaves: Some(subleaves), register, mask: ALL, kind, source }
}

use Kind::{AtMost, Exact, Settable};

/// The first row that covers a bit decides.
const CPUID: &[Rule] = &[
    one(0, Eax, ALL, Settable, "SDM 00H EAX: highest basic leaf"),
    row(0..=0, None, ALL, Exact, "SDM 00H: vendor"),
    one(1, Eax, ALL, Settable, "SDM 01H EAX: family, model, stepping"),
    one(1, Ebx, 0xff, Settable, "SDM 01H EBX 7-0: brand index"),
    one(1, Ebx, 0xff00, Exact, "SDM 01H EBX 15-8: CLFLUSH line"),
    one(1, Ebx, 0x00ff_0000, Settable, "SDM 01H EBX 23-16: topology"),
    one(1, Ecx, 1 << 31, Settable, "APM 0000_0001 ECX 31: a hypervisor is there, by its own word"),
    whole(2, 2, Settable, "SDM 02H: caches and TLBs"),
    whole(4, 4, Settable, "SDM 04H: caches and topology"),
    whole(5, 5, Settable, "SDM 05H: MONITOR line sizes, C-states"),
    sub(7, 0..=0, Some(Eax), Settable, "SDM 07H EAX: highest subleaf"),
    one(0xa, Eax, 0xff, AtMost, "SDM 0AH EAX 7-0: version of the performance monitoring"),
    one(0xa, Eax, 0xff00, AtMost, "SDM 0AH EAX 15-8: general counters"),
    one(0xa, Eax, 0x00ff_0000, Exact, "SDM 0AH EAX 23-16: counter width"),
    one(0xa, Eax, 0xff00_0000, AtMost, "SDM 0AH EAX 31-24: length of EBX"),
    one(0xa, Ebx, ALL, Exact, "SDM 0AH EBX: events, 1 is absent"),
    one(0xa, Edx, 0x1f, AtMost, "SDM 0AH EDX 4-0: fixed counters"),
    one(0xa, Edx, 0x1fe0, Exact, "SDM 0AH EDX 12-5: fixed counter width"),
    whole(0xb, 0xb, Settable, "SDM 0BH: topology"),
    sub(0xd, 0..=0, Some(Ecx), AtMost, "SDM 0DH.0 ECX: bytes of all components"),
    sub(0xd, 2..=63, None, Exact, "SDM 0DH.n: size, offset and flags of a component"),
    whole(0x15, 0x17, Settable, "SDM 15H-17H: clock ratios and vendor data"),
    whole(0x1d, 0x1e, Exact, "SDM 1DH, 1EH: tile sizes"),
    whole(0x1f, 0x1f, Settable, "SDM 1FH: topology"),
    one(0x24, Ebx, 0xff, AtMost, "SDM 24H EBX 7-0: version of AVX10"),
    one(0x4000_0000, Eax, ALL, Settable, "kvm/x86/cpuid.rst: highest leaf"),
    row(0x4000_0000..=0x4000_0000, None, ALL, Exact, "kvm/x86/cpuid.rst: signature"),
    one(0x4000_0100, Eax, ALL, Settable, "the same behind Hyper-V's leaves"),
    row(0x4000_0100..=0x4000_0100, None, ALL, Exact, "the same behind Hyper-V's leaves"),
    one(0x4000_0001, Edx, ALL, Settable, "kvm/x86/cpuid.rst: KVM_HINTS_REALTIME"),
    whole(0x8000_0000, 0x8000_0000, Settable, "SDM 80000000H: highest leaf; APM: vendor, as in leaf 0"),
    one(0x8000_0001, Eax, ALL, Settable, "APM 8000_0001 EAX: family, model, stepping"),
    one(0x8000_0001, Ebx, ALL, Settable, "APM 8000_0001 EBX: brand id, package type"),
    whole(0x8000_0002, 0x8000_0006, Settable, "SDM 80000002H-06H: brand, caches"),
    one(0x8000_0008, Eax, 0xff, AtMost, "SDM 80000008H EAX 7-0: MAXPHYADDR"),
    one(0x8000_0008, Eax, 0xff00, AtMost, "SDM 80000008H EAX 15-8: linear address bits"),
    one(0x8000_0008, Eax, 0x00ff_0000, AtMost, "SDM 80000008H EAX 23-16: guest physical address bits"),
    one(0x8000_0008, Ecx, ALL, Settable, "APM 8000_0008 ECX: topology"),
    one(0x8000_000a, Eax, 0xff, AtMost, "APM 8000_000A EAX 7-0: SVM revision"),
    one(0x8000_000a, Ebx, ALL, AtMost, "APM 8000_000A EBX: ASIDs"),
    whole(0x8000_0019, 0x8000_001a, Settable, "APM 8000_0019, 8000_001A: TLBs, hints"),
    whole(0x8000_001d, 0x8000_001e, Settable, "APM 8000_001D, 8000_001E: caches, topology"),
    one(0x8000_0021, Ebx, ALL, Settable, "APM 8000_0021 EBX: microcode patch size"),
    one(0x8000_0022, Ebx, 0xf, AtMost, "APM 8000_0022 EBX 3-0: core counters"),
    whole(0x8000_0026, 0x8000_0026, Settable, "APM 8000_0026: topology"),
];

/// What stands for every bit that no row covers.
static FEATURE: Rule = whole(0, ALL, Kind::Bits, "a feature bit");

/// The fields of one register: each rule with the bits that it decides.
pub(crate) fn of_cpuid(leaf: u32, subleaf: u32, register: Register) -> Vec<(&'static Rule, u32)> {
    let mut left = ALL;
    let mut fields = Vec::new();
    for rule in CPUID.iter().chain(std::iter::once(&FEATURE)) {
        let covers = rule.leaves.contains(&leaf)
            && rule.subleaves.as_ref().is_none_or(|subleaves| subleaves.contains(&subleaf))
            && rule.register.is_none_or(|only| only == register);
        let mask = if covers { rule.mask & left } else { 0 };
        if mask != 0 {
            left &= !mask;
            fields.push((rule, mask));
        }
    }
    fields
}

/// How a feature MSR is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MsrKind {
    /// Each bit is a feature.
    Bits,
    /// The same value.
    Exact,
    /// Controls: a 1 in the low half must be 1 in the guest's VMCS, a 1 in the high half may be 1.
    Controls,
    /// Data that KVM shows as it was told.
    Settable,
    /// KVM derives it from others and from CPUID; it is not set.
    Derived,
}

/// The rule of one feature MSR (SDM volume 3, appendix A; volume 4; the kernel's `vmx_set_vmx_msr`
/// in arch/x86/kvm/vmx/nested.c and `kvm_get_feature_msr` in x86.c).
pub(crate) fn of_msr(index: u32) -> MsrKind {
    match index {
        // IA32_BIOS_SIGN_ID: data.
        0x8b => MsrKind::Settable,
        // The controls that are not "true", IA32_VMX_CR0_FIXED1, IA32_VMX_CR4_FIXED1.
        0x481..=0x484 | 0x487 | 0x489 => MsrKind::Derived,
        0x48b | 0x48d..=0x490 => MsrKind::Controls,
        // IA32_VMX_BASIC, _MISC, _CR0_FIXED0, _CR4_FIXED0, _VMCS_ENUM mix numbers with bits.
        0x480 | 0x485 | 0x486 | 0x488 | 0x48a => MsrKind::Exact,
        // IA32_ARCH_CAPABILITIES, IA32_PERF_CAPABILITIES, MSR_PLATFORM_INFO, IA32_VMX_EPT_VPID_CAP,
        // IA32_VMX_VMFUNC, DE_CFG, and what is not known.
        _ => MsrKind::Bits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(leaf: u32, subleaf: u32, register: Register) -> Vec<(Kind, u32)> {
        of_cpuid(leaf, subleaf, register).into_iter().map(|(rule, mask)| (rule.kind, mask)).collect()
    }

    #[test]
    fn every_bit_has_one_rule() {
        for rule in CPUID {
            for leaf in [*rule.leaves.start(), *rule.leaves.end(), 0x1234] {
                for subleaf in [0, 1, 2, 64] {
                    for register in Register::ALL {
                        let masks: Vec<u32> =
                            of_cpuid(leaf, subleaf, register).iter().map(|(_, mask)| *mask).collect();
                        assert_eq!(masks.iter().fold(0, |all, mask| all | mask), ALL);
                        assert_eq!(masks.iter().map(|mask| mask.count_ones()).sum::<u32>(), 32);
                    }
                }
            }
        }
    }

    #[test]
    fn every_row_decides_something() {
        for rule in CPUID {
            let subleaf = rule.subleaves.as_ref().map_or(0, |subleaves| *subleaves.start());
            let reached = Register::ALL.iter().any(|register| {
                of_cpuid(*rule.leaves.start(), subleaf, *register)
                    .iter()
                    .any(|(found, _)| found.source == rule.source && found.mask == rule.mask)
            });
            assert!(reached, "{} never decides", rule.source);
        }
    }

    #[test]
    fn known_fields_have_their_rules() {
        assert_eq!(kinds(7, 0, Ebx), [(Kind::Bits, ALL)]);
        assert_eq!(kinds(0, 0, Ebx), [(Kind::Exact, ALL)]);
        assert_eq!(
            kinds(1, 0, Ebx),
            [(Settable, 0xff), (Exact, 0xff00), (Settable, 0xff_0000), (Kind::Bits, 0xff00_0000)]
        );
        assert_eq!(kinds(0xd, 1, Eax), [(Kind::Bits, ALL)]);
        assert_eq!(kinds(0xd, 2, Eax), [(Kind::Exact, ALL)]);
        assert_eq!(of_msr(0x48b), MsrKind::Controls);
        assert_eq!(of_msr(0x1234), MsrKind::Bits);
    }
}
