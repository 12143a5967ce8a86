//! All parts that this build has, by name: for tools and fuzzers that have bytes and no machine.

use crate::{Section, StateError, arm64, x86};

/// Lists the parts of an architecture once, for the names and for the decoder.
macro_rules! parts {
    ($($part:ty),+ $(,)?) => {
        /// The names of all parts of this module.
        pub const KNOWN_SECTIONS: &[&str] = &[$(<$part as crate::Part>::NAME),+];

        /// Decodes a section of any part of this module, and drops it.
        pub(crate) fn decode_known(section: &crate::Section) -> Result<(), crate::StateError> {
            $(if section.name == <$part as crate::Part>::NAME {
                return section.read::<$part>().map(drop);
            })+
            Err(section.as_unknown())
        }

        /// The same, as Rust writes such a value down, numbers in hexadecimal.
        pub(crate) fn describe_known(section: &crate::Section) -> Result<String, crate::StateError> {
            $(if section.name == <$part as crate::Part>::NAME {
                return section.read::<$part>().map(|value| format!("{value:#x?}"));
            })+
            Err(section.as_unknown())
        }
    };
}

pub(crate) use parts;

/// Those that belong to no architecture.
mod machine {
    use crate::{Pause, Resources, device};

    super::parts!(
        device::Serial,
        device::VirtioBlock,
        device::VirtioNet,
        device::VirtioEntropy,
        device::VirtioConsole,
        Resources,
        Pause,
    );
}

/// The names of the parts that belong to no architecture; the others are [`x86::KNOWN_SECTIONS`] and
/// [`arm64::KNOWN_SECTIONS`].
pub use machine::KNOWN_SECTIONS as MACHINE_SECTIONS;

/// Decodes a section of any part that this build has, and drops it. A section of no known part is
/// [`StateError::UnknownSection`].
pub fn decode_known(section: &Section) -> Result<(), StateError> {
    if MACHINE_SECTIONS.contains(&section.name.as_str()) {
        machine::decode_known(section)
    } else if arm64::KNOWN_SECTIONS.contains(&section.name.as_str()) {
        arm64::decode_known(section)
    } else {
        x86::decode_known(section)
    }
}

/// Decodes a section of any part that this build has into its fields: names and values as text, numbers
/// in hexadecimal, in the order of the part's definition.
pub fn describe_known(section: &Section) -> Result<Vec<(String, String)>, StateError> {
    let text = written_down(section)?;
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        // A field of the part itself stands four columns in; what is deeper belongs to its value.
        let own = line.strip_prefix("    ").filter(|rest| !rest.starts_with([' ', '}', ']', ')']));
        match (own.and_then(|rest| rest.split_once(": ")), fields.last_mut()) {
            (Some((name, value)), _) => fields.push((name.to_owned(), value.to_owned())),
            (None, Some((_, value))) if line.starts_with("    ") => value.push_str(line.trim()),
            _ => {}
        }
    }
    for (_, value) in &mut fields {
        *value = value.trim_end_matches(',').replace(",]", "]").replace(",}", "}");
    }
    Ok(fields)
}

/// A section's value as Rust writes it down, numbers in hexadecimal.
fn written_down(section: &Section) -> Result<String, StateError> {
    if MACHINE_SECTIONS.contains(&section.name.as_str()) {
        machine::describe_known(section)
    } else if arm64::KNOWN_SECTIONS.contains(&section.name.as_str()) {
        arm64::describe_known(section)
    } else {
        x86::describe_known(section)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Resources, device};

    #[test]
    fn a_known_section_is_described_field_by_field() {
        let regs = x86::Regs { rip: 0xfff0, ..x86::Regs::default() };
        let fields = describe_known(&Section::of(&regs, 0, None).unwrap()).unwrap();
        assert_eq!(fields.len(), 18);
        assert_eq!(fields[16], ("rip".into(), "0xfff0".into()));
        let foreign = Section { name: "device/x".into(), index: 0, needed: vec![], body: vec![0xa0] };
        assert!(describe_known(&foreign).is_err());
    }

    #[test]
    fn sections_of_no_architecture_are_described_too() {
        let fields = describe_known(&Section::of(&Resources::default(), 0, None).unwrap()).unwrap();
        assert_eq!(fields, [("released".into(), "[]".into())]);
        let serial = Section::of(&device::Serial::default(), 0, None).unwrap();
        assert!(!describe_known(&serial).unwrap().is_empty());
    }
}
