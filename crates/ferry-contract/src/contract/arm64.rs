//! The contract of a guest on arm64: with which features its vCPUs are made, and what each register says
//! that tells a guest what it has.
//!
//! A register that the contract does not have says 0 (see [`RegisterId::is_of_contract`] for those that it may
//! have). What belongs to one vCPU is no part of it: `MPIDR_EL1`, and that all but the first vCPU start
//! powered off.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::arm64::{RegisterClass, RegisterId, RegisterValue, SystemRegister};
use crate::json::{self, JsonError};
use crate::profile::VcpuFeature;

/// The kind of machine of a guest on arm64.
pub const KVM_AARCH64: &str = "kvm-aarch64";

/// The most vCPUs (`VGIC_V3_MAX_CPUS`).
const MAX_VCPUS: u32 = 512;

/// The most registers.
const MAX_REGISTERS: usize = 512;

/// Bits of guest-physical addresses that KVM ever took (Documentation/virt/kvm/api.rst, 4.2).
const IPA_BITS: std::ops::RangeInclusive<u32> = 32..=52;

/// Everything that a guest on arm64 may see of its processors and its hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(map)]
#[serde(deny_unknown_fields)]
pub struct Arm64Contract {
    /// [`CONTRACT_FORMAT`](super::CONTRACT_FORMAT).
    #[n(0)]
    pub format: String,
    /// The kind of machine, [`KVM_AARCH64`].
    #[n(1)]
    pub kind: String,
    /// Number of vCPUs.
    #[n(2)]
    pub vcpus: u32,
    /// Features that its vCPUs are made with, ascending.
    #[n(3)]
    #[cbor(with = "features")]
    pub features: Vec<VcpuFeature>,
    /// Bits of its physical addresses: what its VM is made with.
    #[n(4)]
    pub ipa_bits: u32,
    /// The version of the interrupt controller in the kernel; none for a guest without one.
    #[n(5)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gic_version: Option<u32>,
    /// How fast its counter counts (`CNTFRQ_EL0`), which no host can change; none if that is not known, of a
    /// guest that was worked out from an imported profile.
    #[n(6)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter_frequency_hz: Option<u64>,
    /// What its registers say, each vCPU's the same.
    #[n(7)]
    #[serde(with = "registers")]
    pub registers: BTreeMap<RegisterId, RegisterValue>,
}

impl Arm64Contract {
    /// Whether it contradicts itself.
    pub fn check(&self) -> Result<(), JsonError> {
        super::check_head(&self.format, (&self.kind, KVM_AARCH64), (self.vcpus, MAX_VCPUS))?;
        json::ascends("$.features", &self.features, |a, b| a < b)?;
        if self.features.contains(&VcpuFeature::PowerOff) {
            let what = "`power_off` belongs to one vCPU: all but the first start so";
            return Err(JsonError::sense("$.features", what));
        }
        if !IPA_BITS.contains(&self.ipa_bits) {
            return Err(JsonError::sense("$.ipa_bits", "not within 32 to 52"));
        }
        if self.gic_version.is_some_and(|version| !(2..=3).contains(&version)) {
            return Err(JsonError::sense("$.gic_version", "neither 2 nor 3"));
        }
        if self.counter_frequency_hz == Some(0) {
            return Err(JsonError::sense("$.counter_frequency_hz", "a counter that stands still"));
        }
        if self.registers.len() > MAX_REGISTERS {
            return Err(JsonError::sense("$.registers", format!("more than {MAX_REGISTERS} entries")));
        }
        for (id, value) in &self.registers {
            check_register(*id, value)
                .map_err(|what| JsonError::sense(format!("$.registers.{:#018x}", id.raw()), what))?;
        }
        let lengths = self.registers.get(&RegisterId::SVE_VECTOR_LENGTHS);
        if self.features.contains(&VcpuFeature::Sve) != lengths.is_some() {
            let what = "vector lengths and the feature `sve` go together";
            return Err(JsonError::sense("$.registers", what));
        }
        if lengths.is_some_and(|lengths| lengths.bytes().iter().all(|byte| *byte == 0)) {
            let path = format!("$.registers.{:#018x}", RegisterId::SVE_VECTOR_LENGTHS.raw());
            return Err(JsonError::sense(path, "vectors of no length at all"));
        }
        Ok(())
    }

    /// What a register of a contract says to the guest where KVM lists it: what stands here, else 0. None of
    /// what a cache is like that the guest does not have, and of the processor's identity if it does not stand
    /// here.
    pub fn says(&self, id: RegisterId) -> Option<RegisterValue> {
        if let Some(value) = self.registers.get(&id) {
            return Some(value.clone());
        }
        match id.class() {
            RegisterClass::Identity => None,
            _ => RegisterValue::of_number(0, id.bytes()),
        }
    }
}

/// Whether a vCPU whose `CLIDR_EL1` says so has the cache of this selector (DDI 0487, `CLIDR_EL1` and
/// `CSSELR_EL1`: three bits a level; bit 0 of a selector asks for the instruction cache).
pub(crate) fn has_cache(registers: &BTreeMap<RegisterId, RegisterValue>, selector: u16) -> bool {
    let clidr = registers.get(&RegisterId::system(SystemRegister::CLIDR_EL1));
    let clidr = clidr.and_then(RegisterValue::number).unwrap_or(0);
    let level = u32::from(selector >> 1);
    let kind = if level < 7 { clidr >> (3 * level) & 7 } else { 0 };
    match (kind, selector & 1 == 1) {
        // Instructions alone; data alone, both apart, both in one.
        (1, instructions) => instructions,
        (2 | 4, instructions) => !instructions,
        (3, _) => true,
        _ => false,
    }
}

fn check_register(id: RegisterId, value: &RegisterValue) -> Result<(), String> {
    if !id.is_of_contract() {
        return Err(format!("{id} tells a guest nothing that lasts: it is no part of a contract"));
    }
    let (bits, has) = (id.bytes() * 8, value.bytes().len() * 8);
    if bits != has {
        return Err(format!("{id} has {bits} bits and its value {has}"));
    }
    Ok(())
}

/// Features on the wire: the bits of `KVM_ARM_VCPU_INIT`.
mod features {
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    use crate::profile::VcpuFeature;

    pub(super) fn encode<C, W: Write>(
        features: &[VcpuFeature],
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.u32(VcpuFeature::bits(features))?.ok()
    }

    /// A bit that this build does not know is lost here; so the contract is refused, for it is not what this
    /// build would write.
    pub(super) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Vec<VcpuFeature>, DecodeError> {
        let bits = decoder.u32()?;
        Ok(VcpuFeature::ALL.into_iter().filter(|feature| bits >> *feature as u32 & 1 == 1).collect())
    }
}

/// Registers in files: an object by ids, each with the register's name and what it says. The name is for
/// people: it may be left out, and must be the right one if it is there.
mod registers {
    use std::collections::BTreeMap;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::arm64::{RegisterId, RegisterValue};

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Named<V> {
        #[serde(default)]
        name: Option<String>,
        value: V,
    }

    pub(super) fn serialize<S: Serializer>(
        registers: &BTreeMap<RegisterId, RegisterValue>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(registers.iter().map(|(id, value)| (id, Named { name: Some(id.name()), value })))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<RegisterId, RegisterValue>, D::Error> {
        let named = BTreeMap::<RegisterId, Named<RegisterValue>>::deserialize(from)?;
        let check = |(id, Named { name, value }): (RegisterId, Named<_>)| match name {
            Some(name) if name != id.name() => {
                Err(D::Error::custom(format_args!("{id} is called {}, not `{name}`", id.name())))
            }
            _ => Ok((id, value)),
        };
        named.into_iter().map(check).collect()
    }
}
