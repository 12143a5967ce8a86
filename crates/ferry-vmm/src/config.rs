//! What a guest is asked to be: its memory, its vCPUs, its payload.
//!
//! [`GuestConfig::validate`] says in one sentence what cannot be. On KVM the configuration crosses
//! as the `config` of the machine description: a CBOR map with numbered fields. A form that this
//! build would not write itself is refused, for what it skipped could be what the guest needs.

use ferry_memory::PAGE_SIZE;
use ferry_protocol::RegionSpan;
use minicbor::{Decode, Encode};

use crate::boot::{self, WORKING_SET_START};
use crate::payload::{self, Parameters};

/// The least memory of a guest, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 4 << 20;

/// The most bytes that `idle` fills with its pattern.
const IDLE_WORKING_SET_BYTES: u64 = 16 << 20;

/// The fastest `churn`, in bytes a second.
pub const MAX_RATE_BYTES_PER_SECOND: u64 = 64 << 30;

/// The longest wire form of a configuration, in bytes.
const MAX_ENCODED_BYTES: usize = 64;

/// What a guest is asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct GuestConfig {
    /// Bytes of memory, a multiple of the page size.
    #[n(0)]
    pub memory_bytes: u64,
    /// Number of vCPUs; so far 1.
    #[n(1)]
    pub cpus: u32,
    /// What it does.
    #[n(2)]
    pub payload: Payload,
}

/// A built-in payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(flat)]
pub enum Payload {
    /// Fills a small working set with its pattern once, then waits until it is asked to verify it.
    #[n(0)]
    Idle,
    /// Writes its working set again and again at this rate, and verifies each page before it does.
    #[n(1)]
    Churn {
        /// Bytes written a second; at least a page.
        #[n(0)]
        rate_bytes_per_second: u64,
        /// Bytes of the working set, a multiple of the page size.
        #[n(1)]
        working_set_bytes: u64,
    },
}

/// A configuration that cannot be, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Memory that is no multiple of a page.
    #[error("{bytes} bytes of memory are no multiple of a page: give a multiple of 4096")]
    MemoryNotPages {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Too little memory.
    #[error("{bytes} bytes of memory are too few for a guest: give at least 4M")]
    MemoryTooSmall {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Too much memory.
    #[error("{bytes} bytes of memory are more than this machine can map: give at most {max} bytes")]
    MemoryTooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// The most.
        max: u64,
    },
    /// A number of vCPUs that this build does not run.
    #[error("{cpus} vCPUs are not to be had: this version runs guests with 1 vCPU")]
    Cpus {
        /// vCPUs asked for.
        cpus: u32,
    },
    /// A rate that is no rate.
    #[error("churn cannot write {rate} bytes a second: give a rate from 4K to 64G")]
    Rate {
        /// Bytes a second asked for.
        rate: u64,
    },
    /// A working set that is no multiple of a page, or empty.
    #[error("a working set of {bytes} bytes is no whole number of pages: give a multiple of 4096")]
    WorkingSetNotPages {
        /// Bytes asked for.
        bytes: u64,
    },
    /// A working set that does not fit.
    #[error(
        "a working set of {bytes} bytes does not fit into the guest's memory: give at most {max} bytes, or more memory"
    )]
    WorkingSetTooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// The most.
        max: u64,
    },
    /// Bytes that are no configuration of this build.
    #[error("the guest's configuration cannot be read; was it made by another version or another VMM?")]
    Encoding,
}

impl Payload {
    /// The payload's name: `idle` or `churn`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Churn { .. } => "churn",
        }
    }
}

impl GuestConfig {
    /// The largest working set that `churn` can have in so much memory, in bytes.
    pub fn working_set_bytes_max(memory_bytes: u64) -> u64 {
        memory_bytes.saturating_sub(WORKING_SET_START)
    }

    /// Says what cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bytes = self.memory_bytes;
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(ConfigError::MemoryNotPages { bytes });
        }
        if bytes < MIN_MEMORY_BYTES {
            return Err(ConfigError::MemoryTooSmall { bytes });
        }
        if bytes > boot::MAX_MEMORY_BYTES {
            return Err(ConfigError::MemoryTooLarge { bytes, max: boot::MAX_MEMORY_BYTES });
        }
        if self.cpus != 1 {
            return Err(ConfigError::Cpus { cpus: self.cpus });
        }
        self.validate_payload()
    }

    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAX_ENCODED_BYTES);
        // Writing to a Vec cannot fail.
        let _infallible = minicbor::encode(self, &mut bytes);
        bytes
    }

    /// Reads the wire form and validates it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX_ENCODED_BYTES {
            return Err(ConfigError::Encoding);
        }
        let config: Self = minicbor::decode(bytes).map_err(|_| ConfigError::Encoding)?;
        if config.to_bytes() != bytes {
            return Err(ConfigError::Encoding);
        }
        config.validate()?;
        Ok(config)
    }

    /// Bytes that the payload writes and verifies.
    pub fn working_set_bytes(&self) -> u64 {
        match self.payload {
            Payload::Idle => IDLE_WORKING_SET_BYTES.min(self.memory_bytes / 2 / PAGE_SIZE * PAGE_SIZE),
            Payload::Churn { working_set_bytes, .. } => working_set_bytes,
        }
    }

    /// Where page `page` of the working set lies in guest-physical memory.
    pub fn working_set_address(&self, page: u64) -> u64 {
        boot::physical(WORKING_SET_START + page * PAGE_SIZE)
    }

    /// Where memory lies on KVM.
    pub(crate) fn regions(&self) -> Vec<RegionSpan> {
        ferry_kvm::x86_layout(self.memory_bytes)
    }

    /// What the program is told on KVM.
    pub(crate) fn parameters(&self, seed: u64) -> Parameters {
        let (burst_pages, wait_us) = match self.payload {
            Payload::Idle => (0, 0),
            Payload::Churn { rate_bytes_per_second, .. } => payload::burst(rate_bytes_per_second),
        };
        let pages = self.working_set_bytes() / PAGE_SIZE;
        Parameters { working_set: WORKING_SET_START, pages, burst_pages, wait_us, seed }
    }

    fn validate_payload(&self) -> Result<(), ConfigError> {
        let Payload::Churn { rate_bytes_per_second: rate, working_set_bytes: bytes } = self.payload else {
            return Ok(());
        };
        if !(PAGE_SIZE..=MAX_RATE_BYTES_PER_SECOND).contains(&rate) {
            return Err(ConfigError::Rate { rate });
        }
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(ConfigError::WorkingSetNotPages { bytes });
        }
        let max = Self::working_set_bytes_max(self.memory_bytes);
        if bytes > max {
            return Err(ConfigError::WorkingSetTooLarge { bytes, max });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn churn(memory_bytes: u64, rate: u64, working_set_bytes: u64) -> GuestConfig {
        let payload = Payload::Churn { rate_bytes_per_second: rate, working_set_bytes };
        GuestConfig { memory_bytes, cpus: 1, payload }
    }

    #[test]
    fn each_impossible_wish_has_its_sentence() {
        let idle = |memory_bytes, cpus| GuestConfig { memory_bytes, cpus, payload: Payload::Idle };
        for (config, start) in [
            (idle(4097, 1), "4097 bytes of memory are no multiple"),
            (idle(4096, 1), "4096 bytes of memory are too few"),
            (idle(1 << 50, 1), "1125899906842624 bytes of memory are more"),
            (idle(8 << 20, 2), "2 vCPUs are not to be had"),
            (idle(8 << 20, 0), "0 vCPUs"),
            (churn(8 << 20, 1, 4096), "churn cannot write 1 bytes"),
            (churn(8 << 20, u64::MAX, 4096), "churn cannot write"),
            (churn(8 << 20, 4096, 0), "a working set of 0 bytes"),
            (churn(8 << 20, 4096, 5000), "a working set of 5000 bytes"),
            (churn(8 << 20, 4096, 8 << 20), "a working set of 8388608 bytes does not fit"),
        ] {
            let text = config.validate().unwrap_err().to_string();
            assert!(text.starts_with(start), "{text}");
        }
        churn(8 << 20, 4096, 6 << 20).validate().unwrap();
        idle(4 << 20, 1).validate().unwrap();
    }

    #[test]
    fn the_wire_form_returns_and_nothing_else_is_taken() {
        for config in
            [churn(8 << 20, 4096, 4096), GuestConfig { payload: Payload::Idle, ..churn(8 << 20, 1, 1) }]
        {
            let bytes = config.to_bytes();
            assert!(bytes.len() <= MAX_ENCODED_BYTES);
            assert_eq!(GuestConfig::from_bytes(&bytes), Ok(config));
            for cut in 0..bytes.len() {
                assert!(GuestConfig::from_bytes(&bytes[..cut]).is_err());
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert_eq!(GuestConfig::from_bytes(&longer), Err(ConfigError::Encoding));
        }
        assert_eq!(GuestConfig::from_bytes(&[0x9f; 65]), Err(ConfigError::Encoding));
    }

    #[test]
    fn idle_fills_at_most_half_of_memory() {
        let idle = |memory_bytes| GuestConfig { memory_bytes, cpus: 1, payload: Payload::Idle };
        assert_eq!(idle(512 << 20).working_set_bytes(), 16 << 20);
        assert_eq!(idle(4 << 20).working_set_bytes(), 2 << 20);
        assert_eq!(idle((4 << 20) + 4096).working_set_bytes(), 2 << 20);
    }
}
