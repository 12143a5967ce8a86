//! A register of an arm64 vCPU as KVM numbers it: what `KVM_GET_REG_LIST` lists, and
//! `KVM_GET_ONE_REG` and `KVM_SET_ONE_REG` take.
//!
//! From the top of the 64 bits: 8 bits of architecture (0x60), 4 bits of size (a power of two, in
//! bytes), 24 bits of nothing, 12 bits that say which kind of register, and 16 bits that say which one
//! of that kind. Documentation/virt/kvm/api.rst, 4.68 (`KVM_SET_ONE_REG`); arch/arm64/include/uapi/asm/kvm.h.

use std::fmt;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SystemRegister;
use super::names;
use crate::hex;

/// The longest register, in bytes: a vector of SVE.
pub const MAX_REGISTER_BYTES: usize = 256;

/// The high byte of every id of this architecture (`KVM_REG_ARM64`), and where it stands.
const ARCHITECTURE: u64 = 0x60;
const ARCHITECTURE_SHIFT: u32 = 56;

/// The size's place (`KVM_REG_SIZE_SHIFT`), and the largest: 2048 bits.
const SIZE_SHIFT: u32 = 52;
const SIZE_MAX: u64 = 8;

/// The lower part of an id, which alone tells an arm64 register from the others.
const KEY_BITS: u32 = 28;

/// The kinds (`KVM_REG_ARM_COPROC_MASK`).
const CORE: u16 = 0x10;
const CACHE: u16 = 0x11;
const SYSTEM: u16 = 0x13;
const FIRMWARE: u16 = 0x14;
const VECTOR: u16 = 0x15;
const SERVICES: u16 = 0x16;

/// The id of one register.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegisterId(u64);

/// Which register an id means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegisterKind {
    /// A general or floating-point register, by its place in `struct kvm_regs`, in words of 32 bits.
    Core(u16),
    /// A cache's size (`CCSIDR_EL1`), by the selector that names the cache.
    Cache(u16),
    /// A system register.
    System(SystemRegister),
    /// A firmware interface's version or a workaround's state (`KVM_REG_ARM_FW`).
    Firmware(u16),
    /// A vector or predicate of SVE, or the vector lengths.
    Vector(u16),
    /// A bitmap of hypercall services (`KVM_REG_ARM_FW_FEAT_BMAP`).
    Services(u16),
    /// Something that a newer kernel has: the kind, and which one.
    Unknown(u16, u16),
}

/// What a register is to a guest that moves: in which order it is written, and what a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegisterClass {
    /// Which processor this is: `MIDR_EL1`, `MPIDR_EL1`, and what its caches are like.
    Identity,
    /// What the processor can do: the registers `ID_…`.
    Feature,
    /// What the firmware and the hypervisor offer.
    Firmware,
    /// The vector lengths, vectors and predicates of SVE.
    Sve,
    /// The performance monitor.
    Pmu,
    /// The timers and counters.
    Timer,
    /// Every other system register.
    System,
    /// General and floating-point registers.
    Core,
}

/// An id that is none of an arm64 register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterIdError {
    /// Of another architecture.
    #[error("{0:#018x} is no id of an arm64 register: those begin with 0x60")]
    Architecture(u64),
    /// A size that KVM has for no register.
    #[error("{0:#018x} is an id with a size that KVM never had")]
    Size(u64),
    /// Bits that no id has.
    #[error("{0:#018x} is an id with bits that KVM never used")]
    Reserved(u64),
}

impl RegisterId {
    /// The vector lengths of SVE (`KVM_REG_ARM64_SVE_VLS`): bit *n* stands for *n* + 1 times 128 bits.
    pub const SVE_VECTOR_LENGTHS: Self = Self(0x6060_0000_0015_ffff);

    /// The register of this id.
    pub fn new(id: u64) -> Result<Self, RegisterIdError> {
        if id >> ARCHITECTURE_SHIFT != ARCHITECTURE {
            return Err(RegisterIdError::Architecture(id));
        }
        if size_bits(id) > SIZE_MAX {
            return Err(RegisterIdError::Size(id));
        }
        if id >> KEY_BITS << KEY_BITS != id >> SIZE_SHIFT << SIZE_SHIFT {
            return Err(RegisterIdError::Reserved(id));
        }
        Ok(Self(id))
    }

    /// The register of this [key](Self::key) and as many bytes: `None` where no register is that long.
    pub fn from_key(key: u32, bytes: usize) -> Option<Self> {
        if !bytes.is_power_of_two() || bytes > MAX_REGISTER_BYTES || key >> KEY_BITS != 0 {
            return None;
        }
        let size = u64::from(bytes.trailing_zeros());
        Some(Self(ARCHITECTURE << ARCHITECTURE_SHIFT | size << SIZE_SHIFT | u64::from(key)))
    }

    /// A system register's id: they have 64 bits.
    pub const fn system(register: SystemRegister) -> Self {
        let key = (SYSTEM as u64) << 16 | register.bits() as u64;
        Self(ARCHITECTURE << ARCHITECTURE_SHIFT | 3 << SIZE_SHIFT | key)
    }

    /// The id as KVM has it.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The id without architecture and size.
    pub fn key(self) -> u32 {
        (self.0 & ((1 << KEY_BITS) - 1)) as u32
    }

    /// The register's length in bytes: 1 to [`MAX_REGISTER_BYTES`].
    pub fn bytes(self) -> usize {
        1 << size_bits(self.0)
    }

    /// Which register it is.
    #[expect(clippy::cast_possible_truncation, reason = "the kind has 12 bits, the rest 16")]
    pub fn kind(self) -> RegisterKind {
        let (kind, which) = ((self.key() >> 16) as u16, self.key() as u16);
        match kind {
            CORE => RegisterKind::Core(which),
            CACHE => RegisterKind::Cache(which),
            SYSTEM => RegisterKind::System(SystemRegister::from_bits(which)),
            FIRMWARE => RegisterKind::Firmware(which),
            VECTOR => RegisterKind::Vector(which),
            SERVICES => RegisterKind::Services(which),
            _ => RegisterKind::Unknown(kind, which),
        }
    }

    /// What it is to a guest that moves.
    pub fn class(self) -> RegisterClass {
        match self.kind() {
            RegisterKind::Core(_) => RegisterClass::Core,
            RegisterKind::Cache(_) => RegisterClass::Identity,
            RegisterKind::Firmware(_) | RegisterKind::Services(_) => RegisterClass::Firmware,
            RegisterKind::Vector(_) => RegisterClass::Sve,
            RegisterKind::System(register) => register.class(),
            // It has its place among those that nothing else waits for.
            RegisterKind::Unknown(..) => RegisterClass::System,
        }
    }

    /// Whether a guest's contract may have it: it tells the guest which processor it runs on, what that can do
    /// and what the hypervisor offers, and lasts. All registers of the classes
    /// [`Identity`](RegisterClass::Identity), [`Feature`](RegisterClass::Feature) and
    /// [`Firmware`](RegisterClass::Firmware) but `MPIDR_EL1`, which is each vCPU's own, and the vector lengths.
    pub fn is_of_contract(self) -> bool {
        match self.class() {
            RegisterClass::Identity => self.kind() != RegisterKind::System(SystemRegister::MPIDR_EL1),
            RegisterClass::Feature | RegisterClass::Firmware => true,
            _ => self == Self::SVE_VECTOR_LENGTHS,
        }
    }

    /// Whether it goes on by itself: what it holds can be another at the next look, though nothing was written.
    /// A counter, a count of events, what is left of a timer, and a timer's control, which says whether its time
    /// has come.
    pub fn counts(self) -> bool {
        matches!(self.kind(), RegisterKind::System(register) if register.counts())
    }

    /// The name that the architecture manual or the kernel has for it, or one made of its parts.
    pub fn name(self) -> String {
        names::of(self.kind())
    }
}

fn size_bits(id: u64) -> u64 {
    id >> SIZE_SHIFT & 0xf
}

impl TryFrom<u64> for RegisterId {
    type Error = RegisterIdError;

    fn try_from(id: u64) -> Result<Self, RegisterIdError> {
        Self::new(id)
    }
}

impl fmt::Debug for RegisterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The name, and the id: `MIDR_EL1 (0x603000000013c000)`.
impl fmt::Display for RegisterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#018x})", self.name(), self.0)
    }
}

impl<C> Encode<C> for RegisterId {
    fn encode<W: Write>(&self, encoder: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        encoder.u64(self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for RegisterId {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let at = decoder.position();
        Self::new(decoder.u64()?).map_err(|error| DecodeError::message(error.to_string()).at(at))
    }
}

impl Serialize for RegisterId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        hex::u64::serialize(&self.0, to)
    }
}

impl<'de> Deserialize<'de> for RegisterId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(hex::u64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(raw: u64) -> RegisterId {
        RegisterId::new(raw).unwrap()
    }

    #[test]
    fn an_id_falls_into_its_parts_and_comes_together_again() {
        // Ids that kernels list, with what the manuals call them.
        let known = [
            (0x6030_0000_0010_0000, 8, "x0", RegisterClass::Core),
            (0x6030_0000_0010_0040, 8, "pc", RegisterClass::Core),
            (0x6040_0000_0010_0054, 16, "v0", RegisterClass::Core),
            (0x6020_0000_0010_00d5, 4, "fpcr", RegisterClass::Core),
            (0x6020_0000_0011_0002, 4, "CCSIDR_EL1[2]", RegisterClass::Identity),
            (0x6030_0000_0013_c000, 8, "MIDR_EL1", RegisterClass::Identity),
            (0x6030_0000_0013_c020, 8, "ID_AA64PFR0_EL1", RegisterClass::Feature),
            (0x6030_0000_0013_c024, 8, "ID_AA64ZFR0_EL1", RegisterClass::Feature),
            (0x6030_0000_0013_8024, 8, "DBGBVR4_EL1", RegisterClass::System),
            (0x6030_0000_0013_c708, 8, "CNTKCTL_EL1", RegisterClass::Timer),
            (0x6030_0000_0013_df1a, 8, "KVM_REG_ARM_TIMER_CNT", RegisterClass::Timer),
            (0x6030_0000_0013_df02, 8, "KVM_REG_ARM_TIMER_CVAL", RegisterClass::Timer),
            (0x6030_0000_0013_df49, 8, "PMEVCNTR9_EL0", RegisterClass::Pmu),
            (0x6030_0000_0013_df7f, 8, "PMCCFILTR_EL0", RegisterClass::Pmu),
            (0x6030_0000_0013_dce0, 8, "PMCR_EL0", RegisterClass::Pmu),
            (0x6030_0000_0014_0000, 8, "KVM_REG_ARM_PSCI_VERSION", RegisterClass::Firmware),
            (0x6030_0000_0016_0003, 8, "KVM_REG_ARM_VENDOR_HYP_BMAP_2", RegisterClass::Firmware),
            (0x6060_0000_0015_ffff, 64, "KVM_REG_ARM64_SVE_VLS", RegisterClass::Sve),
            (0x6080_0000_0015_03e0, 256, "z31", RegisterClass::Sve),
            (0x6050_0000_0015_0420, 32, "p1", RegisterClass::Sve),
            (0x6050_0000_0015_0600, 32, "ffr", RegisterClass::Sve),
        ];
        for (raw, bytes, name, class) in known {
            let register = id(raw);
            assert_eq!((register.bytes(), register.name(), register.class()), (bytes, name.into(), class));
            assert_eq!(RegisterId::from_key(register.key(), bytes), Some(register));
            assert_eq!(register.raw(), raw);
        }
        assert_eq!(id(0x6030_0000_0013_c000).to_string(), "MIDR_EL1 (0x603000000013c000)");
    }

    #[test]
    fn what_is_no_id_of_this_architecture_is_refused_with_the_reason() {
        use RegisterIdError::{Architecture, Reserved, Size};
        for (raw, error) in [
            (0x2030_0000_0000_0001, Architecture(0x2030_0000_0000_0001)),
            (0, Architecture(0)),
            (0x6090_0000_0010_0000, Size(0x6090_0000_0010_0000)),
            (0x60f0_0000_0010_0000, Size(0x60f0_0000_0010_0000)),
            (0x6030_0001_0010_0000, Reserved(0x6030_0001_0010_0000)),
            (0x6030_0000_1010_0000, Reserved(0x6030_0000_1010_0000)),
        ] {
            assert_eq!(RegisterId::new(raw), Err(error), "{raw:#x}");
        }
        for (key, bytes) in [(0x1000_0000, 8), (0, 0), (0, 3), (0, 512)] {
            assert_eq!(RegisterId::from_key(key, bytes), None);
        }
    }

    #[test]
    fn what_a_newer_kernel_has_is_kept_by_its_parts() {
        let newer = id(0x6030_0000_0021_0007);
        assert_eq!(newer.kind(), RegisterKind::Unknown(0x21, 7));
        assert_eq!(newer.name(), "kind 0x21, number 0x7");
        assert_eq!(id(0x6030_0000_0016_0009).name(), "KVM_REG_ARM_FW_FEAT_BMAP_REG(9)");
        assert_eq!(id(0x6030_0000_0013_c79f).name(), "S3_0_C15_C3_7");
    }

    #[test]
    fn its_json_form_is_one_string() {
        let text = "\"0x603000000013c000\"";
        let register: RegisterId = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&register).unwrap(), text);
        let error = serde_json::from_str::<RegisterId>("\"0x403000000013c000\"").unwrap_err();
        assert!(error.to_string().contains("0x403000000013c000 is no id of an arm64 register"), "{error}");
    }
}
