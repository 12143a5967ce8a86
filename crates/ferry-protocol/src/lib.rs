//! The decisions of a live migration as plain values.

#![forbid(unsafe_code)]

mod identity;
mod machine;

pub use identity::{Epoch, GuestId, GuestIdError, InstanceId, SessionId};
pub use machine::{MAX_CONFIG_BYTES, MAX_REGIONS, MachineDescription, RegionSpan};
