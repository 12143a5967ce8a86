//! Why a host could not be probed.

use std::io;
use std::path::PathBuf;

use ferry_contract::JsonError;
use ferry_contract::arm64::RegisterIdError;
use ferry_memory::{LayoutError, RamError};
use vmm_sys_util::errno;

#[cfg(target_arch = "x86_64")]
use crate::x86::StateIoError;
use crate::{KickError, MemoryError};

/// A host's profile could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// An ioctl failed.
    #[error("this host cannot be probed: {ioctl} failed, which gives {fact}")]
    Ioctl {
        /// The ioctl's name.
        ioctl: &'static str,
        /// What it is for.
        fact: &'static str,
        /// KVM's error.
        #[source]
        source: errno::Error,
    },
    /// A VM could not be prepared.
    #[cfg(target_arch = "x86_64")]
    #[error("this host cannot be probed: its VM cannot be prepared")]
    Prepare(#[from] StateIoError),
    /// KVM lists a register whose id this build cannot take apart.
    #[error("this host cannot be probed: KVM lists what is no register")]
    Register(#[source] RegisterIdError),
    /// The host's own files could not be read.
    #[error("this host cannot be probed: {} cannot be read", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The probe guest's memory could not be had.
    #[error("the probe guest's memory cannot be had")]
    Memory(#[from] MemoryError),
    /// The probe guest's memory cannot be used.
    #[error("the probe guest's memory cannot be used")]
    Layout(#[from] LayoutError),
    /// The probe guest's memory could not be read or written.
    #[error("the probe guest's memory cannot be reached")]
    Ram(#[from] RamError),
    /// The probe guest could not be made interruptible.
    #[error("the probe guest cannot be watched")]
    Kick(#[from] KickError),
    /// The probe guest did something else than it should.
    #[error("the probe guest did not come to its end: {exit}; report this with the host's kernel version")]
    Guest {
        /// The exit that it made instead.
        exit: String,
    },
    /// What was probed contradicts itself.
    #[error("what KVM says of itself makes no sense")]
    Sense(#[source] JsonError),
}

/// Turns KVM's error into one that says which ioctl failed and what for.
pub(super) fn failed(ioctl: &'static str, fact: &'static str) -> impl Fn(errno::Error) -> ProbeError {
    move |source| ProbeError::Ioctl { ioctl, fact, source }
}
