//! What can go wrong with a guest, in sentences.

use std::time::Duration;

use ferry_kvm::{KickError, MemoryError, OpenError};
use ferry_memory::RamError;
use ferry_migrate::MachineError;

use crate::{ConfigError, ImageError};

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
    /// KVM runs fewer vCPUs.
    #[error("{cpus} vCPUs are more than this host's KVM runs: give at most {max}")]
    TooManyVcpus {
        /// vCPUs asked for.
        cpus: u32,
        /// The most.
        max: u64,
    },
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
    /// The guest has ended, so it cannot answer.
    #[error("the guest has ended: {reason}")]
    Ended {
        /// Why.
        reason: String,
    },
}
