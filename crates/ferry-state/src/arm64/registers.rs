//! The registers of a vCPU: those that `KVM_GET_REG_LIST` lists, as `KVM_GET_ONE_REG` gives them.
//!
//! The section's body is a CBOR map from the low 28 bits of a register's id to its bytes, as many as the
//! register has: the rest of the id is the architecture, and the length. So the needed-mark says of each
//! register by itself whether its value is as at creation, and one that a target does not have is only
//! missed where it is needed.

use std::collections::BTreeMap;
use std::fmt;

use ferry_contract::arm64::{RegisterId, RegisterValue};
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::table;
use crate::{Fields, Part};

/// The registers of one vCPU.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Registers {
    values: BTreeMap<u32, RegisterValue>,
}

impl Registers {
    /// A register's value.
    pub fn value(&self, id: RegisterId) -> Option<&RegisterValue> {
        self.values.get(&id.key()).filter(|value| value.bytes().len() == id.bytes())
    }

    /// Sets a register. Gives the value back if it has another length than the register.
    pub fn set(&mut self, id: RegisterId, value: RegisterValue) -> Result<(), RegisterValue> {
        if value.bytes().len() != id.bytes() {
            return Err(value);
        }
        self.values.insert(id.key(), value);
        Ok(())
    }

    /// All registers, ascending by the low part of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (RegisterId, &RegisterValue)> {
        self.values
            .iter()
            .filter_map(|(key, value)| RegisterId::from_key(*key, value.bytes().len()).map(|id| (id, value)))
    }
}

/// By name, as `inspect` shows them.
impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Registers");
        for (id, value) in self.iter() {
            fields.field(&id.name(), value);
        }
        fields.finish()
    }
}

impl<C> Encode<C> for Registers {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        table::encode(&self.values, encoder, context)
    }
}

impl<'b, C> Decode<'b, C> for Registers {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, DecodeError> {
        Ok(Self { values: table::decode(decoder, context)? })
    }
}

impl Part for Registers {
    const NAME: &'static str = "arm64.registers";
    const FIELDS: Fields = Fields::Any;

    fn check(&self) -> Result<(), String> {
        table::check(&self.values)?;
        let is_none = |(key, value): (&u32, &RegisterValue)| {
            RegisterId::from_key(*key, value.bytes().len()).is_none().then_some(*key)
        };
        match self.values.iter().find_map(is_none) {
            None => Ok(()),
            Some(key) => Err(format!("{key:#x} is the number of no register")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Section;

    const MIDR: u64 = 0x6030_0000_0013_c000;
    const V0: u64 = 0x6040_0000_0010_0054;
    const FPCR: u64 = 0x6020_0000_0010_00d5;

    fn id(raw: u64) -> RegisterId {
        RegisterId::new(raw).unwrap()
    }

    fn registers(midr: u64, v0: u8) -> Registers {
        let mut registers = Registers::default();
        registers.set(id(MIDR), midr.into()).unwrap();
        registers.set(id(V0), RegisterValue::new(vec![v0; 16]).unwrap()).unwrap();
        registers.set(id(FPCR), RegisterValue::new(vec![1, 2, 0, 0]).unwrap()).unwrap();
        registers
    }

    #[test]
    fn needed_are_the_registers_that_changed() {
        let (created, now) = (registers(0x410f_d0c1, 0), registers(0x410f_d0c1, 7));
        let section = Section::of(&now, 1, Some(&created)).unwrap();
        assert_eq!(section.needed, [0x10_0054]);
        assert_eq!(section.read::<Registers>().unwrap(), now);
        assert_eq!(now.value(id(FPCR)).and_then(RegisterValue::number), Some(0x201));
        assert_eq!(now.value(id(V0)).and_then(RegisterValue::number), None);
        let ids: Vec<u64> = now.iter().map(|(id, _)| id.raw()).collect();
        assert_eq!(ids, [V0, FPCR, MIDR]);
    }

    #[test]
    fn they_are_written_down_by_name() {
        let text = format!("{:?}", registers(0x410f_d0c1, 7));
        assert!(text.contains("MIDR_EL1: 0x00000000410fd0c1"), "{text}");
        assert!(text.contains("v0: 0x07070707070707070707070707070707"), "{text}");
    }

    #[test]
    fn a_value_of_another_length_is_none_of_the_register() {
        let mut registers = Registers::default();
        registers.set(id(FPCR), 1_u64.into()).unwrap_err();
        assert!(RegisterValue::new(vec![0; 3]).is_none() && RegisterValue::new(vec![0; 512]).is_none());
        // The same number with another length is not the register that was asked for.
        registers.set(id(FPCR), RegisterValue::new(vec![0; 4]).unwrap()).unwrap();
        assert!(registers.value(id(FPCR | 1 << 52)).is_none());
    }

    #[test]
    fn bodies_with_what_is_no_register_are_refused() {
        let read = |body: &[u8]| {
            Section { name: Registers::NAME.into(), index: 0, needed: vec![], body: body.to_vec() }
                .read::<Registers>()
                .map_err(|error| format!("{error:?}"))
        };
        // {0x10000000: h'00'}: beyond what an id has room for.
        assert!(read(&[0xa1, 0x1a, 0x10, 0, 0, 0, 0x41, 0]).unwrap_err().contains("number of no register"));
        // {0: h'000000'} and {0: h''}.
        assert!(read(&[0xa1, 0, 0x43, 0, 0, 0]).unwrap_err().contains("no register has 3 bytes"));
        assert!(read(&[0xa1, 0, 0x40]).unwrap_err().contains("no register has 0 bytes"));
        assert!(read(&[0xa1, 0, 0x41, 5]).is_ok());
    }
}
