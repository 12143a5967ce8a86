//! `clock`: looks at the TSC again and again, and time must never go back nor leap.
//!
//! Beside its own last look, each vCPU knows the last of all vCPUs, from a word of memory that they
//! share: what another one wrote there before is never later than what this one reads now, unless the
//! vCPUs' TSCs were put apart. The first word of the working set is that word.

use super::COUNTER;

/// Microseconds between two looks.
pub(crate) const WAIT_US: u32 = 1000;

/// In the place of a fault's page: time went back.
pub(super) const WENT_BACK: u32 = 0;

/// In the place of a fault's page: time leapt.
pub(super) const LEAPT: u32 = 1;

/// What a fault says.
pub(crate) fn fault(kind: u32, expected: u64, found: u64) -> String {
    match kind {
        WENT_BACK => format!("{COUNTER} went back from {expected} to {found}"),
        _ => format!("{COUNTER} leapt by {found} ticks, more than the {expected} allowed"),
    }
}
