//! The state of a guest's vCPUs and VM: what they hold at one instant, as typed values, and the wire
//! form of each.
//!
//! A captured machine is a [`MachineState`]: a list of [`Section`]s. One section is one [`Part`] of
//! one vCPU, of the VM or of a device, written as a CBOR map from field number to value, and beside
//! it the numbers of the fields that a target must apply. The parts of an x86-64 machine are in
//! [`x86`], those of an arm64 one in [`arm64`]; a device brings a part of its own and calls it `device/NAME` (those that many VMMs have
//! are in [`device`]); what only one host may hold is in [`Resources`]; what its
//! clocks do about the pause is in [`Pause`].
//!
//! ```
//! use ferry_state::{Section, x86::MpState};
//!
//! # fn main() -> Result<(), ferry_state::StateError> {
//! let created = MpState { mp_state: 0 };
//! let halted = MpState { mp_state: 3 };
//! let section = Section::of(&halted, 0, Some(&created))?;
//! assert_eq!(section.needed, [0]); // field 0 is not what a new vCPU holds
//! let received = Section::from_bytes(&section.to_bytes())?;
//! assert_eq!(received.read::<MpState>()?, halted);
//! # Ok(())
//! # }
//! ```
//!
//! Bytes from the other side are hostile until they are parsed: every length has a bound, and what a
//! build does not know is skipped when it is not needed and refused when it is. `docs/state-format.md`
//! describes the wire form for people who read it without this crate.

#![forbid(unsafe_code)]

pub mod arm64;
mod body;
mod catch_up;
pub mod device;
mod error;
mod guest_time;
mod known;
mod machine;
mod part;
mod resources;
mod section;
mod table;
pub mod x86;

pub use error::StateError;
pub use guest_time::{GuestTime, GuestTimeError, Passed, Pause};
pub use known::{MACHINE_SECTIONS, decode_known, describe_known};
pub use machine::{MAX_SECTIONS, MachineState};
pub use part::{Fields, Part};
pub use resources::{
    MAX_RESOURCE_KIND_BYTES, MAX_RESOURCE_NAME_BYTES, MAX_RESOURCES, ResourceName, Resources,
};
pub use section::{MAX_BODY_BYTES, MAX_NAME_BYTES, MAX_NEEDED, MAX_SECTION_BYTES, Section};
