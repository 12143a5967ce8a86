//! Where a guest goes or comes from, as text: an address, `file:PATH` or `fd:N`.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Address;

/// Where a guest goes or comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A target that answers.
    Link(Address),
    /// A file.
    File(PathBuf),
    /// An open descriptor of the program that reads this.
    Descriptor(RawFd),
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no place: use HOST:PORT, [IPV6]:PORT, unix:PATH, file:PATH or fd:N")]
pub struct PlaceError(String);

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let error = || PlaceError(text.chars().flat_map(char::escape_debug).take(200).collect());
        if let Some(path) = text.strip_prefix("file:") {
            return if path.is_empty() { Err(error()) } else { Ok(Self::File(path.into())) };
        }
        if let Some(number) = text.strip_prefix("fd:") {
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            let number = number.parse().ok().filter(|_| is_number);
            return number.map(Self::Descriptor).ok_or_else(error);
        }
        text.parse().map(Self::Link).map_err(|_| error())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(address) => address.fmt(f),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written_back() {
        for good in ["127.0.0.1:7000", "unix:/run/x.sock", "file:/a b/c", "file:x", "fd:3", "fd:0"] {
            assert_eq!(good.parse::<Place>().unwrap().to_string(), good);
        }
        for bad in ["", "file:", "fd:", "fd:-1", "fd:+3", "fd:x", "fd:99999999999", "x"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
