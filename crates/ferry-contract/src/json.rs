//! Reading JSON files from outside, and writing them so that reading and writing back changes nothing.
//!
//! [`read`] looks at the whole document once before it becomes typed: its length, its depth, the
//! length of lists and texts, duplicate keys, and numbers that would not survive (fractions). Every
//! error names the place: the JSON path, line and column. [`write`] sorts keys and indents by two.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use serde::de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, Serialize};

/// The longest file, in bytes.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// The longest list, and the most fields of one object.
pub const MAX_LIST: usize = 4096;

/// The longest text, in bytes.
pub const MAX_JSON_TEXT_BYTES: usize = 4096;

/// The deepest nesting.
pub const MAX_DEPTH: usize = 16;

/// The longest path that an error shows, in bytes.
const MAX_PATH_BYTES: usize = 200;

/// A JSON file that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// It is too long.
    #[error("it has {bytes} bytes, more than {MAX_FILE_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something in it is wrong.
    #[error("at {path}, line {line}, column {column}: {what}")]
    Place {
        /// Where, as a JSON path: `$.cpuid.supported[3].eax`.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// What it says contradicts itself or is out of bounds.
    #[error("at {path}: {what}")]
    Sense {
        /// Where, as a JSON path.
        path: String,
        /// What is wrong.
        what: String,
    },
}

impl JsonError {
    pub(crate) fn sense(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Sense { path: path.into(), what: what.into() }
    }
}

/// Reads a document.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(JsonError::TooLong { bytes: bytes.len() });
    }
    let mut path = String::from("$");
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let scanned = Scan { path: &mut path, depth: 0 }.deserialize(&mut json).and_then(|()| json.end());
    scanned.map_err(|error| place(&path, &error))?;
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let dot = if path.starts_with('[') { "" } else { "." };
        let path = if path == "." { "$".to_owned() } else { format!("${dot}{path}") };
        place(&path, error.inner())
    })
}

fn place(path: &str, error: &serde_json::Error) -> JsonError {
    // The place has fields of its own; serde_json repeats it in the text.
    let text = error.to_string();
    let what = text.rfind(" at line ").map_or(text.as_str(), |end| text.get(..end).unwrap_or(&text));
    JsonError::Place {
        path: shown(path),
        line: error.line(),
        column: error.column(),
        what: what.chars().take(MAX_PATH_BYTES * 2).flat_map(char::escaped).collect(),
    }
}

/// A text from outside as an error shows it: bounded, and without control characters.
fn shown(text: &str) -> String {
    text.chars().take(MAX_PATH_BYTES).flat_map(char::escaped).collect()
}

trait EscapeControl {
    fn escaped(self) -> Box<dyn Iterator<Item = char>>;
}

impl EscapeControl for char {
    fn escaped(self) -> Box<dyn Iterator<Item = char>> {
        if self.is_control() { Box::new(self.escape_default()) } else { Box::new(std::iter::once(self)) }
    }
}

/// Writes a document with sorted keys, indented, with a line break at its end.
pub(crate) fn write<T: Serialize>(value: &T) -> String {
    // Through a value, whose maps are sorted. Typed values of this crate always become JSON: their
    // keys are texts and their numbers whole.
    let mut text = serde_json::to_value(value)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_default();
    text.push('\n');
    text
}

/// Walks over a document without keeping it; `path` stays where an error arose.
struct Scan<'a> {
    path: &'a mut String,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Scan<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl Scan<'_> {
    fn deeper<E: Error>(&mut self) -> Result<Scan<'_>, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Scan { path: self.path, depth: self.depth + 1 })
    }
}

impl<'de> Visitor<'de> for Scan<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Err(E::custom("a number that is not whole, or does not fit 64 bits"))
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if text.len() > MAX_JSON_TEXT_BYTES {
            return Err(E::custom(format_args!(
                "a text of {} bytes, more than {MAX_JSON_TEXT_BYTES}",
                text.len()
            )));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let here = self.path.len();
        for index in 0.. {
            let _writing_to_a_string_cannot_fail = write!(self.path, "[{index}]");
            if index > MAX_LIST {
                return Err(A::Error::custom(format_args!("a list longer than {MAX_LIST}")));
            }
            if list.next_element_seed(self.deeper()?)?.is_none() {
                break;
            }
            self.path.truncate(here);
        }
        self.path.truncate(here);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let here = self.path.len();
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.path.push('.');
            self.path.extend(key.chars().take(MAX_PATH_BYTES));
            if key.len() > MAX_PATH_BYTES {
                return Err(A::Error::custom(format_args!("a key longer than {MAX_PATH_BYTES} bytes")));
            }
            if !keys.insert(key) {
                return Err(A::Error::custom("the same key a second time"));
            }
            if keys.len() > MAX_LIST {
                return Err(A::Error::custom(format_args!("more than {MAX_LIST} keys")));
            }
            map.next_value_seed(self.deeper()?)?;
            self.path.truncate(here);
        }
        Ok(())
    }
}

/// Checks that a list ascends strictly: so nothing is in it twice, and there is one order.
pub(crate) fn ascends<T>(path: &str, list: &[T], before: impl Fn(&T, &T) -> bool) -> Result<(), JsonError> {
    let out_of_order = list.iter().zip(list.iter().skip(1)).position(|(a, b)| !before(a, b));
    out_of_order.map_or(Ok(()), |index| {
        let what = "not after the entry before it: entries ascend, none is there twice";
        Err(JsonError::sense(format!("{path}[{}]", index + 1), what))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn refusal(text: &str) -> String {
        read::<Value>(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_the_place() {
        assert_eq!(
            refusal("{\"a\": [1,\n {\"b\": 1, \"b\": 2}]}"),
            "at $.a[1].b, line 2, column 13: the same key a second time"
        );
        assert!(refusal("{\"a\": 1.5}").starts_with("at $.a, line 1, column 9: a number that is not whole"));
        assert!(refusal("{\"a\": 1e3}").contains("not whole"));
        assert!(refusal("{\"a\": 1").contains("EOF"));
        assert!(refusal("{} 1").contains("trailing"));
        assert!(refusal("[99999999999999999999999]").contains("not whole"));
    }

    #[test]
    fn bounds_hold() {
        let long = format!("[{}0]", "0,".repeat(MAX_LIST));
        assert!(refusal(&long).contains("a list longer than 4096"));
        assert!(read::<Value>(format!("[{}0]", "0,".repeat(MAX_LIST - 1)).as_bytes()).is_ok());
        assert!(refusal(&"[".repeat(5000)).contains("nested deeper than 16"));
        assert!(refusal(&format!("\"{}\"", "x".repeat(5000))).contains("a text of 5000 bytes"));
        assert!(refusal(&format!("{{\"{}\":1}}", "x".repeat(5000))).contains("a key longer"));
        assert!(read::<Value>(&vec![b' '; MAX_FILE_BYTES + 1]).is_err());
    }

    #[test]
    fn a_list_must_ascend() {
        assert!(ascends("$.a", &[1, 2, 3], |a, b| a < b).is_ok());
        let error = ascends("$.a", &[1, 2, 2], |a, b| a < b).unwrap_err().to_string();
        assert!(error.starts_with("at $.a[2]:"), "{error}");
    }
}
