//! Birth: from what a guest is asked to be to its contract, or to the reasons why not here.
//!
//! Request to contract is expansion; then the contract is held against the host by [`compare`](crate::compare), the
//! same way as it will be on every target. Where settings do not reach the guest (a KVM of the
//! `kvm_pvm` kind) the contract says what the probe guest read, and a request for anything else fails
//! with that reason.

mod arm64;
pub(crate) mod x86;

use std::fmt;

use crate::compare::compare;
use crate::contract::Contract;
use crate::profile::Profile;
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
    /// All that the host offers by itself, and what must be wished for.
    Offered(Vec<Wish>),
    /// What a contract says.
    Contract(Box<Contract>),
}

/// What a guest has only if it is wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Wish {
    /// Hyper-V's leaves, KVM's own behind them (x86-64).
    Hyperv,
    /// A performance monitor (arm64).
    Pmu,
    /// The scalable vector extension (arm64).
    Sve,
    /// EL2: guests of its own (arm64).
    El2,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hyperv => "Hyper-V's leaves",
            Self::Pmu => "a performance monitor",
            Self::Sve => "SVE",
            Self::El2 => "EL2",
        })
    }
}

/// Why a guest cannot be born here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BirthError {
    /// The guest would not get what its contract promises.
    #[error("the guest cannot be born on this host: {}", first(.0))]
    NotEffective(Vec<Finding>),
    /// Something was wished for that is not to be had here.
    #[error("{0} cannot be had: this host's KVM offers none that reaches a guest of this kind")]
    NotOffered(Wish),
    /// The host offers no vCPU that a guest could have.
    #[error("the profile names no set of features that a guest's vCPUs could be made with")]
    NoVcpu,
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
            Self::NotOffered(_) | Self::NoVcpu | Self::Vcpus { .. } => &[],
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
    /// The contract of a guest that is born on the host of this profile.
    pub fn birth(profile: &Profile, request: &BirthRequest) -> Result<Self, BirthError> {
        let contract = match &request.features {
            Features::Offered(wishes) => match profile {
                Profile::X86(profile) => x86::offered(profile, request.vcpus, wishes)?.into(),
                Profile::Arm64(profile) => arm64::offered(profile, request.vcpus, wishes)?.into(),
            },
            Features::Contract(contract) if contract.vcpus() != request.vcpus => {
                return Err(BirthError::Vcpus { contract: contract.vcpus(), asked: request.vcpus });
            }
            Features::Contract(contract) => Self::clone(contract),
        };
        let verdict = compare(&contract, profile);
        if verdict.is_refusal() { Err(BirthError::NotEffective(verdict.findings)) } else { Ok(contract) }
    }
}
