//! The profile of an x86-64 host: CPUID, model-specific registers, extended state, the time stamp counter.

use serde::{Deserialize, Serialize};

use super::{Capability, Extra, KernelFacts, Module};
use crate::cpuid::{self, CpuidEntry, MAX_CPUID_ENTRIES, Register};
use crate::hex;
use crate::json::{self, JsonError};

/// The architecture's name in a profile, as `uname -m` prints it.
pub(super) const ARCHITECTURE: &str = "x86_64";

/// Everything that the KVM of one x86-64 host can offer a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct X86Profile {
    /// [`PROFILE_FORMAT`](super::PROFILE_FORMAT).
    pub format: String,
    /// `x86_64`.
    pub architecture: String,
    /// The kernel.
    pub kernel: KernelFacts,
    /// The processor's identity.
    pub processor: Processor,
    /// KVM's modules.
    pub modules: Vec<Module>,
    /// What `KVM_GET_API_VERSION` says.
    pub kvm_api_version: u32,
    /// Capabilities, ascending by number, those that are absent included.
    pub capabilities: Vec<Capability>,
    /// Capabilities that were turned on before the rest was read, by number, ascending.
    pub enabled_capabilities: Vec<u32>,
    /// What KVM says of CPUID.
    pub cpuid: CpuidFacts,
    /// Model-specific registers.
    pub msrs: MsrFacts,
    /// Extended state.
    pub xsave: XsaveFacts,
    /// Bits of `KVM_CAP_DISABLE_QUIRKS2`: quirks that can be turned off.
    #[serde(with = "hex::u64")]
    pub quirks: u64,
    /// Bits of `KVM_CAP_VM_TYPES`.
    #[serde(with = "hex::u64")]
    pub vm_types: u64,
    /// The most bytes of a nested state (`KVM_CAP_NESTED_STATE`); 0 without nesting.
    pub nested_state_bytes: u64,
    /// The time stamp counter.
    pub tsc: TscFacts,
    /// How many vCPUs.
    pub limits: Limits,
    /// What a guest saw here.
    pub probe_guest: ProbeGuest,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The host processor's identity.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Processor {
    /// CPUID's vendor: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// Display family.
    pub family: u32,
    /// Display model.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// The brand string.
    pub brand: String,
    /// The microcode's revision.
    #[serde(with = "hex::u64")]
    pub microcode: u64,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// CPUID as KVM answers, each list ascending by leaf and subleaf. Bits that belong to one vCPU or
/// change while it runs are 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuidFacts {
    /// `KVM_GET_SUPPORTED_CPUID`.
    pub supported: Vec<CpuidEntry>,
    /// `KVM_GET_EMULATED_CPUID`: what KVM emulates without the processor.
    pub emulated: Vec<CpuidEntry>,
    /// `KVM_GET_SUPPORTED_HV_CPUID`; empty without Hyper-V enlightenments.
    pub hyperv: Vec<CpuidEntry>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Model-specific registers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MsrFacts {
    /// `KVM_GET_MSR_FEATURE_INDEX_LIST` with values, ascending.
    pub features: Vec<MsrValue>,
    /// `KVM_GET_MSR_INDEX_LIST`, ascending.
    #[serde(with = "hex::u32_list")]
    pub listed: Vec<u32>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An MSR with a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrValue {
    /// The register's number.
    #[serde(with = "hex::u32")]
    pub index: u32,
    /// What it holds.
    #[serde(with = "hex::u64")]
    pub value: u64,
}

/// Extended state: what XSAVE saves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct XsaveFacts {
    /// Components that a guest's XCR0 may have (CPUID 0xD.0 EDX:EAX).
    #[serde(with = "hex::u64")]
    pub xcr0: u64,
    /// Components that a guest's `IA32_XSS` may have (CPUID 0xD.1 EDX:ECX).
    #[serde(with = "hex::u64")]
    pub xss: u64,
    /// Components that a process may be granted for its guests (`KVM_X86_XCOMP_GUEST_SUPP`); 0 if this
    /// kernel does not say.
    #[serde(with = "hex::u64")]
    pub guest_permission: u64,
    /// Components of `guest_permission` that this process was granted when the profile was made
    /// (`ARCH_GET_XCOMP_GUEST_PERM`).
    #[serde(with = "hex::u64")]
    pub granted: u64,
    /// Bytes of a vCPU's XSAVE area (`KVM_CAP_XSAVE2`); 4096 without that capability.
    pub area_bytes: u64,
    /// The components of `xcr0` and `xss` above the legacy two, ascending.
    pub components: Vec<XsaveComponent>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One component of extended state (CPUID 0xD, subleaf its number).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct XsaveComponent {
    /// Its bit in XCR0 or `IA32_XSS`.
    pub component: u32,
    /// Its size.
    pub size_bytes: u32,
    /// Where it lies in the standard form; 0 for a supervisor component.
    pub offset_bytes: u32,
    /// ECX: bit 0 supervisor, bit 1 aligned to 64 bytes, bit 2 can be faulted on first use.
    #[serde(with = "hex::u32")]
    pub flags: u32,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The time stamp counter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TscFacts {
    /// The frequency of a new vCPU.
    pub frequency_khz: u32,
    /// Whether a vCPU's may differ from the host's (`KVM_CAP_TSC_CONTROL`).
    pub scales: bool,
    /// By how much it may differ without scaling (parameter `tsc_tolerance_ppm` of module kvm).
    pub tolerance_ppm: u32,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How many vCPUs, and which ids.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// How many are recommended (`KVM_CAP_NR_VCPUS`).
    pub vcpus_recommended: u32,
    /// The most (`KVM_CAP_MAX_VCPUS`).
    pub vcpus_max: u32,
    /// vCPU ids are below this (`KVM_CAP_MAX_VCPU_ID`).
    pub vcpu_id_end: u32,
    /// The highest APIC id that interrupts can be sent to: 32 bits wide with `KVM_CAP_X2APIC_API`,
    /// else 254.
    pub apic_id_max: u32,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a guest of a few instructions saw on this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeGuest {
    /// The privilege level at which it ran.
    pub privilege_level: u32,
    /// Whether CPUID showed what it was set to.
    pub cpuid_settings_reach: bool,
    /// Whether RDTSC counted from what it was set to.
    pub tsc_settings_reach: bool,
    /// What CPUID showed when KVM was told what it supports, ascending. Bits that belong to one vCPU or
    /// change while it runs are 0.
    pub cpuid: Vec<CpuidEntry>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

impl X86Profile {
    /// The value of a capability on a VM; 0 if it is absent or was not asked for.
    pub fn capability(&self, number: u32) -> i64 {
        super::capability(&self.capabilities, number)
    }

    /// The value of a feature MSR; none if KVM does not list it.
    pub fn feature_msr(&self, index: u32) -> Option<u64> {
        let place = self.msrs.features.binary_search_by_key(&index, |msr| msr.index).ok()?;
        self.msrs.features.get(place).map(|msr| msr.value)
    }

    /// Physical address bits of guests (CPUID 0x80000008 EAX 7-0).
    pub fn physical_address_bits(&self) -> u32 {
        cpuid::value(&self.cpuid.supported, 0x8000_0008, 0, Register::Eax) & 0xff
    }

    /// Whether this profile contradicts itself.
    pub fn check(&self) -> Result<(), JsonError> {
        super::check_head(&self.format, &self.architecture, ARCHITECTURE)?;
        for (path, list) in [
            ("$.cpuid.supported", &self.cpuid.supported),
            ("$.cpuid.emulated", &self.cpuid.emulated),
            ("$.cpuid.hyperv", &self.cpuid.hyperv),
            ("$.probe_guest.cpuid", &self.probe_guest.cpuid),
        ] {
            check_cpuid(path, list)?;
        }
        super::check_lists(&self.modules, &self.capabilities)?;
        json::ascends("$.enabled_capabilities", &self.enabled_capabilities, |a, b| a < b)?;
        json::ascends("$.msrs.features", &self.msrs.features, |a, b| a.index < b.index)?;
        json::ascends("$.msrs.listed", &self.msrs.listed, |a, b| a < b)?;
        json::ascends("$.xsave.components", &self.xsave.components, |a, b| a.component < b.component)
    }
}

/// Checks a list of CPUID entries: bounded, in order, without bits of one vCPU.
pub(crate) fn check_cpuid(path: &str, list: &[CpuidEntry]) -> Result<(), JsonError> {
    if list.len() > MAX_CPUID_ENTRIES {
        let what = format!("{} entries, more than {MAX_CPUID_ENTRIES}", list.len());
        return Err(JsonError::sense(path, what));
    }
    json::ascends(path, list, |a, b| a.key() < b.key())?;
    let odd = list.iter().position(|entry| entry.of_vm() != *entry);
    odd.map_or(Ok(()), |index| {
        let what = "bits that belong to one vCPU or change while it runs are not 0";
        Err(JsonError::sense(format!("{path}[{index}]"), what))
    })
}
