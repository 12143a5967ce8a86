//! Model-specific registers: what `KVM_GET_MSRS` gives.
//!
//! The section's body is a CBOR map {MSR index: value}, so that the needed-mark says of each MSR by
//! itself whether its value is as at creation. Which MSRs a build knows is the target KVM's affair:
//! whoever restores them decides about each one that is refused.

use std::collections::BTreeMap;

use crate::table::{self, table_part};

/// The most MSRs of one vCPU.
pub const MAX_MSRS: usize = table::MAX_ENTRIES;

/// `IA32_TIME_STAMP_COUNTER`.
pub const IA32_TSC: u32 = 0x10;

/// The MSRs of one vCPU by index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Msrs {
    /// Value by index.
    pub values: BTreeMap<u32, u64>,
}

table_part!(Msrs, "x86.msrs");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Section;

    fn msrs(values: &[(u32, u64)]) -> Msrs {
        Msrs { values: values.iter().copied().collect() }
    }

    #[test]
    fn the_needed_fields_are_the_msrs_that_changed() {
        let created = msrs(&[(0x10, 5), (0xc000_0081, 0), (0x3a, 1)]);
        let now = msrs(&[(0x10, 9), (0xc000_0081, 7), (0x3a, 1)]);
        let section = Section::of(&now, 2, Some(&created)).unwrap();
        assert_eq!(section.needed, [0x10, 0xc000_0081]);
        assert_eq!(section.read::<Msrs>().unwrap(), now);
    }

    #[test]
    fn an_msr_twice_is_refused() {
        let bytes = [0xa2, 0x10, 0x01, 0x10, 0x01];
        assert!(minicbor::decode::<Msrs>(&bytes).is_err());
    }
}
