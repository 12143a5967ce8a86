//! All parts that this build has, by name: for tools and fuzzers that have bytes and no machine.

use crate::{Part, Resources, Section, StateError, device, x86};

/// The names of the parts that belong to no architecture; those of x86-64 are
/// [`x86::KNOWN_SECTIONS`].
pub const MACHINE_SECTIONS: &[&str] = &[device::Serial::NAME, Resources::NAME];

/// Decodes a section of any part that this build has, and drops it. A section of no known part is
/// [`StateError::UnknownSection`].
pub fn decode_known(section: &Section) -> Result<(), StateError> {
    if section.name == device::Serial::NAME {
        section.read::<device::Serial>().map(drop)
    } else if section.name == Resources::NAME {
        section.read::<Resources>().map(drop)
    } else {
        x86::decode_known(section)
    }
}
