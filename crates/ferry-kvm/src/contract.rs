//! A guest's contract and this host: the judgement of an offered one, and what can go wrong when it is applied.

use ferry_contract::{Contract, Finding, FindingKind, Layer, Profile, compare};
use vmm_sys_util::errno;

use crate::KIND;

/// A vCPU did not become what its contract says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContractApplyError {
    /// KVM refused a setting.
    #[error("{ioctl}: this host's KVM refuses {what} of the guest's contract")]
    Refused {
        /// The ioctl's name.
        ioctl: &'static str,
        /// What it was to set, or to read back.
        what: String,
        /// KVM's error.
        #[source]
        source: errno::Error,
    },
    /// KVM took a setting and reads back another.
    #[error("this host's KVM took {subject} of the guest's contract as {set} and reads {reads}")]
    NotKept {
        /// The register.
        subject: String,
        /// What it was set to.
        set: String,
        /// What it is.
        reads: String,
    },
    /// The contract or the profile is of another architecture.
    #[error("the contract is for a machine of kind `{kind}`, and this host makes machines of kind `{KIND}`")]
    Kind {
        /// The contract's.
        kind: String,
    },
}

impl ContractApplyError {
    /// The same as a finding: a reason to refuse the guest.
    pub fn to_finding(&self) -> Finding {
        let (subject, guest, target) = match self {
            Self::Refused { what, source, .. } => {
                (what.clone(), "it".to_owned(), format!("refuses it ({source})"))
            }
            Self::NotKept { subject, set, reads } => (subject.clone(), set.clone(), format!("keeps {reads}")),
            Self::Kind { kind } => {
                ("kind of machine".to_owned(), format!("`{kind}`"), format!("makes `{KIND}`"))
            }
        };
        Finding {
            kind: FindingKind::Refusal,
            subject,
            layer: Layer::Kernel,
            guest,
            target,
            effect: "the guest would see something else than its contract says".to_owned(),
            remedy: "choose another target, or start the guest without it".to_owned(),
        }
    }
}

/// Reads an offered contract and holds it against this host: the contract with the notices, or the
/// reasons why it cannot be kept here.
pub fn judge_contract(
    bytes: &[u8],
    vcpus: u32,
    profile: &Profile,
) -> Result<(Contract, Vec<Finding>), Vec<Finding>> {
    let unusable = |guest: String, target: String| {
        vec![Finding {
            kind: FindingKind::Refusal,
            subject: "contract".to_owned(),
            layer: Layer::Vmm,
            guest,
            target,
            effect: "nobody knows what the guest may see".to_owned(),
            remedy: "run the same version of ferry on both hosts".to_owned(),
        }]
    };
    let contract = Contract::from_bytes(bytes)
        .map_err(|error| unusable("one of its own".to_owned(), format!("cannot use it: {error}")))?;
    if contract.vcpus() != vcpus {
        let says = format!("one for {} vCPUs", contract.vcpus());
        return Err(unusable(says, format!("would build {vcpus}")));
    }
    let verdict = compare(&contract, profile);
    if verdict.is_refusal() { Err(verdict.findings) } else { Ok((contract, verdict.findings)) }
}
