//! A guest's contract: everything that it may see of its processors and its hypervisor, expanded to
//! values. Fixed at birth, travels with the guest.
//!
//! On the wire it is a CBOR map with numbered fields, in files JSON; the field `kind` says for which kind of
//! machine it is. Either form is refused if it holds anything that this build would not write itself: what it
//! does not know could be what the guest needs.

pub(crate) mod arm64;
pub(crate) mod x86;

pub use arm64::{Arm64Contract, KVM_AARCH64};
pub use x86::{FeatureMsr, KVM_X86_64, X86Contract};

use minicbor::Decode;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};

/// What the field `format` of a contract says.
pub const CONTRACT_FORMAT: &str = "ferry.contract";

/// The longest wire form of a contract, in bytes.
pub const MAX_CONTRACT_BYTES: usize = 48 * 1024;

/// Everything that a guest may see of its processors and its hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Contract {
    /// Of a guest on x86-64.
    X86(Box<X86Contract>),
    /// Of a guest on arm64.
    Arm64(Box<Arm64Contract>),
}

/// Bytes that are no contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContractError {
    /// Longer than [`MAX_CONTRACT_BYTES`].
    #[error("the contract has {bytes} bytes, more than {MAX_CONTRACT_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// No contract, or one with something that this build does not know.
    #[error("the contract cannot be read; was it made by a newer version?")]
    Encoding,
    /// It contradicts itself or is out of bounds.
    #[error("the contract makes no sense: {0}")]
    Sense(#[from] JsonError),
}

/// As much of the wire form as says for which kind of machine it is.
#[derive(Decode)]
#[cbor(map)]
struct WireHead {
    #[n(1)]
    kind: String,
}

/// The same of a file.
#[derive(Deserialize)]
struct Head {
    kind: String,
    /// The rest; so that only an object is one.
    #[serde(flatten)]
    _rest: IgnoredAny,
}

impl Contract {
    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing to a Vec cannot fail.
        let _infallible = match self {
            Self::X86(contract) => minicbor::encode(contract, &mut bytes),
            Self::Arm64(contract) => minicbor::encode(contract, &mut bytes),
        };
        bytes
    }

    /// Reads the wire form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ContractError> {
        if bytes.len() > MAX_CONTRACT_BYTES {
            return Err(ContractError::TooLong { bytes: bytes.len() });
        }
        let unread = |_| ContractError::Encoding;
        let WireHead { kind } = minicbor::decode(bytes).map_err(unread)?;
        let contract = match kind.as_str() {
            KVM_AARCH64 => Self::Arm64(minicbor::decode(bytes).map_err(unread)?),
            // Whatever else it says, `check` tells.
            _ => Self::X86(minicbor::decode(bytes).map_err(unread)?),
        };
        if contract.to_bytes() != bytes {
            return Err(ContractError::Encoding);
        }
        contract.check()?;
        Ok(contract)
    }

    /// Reads a file.
    pub fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        let Head { kind, .. } = json::read(bytes)?;
        let contract = match kind.as_str() {
            KVM_AARCH64 => Self::Arm64(json::read(bytes)?),
            _ => Self::X86(json::read(bytes)?),
        };
        contract.check()?;
        Ok(contract)
    }

    /// The one form as a file.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Whether it contradicts itself.
    pub fn check(&self) -> Result<(), JsonError> {
        match self {
            Self::X86(contract) => contract.check(),
            Self::Arm64(contract) => contract.check(),
        }
    }

    /// The kind of machine: [`KVM_X86_64`] or [`KVM_AARCH64`].
    pub fn kind(&self) -> &str {
        match self {
            Self::X86(contract) => &contract.kind,
            Self::Arm64(contract) => &contract.kind,
        }
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> u32 {
        match self {
            Self::X86(contract) => contract.vcpus,
            Self::Arm64(contract) => contract.vcpus,
        }
    }
}

impl From<X86Contract> for Contract {
    fn from(contract: X86Contract) -> Self {
        Self::X86(Box::new(contract))
    }
}

impl From<Arm64Contract> for Contract {
    fn from(contract: Arm64Contract) -> Self {
        Self::Arm64(Box::new(contract))
    }
}

/// Checks what every contract has.
fn check_head(format: &str, (kind, known): (&str, &str), (vcpus, most): (u32, u32)) -> Result<(), JsonError> {
    if format != CONTRACT_FORMAT {
        return Err(JsonError::sense("$.format", format!("not `{CONTRACT_FORMAT}`: this is no contract")));
    }
    if kind != known {
        let what = format!("neither `{KVM_X86_64}` nor `{KVM_AARCH64}`: this build knows no other");
        return Err(JsonError::sense("$.kind", what));
    }
    if vcpus == 0 || vcpus > most {
        return Err(JsonError::sense("$.vcpus", format!("not within 1 to {most}")));
    }
    Ok(())
}
