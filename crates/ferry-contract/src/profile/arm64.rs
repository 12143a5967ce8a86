//! The profile of an arm64 host: for each set of vCPU features the registers that KVM lists, with what a
//! new vCPU holds and what KVM lets be written; and what holds for every guest there.

use serde::{Deserialize, Serialize};

use super::{Capability, Extra, KernelFacts, Module};
use crate::arm64::{RegisterClass, RegisterId, RegisterKind, RegisterValue};
use crate::hex;
use crate::json::{self, JsonError};

/// The architecture's name in a profile, as `uname -m` prints it.
pub(super) const ARCHITECTURE: &str = "aarch64";

/// The most sets of features in one profile.
pub const MAX_FEATURE_SETS: usize = 64;

/// Capabilities of the uapi linux/kvm.h.
const KVM_CAP_STEAL_TIME: u32 = 187;
const KVM_CAP_PTP_KVM: u32 = 198;

/// Everything that the KVM of one arm64 host can offer a guest. What may be absent is not known of a host
/// whose profile was imported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm64Profile {
    /// [`PROFILE_FORMAT`](super::PROFILE_FORMAT).
    pub format: String,
    /// `aarch64`.
    pub architecture: String,
    /// The kernel.
    pub kernel: KernelFacts,
    /// The processors' identities, each that occurs once, ascending.
    pub processors: Vec<Arm64Processor>,
    /// KVM's modules, built in or not.
    pub modules: Vec<Module>,
    /// What `KVM_GET_API_VERSION` says.
    pub kvm_api_version: u32,
    /// Capabilities, ascending by number, those that are absent included.
    pub capabilities: Vec<Capability>,
    /// The most bits of a guest's physical addresses (`KVM_CAP_ARM_VM_IPA_SIZE`).
    pub ipa_bits: u32,
    /// Bytes of a page of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_bytes: Option<u64>,
    /// Sizes of pages that a guest may translate by (`ID_AA64MMFR0_EL1`), ascending.
    pub granules_bytes: Vec<u64>,
    /// How fast the generic timer counts (`CNTFRQ_EL0`); no guest can be given another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter_frequency_hz: Option<u64>,
    /// Versions of the interrupt controller that KVM emulates, ascending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gic_versions: Option<Vec<u32>>,
    /// Whether KVM emulates the interrupt translation service of `GICv3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gic_its: Option<bool>,
    /// Ranges of registers of which KVM tells the writable masks (`KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES`),
    /// ascending, those that this build cannot ask for included.
    pub mask_ranges: Vec<u32>,
    /// How many vCPUs are recommended (`KVM_CAP_NR_VCPUS`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus_recommended: Option<u32>,
    /// The most vCPUs (`KVM_CAP_MAX_VCPUS`).
    pub vcpus_max: u32,
    /// What vCPUs have, by the features that they are made with; ascending by these.
    pub feature_sets: Vec<FeatureSet>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A processor's identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm64Processor {
    /// `MIDR_EL1`: implementer, variant, part, revision.
    #[serde(with = "hex::u64")]
    pub midr: u64,
    /// `REVIDR_EL1`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex::u64_option")]
    pub revidr: Option<u64>,
}

/// A feature that a vCPU can be made with; the discriminants are the bits of `KVM_ARM_VCPU_INIT` (the uapi
/// `asm/kvm.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
#[repr(u32)]
pub enum VcpuFeature {
    /// It starts powered off.
    PowerOff = 0,
    /// It runs `AArch32` at EL1.
    El132Bit = 1,
    /// It calls PSCI 0.2 or later.
    Psci02 = 2,
    /// It has a performance monitor.
    PmuV3 = 3,
    /// It has the scalable vector extension.
    Sve = 4,
    /// It authenticates addresses.
    PtrauthAddress = 5,
    /// It authenticates data.
    PtrauthGeneric = 6,
    /// It has EL2.
    HasEl2 = 7,
    /// It has EL2, without the E2H0 form.
    HasEl2E2h0 = 8,
}

impl VcpuFeature {
    /// All that this build knows, ascending.
    pub const ALL: [Self; 9] = [
        Self::PowerOff,
        Self::El132Bit,
        Self::Psci02,
        Self::PmuV3,
        Self::Sve,
        Self::PtrauthAddress,
        Self::PtrauthGeneric,
        Self::HasEl2,
        Self::HasEl2E2h0,
    ];

    /// Its name in a profile.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "power_off",
            Self::El132Bit => "el1_32bit",
            Self::Psci02 => "psci_0_2",
            Self::PmuV3 => "pmu_v3",
            Self::Sve => "sve",
            Self::PtrauthAddress => "ptrauth_address",
            Self::PtrauthGeneric => "ptrauth_generic",
            Self::HasEl2 => "has_el2",
            Self::HasEl2E2h0 => "has_el2_e2h0",
        }
    }

    /// The bits of `KVM_ARM_VCPU_INIT` that stand for these features.
    pub fn bits(features: &[Self]) -> u32 {
        features.iter().fold(0, |bits, feature| bits | 1 << *feature as u32)
    }
}

impl From<VcpuFeature> for &'static str {
    fn from(feature: VcpuFeature) -> Self {
        feature.name()
    }
}

impl TryFrom<String> for VcpuFeature {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|feature| feature.name() == name);
        known.ok_or_else(|| format!("`{name}` is no feature of a vCPU that this build knows"))
    }
}

/// What a vCPU has that is made with these features.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FeatureSet {
    /// The features, ascending.
    pub features: Vec<VcpuFeature>,
    /// The version of the interrupt controller that its VM had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gic_version: Option<u32>,
    /// Vector lengths of SVE, in bits, ascending; empty without SVE.
    pub sve_vector_bits: Vec<u32>,
    /// `KVM_GET_REG_LIST`, ascending by id.
    pub registers: Vec<Arm64Register>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One register that KVM lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm64Register {
    /// Its id, which says its length.
    pub id: RegisterId,
    /// What a new vCPU holds; none of a counter, of what KVM lists and cannot read, and of what a dump does
    /// not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<RegisterValue>,
    /// Bits that KVM says may be written (`KVM_ARM_GET_REG_WRITABLE_MASKS`); none if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex::u64_option")]
    pub writable_mask: Option<u64>,
    /// What came of writing less than it holds, for the registers that say features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowering: Option<Lowering>,
}

/// What came of writing less to a register of a fresh vCPU. A place is the lowest bit of what was written
/// alone: of a field of four bits, written less by one, in an ID register; a single bit, cleared, in a
/// bitmap of hypercalls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lowering {
    /// Places at which KVM took it, ascending.
    pub taken: Vec<u32>,
    /// Places at which KVM took it and reads back something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<u32>,
    /// Places at which KVM refused it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<u32>,
    /// Of a number of the firmware's, whole values that KVM took, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hex::u64_list")]
    pub values_taken: Vec<u64>,
}

/// Sizes of pages that `ID_AA64MMFR0_EL1` offers for stage 1, ascending (DDI 0487: `TGran4` bits 31-28 and
/// `TGran64` bits 27-24, where 0xf is none; `TGran16` bits 23-20, where 0 is none).
pub fn granules(mmfr0: u64) -> Vec<u64> {
    let field = |shift: u32| mmfr0 >> shift & 0xf;
    [(4 << 10, field(28) != 0xf), (16 << 10, field(20) != 0), (64 << 10, field(24) != 0xf)]
        .into_iter()
        .filter_map(|(bytes, there)| there.then_some(bytes))
        .collect()
}

impl FeatureSet {
    /// A register of the list.
    pub fn register(&self, id: RegisterId) -> Option<&Arm64Register> {
        let place = self.registers.binary_search_by_key(&id, |register| register.id).ok()?;
        self.registers.get(place)
    }

    fn check(&self, path: &str) -> Result<(), JsonError> {
        json::ascends(&format!("{path}.features"), &self.features, |a, b| a < b)?;
        json::ascends(&format!("{path}.sve_vector_bits"), &self.sve_vector_bits, |a, b| a < b)?;
        let list = format!("{path}.registers");
        for (index, register) in self.registers.iter().enumerate() {
            register.check().map_err(|what| JsonError::sense(format!("{list}[{index}]"), what))?;
        }
        for (index, (a, b)) in self.registers.iter().zip(self.registers.iter().skip(1)).enumerate() {
            let path = || format!("{list}[{}]", index + 1);
            if a.id == b.id {
                return Err(JsonError::sense(path(), format!("{} a second time", b.id)));
            }
            if a.id > b.id {
                return Err(JsonError::sense(
                    path(),
                    "not after the entry before it: registers ascend by id",
                ));
            }
        }
        Ok(())
    }
}

impl Arm64Register {
    /// Whether it contradicts itself; says the id.
    fn check(&self) -> Result<(), String> {
        let (id, bits) = (self.id, self.id.bytes() * 8);
        if let Some(value) = &self.value
            && value.bytes().len() != id.bytes()
        {
            let has = value.bytes().len() * 8;
            return Err(format!("{id} has {bits} bits and its value {has}"));
        }
        if let Some(mask) = self.writable_mask
            && bits < 64
            && mask >> bits != 0
        {
            return Err(format!("{id} has {bits} bits, its mask {mask:#018x} has more"));
        }
        let Some(lowering) = &self.lowering else { return Ok(()) };
        for places in [&lowering.taken, &lowering.changed, &lowering.refused] {
            if !places.is_sorted_by(|a, b| a < b) || places.iter().any(|place| *place as usize >= bits) {
                return Err(format!("of {id} places do not ascend, or lie outside of it"));
            }
        }
        if !lowering.values_taken.is_sorted_by(|a, b| a < b) {
            return Err(format!("of {id} the values that were taken do not ascend"));
        }
        Ok(())
    }
}

impl Arm64Profile {
    /// The value of a capability on a VM; 0 if it is absent or was not asked for.
    pub fn capability(&self, number: u32) -> i64 {
        super::capability(&self.capabilities, number)
    }

    /// What a register would say here if KVM listed it: what a guest of this host has in its place. None if
    /// nobody knows.
    ///
    /// - Bitmaps of hypercalls came with Linux 5.19 (`kvm_arm_fw_reg_ids` in arch/arm64/kvm/hypercalls.c), later
    ///   than the services of the first three: kernels before offer those that they have to every guest. Which
    ///   they have say the capabilities: stolen time its own (5.10); PTP its own (5.13, with the vendor's call that
    ///   tells of services), and so the random numbers, which are of 5.12. What later bitmaps offer
    ///   came with them.
    /// - A workaround whose number is not there is none that this KVM knows: the guest is told so, as if it were
    ///   0 (`KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_…_NOT_AVAIL`). That of PSCI has been there since 4.18.
    /// - The space of the ID registers reads as 0 where nothing is (DDI 0487, D24.1; `id_visibility` and
    ///   `ID_UNALLOCATED` in `sys_regs.c`).
    pub fn unlisted(&self, id: RegisterId) -> Option<u64> {
        let has = |capability| self.capability(capability) > 0;
        match (id.kind(), id.class()) {
            (RegisterKind::Services(0), _) => Some(has(KVM_CAP_PTP_KVM).into()),
            (RegisterKind::Services(1), _) => Some(has(KVM_CAP_STEAL_TIME).into()),
            (RegisterKind::Services(2), _) => Some(if has(KVM_CAP_PTP_KVM) { 3 } else { 0 }),
            (RegisterKind::Services(_), _) | (_, RegisterClass::Feature) => Some(0),
            (RegisterKind::Firmware(number), _) if number > 0 => Some(0),
            _ => None,
        }
    }

    /// Whether this profile contradicts itself.
    pub fn check(&self) -> Result<(), JsonError> {
        super::check_head(&self.format, &self.architecture, ARCHITECTURE)?;
        super::check_lists(&self.modules, &self.capabilities)?;
        json::ascends("$.processors", &self.processors, |a, b| a < b)?;
        json::ascends("$.granules_bytes", &self.granules_bytes, |a, b| a < b)?;
        json::ascends("$.gic_versions", self.gic_versions.as_deref().unwrap_or_default(), |a, b| a < b)?;
        json::ascends("$.mask_ranges", &self.mask_ranges, |a, b| a < b)?;
        if self.feature_sets.len() > MAX_FEATURE_SETS {
            return Err(JsonError::sense("$.feature_sets", format!("more than {MAX_FEATURE_SETS} entries")));
        }
        json::ascends("$.feature_sets", &self.feature_sets, |a, b| a.features < b.features)?;
        for (index, set) in self.feature_sets.iter().enumerate() {
            set.check(&format!("$.feature_sets[{index}]"))?;
        }
        Ok(())
    }
}
