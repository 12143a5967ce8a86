//! What a type must say of itself to be a part of the state.
//!
//! Derive minicbor's `Encode` and `Decode` with `#[cbor(map)]`, number every field, and name the
//! part:
//!
//! ```
//! use ferry_state::{Fields, Part, Section};
//!
//! #[derive(Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
//! #[cbor(map)]
//! struct DebugPort {
//!     #[n(0)]
//!     last_byte: u8,
//! }
//!
//! impl Part for DebugPort {
//!     const NAME: &'static str = "device/debug-port";
//!     const FIELDS: Fields = Fields::These(&[0]);
//! }
//!
//! let section = Section::of(&DebugPort { last_byte: 7 }, 0, None).unwrap();
//! assert_eq!(section.read::<DebugPort>().unwrap().last_byte, 7);
//! ```
//!
//! The wire form outlives the build: a number is never used for another meaning, and what a field's
//! value looks like never changes. A new meaning takes a new number.

use minicbor::{Decode, Encode};

/// One part of the state: a map of numbered fields with a name.
///
/// Encode every field always: write a value that says "none", not nothing. A field that is absent
/// where the baseline has one counts as needed, and reading it back then fails.
pub trait Part: Encode<()> + for<'b> Decode<'b, ()> {
    /// The name of the sections that hold this part: see [`Section::name`](crate::Section::name).
    const NAME: &'static str;

    /// The field numbers that this build knows.
    const FIELDS: Fields;

    /// Says what is wrong with a decoded value that no machine can hold. Called by
    /// [`Section::read`](crate::Section::read); bounds on lengths belong here.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// The field numbers that a part knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fields {
    /// These, in ascending order.
    These(&'static [u32]),
    /// Any number: the part is a table whose keys mean something by themselves (for example MSR
    /// indices), and whoever restores it decides about each.
    Any,
}

impl Fields {
    /// Whether a field of this number is known.
    pub fn contains(self, field: u32) -> bool {
        match self {
            Self::These(numbers) => numbers.contains(&field),
            Self::Any => true,
        }
    }
}
