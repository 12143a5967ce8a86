//! Fields of the registers that say features: their names, and how KVM takes another value than its own.
//!
//! Names and places: Arm Architecture Reference Manual (DDI 0487), D24.2. How a value is taken: the tables
//! `ftr_…` of the kernel's arch/arm64/kernel/cpufeature.c (`FTR_LOWER_SAFE` and so on), which
//! `arm64_check_features` in `arch/arm64/kvm/sys_regs.c` goes by; `set_ctr` and `set_clidr` there.

use super::SystemRegister;

/// Which values KVM can give a guest in a field, beside its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Safe {
    /// Lower ones.
    Lower,
    /// Lower ones from this on.
    LowerFrom(u64),
    /// This one.
    Or(u64),
    /// Lower ones, of a signed field: 0xf is less than 0.
    SignedLower,
    /// Higher ones.
    Higher,
    /// None.
    Exact,
    /// All.
    Any,
}

/// One field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) shift: u32,
    pub(crate) width: u32,
    /// Empty if this build has none for it.
    pub(crate) name: &'static str,
    pub(crate) safe: Safe,
}

impl Field {
    /// Its bits.
    pub(crate) fn mask(self) -> u64 {
        (u64::MAX >> (64 - self.width)) << self.shift
    }

    /// What it holds.
    pub(crate) fn of(self, value: u64) -> u64 {
        (value & self.mask()) >> self.shift
    }

    /// Whether a KVM whose own value is `own` may give a guest this one.
    pub(crate) fn takes(self, value: u64, own: u64) -> bool {
        let signed = |value: u64| (value ^ 1 << (self.width - 1)) & u64::MAX >> (64 - self.width);
        value == own
            || match self.safe {
                Safe::Lower => value < own,
                Safe::LowerFrom(least) => value < own && value >= least,
                Safe::Or(other) => value == other,
                Safe::SignedLower => signed(value) < signed(own),
                Safe::Higher => value > own,
                Safe::Exact => false,
                Safe::Any => true,
            }
    }
}

const fn field(shift: u32, width: u32, name: &'static str, safe: Safe) -> Field {
    Field { shift, width, name, safe }
}

/// `CTR_EL0`: granules of write-back and of exclusive accesses, and the policy of the instruction cache are
/// the processor's.
const CTR: [Field; 8] = [
    field(0, 4, "IminLine", Safe::Lower),
    field(4, 10, "", Safe::Exact),
    field(14, 2, "L1Ip", Safe::Exact),
    field(16, 4, "DminLine", Safe::Lower),
    field(20, 8, "ERG, CWG", Safe::Exact),
    field(28, 1, "IDC", Safe::Lower),
    field(29, 1, "DIC", Safe::Lower),
    field(30, 34, "", Safe::Exact),
];

/// The fields of a register, ascending; together they have all its bits.
pub(crate) fn of(register: SystemRegister) -> Vec<Field> {
    if register == SystemRegister::CTR_EL0 {
        return CTR.to_vec();
    }
    let whole = |safe| vec![field(0, 64, "", safe)];
    match (register.op1(), register.crn(), register.crm()) {
        // Any cache can be shown to a guest, where KVM lets caches be set.
        (1, 0, 0) if register == SystemRegister::CLIDR_EL1 => whole(Safe::Any),
        (0, 0, 1..=7) => (0..64).step_by(4).map(|shift| nibble(register, shift)).collect(),
        // Software looks by MIDR_EL1, REVIDR_EL1 and AIDR_EL1 for what the processor does wrong.
        _ => whole(Safe::Exact),
    }
}

fn nibble(register: SystemRegister, shift: u32) -> Field {
    let row = NAMES.iter().find(|(of, _)| *of == register);
    let place = usize::try_from(shift / 4).unwrap_or(0);
    let name = row.and_then(|(_, names)| names.split(' ').nth(place)).filter(|name| *name != "-");
    let safe = SAFE.iter().find(|(of, shifts, _)| *of == register && shifts.contains(&shift));
    field(shift, 4, name.unwrap_or(""), safe.map_or(Safe::Lower, |(_, _, safe)| *safe))
}

const fn id(crm: u8, op2: u8) -> SystemRegister {
    SystemRegister::new(3, 0, 0, crm, op2)
}

const PFR0: SystemRegister = id(4, 0);
const PFR1: SystemRegister = id(4, 1);
const DFR0: SystemRegister = id(5, 0);
const ISAR1: SystemRegister = id(6, 1);
const ISAR2: SystemRegister = id(6, 2);
const MMFR0: SystemRegister = SystemRegister::ID_AA64MMFR0_EL1;
const MMFR1: SystemRegister = id(7, 1);
const MMFR4: SystemRegister = id(7, 4);

/// All nibbles.
const ALL: &[u32] = &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60];

/// Fields of which not lower values are safe.
const SAFE: &[(SystemRegister, &[u32], Safe)] = &[
    // EL0, EL1: a guest has them. FP, AdvSIMD.
    (PFR0, &[0, 4], Safe::LowerFrom(1)),
    (PFR0, &[16, 20], Safe::SignedLower),
    // MTE_frac.
    (PFR1, &[40], Safe::SignedLower),
    // ID_AA64SMFR0_EL1, ID_AA64FPFR0_EL1.
    (id(4, 5), ALL, Safe::Exact),
    (id(4, 7), ALL, Safe::Exact),
    // DebugVer and ID_DFR0_EL1.CopDbg: that of Armv8.0 is the least (`set_id_aa64dfr0_el1`, `set_id_dfr0_el1`). DoubleLock.
    (DFR0, &[0], Safe::LowerFrom(6)),
    (id(1, 2), &[0], Safe::LowerFrom(6)),
    (DFR0, &[36], Safe::SignedLower),
    // APA, API; APA3.
    (ISAR1, &[4, 8], Safe::Exact),
    (ISAR2, &[12], Safe::Exact),
    // TGran64, TGran4; those of stage 2: 1 is none, which KVM takes for any.
    (MMFR0, &[24, 28], Safe::SignedLower),
    (MMFR0, &[32, 36, 40], Safe::Or(1)),
    // SpecSEI.
    (MMFR1, &[24], Safe::Higher),
    // E2H0.
    (MMFR4, &[24], Safe::SignedLower),
    // ID_MMFR0_EL1: OuterShr, InnerShr; ID_MMFR4_EL1: SpecSEI.
    (id(1, 4), &[8, 28], Safe::SignedLower),
    (id(2, 6), &[0], Safe::Higher),
];

/// Names of fields of four bits, the lowest first.
const NAMES: &[(SystemRegister, &str)] = &[
    (id(1, 0), "State0 State1 State2 State3 CSV2 AMU DIT RAS"),
    (id(1, 1), "ProgMod Security MProgMod Virtualization GenTimer Sec_frac Virt_frac GIC"),
    (id(1, 2), "CopDbg CopSDbg MMapDbg CopTrc MMapTrc MProfDbg PerfMon TraceFilt"),
    (id(1, 4), "VMSA PMSA OuterShr ShareLvl TCM AuxReg FCSE InnerShr"),
    (id(2, 5), "SEVL AES SHA1 SHA2 CRC32 - RDM VCMA"),
    (id(2, 6), "SpecSEI AC2 XNX CnP HPDS LSM CCIDX EVT"),
    (id(2, 7), "JSCVT DP FHM SB SPECRES BF16 I8MM"),
    (id(3, 4), "CSV3 SSBS RAS_frac"),
    (PFR0, "EL0 EL1 EL2 EL3 FP AdvSIMD GIC RAS SVE SEL2 MPAM AMU DIT RME CSV2 CSV3"),
    (PFR1, "BT SSBS MTE RAS_frac MPAM_frac - SME RNDR_trap CSV2_frac NMI MTE_frac GCS THE MTEX DF2 PFAR"),
    (id(4, 2), "MTEPERM MTESTOREONLY MTEFAR GCIE UINJ - - - FPMR"),
    (id(4, 4), "SVEver AES - EltPerm BitPerm BF16 B16B16 - SHA3 - SM4 I8MM F16MM F32MM F64MM"),
    (
        DFR0,
        "DebugVer TraceVer PMUVer BRPs PMSS WRPs SEBEP CTX_CMPs PMSVer DoubleLock TraceFilt TraceBuffer MTPMU BRBE ExtTrcBuff HPMN0",
    ),
    (id(6, 0), "- AES SHA1 SHA2 CRC32 Atomic TME RDM SHA3 SM3 SM4 DP FHM TS TLB RNDR"),
    (ISAR1, "DPB APA API JSCVT FCMA LRCPC GPA GPI FRINTTS SB SPECRES BF16 DGH I8MM XS LS64"),
    (
        ISAR2,
        "WFxT RPRES GPA3 APA3 MOPS BC PAC_frac CLRBHB SYSREG_128 SYSINSTR_128 PRFMSLC - RPRFM CSSC LUT ATS1A",
    ),
    (id(6, 3), "CPA FAMINMAX TLBIW PACM LSFE OCCMO LSUI FPRCVT"),
    (
        MMFR0,
        "PARange ASIDBits BigEnd SNSMem BigEndEL0 TGran16 TGran64 TGran4 TGran16_2 TGran64_2 TGran4_2 ExS - - FGT ECV",
    ),
    (MMFR1, "HAFDBS VMIDBits VH HPDS LO PAN SpecSEI XNX TWED ETS HCX AFP nTLBPA TIDCP1 CMOW ECBHB"),
    (id(7, 2), "CnP UAO LSM IESB VARange CCIDX NV ST AT IDS FWB - TTL BBM EVT E0PD"),
    (
        id(7, 3),
        "TCRX SCTLRX S1PIE S2PIE S1POE S2POE AIE MEC D128 D128_2 SNERR ANERR - SDERR ADERR Spec_FPACC",
    ),
    (MMFR4, "- EIESB ASID2 HACDBS FGWTE3 NV_frac E2H0 - E3DSE"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_every_bit_once() {
        for register in [MMFR0, SystemRegister::CTR_EL0, SystemRegister::CLIDR_EL1, SystemRegister::MIDR_EL1]
        {
            let mut left = u64::MAX;
            for field in of(register) {
                assert_eq!(left & field.mask(), field.mask(), "{field:?}");
                left &= !field.mask();
            }
            assert_eq!(left, 0);
        }
    }

    #[test]
    fn the_tables_name_each_register_once_and_no_field_beyond_it() {
        for (index, (register, names)) in NAMES.iter().enumerate() {
            assert!(NAMES.iter().skip(index + 1).all(|(other, _)| other != register), "{names}");
            assert!(names.split(' ').count() <= 16, "{names}");
        }
        for (_, shifts, _) in SAFE {
            assert!(shifts.iter().all(|shift| ALL.contains(shift)));
        }
    }

    #[test]
    fn what_is_safe_depends_on_the_field() {
        let at = |register, shift| *of(register).iter().find(|field| field.shift == shift).unwrap();
        let csv2 = at(PFR0, 56);
        assert_eq!((csv2.name, csv2.of(0x0300_0000_0000_0000)), ("CSV2", 3));
        assert!(csv2.takes(1, 1) && csv2.takes(0, 1) && !csv2.takes(2, 1));
        let floating = at(PFR0, 16);
        assert!(floating.takes(0xf, 0) && !floating.takes(0, 0xf) && floating.takes(0, 1));
        let errors = at(MMFR1, 24);
        assert!(errors.takes(1, 0) && !errors.takes(0, 1));
        let level = at(PFR0, 4);
        assert!(level.takes(1, 2) && !level.takes(0, 2));
        let pages = at(MMFR0, 36);
        assert!(pages.takes(1, 3) && !pages.takes(2, 3) && !pages.takes(0, 3));
        let keys = at(ISAR1, 4);
        assert!(keys.takes(5, 5) && !keys.takes(0, 5));
        let who = at(SystemRegister::MIDR_EL1, 0);
        assert!(who.takes(7, 7) && !who.takes(6, 7));
    }
}
