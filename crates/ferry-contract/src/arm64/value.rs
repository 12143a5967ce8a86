//! What a register of any size holds.
//!
//! In JSON it is one number, as for 64-bit registers: `0x` and two lower-case digits a byte, the highest
//! first. On the wire it is its bytes, as KVM has them: the lowest first. Either says the register's length.

use std::fmt;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::MAX_REGISTER_BYTES;

/// What a register holds: its bytes, the least significant first.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RegisterValue(Vec<u8>);

impl RegisterValue {
    /// These bytes; `None` if no register has as many.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len().is_power_of_two() && bytes.len() <= MAX_REGISTER_BYTES).then_some(Self(bytes))
    }

    /// This number in a register of as many bytes; `None` if no register has as many, or it does not fit.
    pub fn of_number(number: u64, bytes: usize) -> Option<Self> {
        let mut value = number.to_le_bytes().to_vec();
        let fits = value.iter().skip(bytes).all(|byte| *byte == 0);
        value.resize(bytes, 0);
        if fits { Self::new(value) } else { None }
    }

    /// The bytes, the least significant first.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value of a register of at most 64 bits.
    pub fn number(&self) -> Option<u64> {
        (self.0.len() <= 8).then(|| self.0.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }
}

impl From<u64> for RegisterValue {
    fn from(value: u64) -> Self {
        Self(value.to_le_bytes().to_vec())
    }
}

/// As a number: `0x` and two digits for each byte.
impl fmt::Display for RegisterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RegisterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl<C> Encode<C> for RegisterValue {
    fn encode<W: Write>(&self, encoder: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        encoder.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for RegisterValue {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let at = decoder.position();
        let bytes = decoder.bytes()?;
        let problem = || DecodeError::message(format!("no register has {} bytes", bytes.len())).at(at);
        if bytes.len() > MAX_REGISTER_BYTES {
            return Err(problem());
        }
        Self::new(bytes.to_vec()).ok_or_else(problem)
    }
}

impl Serialize for RegisterValue {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RegisterValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Digits)
    }
}

struct Digits;

impl Visitor<'_> for Digits {
    type Value = RegisterValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string of `0x` and two lower-case hexadecimal digits for each byte of the register")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<RegisterValue, E> {
        parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

fn parse(text: &str) -> Option<RegisterValue> {
    let digits = text.strip_prefix("0x")?.as_bytes();
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if digits.len() > MAX_REGISTER_BYTES * 2 {
        return None;
    }
    let bytes: Option<Vec<u8>> = digits
        .rchunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect();
    RegisterValue::new(bytes?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_fills_a_register_or_does_not_fit() {
        assert_eq!(RegisterValue::of_number(0x1_0003, 8), Some(0x1_0003.into()));
        assert_eq!(RegisterValue::of_number(0x1_0003, 4).unwrap().to_string(), "0x00010003");
        assert_eq!(RegisterValue::of_number(1, 16).unwrap().bytes().len(), 16);
        assert_eq!(RegisterValue::of_number(1 << 32, 4), None);
        assert_eq!(RegisterValue::of_number(1, 3), None);
    }

    #[test]
    fn there_is_one_form_for_each_length() {
        let value: RegisterValue = serde_json::from_str("\"0x0123456789abcdef\"").unwrap();
        assert_eq!((value.number(), value.bytes()[0]), (Some(0x0123_4567_89ab_cdef), 0xef));
        assert_eq!(serde_json::to_string(&value).unwrap(), "\"0x0123456789abcdef\"");
        let wide: RegisterValue = serde_json::from_str(&format!("\"0x{}01\"", "00".repeat(255))).unwrap();
        assert_eq!((wide.number(), wide.bytes()[0]), (None, 1));
        for bad in ["\"0x\"", "\"0x1\"", "\"0xAB\"", "\"ab\"", "\"0x010203\"", "7", "\"0x+1\""] {
            assert!(serde_json::from_str::<RegisterValue>(bad).is_err(), "{bad}");
        }
        let long = format!("\"0x{}\"", "00".repeat(512));
        assert!(serde_json::from_str::<RegisterValue>(&long).is_err());
    }
}
