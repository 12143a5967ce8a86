//! What can go wrong between a state and KVM, and what was left out without harm.

use std::fmt;

use ferry_state::StateError;
use vmm_sys_util::errno;

/// State could not be read from KVM or put into it.
///
/// After an error of [`restore_vcpu`](super::restore_vcpu) or [`restore_vm`](super::restore_vm) the
/// VM holds half a state and must be discarded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateIoError {
    /// An ioctl failed.
    #[error("{ioctl} failed for section {section}, index {index}: {fact}")]
    Ioctl {
        /// The ioctl's name.
        ioctl: &'static str,
        /// The section that it reads or applies.
        section: &'static str,
        /// The section's index.
        index: u32,
        /// What KVM was asked, or what it asks for: what a person must know to help.
        fact: String,
        /// KVM's error.
        #[source]
        source: errno::Error,
    },
    /// A VM could not be asked or prepared.
    #[error("{ioctl} failed: {fact}")]
    Prepare {
        /// The ioctl's name.
        ioctl: &'static str,
        /// What for.
        fact: &'static str,
        /// KVM's error.
        #[source]
        source: errno::Error,
    },
    /// An MSR that could be read when the vCPU was created cannot be read now.
    #[error("KVM_GET_MSRS: vCPU {index} has no readable MSR {msr:#x} any more")]
    MsrUnreadable {
        /// The vCPU's index.
        index: u32,
        /// The MSR.
        msr: u32,
    },
    /// KVM refused an MSR that the guest needs.
    #[error(
        "KVM_SET_MSRS: this host's KVM refuses value {value:#x} of MSR {msr:#x}, which vCPU {index} of the guest needs; choose a host whose KVM has this MSR and value"
    )]
    MsrRefused {
        /// The vCPU's index.
        index: u32,
        /// The MSR.
        msr: u32,
        /// The value that the guest has in it.
        value: u64,
    },
    /// The guest's TSC frequency cannot be had here.
    #[error(
        "KVM_SET_TSC_KHZ: vCPU {index} counts at {guest_khz} kHz, this host at {host_khz} kHz and cannot scale; choose a host of the guest's frequency or with TSC scaling"
    )]
    TscFrequency {
        /// The vCPU's index.
        index: u32,
        /// What the guest has.
        guest_khz: u32,
        /// What a vCPU has here.
        host_khz: u32,
        /// KVM's error.
        #[source]
        source: errno::Error,
    },
    /// The XSAVE area holds more than this host's KVM takes.
    #[error(
        "the XSAVE area of vCPU {index} has {length} bytes in use, this host's KVM takes {room}; choose a host with the same extended state components"
    )]
    XsaveTooLong {
        /// The vCPU's index.
        index: u32,
        /// The length up to the last byte that is not zero.
        length: usize,
        /// The room here.
        room: usize,
    },
    /// The guest needs something that this host's KVM has no interface for.
    #[error("this host's KVM lacks {capability}, which section {section}, index {index} needs")]
    Lacking {
        /// The capability's name.
        capability: &'static str,
        /// The section.
        section: &'static str,
        /// The section's index.
        index: u32,
    },
    /// One side has an in-kernel interrupt controller and the other has none.
    #[error("the VM has {section}, index {index} in the kernel, the state has none: the VMs differ")]
    NotInState {
        /// The section that the state lacks.
        section: &'static str,
        /// The section's index.
        index: u32,
    },
    /// A section of a vCPU that the VM does not have.
    #[error("the state has section {section}, index {index}, of a VM with {vcpus} vCPUs")]
    NoSuchVcpu {
        /// The section.
        section: String,
        /// Its index.
        index: u32,
        /// How many vCPUs there are.
        vcpus: u32,
    },
    /// The events of a vCPU changed while it was captured.
    #[error("vCPU {index} did not stand still while it was captured; stop all vCPUs and devices first")]
    Moving {
        /// The vCPU's index.
        index: u32,
    },
    /// A section is not what it must be.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Something of a state that this host's KVM refused and the guest does not need: its value is what
/// the source's KVM gives a new vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Skipped {
    /// One MSR.
    Msr {
        /// The vCPU's index.
        index: u32,
        /// The MSR.
        msr: u32,
        /// The value that was refused.
        value: u64,
    },
    /// A whole section.
    Section {
        /// The section's name.
        section: &'static str,
        /// Its index.
        index: u32,
    },
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Msr { index, msr, value } => {
                write!(f, "MSR {msr:#x} of vCPU {index} was left as this host made it: it refuses {value:#x}")
            }
            Self::Section { section, index } => {
                write!(f, "section {section}, index {index} was left as this host made it")
            }
        }
    }
}
