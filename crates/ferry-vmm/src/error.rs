//! What can go wrong with a guest, in sentences.

use std::time::Duration;

use ferry_contract::{BirthError, Finding, FindingKind, Layer};
use ferry_kvm::ContractApplyError;
use ferry_kvm::probe::ProbeError;
use ferry_kvm::{DirtyRingError, KickError, MemoryError, OpenError};
use ferry_memory::RamError;
use ferry_migrate::MachineError;

use crate::{ConfigError, ImageError, LinuxError};

/// A guest could not be made, asked or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// KVM cannot be used here.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The configuration asks for something that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Guest memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host has less memory than the guest is to have.
    #[error(
        "the guest is to have {bytes} bytes of memory, the host has {available} available: ask for less or free some"
    )]
    MemoryUnavailable {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that the host has available.
        available: u64,
    },
    /// KVM refused a step of making the VM.
    #[error("KVM cannot {step}: {source}")]
    Kvm {
        /// What was to be done.
        step: &'static str,
        /// What KVM said.
        source: vmm_sys_util::errno::Error,
    },
    /// This host could not be probed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The guest cannot be born with the contract that it was asked to have.
    #[error(transparent)]
    Birth(#[from] BirthError),
    /// KVM did not keep what the contract says.
    #[error(transparent)]
    Contract(#[from] ContractApplyError),
    /// The contract asks for a machine that this VMM does not make.
    #[error("the guest cannot have {asked}: {reason}")]
    NotMade {
        /// What it asks for.
        asked: String,
        /// Why there is none.
        reason: &'static str,
    },
    /// The dirty ring that was asked for cannot be had.
    #[error("the guest cannot have a dirty ring: {0}")]
    DirtyRing(#[from] DirtyRingError),
    /// A dirty ring was asked for in the simulated machine.
    #[error("the simulated machine has no dirty ring: leave `--dirty ring` out, or choose a host with KVM")]
    NoDirtyRing,
    /// A contract was given for a guest in the simulated machine.
    #[error("the simulated machine shows a guest no processor: a contract needs KVM (`--backend kvm`)")]
    NoContract,
    /// A kernel or devices were asked for in the simulated machine.
    #[error("the simulated machine has no processor and no devices: a kernel needs KVM (`--backend kvm`)")]
    NoBoard,
    /// Huge pages were asked for in the simulated machine.
    #[error("the simulated machine has its memory in ordinary pages: huge pages need KVM (`--backend kvm`)")]
    NoHugePages,
    /// A vCPU's thread could not be made interruptible.
    #[error(transparent)]
    Kick(#[from] KickError),
    /// The host gave no thread.
    #[error("no thread for a vCPU: {0}")]
    Thread(std::io::Error),
    /// The built-in payload did not assemble.
    #[error("the built-in payload does not assemble: {0}")]
    Payload(String),
    /// The simulated machine does not have this payload.
    #[error("the simulated machine has no payload `{payload}`: choose idle or churn, or a host with KVM")]
    NotSimulated {
        /// The payload's name.
        payload: &'static str,
    },
    /// The simulated machine has one vCPU.
    #[error("the simulated machine has 1 vCPU, not {cpus}: ask for 1, or choose a host with KVM")]
    OneSimulated {
        /// vCPUs asked for.
        cpus: u32,
    },
    /// The simulated machine's memory has no hole.
    #[error("the simulated machine has its memory in one piece: choose a host with KVM")]
    NotSplit,
    /// KVM runs fewer vCPUs.
    #[error("{cpus} vCPUs are more than this host's KVM runs: give at most {max}")]
    TooManyVcpus {
        /// vCPUs asked for.
        cpus: u32,
        /// The most.
        max: u64,
    },
    /// A kernel cannot be booted.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// An image is not what it must be.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The configuration has an image as payload and none was given, or the other way round.
    #[error("the payload `{payload}` and the image that was given do not belong together")]
    ImageMismatch {
        /// The payload's name.
        payload: &'static str,
    },
    /// The payload does not fit into guest memory.
    #[error("the built-in payload does not fit into the guest's memory: {source}")]
    Load {
        /// What was out of place.
        source: RamError,
    },
    /// The machine could not be put together.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The guest did not answer a question in time.
    #[error("the guest did not answer within {} ms; is it paused?", timeout.as_millis())]
    NoAnswer {
        /// How long it was given.
        timeout: Duration,
    },
    /// A guest with a kernel was asked to verify itself.
    #[error("a guest with a kernel does not verify itself, as payloads do: look at it from inside")]
    NoVerifying,
    /// The guest has ended, so it cannot answer.
    #[error("the guest has ended: {reason}")]
    Ended {
        /// Why.
        reason: String,
    },
}

impl VmmError {
    /// The findings behind it: why a guest cannot be born here.
    pub fn findings(&self) -> Vec<Finding> {
        match self {
            Self::Birth(error) => error.findings().to_vec(),
            Self::Contract(error) => vec![error.to_finding()],
            error @ Self::NotMade { .. } => vec![error.to_finding()],
            _ => Vec::new(),
        }
    }

    /// The same as a finding: why an offered guest cannot come here.
    pub(crate) fn to_finding(&self) -> Finding {
        match self {
            Self::Contract(error) => error.to_finding(),
            Self::NotMade { asked, reason } => Finding {
                kind: FindingKind::Refusal,
                subject: "machine of the contract".to_owned(),
                layer: Layer::Vmm,
                guest: asked.clone(),
                target: format!("makes none: {reason}"),
                effect: "the guest would not have the machine that it counts on".to_owned(),
                remedy: "start the guest with a contract without it".to_owned(),
            },
            error => Finding {
                kind: FindingKind::Refusal,
                subject: "KVM".to_owned(),
                layer: Layer::Kernel,
                guest: "a VM with its vCPUs".to_owned(),
                target: format!("cannot make them: {error}"),
                effect: "nothing would run".to_owned(),
                remedy: "look at the target's kernel log, or choose another target".to_owned(),
            },
        }
    }
}
