//! What really becomes of a guest that a host was not asked about: its contract and its state go into
//! KVM setting by setting, whatever fails, and all that failed or reads back changed is written down.
//!
//! No verdict comes from here and no rule of one is used, so that verdicts can be held against it: it is
//! the lab's means to find out whether a refusal was right. An operator's guest is restored by
//! [`KvmMachine`](crate::KvmMachine)'s restore and no other way.

use std::fmt;

/// Something that is not on this host as the guest had it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deviation {
    /// An ioctl failed.
    Refused {
        /// What it was to set.
        what: String,
        /// KVM's error.
        error: String,
    },
    /// A value reads back changed.
    Changed {
        /// Which.
        what: String,
        /// What was set.
        set: String,
        /// What is there.
        reads: String,
    },
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { what, error } => write!(f, "{what}: refused ({error})"),
            Self::Changed { what, set, reads } => write!(f, "{what}: {set} was set, {reads} is there"),
        }
    }
}
