//! What can go wrong between a state and KVM, and what is worth a notice.

use std::fmt;

use ferry_contract::arm64::{RegisterId, RegisterValue};
use ferry_state::StateError;
use vmm_sys_util::errno;

/// State could not be read from KVM or put into it. After an error of a restore the VM holds half a state
/// and must be discarded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateIoError {
    /// An ioctl failed.
    #[error("{ioctl} failed for {what} of vCPU {index}")]
    Ioctl {
        /// The ioctl's name.
        ioctl: &'static str,
        /// What it reads or sets.
        what: String,
        /// The vCPU's index; 0 for what a VM has once.
        index: u32,
        /// KVM's error.
        #[source]
        source: errno::Error,
    },
    /// KVM refused a register's value that the guest needs.
    #[error(
        "KVM_SET_ONE_REG: this host's KVM refuses {value} in {register}, which vCPU {index} of the guest needs; choose a host whose KVM takes it"
    )]
    RegisterRefused {
        /// The vCPU's index.
        index: u32,
        /// The register.
        register: RegisterId,
        /// What the guest has in it.
        value: RegisterValue,
        /// KVM's error: `ENOENT` if it has no such register.
        #[source]
        source: errno::Error,
    },
    /// KVM took a register's value that the guest needs, and did not keep it.
    #[error(
        "KVM_SET_ONE_REG: this host's KVM took {value} in {register}, which vCPU {index} of the guest needs, and reads {reads}; choose a host whose KVM keeps it"
    )]
    RegisterNotKept {
        /// The vCPU's index.
        index: u32,
        /// The register.
        register: RegisterId,
        /// What the guest has in it.
        value: RegisterValue,
        /// What is in it here.
        reads: RegisterValue,
    },
    /// The guest's counter counts at a frequency that this host does not have.
    #[error(
        "the guest's counter counts at {guest_hz} Hz, this host's at {host_hz} Hz, and no KVM changes that; choose a host of the guest's frequency"
    )]
    CounterFrequency {
        /// What the guest has.
        guest_hz: u64,
        /// What this host has.
        host_hz: u64,
    },
    /// The guest's interrupt controller is in the kernel, and the machine here has none there.
    #[error("the state has {section}, index {index}, and this VM has no GICv3 in the kernel: the VMs differ")]
    NoGic {
        /// The section.
        section: String,
        /// Its index.
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
    /// A section is not what it must be.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Something that was restored otherwise than it was captured, and that the guest can go on with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Notice {
    /// KVM has no such register or refused its value, which is the one that the source's KVM gives a new vCPU.
    RegisterSkipped {
        /// The vCPU's index.
        index: u32,
        /// The register.
        register: RegisterId,
        /// The value that was refused.
        value: RegisterValue,
    },
    /// KVM refused a value of the interrupt controller's that is not needed.
    GicSkipped {
        /// The vCPU's index; 0 for the distributor.
        index: u32,
        /// Which.
        what: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterSkipped { index, register, value } => {
                write!(f, "{register} of vCPU {index} was left as this host made it: it refuses {value}")
            }
            Self::GicSkipped { index, what } => {
                write!(f, "{what} of vCPU {index} was left as this host made it")
            }
        }
    }
}
