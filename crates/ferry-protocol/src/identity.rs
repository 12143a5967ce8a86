//! Names of guests, sessions, target processes, and the epoch of custody.

use std::fmt;
use std::str::FromStr;

use minicbor::{Decode, Encode};

/// The longest guest name, in bytes.
pub const MAX_GUEST_ID_BYTES: usize = 64;

/// A guest's name: 1 to 64 bytes of ASCII letters, digits, `-`, `_` and `.`, not starting with `.`.
///
/// The name is part of a socket's file name, hence its alphabet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestId(String);

/// A text that is no guest name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no guest name: use 1 to 64 letters, digits, `-`, `_` or `.`, the first one no `.`")]
pub struct GuestIdError(String);

impl GuestId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestId {
    type Err = GuestIdError;

    fn from_str(text: &str) -> Result<Self, GuestIdError> {
        let fits = !text.is_empty()
            && text.len() <= MAX_GUEST_ID_BYTES
            && !text.starts_with('.')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            let shown: String =
                text.chars().take(MAX_GUEST_ID_BYTES).flat_map(char::escape_default).collect();
            Err(GuestIdError(shown))
        }
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<C> Encode<C> for GuestId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for GuestId {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        d.str()?.parse().map_err(|_| minicbor::decode::Error::message("no guest name").at(at))
    }
}

/// The epoch of custody: it only grows, and a runner's epoch is the highest.
///
/// A guest is born at epoch 1; each attempt to hand it over uses an epoch that no earlier attempt
/// used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Epoch(#[n(0)] pub u64);

impl Epoch {
    /// The epoch at which a guest is born.
    pub const BIRTH: Self = Self(1);

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One attempt to move one guest, chosen at random by the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct SessionId(#[n(0)] pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One life of a target process, chosen at random when it starts.
///
/// A process that came after another at the same address has another instance, and so cannot speak
/// for what its predecessor did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct InstanceId(#[n(0)] pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<GuestId>().is_err(), "{bad}");
        }
        for good in ["a", "web-1", "x.y_z", &"x".repeat(64)] {
            assert_eq!(good.parse::<GuestId>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_hostile_name_does_not_decode() {
        let mut bytes = Vec::new();
        minicbor::encode("../../etc", &mut bytes).unwrap();
        assert!(minicbor::decode::<GuestId>(&bytes).is_err());
    }
}
