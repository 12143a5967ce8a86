//! What a guest may see of its processors and its hypervisor, and the verdict on moving it.
//!
//! This crate stands on the ground floor: it knows neither sockets nor `/dev/kvm`.
//!
//! - A [`Profile`] is everything that one host's KVM can offer a guest, a [`Contract`] everything that
//!   one guest may see; both are values, with JSON files of one form.
//! - [`Contract::birth`] makes the contract of a new guest; [`compare`] holds one against a profile.
//! - A [`Verdict`] is made of [`Finding`]s, each one reason with its remedy.
//!
//! ```
//! # use ferry_contract::{BirthRequest, Contract, Features, Profile, compare};
//! # fn moved(source: &Profile, target: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//! let target = Profile::from_json(target)?;
//! let request = BirthRequest { vcpus: 2, features: Features::Offered(Vec::new()) };
//! let contract = Contract::birth(source, &request)?;
//! for finding in compare(&contract, &target).findings {
//!     println!("{finding}");
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod arm64;
mod birth;
mod compare;
mod contract;
mod cpuid;
mod hex;
pub mod import;
mod json;
mod profile;
mod rules;
mod verdict;

pub use birth::{BirthError, BirthRequest, Features, Wish};
pub use compare::compare;
pub use contract::{
    Arm64Contract, CONTRACT_FORMAT, Contract, ContractError, FeatureMsr, KVM_AARCH64, KVM_X86_64,
    MAX_CONTRACT_BYTES, X86Contract,
};
pub use cpuid::{CpuidEntry, MAX_CPUID_ENTRIES, Register, per_vcpu, run_time};
pub use json::{JsonError, MAX_DEPTH, MAX_FILE_BYTES, MAX_JSON_TEXT_BYTES, MAX_LIST};
pub use profile::{
    Arm64Processor, Arm64Profile, Arm64Register, Capability, CpuidFacts, Extra, FeatureSet, KernelFacts,
    Limits, Lowering, MAX_FEATURE_SETS, Module, MsrFacts, MsrValue, PROFILE_FORMAT, ProbeGuest, Processor,
    Profile, TscFacts, VcpuFeature, X86Profile, XsaveComponent, XsaveFacts, granules,
};
pub use verdict::{Finding, FindingKind, Layer, MAX_FINDINGS, MAX_TEXT_BYTES, Verdict};
