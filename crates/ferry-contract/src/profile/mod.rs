//! A host's profile: everything that its KVM can offer a guest, as probed. Values, never names of
//! models.
//!
//! [`Profile::from_json`] reads a file with bounds on everything and says where something is wrong;
//! [`Profile::to_json`] writes it. Reading and writing back changes nothing: there is one form for each
//! architecture, and fields that this build does not know are kept in `extra`. `docs/profile.md` describes
//! each field, `docs/profile.schema.json` and `docs/profile-arm64.schema.json` hold for every file.
//!
//! Every build reads the profiles of every architecture: they are data. Only probing needs the
//! architecture itself.

mod arm64;
mod x86;

pub use arm64::{
    Arm64Processor, Arm64Profile, Arm64Register, FeatureSet, Lowering, MAX_FEATURE_SETS, VcpuFeature,
    granules,
};
pub(crate) use x86::check_cpuid;
pub use x86::{
    CpuidFacts, Limits, MsrFacts, MsrValue, ProbeGuest, Processor, TscFacts, X86Profile, XsaveComponent,
    XsaveFacts,
};

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};

/// What the field `format` of a profile says.
pub const PROFILE_FORMAT: &str = "ferry.profile";

/// Fields of a newer build, kept as they are.
pub type Extra = BTreeMap<String, serde_json::Value>;

/// Everything that one host's KVM can offer a guest. Its file says its architecture in the field
/// `architecture`.
#[derive(Debug, Clone, PartialEq)]
pub enum Profile {
    /// Of an x86-64 host.
    X86(Box<X86Profile>),
    /// Of an arm64 host.
    Arm64(Box<Arm64Profile>),
}

/// As much of a profile as says of which architecture it is.
#[derive(Deserialize)]
struct Head {
    architecture: String,
    /// The rest; so that only an object is one.
    #[serde(flatten)]
    _rest: IgnoredAny,
}

impl Profile {
    /// Reads a file.
    pub fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        let Head { architecture, .. } = json::read(bytes)?;
        let profile = match architecture.as_str() {
            arm64::ARCHITECTURE => Self::Arm64(json::read(bytes)?),
            // Whatever else it says, `check` tells.
            _ => Self::X86(json::read(bytes)?),
        };
        profile.check()?;
        Ok(profile)
    }

    /// The one form as a file.
    pub fn to_json(&self) -> String {
        match self {
            Self::X86(profile) => json::write(profile),
            Self::Arm64(profile) => json::write(profile),
        }
    }

    /// Whether this profile contradicts itself.
    pub fn check(&self) -> Result<(), JsonError> {
        match self {
            Self::X86(profile) => profile.check(),
            Self::Arm64(profile) => profile.check(),
        }
    }

    /// The architecture's name as `uname -m` prints it.
    pub fn architecture(&self) -> &str {
        match self {
            Self::X86(profile) => &profile.architecture,
            Self::Arm64(profile) => &profile.architecture,
        }
    }

    /// The kernel that runs KVM.
    pub fn kernel(&self) -> &KernelFacts {
        match self {
            Self::X86(profile) => &profile.kernel,
            Self::Arm64(profile) => &profile.kernel,
        }
    }
}

impl From<X86Profile> for Profile {
    fn from(profile: X86Profile) -> Self {
        Self::X86(Box::new(profile))
    }
}

impl From<Arm64Profile> for Profile {
    fn from(profile: Arm64Profile) -> Self {
        Self::Arm64(Box::new(profile))
    }
}

/// The kernel that runs KVM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`.
    pub version: String,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One kernel module and its parameters, as /sys/module shows them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Module {
    /// `kvm`, `kvm_intel`, `kvm_amd`, `kvm_pvm`.
    pub name: String,
    /// Parameters that a guest can notice, with their values as text.
    pub parameters: BTreeMap<String, String>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One capability of KVM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Capability {
    /// Its number in linux/kvm.h.
    pub number: u32,
    /// Its name there.
    pub name: String,
    /// What `KVM_CHECK_EXTENSION` answers on `/dev/kvm`; 0 is absent.
    pub system: i64,
    /// What it answers on a VM.
    pub vm: i64,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The value of a capability on a VM; 0 if it is absent or was not asked for.
fn capability(capabilities: &[Capability], number: u32) -> i64 {
    let place = capabilities.binary_search_by_key(&number, |capability| capability.number);
    place.ok().and_then(|place| capabilities.get(place)).map_or(0, |capability| capability.vm)
}

/// Checks what says that a file is a profile of this architecture.
fn check_head(format: &str, architecture: &str, known: &str) -> Result<(), JsonError> {
    if format != PROFILE_FORMAT {
        return Err(JsonError::sense("$.format", format!("not `{PROFILE_FORMAT}`: this is no profile")));
    }
    if architecture != known {
        let what = format!(
            "neither `{}` nor `{}`: this build reads no other",
            x86::ARCHITECTURE,
            arm64::ARCHITECTURE
        );
        return Err(JsonError::sense("$.architecture", what));
    }
    Ok(())
}

/// Checks the lists that profiles of every architecture have.
fn check_lists(modules: &[Module], capabilities: &[Capability]) -> Result<(), JsonError> {
    json::ascends("$.modules", modules, |a, b| a.name < b.name)?;
    json::ascends("$.capabilities", capabilities, |a, b| a.number < b.number)
}
