//! A section's body as the raw bytes of its fields, without a look at their meaning.
//!
//! Comparing these bytes is how a value's fields are held against the baseline's, and how a reader
//! makes sure that nothing inside a needed field was passed over.

use std::ops::Range;

use minicbor::Decoder;
use minicbor::decode::Error;

use crate::StateError;

/// The most fields of one body; the largest part is the table of MSRs.
pub(crate) const MAX_FIELDS: u64 = 4096;

/// The fields of one body, ascending by number.
#[derive(Debug)]
pub(crate) struct Body<'b> {
    bytes: &'b [u8],
    fields: Vec<(u32, Range<usize>)>,
}

impl<'b> Body<'b> {
    /// Cuts a body into its fields. The map must be of definite length with ascending numbers, and
    /// nothing may follow it.
    pub(crate) fn scan(bytes: &'b [u8]) -> Result<Self, BodyError> {
        let mut decoder = Decoder::new(bytes);
        let count = decoder.map()?.ok_or_else(|| Error::message("a map of indefinite length").at(0))?;
        if count > MAX_FIELDS {
            return Err(Error::message(format!("{count} fields, the bound is {MAX_FIELDS}")).at(0).into());
        }
        let mut fields: Vec<(u32, Range<usize>)> = Vec::new();
        for _ in 0..count {
            let offset = decoder.position();
            let field = decoder.u32()?;
            if fields.last().is_some_and(|(last, _)| *last >= field) {
                return Err(BodyError::Order { field, offset });
            }
            let start = decoder.position();
            decoder.skip()?;
            fields.push((field, start..decoder.position()));
        }
        if decoder.position() != bytes.len() {
            return Err(Error::message("bytes after the last field").at(decoder.position()).into());
        }
        Ok(Self { bytes, fields })
    }

    /// The raw bytes of one field's value.
    pub(crate) fn field(&self, number: u32) -> Option<&'b [u8]> {
        let at = self.fields.binary_search_by_key(&number, |(field, _)| *field).ok()?;
        let (_, range) = self.fields.get(at)?;
        self.bytes.get(range.clone())
    }

    /// The field numbers, ascending.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.fields.iter().map(|(field, _)| *field)
    }
}

/// Why a body could not be cut into fields.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// Not the CBOR that a body is.
    Cbor(Error),
    /// A field twice, or out of order.
    Order {
        /// The second of the two.
        field: u32,
        /// Where it is.
        offset: usize,
    },
}

impl From<Error> for BodyError {
    fn from(error: Error) -> Self {
        Self::Cbor(error)
    }
}

impl BodyError {
    /// The same in the words of a section; `length` is the body's, for errors without a position.
    pub(crate) fn in_section(self, section: &str, index: u32, length: usize) -> StateError {
        let section = section.to_owned();
        match self {
            Self::Cbor(source) => {
                StateError::Malformed { section, index, offset: source.position().unwrap_or(length), source }
            }
            Self::Order { field, offset } => StateError::FieldOrder { section, index, field, offset },
        }
    }

    /// The same as a sentence, for a part of this build's own.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Cbor(source) => source.to_string(),
            Self::Order { field, .. } => format!("field {field} comes twice or out of order"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_at_their_edges() {
        // {0: 1, 7: [2, 3], 300: h'04'}
        let bytes = [0xa3, 0x00, 0x01, 0x07, 0x82, 0x02, 0x03, 0x19, 0x01, 0x2c, 0x41, 0x04];
        let body = Body::scan(&bytes).unwrap();
        assert_eq!(body.numbers().collect::<Vec<_>>(), [0, 7, 300]);
        assert_eq!(body.field(0), Some(&[0x01][..]));
        assert_eq!(body.field(7), Some(&[0x82, 0x02, 0x03][..]));
        assert_eq!(body.field(300), Some(&[0x41, 0x04][..]));
        assert_eq!(body.field(1), None);
    }

    #[test]
    fn doubled_and_disordered_fields_are_refused() {
        let twice = Body::scan(&[0xa2, 0x01, 0x00, 0x01, 0x00]).unwrap_err();
        assert!(matches!(twice, BodyError::Order { field: 1, offset: 3 }));
        let back = Body::scan(&[0xa2, 0x02, 0x00, 0x01, 0x00]).unwrap_err();
        assert!(matches!(back, BodyError::Order { field: 1, offset: 3 }));
    }

    #[test]
    fn indefinite_maps_trailing_bytes_and_cut_bodies_are_refused() {
        for bad in [&[0xbf, 0xff][..], &[0xa0, 0x00], &[0xa1, 0x00], &[0xa1], &[], &[0x80]] {
            assert!(matches!(Body::scan(bad), Err(BodyError::Cbor(_))), "{bad:02x?}");
        }
    }

    #[test]
    fn a_count_on_the_other_sides_word_allocates_nothing() {
        // A map that claims 2^64 - 1 fields.
        let mut bytes = vec![0xbb];
        bytes.extend([0xff; 8]);
        assert!(matches!(Body::scan(&bytes), Err(BodyError::Cbor(_))));
    }
}
