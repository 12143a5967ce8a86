//! Birth: from what a guest is asked to be to its contract, or to the reasons why not here.
//!
//! Request to contract is expansion; then the contract is held against the host by [`compare`](crate::compare), the
//! same way as it will be on every target. Where settings do not reach the guest (a KVM of the
//! `kvm_pvm` kind) the contract says what the probe guest read, and a request for anything else fails
//! with that reason.

use crate::compare::compare_x86;
use crate::contract::{CONTRACT_FORMAT, Contract, FeatureMsr, KVM_X86_64, is_nesting, xsave_masks};
use crate::cpuid::{self, CpuidEntry, Register};
use crate::profile::X86Profile;
use crate::verdict::{Finding, FindingKind};

/// What a guest is asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BirthRequest {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Its processors and its hypervisor.
    pub features: Features,
}

/// What a guest's processors and its hypervisor are asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Features {
    /// All that the host offers.
    Offered {
        /// With Hyper-V's leaves, KVM's own behind them.
        hyperv: bool,
    },
    /// What a contract says.
    Contract(Box<Contract>),
}

/// Why a guest cannot be born here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BirthError {
    /// The guest would not get what its contract promises.
    #[error("the guest cannot be born on this host: {}", first(.0))]
    NotEffective(Vec<Finding>),
    /// Hyper-V's leaves were asked for.
    #[error("Hyper-V's leaves are not to be had: this host's KVM offers none that reach a guest")]
    NoHyperv,
    /// The contract is for another number of vCPUs.
    #[error("the contract is for {contract} vCPUs, the guest is to have {asked}: ask for the same number")]
    Vcpus {
        /// What the contract says.
        contract: u32,
        /// What was asked for.
        asked: u32,
    },
}

impl BirthError {
    /// The findings, if the host is the reason.
    pub fn findings(&self) -> &[Finding] {
        match self {
            Self::NotEffective(findings) => findings,
            Self::NoHyperv | Self::Vcpus { .. } => &[],
        }
    }
}

fn first(findings: &[Finding]) -> String {
    let mut refusals = findings.iter().filter(|finding| finding.kind == FindingKind::Refusal);
    let Some(first) = refusals.next() else { return String::from("no reason is known") };
    match refusals.count() {
        0 => first.to_string(),
        more => format!("{first} (and {more} more)"),
    }
}

impl Contract {
    /// The contract of a guest that is born on the x86-64 host of this profile.
    pub fn birth(profile: &X86Profile, request: &BirthRequest) -> Result<Self, BirthError> {
        let contract = match &request.features {
            Features::Offered { hyperv } => offered(profile, request.vcpus, *hyperv)?,
            Features::Contract(contract) if contract.vcpus != request.vcpus => {
                return Err(BirthError::Vcpus { contract: contract.vcpus, asked: request.vcpus });
            }
            Features::Contract(contract) => Self::clone(contract),
        };
        let verdict = compare_x86(&contract, profile);
        if verdict.is_refusal() { Err(BirthError::NotEffective(verdict.findings)) } else { Ok(contract) }
    }
}

/// All that a host offers, as a contract.
fn offered(profile: &X86Profile, vcpus: u32, hyperv: bool) -> Result<Contract, BirthError> {
    let reach = profile.probe_guest.cpuid_settings_reach;
    if hyperv && (!reach || profile.cpuid.hyperv.is_empty()) {
        return Err(BirthError::NoHyperv);
    }
    let told = if hyperv { with_hyperv(profile) } else { profile.cpuid.supported.clone() };
    let (xcr0, xss) = xsave_masks(&told);
    let nested_state_bytes = if is_nesting(&told) { profile.nested_state_bytes } else { 0 };
    let msrs = profile.msrs.features.iter().copied().map(FeatureMsr::from);
    let feature_msrs = msrs.filter(|msr| is_shown(&told, msr.index)).collect();
    let (cpuid, kvm_cpuid) =
        if reach { (told, None) } else { (profile.probe_guest.cpuid.clone(), Some(told)) };
    Ok(Contract {
        format: CONTRACT_FORMAT.to_owned(),
        kind: KVM_X86_64.to_owned(),
        vcpus,
        cpuid,
        kvm_cpuid,
        feature_msrs,
        xcr0,
        xss,
        xsave_area_bytes: profile.xsave.area_bytes,
        tsc_frequency_khz: profile.tsc.frequency_khz,
        nested_state_bytes,
    })
}

/// Where KVM's own leaves begin if Hyper-V's stand where they usually do, and how far that is (the
/// kernel's `kvm_cpuid_base_kvm`: any multiple of 0x100 in 0x40000000–0x4000ffff is searched).
const KVM_LEAVES: std::ops::Range<u32> = 0x4000_0000..0x4000_0100;
const KVM_LEAVES_MOVED_BY: u32 = 0x100;

/// The signature by which a guest knows Hyper-V, "Microsoft Hv" in EBX, ECX and EDX (TLFS 2.2). KVM's list has one
/// of its own in its place, by which none would (`kvm_get_hv_cpuid` in arch/x86/kvm/hyperv.c: "Linux KVM Hv").
pub(crate) const HYPERV_SIGNATURE: [u32; 3] = [0x7263_694d, 0x666f_736f, 0x7648_2074];

/// What KVM supports, with Hyper-V's leaves before KVM's own.
pub(crate) fn with_hyperv(profile: &X86Profile) -> Vec<CpuidEntry> {
    let moved = profile.cpuid.supported.iter().map(|entry| {
        let mut entry = *entry;
        if KVM_LEAVES.contains(&entry.leaf) {
            // The signature's leaf says how far the leaves go.
            if entry.leaf == KVM_LEAVES.start && entry.eax >= KVM_LEAVES.start {
                entry.eax += KVM_LEAVES_MOVED_BY;
            }
            entry.leaf += KVM_LEAVES_MOVED_BY;
        }
        entry
    });
    let hyperv = profile.cpuid.hyperv.iter().map(|entry| {
        let mut entry = *entry;
        if entry.leaf == KVM_LEAVES.start {
            [entry.ebx, entry.ecx, entry.edx] = HYPERV_SIGNATURE;
        }
        entry
    });
    let mut all: Vec<CpuidEntry> = moved.chain(hyperv).collect();
    all.sort_by_key(CpuidEntry::key);
    all.dedup_by_key(|entry| entry.key());
    all
}

/// Whether a guest with this CPUID has a feature MSR at all (SDM volume 4: each needs its CPUID bit;
/// volume 3, appendix A for VMX).
fn is_shown(told: &[CpuidEntry], msr: u32) -> bool {
    let has = |leaf, register, bit: u32| cpuid::value(told, leaf, 0, register) & 1 << bit != 0;
    match msr {
        0x10a => has(7, Register::Edx, 29),
        0x345 => has(1, Register::Ecx, 15),
        0x480..=0x491 => has(1, Register::Ecx, 5),
        _ => true,
    }
}
