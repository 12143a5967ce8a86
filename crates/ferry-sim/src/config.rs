//! What a simulated guest is: its seed, its memory, its workload.
//!
//! [`SimConfig`] travels as the `config` of the machine description, so the target builds the same
//! guest. Its wire form is a CBOR map with numbered fields; a form that this build would not write
//! itself is refused, because a field that it skipped could be one that the guest needs.

use ferry_memory::{Layout, LayoutError, PAGE_SIZE, Span};
use ferry_protocol::{MachineDescription, RegionSpan};
use minicbor::{Decode, Encode};

/// The kind of machine in a machine description.
pub const KIND: &str = "sim";

/// The most memory of a simulated guest, in bytes: 1 TiB.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;

/// The fastest `churn`, in bytes a second: 1 TiB/s, more than any memory can do.
pub const MAX_RATE_BYTES_PER_SECOND: u64 = 1 << 40;

/// The longest wire form of a [`SimConfig`], in bytes; it has five numbers.
pub const MAX_CONFIG_BYTES: usize = 128;

/// What the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(flat)]
pub enum Workload {
    /// Writes a pattern into its pages once, then only beats: a hundred steps a second that write no
    /// memory.
    #[n(0)]
    Idle {
        /// Bytes that hold the pattern, from address 0; a multiple of the page size, not zero.
        #[n(0)]
        patterned_bytes: u64,
    },
    /// Writes its working set again and again, in an order that follows from the seed; each page is
    /// held against what was written there last before it is written again.
    #[n(1)]
    Churn {
        /// Bytes of the working set, from address 0; a multiple of the page size, not zero.
        #[n(0)]
        working_set_bytes: u64,
        /// How fast it writes, in bytes a second; at least a page.
        #[n(1)]
        rate_bytes_per_second: u64,
    },
}

impl Workload {
    /// The workload's name: `idle` or `churn`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Churn { .. } => "churn",
        }
    }

    /// Bytes that the workload writes and checks, from address 0.
    pub fn checked_bytes(&self) -> u64 {
        match *self {
            Self::Idle { patterned_bytes } => patterned_bytes,
            Self::Churn { working_set_bytes, .. } => working_set_bytes,
        }
    }
}

/// A simulated guest: two machines with equal configs that ran equally many steps hold equal memory
/// and registers.
///
/// ```
/// use ferry_sim::{SimConfig, Workload};
///
/// let config = SimConfig {
///     seed: 42,
///     memory_bytes: 64 << 20,
///     workload: Workload::Churn { working_set_bytes: 16 << 20, rate_bytes_per_second: 100 << 20 },
/// };
/// let carried = config.description()?.config;
/// assert_eq!(SimConfig::from_bytes(&carried)?, config);
/// # Ok::<(), ferry_sim::ConfigError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct SimConfig {
    /// Every number in the guest follows from it.
    #[n(0)]
    pub seed: u64,
    /// Bytes of guest memory, one region from address 0; a multiple of the page size.
    #[n(1)]
    pub memory_bytes: u64,
    /// What the guest does.
    #[n(2)]
    pub workload: Workload,
}

/// A config that makes no guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The memory is empty, too large or no multiple of a page.
    #[error("{0} bytes make no guest memory: use a multiple of 4096 from 4096 to {MAX_MEMORY_BYTES}")]
    Memory(u64),
    /// The workload's pages are none, no multiple of a page, or more than the memory.
    #[error(
        "the workload cannot use {checked} bytes: use a multiple of 4096 from 4096 to the memory's {memory}"
    )]
    WorkingSet {
        /// Bytes that the workload would write.
        checked: u64,
        /// Bytes of guest memory.
        memory: u64,
    },
    /// The rate is no rate.
    #[error("{0} bytes a second is no rate: use 4096 to {MAX_RATE_BYTES_PER_SECOND}")]
    Rate(u64),
    /// The memory's region makes no layout.
    #[error("the guest memory makes no layout")]
    Layout(#[from] LayoutError),
    /// The bytes are no config.
    #[error("the carried bytes are no config of a simulated machine")]
    Garbled(#[source] Option<minicbor::decode::Error>),
    /// The bytes decode, but hold more than this build knows.
    #[error("the carried config holds more than this build knows: use the same build on both sides")]
    Unknown,
    /// The machine is of another kind.
    #[error("the machine is of kind `{0}`, not `{KIND}`")]
    Kind(String),
    /// The machine description and the config that it carries do not describe the same machine.
    #[error("the machine's {what} is not what its config says")]
    Disagrees {
        /// What differs.
        what: &'static str,
    },
}

impl SimConfig {
    /// The simulated guest has one vCPU.
    pub const VCPUS: u32 = 1;

    /// Whether it makes a guest.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !is_pages(self.memory_bytes) || self.memory_bytes > MAX_MEMORY_BYTES {
            return Err(ConfigError::Memory(self.memory_bytes));
        }
        let checked = self.workload.checked_bytes();
        if !is_pages(checked) || checked > self.memory_bytes {
            return Err(ConfigError::WorkingSet { checked, memory: self.memory_bytes });
        }
        match self.workload {
            Workload::Churn { rate_bytes_per_second: rate, .. }
                if !(PAGE_SIZE..=MAX_RATE_BYTES_PER_SECOND).contains(&rate) =>
            {
                Err(ConfigError::Rate(rate))
            }
            _ => Ok(()),
        }
    }

    /// Where the guest memory lies: one region from address 0.
    pub fn layout(&self) -> Result<Layout, ConfigError> {
        self.check()?;
        Ok(Layout::new(vec![Span { start: 0, length: self.memory_bytes }])?)
    }

    /// Pages that the workload writes and checks: the first of memory.
    pub fn checked_pages(&self) -> u64 {
        self.workload.checked_bytes() / PAGE_SIZE
    }

    /// What a target must build to take this guest.
    pub fn description(&self) -> Result<MachineDescription, ConfigError> {
        self.check()?;
        Ok(MachineDescription {
            kind: KIND.to_owned(),
            vcpus: Self::VCPUS,
            regions: vec![RegionSpan { start: 0, length: self.memory_bytes }],
            config: self.to_bytes(),
            contract: Vec::new(),
            disks: Vec::new(),
        })
    }

    /// The config of a machine that the other side describes; everything that the description says
    /// twice must agree.
    pub fn from_description(machine: &MachineDescription) -> Result<Self, ConfigError> {
        if machine.kind != KIND {
            return Err(ConfigError::Kind(machine.kind.clone()));
        }
        let config = Self::from_bytes(&machine.config)?;
        let expected = config.description()?;
        if machine.vcpus != expected.vcpus {
            return Err(ConfigError::Disagrees { what: "number of vCPUs" });
        }
        if machine.regions != expected.regions {
            return Err(ConfigError::Disagrees { what: "memory layout" });
        }
        Ok(config)
    }

    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match minicbor::encode(self, &mut bytes) {
            Ok(()) => bytes,
            // The writer is a vector, whose error type has no value.
            Err(_) => Vec::new(),
        }
    }

    /// Reads the wire form, and checks it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::Garbled(None));
        }
        let config: Self = minicbor::decode(bytes).map_err(|error| ConfigError::Garbled(Some(error)))?;
        if config.to_bytes() != bytes {
            return Err(ConfigError::Unknown);
        }
        config.check()?;
        Ok(config)
    }
}

/// Whether so many bytes are one page or more, and whole ones.
fn is_pages(bytes: u64) -> bool {
    bytes != 0 && bytes.is_multiple_of(PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHURN: SimConfig = SimConfig {
        seed: 0x1234_5678_9abc_def0,
        memory_bytes: 64 * PAGE_SIZE,
        workload: Workload::Churn { working_set_bytes: 16 * PAGE_SIZE, rate_bytes_per_second: 1 << 20 },
    };
    const IDLE: SimConfig = SimConfig {
        seed: 1,
        memory_bytes: 64 * PAGE_SIZE,
        workload: Workload::Idle { patterned_bytes: 64 * PAGE_SIZE },
    };

    #[test]
    fn the_wire_form_of_today_is_this() {
        let mut today = vec![0xa3, 0x00, 0x1b, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0];
        today.extend([0x01, 0x1a, 0x00, 0x04, 0x00, 0x00]);
        today.extend([0x02, 0x83, 0x01, 0x1a, 0x00, 0x01, 0x00, 0x00, 0x1a, 0x00, 0x10, 0x00, 0x00]);
        assert_eq!(CHURN.to_bytes(), today);
        assert_eq!(SimConfig::from_bytes(&CHURN.to_bytes()).unwrap(), CHURN);
        assert_eq!(SimConfig::from_bytes(&IDLE.to_bytes()).unwrap(), IDLE);
    }

    #[test]
    fn what_makes_no_guest_is_refused() {
        for memory_bytes in [0, 1, PAGE_SIZE + 1, MAX_MEMORY_BYTES + PAGE_SIZE, u64::MAX] {
            let config = SimConfig { memory_bytes, ..IDLE };
            assert!(matches!(config.check(), Err(ConfigError::Memory(_))), "{memory_bytes}");
        }
        for patterned_bytes in [0, 100, 65 * PAGE_SIZE, u64::MAX] {
            let config = SimConfig { workload: Workload::Idle { patterned_bytes }, ..IDLE };
            assert!(matches!(config.check(), Err(ConfigError::WorkingSet { .. })), "{patterned_bytes}");
        }
        for rate_bytes_per_second in [0, PAGE_SIZE - 1, u64::MAX] {
            let workload = Workload::Churn { working_set_bytes: PAGE_SIZE, rate_bytes_per_second };
            assert!(matches!(SimConfig { workload, ..IDLE }.check(), Err(ConfigError::Rate(_))));
        }
    }

    #[test]
    fn carried_bytes_that_are_no_config_are_refused() {
        let good = CHURN.to_bytes();
        for cut in 0..good.len() {
            assert!(SimConfig::from_bytes(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(matches!(SimConfig::from_bytes(&longer), Err(ConfigError::Unknown)));
        assert!(matches!(SimConfig::from_bytes(&[0; 200]), Err(ConfigError::Garbled(None))));
        // A fourth field that this build does not know.
        let mut newer = good.clone();
        newer[0] = 0xa4;
        newer.extend([0x03, 0x01]);
        assert!(matches!(SimConfig::from_bytes(&newer), Err(ConfigError::Unknown)));
    }

    #[test]
    fn a_description_must_agree_with_its_config() {
        let good = CHURN.description().unwrap();
        assert_eq!(SimConfig::from_description(&good).unwrap(), CHURN);
        let kind = MachineDescription { kind: "kvm-x86_64".into(), ..good.clone() };
        assert!(matches!(SimConfig::from_description(&kind), Err(ConfigError::Kind(_))));
        let vcpus = MachineDescription { vcpus: 2, ..good.clone() };
        assert!(matches!(SimConfig::from_description(&vcpus), Err(ConfigError::Disagrees { .. })));
        for regions in [vec![], vec![RegionSpan { start: 4096, length: CHURN.memory_bytes }]] {
            let moved = MachineDescription { regions, ..good.clone() };
            assert!(matches!(SimConfig::from_description(&moved), Err(ConfigError::Disagrees { .. })));
        }
    }
}
