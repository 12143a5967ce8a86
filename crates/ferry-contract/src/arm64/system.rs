//! System registers, by the five numbers with which the instructions MRS and MSR name them.
//!
//! Arm Architecture Reference Manual (DDI 0487), C5.1.3 and D24.1.

use super::RegisterClass;

/// A system register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemRegister(u16);

/// Op0 of all that are not debug registers.
const OTHERS: u8 = 3;

impl SystemRegister {
    /// Which processor it is.
    pub const MIDR_EL1: Self = Self::new(3, 0, 0, 0, 0);

    /// Which of the processors it is.
    pub const MPIDR_EL1: Self = Self::new(3, 0, 0, 0, 5);

    /// Which caches there are.
    pub const CLIDR_EL1: Self = Self::new(3, 1, 0, 0, 1);

    /// What software must know of the caches.
    pub const CTR_EL0: Self = Self::new(3, 3, 0, 0, 1);

    /// The size of addresses, and the sizes of pages.
    pub const ID_AA64MMFR0_EL1: Self = Self::new(3, 0, 0, 7, 0);

    /// The register of these numbers: 2, 3, 4, 4 and 3 bits of each count.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self(
            (op0 as u16 & 3) << 14
                | (op1 as u16 & 7) << 11
                | (crn as u16 & 15) << 7
                | (crm as u16 & 15) << 3
                | (op2 as u16 & 7),
        )
    }

    /// The register of the low 16 bits of KVM's id.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The low 16 bits of KVM's id.
    pub const fn bits(self) -> u16 {
        self.0
    }

    #[expect(clippy::cast_possible_truncation, reason = "no field has more than 4 bits")]
    const fn field(self, bits: u32, shift: u32) -> u8 {
        (self.0 >> shift & ((1 << bits) - 1)) as u8
    }

    /// Op0.
    pub const fn op0(self) -> u8 {
        self.field(2, 14)
    }

    /// Op1.
    pub const fn op1(self) -> u8 {
        self.field(3, 11)
    }

    /// `CRn`.
    pub const fn crn(self) -> u8 {
        self.field(4, 7)
    }

    /// `CRm`.
    pub const fn crm(self) -> u8 {
        self.field(4, 3)
    }

    /// Op2.
    pub const fn op2(self) -> u8 {
        self.field(3, 0)
    }

    /// Its place in the table that `KVM_ARM_GET_REG_WRITABLE_MASKS` fills for range 0, the registers that
    /// say features (`KVM_ARM_FEATURE_ID_RANGE_INDEX` of the uapi `asm/kvm.h`); none if it lies outside.
    pub fn mask_place(self) -> Option<usize> {
        let column = match self.op1() {
            op1 @ (0 | 1) => usize::from(op1),
            OTHERS => 2,
            _ => return None,
        };
        let inside = self.op0() == OTHERS && self.crn() == 0 && self.crm() < 8;
        inside.then(|| column << 6 | usize::from(self.crm()) << 3 | usize::from(self.op2()))
    }

    /// Whether what it holds goes on by itself. To the virtual counter's id KVM gave the numbers of
    /// `CNTV_CVAL_EL0` (`KVM_REG_ARM_TIMER_CNT` of the uapi `asm/kvm.h`).
    pub(super) const fn counts(self) -> bool {
        // CNTPCT_EL0 and the virtual counter; PMCCNTR_EL0; PMEVCNTR0_EL0 and the others; of each timer of EL0, EL1 and
        // EL2 what is left of its time, and its control.
        matches!(
            (self.op0(), self.op1(), self.crn(), self.crm(), self.op2()),
            (OTHERS, 3, 14, 0, 1)
                | (OTHERS, 3, 14, 3, 2)
                | (OTHERS, 3, 9, 13, 0)
                | (OTHERS, 3, 14, 8..=11, _)
                | (OTHERS, 3..=7, 14, 2 | 3, 0 | 1)
        )
    }

    pub(super) fn class(self) -> RegisterClass {
        match (self.op0(), self.op1(), self.crn(), self.crm(), self.op2()) {
            // MIDR_EL1, MPIDR_EL1, REVIDR_EL1; CLIDR_EL1, AIDR_EL1; CTR_EL0, DCZID_EL0.
            (OTHERS, 0 | 1 | 3, 0, 0, _) => RegisterClass::Identity,
            (OTHERS, 0, 0, 1..=7, _) => RegisterClass::Feature,
            (OTHERS, 0, 9, 14, _) | (OTHERS, 3, 9, 12..=14, _) | (OTHERS, 3, 14, 8..=15, _) => {
                RegisterClass::Pmu
            }
            (OTHERS, _, 14, 0..=7, _) => RegisterClass::Timer,
            _ => RegisterClass::System,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_come_back() {
        let register = SystemRegister::new(3, 4, 1, 14, 7);
        let numbers = (register.op0(), register.op1(), register.crn(), register.crm(), register.op2());
        assert_eq!(numbers, (3, 4, 1, 14, 7));
        assert_eq!(SystemRegister::from_bits(register.bits()), register);
        assert_eq!(SystemRegister::new(3, 0, 0, 4, 0).bits(), 0xc020);
    }

    #[test]
    fn the_masks_have_the_place_that_the_kernel_gives_them() {
        let place = |op0, op1, crn, crm, op2| SystemRegister::new(op0, op1, crn, crm, op2).mask_place();
        assert_eq!(SystemRegister::ID_AA64MMFR0_EL1.mask_place(), Some(7 << 3));
        assert_eq!(place(3, 3, 0, 0, 1), Some(2 << 6 | 1));
        assert_eq!([place(3, 2, 0, 0, 0), place(3, 0, 1, 0, 0), place(2, 0, 0, 0, 4)], [None; 3]);
    }

    #[test]
    fn only_what_goes_on_by_itself_counts() {
        let counts = |op1, crn, crm, op2| SystemRegister::new(3, op1, crn, crm, op2).counts();
        assert!(counts(3, 14, 8, 3) && counts(3, 9, 13, 0) && counts(3, 14, 3, 1) && counts(3, 14, 3, 2));
        assert!(counts(3, 14, 0, 1) && counts(4, 14, 2, 0) && counts(4, 14, 3, 1));
        // What they are set to stays: event types, compare values, CNTKCTL_EL1.
        assert!(!counts(3, 14, 12, 3) && !counts(3, 14, 15, 7) && !counts(3, 9, 12, 0));
        assert!(!counts(3, 14, 0, 2) && !counts(3, 14, 2, 2) && !counts(4, 14, 3, 2) && !counts(0, 14, 1, 0));
    }

    #[test]
    fn clidr_is_no_feature_and_a_debug_register_no_identity() {
        assert_eq!(SystemRegister::new(3, 1, 0, 0, 1).class(), RegisterClass::Identity);
        assert_eq!(SystemRegister::new(2, 0, 0, 0, 4).class(), RegisterClass::System);
        assert_eq!(SystemRegister::new(3, 0, 0, 7, 4).class(), RegisterClass::Feature);
        assert_eq!(SystemRegister::new(3, 3, 14, 15, 7).class(), RegisterClass::Pmu);
        assert_eq!(SystemRegister::new(3, 4, 14, 2, 1).class(), RegisterClass::Timer);
    }
}
