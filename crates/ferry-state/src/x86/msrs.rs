//! Model-specific registers: what `KVM_GET_MSRS` gives.
//!
//! The section's body is a CBOR map {MSR index: value}, so that the needed-mark says of each MSR by
//! itself whether its value is as at creation. Which MSRs a build knows is the target KVM's affair:
//! whoever restores them decides about each one that is refused.

use std::collections::BTreeMap;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::{Fields, Part};

/// The most MSRs of one vCPU.
pub const MAX_MSRS: usize = 4096;

/// The MSRs of one vCPU by index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Msrs {
    /// Value by index.
    pub values: BTreeMap<u32, u64>,
}

impl<C> Encode<C> for Msrs {
    fn encode<W: Write>(&self, encoder: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        encoder.map(self.values.len() as u64)?;
        for (index, value) in &self.values {
            encoder.u32(*index)?.u64(*value)?;
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Msrs {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let start = decoder.position();
        let count = decoder.map()?.filter(|count| *count <= MAX_MSRS as u64);
        let count = count.ok_or_else(|| DecodeError::message("no map of at most 4096 MSRs").at(start))?;
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let at = decoder.position();
            let index = decoder.u32()?;
            if values.insert(index, decoder.u64()?).is_some() {
                return Err(DecodeError::message(format!("MSR {index:#x} comes twice")).at(at));
            }
        }
        Ok(Self { values })
    }
}

impl Part for Msrs {
    const NAME: &'static str = "x86.msrs";
    const FIELDS: Fields = Fields::Any;

    fn check(&self) -> Result<(), String> {
        if self.values.len() <= MAX_MSRS {
            Ok(())
        } else {
            Err(format!("{} MSRs, the bound is {MAX_MSRS}", self.values.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Section;

    fn msrs(values: &[(u32, u64)]) -> Msrs {
        Msrs { values: values.iter().copied().collect() }
    }

    #[test]
    fn the_needed_fields_are_the_msrs_that_changed() {
        let created = msrs(&[(0x10, 5), (0xc000_0081, 0), (0x3a, 1)]);
        let now = msrs(&[(0x10, 9), (0xc000_0081, 7), (0x3a, 1)]);
        let section = Section::of(&now, 2, Some(&created)).unwrap();
        assert_eq!(section.needed, [0x10, 0xc000_0081]);
        assert_eq!(section.read::<Msrs>().unwrap(), now);
    }

    #[test]
    fn an_msr_twice_is_refused() {
        let bytes = [0xa2, 0x10, 0x01, 0x10, 0x01];
        assert!(minicbor::decode::<Msrs>(&bytes).is_err());
    }
}
