//! Registers as hexadecimal strings of fixed width in JSON: `0x` and 8 digits for 32 bits, 16 for 64.
//!
//! Only this one form is read, so that what is read and written back does not change. Used through
//! `#[serde(with = "…")]`.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

struct Digits(usize);

impl Visitor<'_> for Digits {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string of `0x` and {} lower-case hexadecimal digits", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        let wrong = || E::invalid_value(Unexpected::Str(text), &self);
        let digits = text.strip_prefix("0x").filter(|digits| digits.len() == self.0).ok_or_else(wrong)?;
        if !digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        u64::from_str_radix(digits, 16).map_err(|_| wrong())
    }
}

/// A 32-bit register.
pub(crate) mod u32 {
    use super::{Deserializer, Digits, Error, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` gives a reference")]
    pub(crate) fn serialize<S: Serializer>(value: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{value:#010x}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        let value = from.deserialize_str(Digits(8))?;
        u32::try_from(value).map_err(D::Error::custom)
    }
}

/// A 64-bit register.
pub(crate) mod u64 {
    use super::{Deserializer, Digits, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` gives a reference")]
    pub(crate) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{value:#018x}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        from.deserialize_str(Digits(16))
    }
}

/// A list of 32-bit registers.
pub(crate) mod u32_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct One(#[serde(with = "super::u32")] u32);

    pub(crate) fn serialize<S: Serializer>(values: &[u32], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(|value| One(*value)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u32>, D::Error> {
        Ok(Vec::<One>::deserialize(from)?.into_iter().map(|one| one.0).collect())
    }
}

/// A 64-bit register, in a list or where there may be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Word(#[serde(with = "u64")] ::core::primitive::u64);

/// A list of 64-bit registers.
pub(crate) mod u64_list {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Word;

    pub(crate) fn serialize<S: Serializer>(values: &[u64], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(|value| Word(*value)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
        Ok(Vec::<Word>::deserialize(from)?.into_iter().map(|word| word.0).collect())
    }
}

/// A 64-bit register that may be absent; with `default` and `skip_serializing_if`.
pub(crate) mod u64_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Word;

    #[expect(clippy::ref_option, reason = "serde's `with` gives a reference")]
    pub(crate) fn serialize<S: Serializer>(value: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        value.map(Word).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        Ok(Some(Word::deserialize(from)?.0))
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both(#[serde(with = "super::u32")] u32, #[serde(with = "super::u64")] u64);

    #[test]
    fn there_is_one_form() {
        let text = r#"["0x0000000d","0x00000000c0000080"]"#;
        let both: Both = serde_json::from_str(text).unwrap();
        assert_eq!(both, Both(13, 0xc000_0080));
        assert_eq!(serde_json::to_string(&both).unwrap(), text);
        for bad in ["13", "\"0xd\"", "\"0x0000000D\"", "\"0x+000000d\"", "\"0000000d00\""] {
            let text = format!(r#"[{bad},"0x00000000c0000080"]"#);
            assert!(serde_json::from_str::<Both>(&text).is_err(), "{bad}");
        }
    }
}
