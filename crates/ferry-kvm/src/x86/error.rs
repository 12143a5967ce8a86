//! What can go wrong between a state and KVM, and what is worth a notice.

use std::fmt;

use ferry_state::StateError;
use ferry_state::x86::VcpuEvents;
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
    /// KVM took an MSR that the guest needs, and did not keep it.
    #[error(
        "KVM_SET_MSRS: this host's KVM took value {value:#x} of MSR {msr:#x}, which vCPU {index} of the guest needs, and reads {reads:#x}; choose a host whose KVM has this MSR"
    )]
    MsrNotKept {
        /// The vCPU's index.
        index: u32,
        /// The MSR.
        msr: u32,
        /// The value that the guest has in it.
        value: u64,
        /// The value that is in it here.
        reads: u64,
    },
    /// KVM took a vCPU's events, and did not keep them all.
    #[error(
        "KVM_SET_VCPU_EVENTS: this host's KVM did not keep all events of vCPU {index}: of {sent:?} it keeps {kept:?}"
    )]
    EventsNotKept {
        /// The vCPU's index.
        index: u32,
        /// What the guest has.
        sent: Box<VcpuEvents>,
        /// What is there here.
        kept: Box<VcpuEvents>,
    },
    /// KVM took a nested state apart and could not enter the nested guest.
    #[error(
        "KVM_SET_NESTED_STATE: this host's KVM cannot enter the nested guest of vCPU {index} (its reason {code}); choose a host whose KVM has the same nested features"
    )]
    NestedEntry {
        /// The vCPU's index.
        index: u32,
        /// What the ioctl returned, a positive number of KVM's own.
        code: i32,
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

/// Something that was restored otherwise than it was captured, and that the guest can go on with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Notice {
    /// KVM refused an MSR that is not needed: the guest has in it what the source's KVM gives a new
    /// vCPU. It stays as this host made it.
    MsrSkipped {
        /// The vCPU's index.
        index: u32,
        /// The MSR.
        msr: u32,
        /// The value that was refused.
        value: u64,
    },
    /// KVM refused a section in which nothing is needed. It stays as this host made it.
    SectionSkipped {
        /// The section's name.
        section: &'static str,
        /// Its index.
        index: u32,
    },
    /// KVM took the TSC and counts from another value: it lets guests see the host's own, as `kvm_pvm`
    /// does.
    TscNotKept {
        /// The vCPU's index.
        index: u32,
        /// The value that the guest had.
        value: u64,
        /// The value that it has here.
        reads: u64,
    },
    /// KVM took the offset of a vCPU's TSC and dropped it, as `kvm_pvm` does.
    TscOffsetNotKept {
        /// The vCPU's index.
        index: u32,
        /// How far the guest's TSC was from vCPU 0's, modulo 2^64.
        wanted: u64,
        /// How far it is here.
        kept: u64,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MsrSkipped { index, msr, value } => {
                write!(f, "MSR {msr:#x} of vCPU {index} was left as this host made it: it refuses {value:#x}")
            }
            Self::SectionSkipped { section, index } => {
                write!(f, "section {section}, index {index} was left as this host made it")
            }
            Self::TscOffsetNotKept { index, wanted, kept } => {
                let (wanted, kept) = (wanted.cast_signed(), kept.cast_signed());
                write!(f, "the TSC of vCPU {index} is {kept} from vCPU 0's instead of {wanted}")
            }
            Self::TscNotKept { index, value, reads } => {
                write!(f, "the TSC of vCPU {index} leaps from {value} to {reads}: this host's KVM sets none")
            }
        }
    }
}
