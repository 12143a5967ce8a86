//! What registers are called: by the architecture manual, or by the kernel where it made them.
//!
//! Arm Architecture Reference Manual (DDI 0487), D24 (descriptions of the system registers); the kernel's
//! arch/arm64/include/uapi/asm/kvm.h and Documentation/virt/kvm/arm/fw-pseudo-registers.rst.

use super::{RegisterKind, SystemRegister};

/// Places in `struct kvm_regs`, in words of 32 bits.
const STACK_POINTER: u16 = 62;
const PROGRAM_COUNTER: u16 = 64;
const PSTATE: u16 = 66;
const SP_EL1: u16 = 68;
const ELR_EL1: u16 = 70;
const SPSR: u16 = 72;
const SPSR_END: u16 = SPSR + 5 * 2;
const VECTORS: u16 = 84;
const FPSR: u16 = 212;
const FPCR: u16 = 213;

/// The kernel's names of the saved program status registers (`KVM_SPSR_…`).
const STATUS: [&str; 5] = ["spsr_el1", "spsr_abt", "spsr_und", "spsr_irq", "spsr_fiq"];

/// Where predicates and the first-fault register begin among SVE's, how many slices each has, and the
/// pseudo-register of the vector lengths.
const PREDICATES: u16 = 0x400;
const FIRST_FAULT: u16 = 0x600;
const SLICES: u16 = 32;
const VECTOR_LENGTHS: u16 = 0xffff;

/// Versions and workarounds (`KVM_REG_ARM_FW_REG`).
const FIRMWARE: [&str; 4] = [
    "KVM_REG_ARM_PSCI_VERSION",
    "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1",
    "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2",
    "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3",
];

/// Bitmaps of hypercall services (`KVM_REG_ARM_FW_FEAT_BMAP_REG`).
const SERVICES: [&str; 4] = [
    "KVM_REG_ARM_STD_BMAP",
    "KVM_REG_ARM_STD_HYP_BMAP",
    "KVM_REG_ARM_VENDOR_HYP_BMAP",
    "KVM_REG_ARM_VENDOR_HYP_BMAP_2",
];

/// The name of a register.
pub(super) fn of(kind: RegisterKind) -> String {
    match kind {
        RegisterKind::Core(word) => core(word),
        RegisterKind::Cache(selector) => format!("CCSIDR_EL1[{selector}]"),
        RegisterKind::System(register) => system(register),
        RegisterKind::Firmware(number) => {
            listed(&FIRMWARE, number).unwrap_or_else(|| format!("KVM_REG_ARM_FW_REG({number})"))
        }
        RegisterKind::Services(number) => {
            listed(&SERVICES, number).unwrap_or_else(|| format!("KVM_REG_ARM_FW_FEAT_BMAP_REG({number})"))
        }
        RegisterKind::Vector(number) => vector(number),
        RegisterKind::Unknown(kind, which) => format!("kind {kind:#x}, number {which:#x}"),
    }
}

fn listed(names: &[&str], number: u16) -> Option<String> {
    names.get(usize::from(number)).map(|name| (*name).to_owned())
}

fn core(word: u16) -> String {
    match word {
        0..STACK_POINTER if word.is_multiple_of(2) => format!("x{}", word / 2),
        STACK_POINTER => "sp".into(),
        PROGRAM_COUNTER => "pc".into(),
        PSTATE => "pstate".into(),
        SP_EL1 => "sp_el1".into(),
        ELR_EL1 => "elr_el1".into(),
        SPSR..SPSR_END if word.is_multiple_of(2) => {
            STATUS.get(usize::from((word - SPSR) / 2)).map_or_else(String::new, |name| (*name).into())
        }
        VECTORS..FPSR if word.is_multiple_of(4) => format!("v{}", (word - VECTORS) / 4),
        FPSR => "fpsr".into(),
        FPCR => "fpcr".into(),
        _ => format!("core word {word}"),
    }
}

fn vector(number: u16) -> String {
    let sliced = |name: String, slice: u16| if slice == 0 { name } else { format!("{name}, slice {slice}") };
    match number {
        VECTOR_LENGTHS => "KVM_REG_ARM64_SVE_VLS".into(),
        0..PREDICATES => sliced(format!("z{}", number / SLICES), number % SLICES),
        PREDICATES..FIRST_FAULT => sliced(format!("p{}", (number - PREDICATES) / SLICES), number % SLICES),
        _ if number - FIRST_FAULT < SLICES => sliced("ffr".into(), number - FIRST_FAULT),
        _ => format!("SVE number {number:#x}"),
    }
}

fn system(register: SystemRegister) -> String {
    let found = SYSTEM.binary_search_by_key(&register, |(known, _)| *known);
    if let Some((_, name)) = found.ok().and_then(|place| SYSTEM.get(place)) {
        return (*name).to_owned();
    }
    let (op0, op1, crn, crm, op2) =
        (register.op0(), register.op1(), register.crn(), register.crm(), register.op2());
    match (op0, op1, crn, crm, op2) {
        (2, 0, 0, n, 4) => format!("DBGBVR{n}_EL1"),
        (2, 0, 0, n, 5) => format!("DBGBCR{n}_EL1"),
        (2, 0, 0, n, 6) => format!("DBGWVR{n}_EL1"),
        (2, 0, 0, n, 7) => format!("DBGWCR{n}_EL1"),
        (3, 3, 14, 8..=11, n) => format!("PMEVCNTR{}_EL0", (crm - 8) * 8 + n),
        (3, 3, 14, 15, 7) => "PMCCFILTR_EL0".into(),
        (3, 3, 14, 12..=15, n) => format!("PMEVTYPER{}_EL0", (crm - 12) * 8 + n),
        _ => format!("S{op0}_{op1}_C{crn}_C{crm}_{op2}"),
    }
}

/// Ascending. KVM's own names stand where it numbers a register other than the architecture does: it lists
/// the virtual counter and its compare value with each other's numbers.
const SYSTEM: &[(SystemRegister, &str)] = &[
    (SystemRegister::new(2, 0, 0, 2, 0), "MDCCINT_EL1"),
    (SystemRegister::new(2, 0, 0, 2, 2), "MDSCR_EL1"),
    (SystemRegister::new(2, 0, 1, 1, 4), "OSLSR_EL1"),
    (SystemRegister::new(2, 4, 0, 7, 0), "DBGVCR32_EL2"),
    (SystemRegister::new(3, 0, 0, 0, 0), "MIDR_EL1"),
    (SystemRegister::new(3, 0, 0, 0, 5), "MPIDR_EL1"),
    (SystemRegister::new(3, 0, 0, 0, 6), "REVIDR_EL1"),
    (SystemRegister::new(3, 0, 0, 1, 0), "ID_PFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 1, 1), "ID_PFR1_EL1"),
    (SystemRegister::new(3, 0, 0, 1, 2), "ID_DFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 1, 3), "ID_AFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 1, 4), "ID_MMFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 1, 5), "ID_MMFR1_EL1"),
    (SystemRegister::new(3, 0, 0, 1, 6), "ID_MMFR2_EL1"),
    (SystemRegister::new(3, 0, 0, 1, 7), "ID_MMFR3_EL1"),
    (SystemRegister::new(3, 0, 0, 2, 0), "ID_ISAR0_EL1"),
    (SystemRegister::new(3, 0, 0, 2, 1), "ID_ISAR1_EL1"),
    (SystemRegister::new(3, 0, 0, 2, 2), "ID_ISAR2_EL1"),
    (SystemRegister::new(3, 0, 0, 2, 3), "ID_ISAR3_EL1"),
    (SystemRegister::new(3, 0, 0, 2, 4), "ID_ISAR4_EL1"),
    (SystemRegister::new(3, 0, 0, 2, 5), "ID_ISAR5_EL1"),
    (SystemRegister::new(3, 0, 0, 2, 6), "ID_MMFR4_EL1"),
    (SystemRegister::new(3, 0, 0, 2, 7), "ID_ISAR6_EL1"),
    (SystemRegister::new(3, 0, 0, 3, 0), "MVFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 3, 1), "MVFR1_EL1"),
    (SystemRegister::new(3, 0, 0, 3, 2), "MVFR2_EL1"),
    (SystemRegister::new(3, 0, 0, 3, 4), "ID_PFR2_EL1"),
    (SystemRegister::new(3, 0, 0, 3, 5), "ID_DFR1_EL1"),
    (SystemRegister::new(3, 0, 0, 3, 6), "ID_MMFR5_EL1"),
    (SystemRegister::new(3, 0, 0, 4, 0), "ID_AA64PFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 4, 1), "ID_AA64PFR1_EL1"),
    (SystemRegister::new(3, 0, 0, 4, 2), "ID_AA64PFR2_EL1"),
    (SystemRegister::new(3, 0, 0, 4, 4), "ID_AA64ZFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 4, 5), "ID_AA64SMFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 4, 7), "ID_AA64FPFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 5, 0), "ID_AA64DFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 5, 1), "ID_AA64DFR1_EL1"),
    (SystemRegister::new(3, 0, 0, 5, 2), "ID_AA64DFR2_EL1"),
    (SystemRegister::new(3, 0, 0, 5, 4), "ID_AA64AFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 5, 5), "ID_AA64AFR1_EL1"),
    (SystemRegister::new(3, 0, 0, 6, 0), "ID_AA64ISAR0_EL1"),
    (SystemRegister::new(3, 0, 0, 6, 1), "ID_AA64ISAR1_EL1"),
    (SystemRegister::new(3, 0, 0, 6, 2), "ID_AA64ISAR2_EL1"),
    (SystemRegister::new(3, 0, 0, 6, 3), "ID_AA64ISAR3_EL1"),
    (SystemRegister::new(3, 0, 0, 7, 0), "ID_AA64MMFR0_EL1"),
    (SystemRegister::new(3, 0, 0, 7, 1), "ID_AA64MMFR1_EL1"),
    (SystemRegister::new(3, 0, 0, 7, 2), "ID_AA64MMFR2_EL1"),
    (SystemRegister::new(3, 0, 0, 7, 3), "ID_AA64MMFR3_EL1"),
    (SystemRegister::new(3, 0, 0, 7, 4), "ID_AA64MMFR4_EL1"),
    (SystemRegister::new(3, 0, 1, 0, 0), "SCTLR_EL1"),
    (SystemRegister::new(3, 0, 1, 0, 1), "ACTLR_EL1"),
    (SystemRegister::new(3, 0, 1, 0, 2), "CPACR_EL1"),
    (SystemRegister::new(3, 0, 1, 0, 3), "SCTLR2_EL1"),
    (SystemRegister::new(3, 0, 1, 2, 0), "ZCR_EL1"),
    (SystemRegister::new(3, 0, 1, 2, 6), "SMCR_EL1"),
    (SystemRegister::new(3, 0, 2, 0, 0), "TTBR0_EL1"),
    (SystemRegister::new(3, 0, 2, 0, 1), "TTBR1_EL1"),
    (SystemRegister::new(3, 0, 2, 0, 2), "TCR_EL1"),
    (SystemRegister::new(3, 0, 2, 0, 3), "TCR2_EL1"),
    (SystemRegister::new(3, 0, 2, 1, 0), "APIAKeyLo_EL1"),
    (SystemRegister::new(3, 0, 2, 1, 1), "APIAKeyHi_EL1"),
    (SystemRegister::new(3, 0, 2, 1, 2), "APIBKeyLo_EL1"),
    (SystemRegister::new(3, 0, 2, 1, 3), "APIBKeyHi_EL1"),
    (SystemRegister::new(3, 0, 2, 2, 0), "APDAKeyLo_EL1"),
    (SystemRegister::new(3, 0, 2, 2, 1), "APDAKeyHi_EL1"),
    (SystemRegister::new(3, 0, 2, 2, 2), "APDBKeyLo_EL1"),
    (SystemRegister::new(3, 0, 2, 2, 3), "APDBKeyHi_EL1"),
    (SystemRegister::new(3, 0, 2, 3, 0), "APGAKeyLo_EL1"),
    (SystemRegister::new(3, 0, 2, 3, 1), "APGAKeyHi_EL1"),
    (SystemRegister::new(3, 0, 5, 1, 0), "AFSR0_EL1"),
    (SystemRegister::new(3, 0, 5, 1, 1), "AFSR1_EL1"),
    (SystemRegister::new(3, 0, 5, 2, 0), "ESR_EL1"),
    (SystemRegister::new(3, 0, 6, 0, 0), "FAR_EL1"),
    (SystemRegister::new(3, 0, 7, 4, 0), "PAR_EL1"),
    (SystemRegister::new(3, 0, 9, 14, 1), "PMINTENSET_EL1"),
    (SystemRegister::new(3, 0, 9, 14, 2), "PMINTENCLR_EL1"),
    (SystemRegister::new(3, 0, 10, 2, 0), "MAIR_EL1"),
    (SystemRegister::new(3, 0, 10, 2, 2), "PIRE0_EL1"),
    (SystemRegister::new(3, 0, 10, 2, 3), "PIR_EL1"),
    (SystemRegister::new(3, 0, 10, 2, 4), "POR_EL1"),
    (SystemRegister::new(3, 0, 10, 3, 0), "AMAIR_EL1"),
    (SystemRegister::new(3, 0, 12, 0, 0), "VBAR_EL1"),
    (SystemRegister::new(3, 0, 12, 1, 1), "DISR_EL1"),
    (SystemRegister::new(3, 0, 13, 0, 1), "CONTEXTIDR_EL1"),
    (SystemRegister::new(3, 0, 13, 0, 4), "TPIDR_EL1"),
    (SystemRegister::new(3, 0, 14, 1, 0), "CNTKCTL_EL1"),
    (SystemRegister::new(3, 1, 0, 0, 1), "CLIDR_EL1"),
    (SystemRegister::new(3, 1, 0, 0, 6), "SMIDR_EL1"),
    (SystemRegister::new(3, 1, 0, 0, 7), "AIDR_EL1"),
    (SystemRegister::new(3, 2, 0, 0, 0), "CSSELR_EL1"),
    (SystemRegister::new(3, 3, 0, 0, 1), "CTR_EL0"),
    (SystemRegister::new(3, 3, 0, 0, 7), "DCZID_EL0"),
    (SystemRegister::new(3, 3, 4, 2, 2), "SVCR"),
    (SystemRegister::new(3, 3, 4, 4, 2), "FPMR"),
    (SystemRegister::new(3, 3, 9, 12, 0), "PMCR_EL0"),
    (SystemRegister::new(3, 3, 9, 12, 1), "PMCNTENSET_EL0"),
    (SystemRegister::new(3, 3, 9, 12, 2), "PMCNTENCLR_EL0"),
    (SystemRegister::new(3, 3, 9, 12, 3), "PMOVSCLR_EL0"),
    (SystemRegister::new(3, 3, 9, 12, 4), "PMSWINC_EL0"),
    (SystemRegister::new(3, 3, 9, 12, 5), "PMSELR_EL0"),
    (SystemRegister::new(3, 3, 9, 13, 0), "PMCCNTR_EL0"),
    (SystemRegister::new(3, 3, 9, 14, 0), "PMUSERENR_EL0"),
    (SystemRegister::new(3, 3, 9, 14, 3), "PMOVSSET_EL0"),
    (SystemRegister::new(3, 3, 10, 2, 4), "POR_EL0"),
    (SystemRegister::new(3, 3, 13, 0, 2), "TPIDR_EL0"),
    (SystemRegister::new(3, 3, 13, 0, 3), "TPIDRRO_EL0"),
    (SystemRegister::new(3, 3, 13, 0, 5), "TPIDR2_EL0"),
    (SystemRegister::new(3, 3, 14, 0, 1), "KVM_REG_ARM_PTIMER_CNT"),
    (SystemRegister::new(3, 3, 14, 0, 2), "KVM_REG_ARM_TIMER_CVAL"),
    (SystemRegister::new(3, 3, 14, 2, 1), "KVM_REG_ARM_PTIMER_CTL"),
    (SystemRegister::new(3, 3, 14, 2, 2), "KVM_REG_ARM_PTIMER_CVAL"),
    (SystemRegister::new(3, 3, 14, 3, 1), "KVM_REG_ARM_TIMER_CTL"),
    (SystemRegister::new(3, 3, 14, 3, 2), "KVM_REG_ARM_TIMER_CNT"),
    (SystemRegister::new(3, 4, 0, 0, 0), "VPIDR_EL2"),
    (SystemRegister::new(3, 4, 0, 0, 5), "VMPIDR_EL2"),
    (SystemRegister::new(3, 4, 1, 0, 0), "SCTLR_EL2"),
    (SystemRegister::new(3, 4, 1, 0, 1), "ACTLR_EL2"),
    (SystemRegister::new(3, 4, 1, 1, 0), "HCR_EL2"),
    (SystemRegister::new(3, 4, 1, 1, 1), "MDCR_EL2"),
    (SystemRegister::new(3, 4, 1, 1, 2), "CPTR_EL2"),
    (SystemRegister::new(3, 4, 1, 1, 3), "HSTR_EL2"),
    (SystemRegister::new(3, 4, 1, 1, 4), "HFGRTR_EL2"),
    (SystemRegister::new(3, 4, 1, 1, 5), "HFGWTR_EL2"),
    (SystemRegister::new(3, 4, 1, 1, 6), "HFGITR_EL2"),
    (SystemRegister::new(3, 4, 1, 1, 7), "HACR_EL2"),
    (SystemRegister::new(3, 4, 1, 2, 0), "ZCR_EL2"),
    (SystemRegister::new(3, 4, 1, 2, 2), "HCRX_EL2"),
    (SystemRegister::new(3, 4, 2, 0, 0), "TTBR0_EL2"),
    (SystemRegister::new(3, 4, 2, 0, 1), "TTBR1_EL2"),
    (SystemRegister::new(3, 4, 2, 0, 2), "TCR_EL2"),
    (SystemRegister::new(3, 4, 2, 0, 3), "TCR2_EL2"),
    (SystemRegister::new(3, 4, 2, 1, 0), "VTTBR_EL2"),
    (SystemRegister::new(3, 4, 2, 1, 2), "VTCR_EL2"),
    (SystemRegister::new(3, 4, 3, 0, 0), "DACR32_EL2"),
    (SystemRegister::new(3, 4, 3, 1, 4), "HDFGRTR_EL2"),
    (SystemRegister::new(3, 4, 3, 1, 5), "HDFGWTR_EL2"),
    (SystemRegister::new(3, 4, 3, 1, 6), "HAFGRTR_EL2"),
    (SystemRegister::new(3, 4, 4, 0, 0), "SPSR_EL2"),
    (SystemRegister::new(3, 4, 4, 0, 1), "ELR_EL2"),
    (SystemRegister::new(3, 4, 4, 1, 0), "SP_EL1"),
    (SystemRegister::new(3, 4, 5, 0, 1), "IFSR32_EL2"),
    (SystemRegister::new(3, 4, 5, 1, 0), "AFSR0_EL2"),
    (SystemRegister::new(3, 4, 5, 1, 1), "AFSR1_EL2"),
    (SystemRegister::new(3, 4, 5, 2, 0), "ESR_EL2"),
    (SystemRegister::new(3, 4, 5, 3, 0), "FPEXC32_EL2"),
    (SystemRegister::new(3, 4, 6, 0, 0), "FAR_EL2"),
    (SystemRegister::new(3, 4, 6, 0, 4), "HPFAR_EL2"),
    (SystemRegister::new(3, 4, 10, 2, 0), "MAIR_EL2"),
    (SystemRegister::new(3, 4, 10, 2, 2), "PIRE0_EL2"),
    (SystemRegister::new(3, 4, 10, 2, 3), "PIR_EL2"),
    (SystemRegister::new(3, 4, 10, 2, 4), "POR_EL2"),
    (SystemRegister::new(3, 4, 10, 3, 0), "AMAIR_EL2"),
    (SystemRegister::new(3, 4, 12, 0, 0), "VBAR_EL2"),
    (SystemRegister::new(3, 4, 12, 0, 2), "RMR_EL2"),
    (SystemRegister::new(3, 4, 12, 11, 0), "ICH_HCR_EL2"),
    (SystemRegister::new(3, 4, 13, 0, 1), "CONTEXTIDR_EL2"),
    (SystemRegister::new(3, 4, 13, 0, 2), "TPIDR_EL2"),
    (SystemRegister::new(3, 4, 14, 0, 3), "CNTVOFF_EL2"),
    (SystemRegister::new(3, 4, 14, 1, 0), "CNTHCTL_EL2"),
    (SystemRegister::new(3, 4, 14, 2, 0), "CNTHP_TVAL_EL2"),
    (SystemRegister::new(3, 4, 14, 2, 1), "CNTHP_CTL_EL2"),
    (SystemRegister::new(3, 4, 14, 2, 2), "CNTHP_CVAL_EL2"),
    (SystemRegister::new(3, 4, 14, 3, 1), "CNTHV_CTL_EL2"),
    (SystemRegister::new(3, 4, 14, 3, 2), "CNTHV_CVAL_EL2"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_nothing_twice() {
        assert!(SYSTEM.is_sorted_by(|a, b| a.0 < b.0));
        let mut names: Vec<_> = SYSTEM.iter().map(|(_, name)| name).collect();
        names.sort_unstable();
        assert!(names.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn what_has_no_name_is_called_by_its_place() {
        assert_eq!(of(RegisterKind::Core(1)), "core word 1");
        assert_eq!(of(RegisterKind::Core(74)), "spsr_abt");
        assert_eq!(of(RegisterKind::Core(208)), "v31");
        assert_eq!(of(RegisterKind::Vector(0x601)), "ffr, slice 1");
        assert_eq!(of(RegisterKind::Vector(0x700)), "SVE number 0x700");
        assert_eq!(of(RegisterKind::Firmware(7)), "KVM_REG_ARM_FW_REG(7)");
        assert_eq!(of(RegisterKind::System(SystemRegister::new(3, 3, 14, 14, 6))), "PMEVTYPER22_EL0");
    }
}
