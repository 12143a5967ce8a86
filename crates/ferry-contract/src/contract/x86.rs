//! The contract of a guest on x86-64: CPUID, feature MSRs, extended state, the time stamp counter.
//!
//! What belongs to one vCPU ([`per_vcpu`](crate::per_vcpu)) or changes while it runs
//! ([`run_time`](crate::run_time)) is 0 in a contract; [`X86Contract::cpuid_of_vcpu`] fills in the first.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::cpuid::{self, CpuidEntry, MAX_CPUID_ENTRIES, Register};
use crate::hex;
use crate::json::{self, JsonError};
use crate::profile::{MsrValue, check_cpuid};
use crate::rules::{self, MsrKind};

/// The kind of machine of a guest on x86-64.
pub const KVM_X86_64: &str = "kvm-x86_64";

/// The most feature MSRs.
const MAX_FEATURE_MSRS: usize = 256;

/// The most vCPUs (`KVM_MAX_VCPUS` on x86-64).
const MAX_VCPUS: u32 = 4096;

/// Everything that a guest on x86-64 may see of its processors and its hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(map)]
#[serde(deny_unknown_fields)]
pub struct X86Contract {
    /// [`CONTRACT_FORMAT`](super::CONTRACT_FORMAT).
    #[n(0)]
    pub format: String,
    /// The kind of machine, [`KVM_X86_64`].
    #[n(1)]
    pub kind: String,
    /// Number of vCPUs.
    #[n(2)]
    pub vcpus: u32,
    /// What CPUID shows, ascending by leaf and subleaf.
    #[n(3)]
    pub cpuid: Vec<CpuidEntry>,
    /// What KVM is told where the guest does not see what KVM is told: it decides what the guest's
    /// control registers, XCR0 and MSRs may hold. None where the two are the same.
    #[n(4)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm_cpuid: Option<Vec<CpuidEntry>>,
    /// Feature MSRs, ascending.
    #[n(5)]
    pub feature_msrs: Vec<FeatureMsr>,
    /// Components that XCR0 may have.
    #[n(6)]
    #[serde(with = "hex::u64")]
    pub xcr0: u64,
    /// Components that `IA32_XSS` may have.
    #[n(7)]
    #[serde(with = "hex::u64")]
    pub xss: u64,
    /// The most bytes of a vCPU's XSAVE area.
    #[n(8)]
    pub xsave_area_bytes: u64,
    /// How fast the TSC counts.
    #[n(9)]
    pub tsc_frequency_khz: u32,
    /// The most bytes of a nested state; 0 for a guest without VMX and SVM.
    #[n(10)]
    pub nested_state_bytes: u64,
}

/// A feature MSR with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(array)]
#[serde(deny_unknown_fields)]
pub struct FeatureMsr {
    /// The register's number.
    #[n(0)]
    #[serde(with = "hex::u32")]
    pub index: u32,
    /// What it holds.
    #[n(1)]
    #[serde(with = "hex::u64")]
    pub value: u64,
}

impl From<MsrValue> for FeatureMsr {
    fn from(msr: MsrValue) -> Self {
        Self { index: msr.index, value: msr.value }
    }
}

impl X86Contract {
    /// Whether it contradicts itself.
    pub fn check(&self) -> Result<(), JsonError> {
        super::check_head(&self.format, (&self.kind, KVM_X86_64), (self.vcpus, MAX_VCPUS))?;
        check_cpuid("$.cpuid", &self.cpuid)?;
        check_cpuid("$.kvm_cpuid", self.kvm_cpuid.as_deref().unwrap_or_default())?;
        if self.feature_msrs.len() > MAX_FEATURE_MSRS {
            return Err(JsonError::sense("$.feature_msrs", format!("more than {MAX_FEATURE_MSRS} entries")));
        }
        json::ascends("$.feature_msrs", &self.feature_msrs, |a, b| a.index < b.index)?;
        let (xcr0, xss) = xsave_masks(self.told());
        if self.xcr0 != xcr0 {
            return Err(JsonError::sense("$.xcr0", format!("CPUID leaf 0xd says {xcr0:#018x}")));
        }
        if self.xss != xss {
            return Err(JsonError::sense("$.xss", format!("CPUID leaf 0xd says {xss:#018x}")));
        }
        Ok(())
    }

    /// What KVM was told at birth.
    pub fn told(&self) -> &[CpuidEntry] {
        self.kvm_cpuid.as_deref().unwrap_or(&self.cpuid)
    }

    /// What `KVM_SET_CPUID2` gets for one vCPU on a host where settings reach the guest, or where they
    /// do not (`reach` false): with its APIC id, which is its index.
    pub fn cpuid_of_vcpu(&self, index: u32, reach: bool) -> Vec<CpuidEntry> {
        let list = if reach { &self.cpuid } else { self.told() };
        list.iter().take(MAX_CPUID_ENTRIES).map(|entry| with_apic_id(*entry, index)).collect()
    }

    /// One register of one leaf, as the guest sees it; 0 where the contract has no such leaf.
    pub fn register(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        cpuid::value(&self.cpuid, leaf, subleaf, register)
    }

    /// The feature MSRs that a vCPU is given; KVM derives the others from them and from CPUID.
    pub fn msrs_to_set(&self) -> impl Iterator<Item = FeatureMsr> + '_ {
        self.feature_msrs.iter().copied().filter(|msr| rules::of_msr(msr.index) != MsrKind::Derived)
    }

    /// Physical address bits.
    pub fn physical_address_bits(&self) -> u32 {
        self.register(0x8000_0008, 0, Register::Eax) & 0xff
    }

    /// Whether KVM lets the guest run guests of its own: VMX or SVM is in what KVM is told.
    pub fn is_nesting(&self) -> bool {
        is_nesting(self.told())
    }
}

/// The per-vCPU fields of an entry, for the vCPU with this APIC id.
fn with_apic_id(mut entry: CpuidEntry, apic_id: u32) -> CpuidEntry {
    match entry.leaf {
        // The initial APIC id has 8 bits (SDM: leaf 01H); software reads the x2APIC id beyond them.
        1 => entry.ebx |= (apic_id & 0xff) << 24,
        0xb | 0x1f | 0x8000_0026 => entry.edx = apic_id,
        // One thread a core, one node (APM: Fn8000_001E).
        0x8000_001e => {
            entry.eax = apic_id;
            entry.ebx |= apic_id & 0xff;
        }
        _ => {}
    }
    entry
}

/// Components of XCR0 and of `IA32_XSS` that CPUID leaf 0xD allows.
pub(crate) fn xsave_masks(list: &[CpuidEntry]) -> (u64, u64) {
    let word = |subleaf, low, high| {
        let value = |register| u64::from(cpuid::value(list, 0xd, subleaf, register));
        value(low) | value(high) << 32
    };
    (word(0, Register::Eax, Register::Edx), word(1, Register::Ecx, Register::Edx))
}

/// Whether CPUID shows VMX (leaf 1 ECX 5) or SVM (leaf 0x80000001 ECX 2).
pub(crate) fn is_nesting(list: &[CpuidEntry]) -> bool {
    let vmx = cpuid::value(list, 1, 0, Register::Ecx) & 1 << 5;
    let svm = cpuid::value(list, 0x8000_0001, 0, Register::Ecx) & 1 << 2;
    vmx | svm != 0
}
