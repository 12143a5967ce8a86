//! What can go wrong between a state and KVM, and what is worth a notice.

use std::fmt;

use ferry_contract::arm64::{RegisterId, RegisterIdError, RegisterValue};
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
    /// A register that tells a guest what it has was changed on the source after its vCPU was made, and is not so
    /// here.
    #[error(
        "the state has {value} in {register} of vCPU {index}, and the vCPU made here has {}: it was made under another contract",
        has.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
    )]
    NotGiven {
        /// The vCPU's index.
        index: u32,
        /// The register.
        register: RegisterId,
        /// What the guest has in it.
        value: RegisterValue,
        /// What is in it here; none if KVM has no such register.
        has: Option<RegisterValue>,
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
    /// KVM took no write of the virtual counter.
    #[error(
        "KVM_SET_ONE_REG: the virtual counter reads {reads:#x} after {value:#x} was written: KVM passes over the write where the VMM has set an offset for the whole VM (KVM_ARM_SET_COUNTER_OFFSET)"
    )]
    CounterNotKept {
        /// What the guest has in it.
        value: u64,
        /// What is in it here.
        reads: u64,
    },
    /// KVM lists a register with an id that this build cannot take apart: no state could hold it.
    #[error(
        "KVM_GET_REG_LIST: vCPU {index} has a register that this build does not know; take a newer build"
    )]
    UnknownRegister {
        /// The vCPU's index.
        index: u32,
        /// What is unknown of its id.
        #[source]
        source: RegisterIdError,
    },
    /// The guest has memory tags, which no part of a state and no page holds.
    #[error(
        "ID_AA64PFR1_EL1 gives vCPU {index} memory tags (MTE), which do not travel: make the VM without KVM_CAP_ARM_MTE"
    )]
    MemoryTags {
        /// The vCPU's index.
        index: u32,
    },
    /// The guest's interrupt controller is in the kernel, and the machine here has none there.
    #[error("the state has {section}, index {index}, and this VM has no GICv3 in the kernel: the VMs differ")]
    NoGic {
        /// The section.
        section: String,
        /// Its index.
        index: u32,
    },
    /// The guest has an interrupt translation service that is not here.
    #[error("the state has {section}, index {index}, and this VM has {here} ITSs: the VMs differ")]
    NoIts {
        /// The section.
        section: String,
        /// Its index.
        index: u32,
        /// How many there are here.
        here: usize,
    },
    /// An interrupt translation service has tables that cannot be written into guest memory.
    #[error(
        "KVM_DEV_ARM_ITS_SAVE_TABLES: KVM cannot write the tables of ITS {index} into the guest's memory; with EACCES it has given interrupts to the host's own GICv4, which keeps them"
    )]
    ItsTablesUnwritten {
        /// Which.
        index: u32,
        /// KVM's error.
        #[source]
        source: errno::Error,
    },
    /// What is in guest memory are no tables of an interrupt translation service.
    #[error(
        "KVM_DEV_ARM_ITS_RESTORE_TABLES: KVM cannot read the tables of ITS {index} from the guest's memory: they are not what belongs to its registers"
    )]
    ItsTablesUnread {
        /// Which.
        index: u32,
        /// KVM's error.
        #[source]
        source: errno::Error,
    },
    /// KVM took a value of an interrupt translation service's that the guest needs, and did not keep it.
    #[error(
        "KVM_SET_DEVICE_ATTR: this host's KVM took {value:#x} in register {offset:#x} of ITS {index}, and reads {reads:#x}"
    )]
    ItsNotKept {
        /// Which.
        index: u32,
        /// The register's place.
        offset: u32,
        /// What the guest has in it.
        value: u64,
        /// What is in it here.
        reads: u64,
    },
    /// KVM took a value of the interrupt controller's that the guest needs, and did not keep it.
    #[error(
        "KVM_SET_DEVICE_ATTR: this host's KVM took {value:#x} in {section} {number:#x}, index {index}, and reads {reads:#x}; choose a host whose KVM keeps it"
    )]
    GicNotKept {
        /// The section.
        section: String,
        /// Its index.
        index: u32,
        /// Which register of it.
        number: u32,
        /// What the guest has in it.
        value: u64,
        /// What is in it here.
        reads: u64,
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

/// Something that was captured or restored otherwise than it was, and that the guest can go on with.
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
    /// The source's KVM gives nobody the guest's physical timer (`CNTP_CTL_EL0`, `CNTP_CVAL_EL0`): it is of before 6.4.
    PhysicalTimerLeft,
    /// The interrupt controller is of a later revision here, which has more and does the same with what there was:
    /// kernels before April 2026 take any write of `GICD_IIDR` and keep their own.
    GicRevision {
        /// `GICD_IIDR` as the guest had it.
        value: u64,
        /// As it reads here.
        reads: u64,
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
            Self::PhysicalTimerLeft => f.write_str(
                "the guest's physical timer (CNTP_*) stays behind, because KVM before 6.4 gives it to nobody: a guest that uses it in place of the virtual one loses what it set",
            ),
            Self::GicRevision { value, reads } => write!(
                f,
                "GICD_IIDR reads {reads:#x} here, and the guest had {value:#x}: this host's KVM keeps its own revision of the GIC, which is later"
            ),
        }
    }
}
