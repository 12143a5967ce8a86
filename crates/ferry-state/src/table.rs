//! The wire form of parts that are tables: a CBOR map from a register's number to its value, ascending,
//! so that the needed-mark says of each register by itself whether its value is as at creation.

use std::collections::BTreeMap;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

/// The most entries of one table: as many as one part may have fields.
pub(crate) const MAX_ENTRIES: usize = crate::MAX_NEEDED;

/// Writes a table.
pub(crate) fn encode<C, V: Encode<C>, W: Write>(
    values: &BTreeMap<u32, V>,
    encoder: &mut Encoder<W>,
    context: &mut C,
) -> Result<(), EncodeError<W::Error>> {
    encoder.map(values.len() as u64)?;
    for (number, value) in values {
        value.encode(encoder.u32(*number)?, context)?;
    }
    Ok(())
}

/// Reads a table; a number twice and too many of them are refused.
pub(crate) fn decode<'b, C, V: Decode<'b, C>>(
    decoder: &mut Decoder<'b>,
    context: &mut C,
) -> Result<BTreeMap<u32, V>, DecodeError> {
    let start = decoder.position();
    let count = decoder.map()?.filter(|count| *count <= MAX_ENTRIES as u64);
    let count = count
        .ok_or_else(|| DecodeError::message(format!("no map of at most {MAX_ENTRIES} entries")).at(start))?;
    let mut values = BTreeMap::new();
    for _ in 0..count {
        let at = decoder.position();
        let number = decoder.u32()?;
        if values.insert(number, V::decode(decoder, context)?).is_some() {
            return Err(DecodeError::message(format!("number {number:#x} comes twice")).at(at));
        }
    }
    Ok(values)
}

/// Holds the bound.
pub(crate) fn check<V>(values: &BTreeMap<u32, V>) -> Result<(), String> {
    if values.len() <= MAX_ENTRIES {
        Ok(())
    } else {
        Err(format!("{} entries, the bound is {MAX_ENTRIES}", values.len()))
    }
}

/// Makes a table a [`Part`](crate::Part): a type with one field, `values`.
macro_rules! table_part {
    ($part:ty, $name:literal) => {
        impl<C> minicbor::Encode<C> for $part {
            fn encode<W: minicbor::encode::Write>(
                &self,
                encoder: &mut minicbor::Encoder<W>,
                context: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                crate::table::encode(&self.values, encoder, context)
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $part {
            fn decode(
                decoder: &mut minicbor::Decoder<'b>,
                context: &mut C,
            ) -> Result<Self, minicbor::decode::Error> {
                Ok(Self { values: crate::table::decode(decoder, context)? })
            }
        }

        impl crate::Part for $part {
            const NAME: &'static str = $name;
            const FIELDS: crate::Fields = crate::Fields::Any;

            fn check(&self) -> Result<(), String> {
                crate::table::check(&self.values)
            }
        }
    };
}

pub(crate) use table_part;
