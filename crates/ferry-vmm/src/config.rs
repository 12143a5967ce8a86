//! What a guest is asked to be: its memory, its vCPUs, its payload.
//!
//! [`GuestConfig::validate`] says in one sentence what cannot be. On KVM the configuration crosses as part of
//! [`MachineConfig`](crate::MachineConfig).

use std::ops::Range;

use ferry_memory::PAGE_SIZE;
use ferry_protocol::RegionSpan;
use minicbor::{Decode, Encode};

use crate::board::BoardError;
use crate::boot::{self, WORKING_SET_START};
use crate::payload::{self, Parameters};

/// The least memory of a guest, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 4 << 20;

/// The most vCPUs of a guest: as many as the boot has room for, and no more than have an APIC id of
/// eight bits.
pub const MAX_CPUS: u32 = boot::CPU_AREAS_MAX;

/// The most bytes that `idle` fills with its pattern.
const IDLE_WORKING_SET_BYTES: u64 = 16 << 20;

/// The fastest `churn`, in bytes a second.
pub const MAX_RATE_BYTES_PER_SECOND: u64 = 64 << 30;

/// An odd number that sets the seeds of vCPUs apart.
const SEED_STEP: u64 = 0xd6e8_feb8_6659_fd93;

/// What a guest is asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestConfig {
    /// Bytes of memory, a multiple of the page size.
    pub memory_bytes: u64,
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// What it does.
    pub payload: Payload,
    /// Bytes of memory below the hole under 4 GiB, a multiple of 2 MiB; by default as much as fits. For
    /// tests of guests whose memory lies in more than one place.
    pub low_bytes: Option<u64>,
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
    /// Looks at the time: it never goes back, nor leaps further than this.
    #[n(2)]
    Clock {
        /// The largest step of time allowed, in milliseconds; at least 1.
        #[n(0)]
        jump_limit_ms: u32,
    },
    /// Asks CPUID for every leaf, and holds the answers against those at birth.
    #[n(3)]
    Features,
    /// Uses one instruction of every feature that CPUID promised at birth.
    #[n(4)]
    Exercise,
    /// Counts interrupts at privilege level 0: the LAPIC's timer, the PIT, IPIs.
    #[n(5)]
    Ticks,
    /// A program from a file.
    #[n(6)]
    Image {
        /// Where it begins.
        #[n(0)]
        level: Level,
    },
    /// Reads, at privilege level 0, the MSRs of what CPUID promised at birth, and holds them against those at
    /// birth.
    #[n(7)]
    Msrs,
    /// A Linux kernel: that of its [`Board`](crate::Board).
    #[n(8)]
    Linux,
}

/// The privilege level at which an image begins on x86-64; on arm64 it is EL1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Level {
    /// Level 0, as a kernel; `kvm_pvm` emulates it, slowly.
    #[n(0)]
    Kernel,
    /// Level 3 with IOPL 3, as the built-in payloads.
    #[n(1)]
    User,
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
    /// A number of vCPUs that no guest has.
    #[error("{cpus} vCPUs are not to be had: give 1 to {MAX_CPUS}")]
    Cpus {
        /// vCPUs asked for.
        cpus: u32,
    },
    /// Memory below the hole that cannot be so.
    #[error("{bytes} bytes of memory below the hole cannot be: give a multiple of 2M from 4M to 3G")]
    LowMemory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Too few pages for so many vCPUs.
    #[error(
        "{pages} pages are too few for {cpus} vCPUs with {least} each: give more memory or a larger working set"
    )]
    Shares {
        /// Pages of the working set.
        pages: u64,
        /// vCPUs.
        cpus: u32,
        /// The least pages of each.
        least: u64,
    },
    /// A step of time that no look at it keeps within.
    #[error("clock cannot allow steps of 0 ms: give at least 1")]
    JumpLimit,
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
    /// A payload that guests of this architecture do not have.
    #[error(
        "guests of {} have no payload `{payload}`: choose idle, churn, clock, features or ticks",
        std::env::consts::ARCH
    )]
    NotHere {
        /// The payload's name.
        payload: &'static str,
    },
    /// A board that cannot be.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// Bytes that are no configuration of this build.
    #[error("the guest's configuration cannot be read; was it made by another version or another VMM?")]
    Encoding,
}

impl Payload {
    /// The payload's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Churn { .. } => "churn",
            Self::Clock { .. } => "clock",
            Self::Features => "features",
            Self::Exercise => "exercise",
            Self::Msrs => "msrs",
            Self::Ticks => "ticks",
            Self::Image { .. } => "image",
            Self::Linux => "linux",
        }
    }

    /// The privilege level at which its vCPUs begin.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn level(&self) -> Level {
        match self {
            Self::Msrs | Self::Ticks | Self::Linux => Level::Kernel,
            Self::Image { level } => *level,
            _ => Level::User,
        }
    }

    /// The least pages of a vCPU's share.
    fn pages_min(&self) -> u64 {
        let table = payload::table(self).len() as u64;
        table.div_ceil(PAGE_SIZE).max(1)
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
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus { cpus: self.cpus });
        }
        if let Some(bytes) = self.low_bytes
            && (!bytes.is_multiple_of(boot::LARGE_PAGE)
                || !(MIN_MEMORY_BYTES..=ferry_kvm::HOLE_START).contains(&bytes))
        {
            return Err(ConfigError::LowMemory { bytes });
        }
        self.validate_payload()?;
        let (pages, cpus, least) =
            (self.working_set_bytes() / PAGE_SIZE, self.cpus, self.payload.pages_min());
        if pages / u64::from(cpus) < least {
            return Err(ConfigError::Shares { pages, cpus, least });
        }
        Ok(())
    }

    /// The same with so many vCPUs.
    #[must_use]
    pub fn with_cpus(self, cpus: u32) -> Self {
        Self { cpus, ..self }
    }

    /// Bytes that the payload writes and verifies.
    pub fn working_set_bytes(&self) -> u64 {
        match self.payload {
            Payload::Churn { working_set_bytes, .. } => working_set_bytes,
            _ => IDLE_WORKING_SET_BYTES.min(self.memory_bytes / 2 / PAGE_SIZE * PAGE_SIZE),
        }
    }

    /// Where page `page` of the working set lies in guest-physical memory.
    pub fn working_set_address(&self, page: u64) -> u64 {
        boot::physical(WORKING_SET_START + page * PAGE_SIZE, self.low_end())
    }

    /// Where memory lies on KVM.
    pub(crate) fn regions(&self) -> Vec<RegionSpan> {
        boot::layout(self.memory_bytes, self.low_end())
    }

    /// Where memory below the hole ends at the latest.
    pub(crate) fn low_end(&self) -> u64 {
        self.low_bytes.unwrap_or(boot::LOW_BYTES_MAX)
    }

    /// The pages of the working set that are a vCPU's share: together they are all, none twice.
    pub(crate) fn share(&self, cpu: u32) -> Range<u64> {
        let pages = self.working_set_bytes() / PAGE_SIZE;
        let begin = |cpu: u32| pages * u64::from(cpu) / u64::from(self.cpus.max(1));
        begin(cpu)..begin(cpu.saturating_add(1))
    }

    /// What a vCPU's program is told on KVM, whose counter (on x86-64 the TSC) counts so fast.
    pub(crate) fn parameters(&self, seed: u64, cpu: u32, counter_khz: u32) -> Parameters {
        let share = self.share(cpu);
        let wait_us = payload::wait_us(&self.payload);
        let (burst_pages, wait_us) = match self.payload {
            Payload::Churn { rate_bytes_per_second, .. } => {
                payload::pages::burst(rate_bytes_per_second / u64::from(self.cpus.max(1)))
            }
            Payload::Clock { jump_limit_ms } => (u64::from(jump_limit_ms) * u64::from(counter_khz), wait_us),
            Payload::Ticks => (payload::ticks::PATIENCE_MS * u64::from(counter_khz), wait_us),
            _ => (0, wait_us),
        };
        let pages = payload::entries(&self.payload).unwrap_or(share.end - share.start);
        Parameters {
            working_set: boot::RAM_START + WORKING_SET_START + share.start * PAGE_SIZE,
            pages,
            burst_pages,
            wait_us,
            // vCPU 0 has the guest's; the others' are as far apart as pages are.
            seed: seed ^ u64::from(cpu).wrapping_mul(SEED_STEP),
            cpu: cpu.into(),
            cpus: self.cpus.into(),
        }
    }

    fn validate_payload(&self) -> Result<(), ConfigError> {
        if !payload::is_to_be_had(&self.payload) {
            return Err(ConfigError::NotHere { payload: self.payload.name() });
        }
        if self.payload == (Payload::Clock { jump_limit_ms: 0 }) {
            return Err(ConfigError::JumpLimit);
        }
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
        GuestConfig { memory_bytes, cpus: 1, payload, low_bytes: None }
    }

    #[test]
    fn each_impossible_wish_has_its_sentence() {
        let idle =
            |memory_bytes, cpus| GuestConfig { memory_bytes, cpus, payload: Payload::Idle, low_bytes: None };
        let split = |low| GuestConfig { low_bytes: Some(low), ..idle(16 << 20, 1) };
        for (config, start) in [
            (idle(4097, 1), "4097 bytes of memory are no multiple"),
            (idle(4096, 1), "4096 bytes of memory are too few"),
            (idle(1 << 50, 1), "1125899906842624 bytes of memory are more"),
            (idle(8 << 20, MAX_CPUS + 1), "239 vCPUs are not to be had: give 1 to 238"),
            (churn(8 << 20, 4096, 4096).with_cpus(2), "1 pages are too few for 2 vCPUs"),
            #[cfg(target_arch = "x86_64")]
            (GuestConfig { payload: Payload::Features, ..idle(4 << 20, 200) }, "512 pages are too few"),
            #[cfg(target_arch = "aarch64")]
            (
                GuestConfig { payload: Payload::Msrs, ..idle(8 << 20, 1) },
                "guests of aarch64 have no payload `msrs`",
            ),
            (
                GuestConfig { payload: Payload::Clock { jump_limit_ms: 0 }, ..idle(8 << 20, 1) },
                "clock cannot",
            ),
            (idle(8 << 20, 0), "0 vCPUs"),
            (split(3 << 20), "3145728 bytes of memory below the hole"),
            (split(2 << 20), "2097152 bytes of memory below the hole"),
            (split(4 << 30), "4294967296 bytes of memory below the hole"),
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
    fn shares_are_the_whole_working_set_and_the_rate_is_shared() {
        for cpus in [1, 3, 4, 7] {
            let config = churn(64 << 20, 40 << 20, 10 << 20).with_cpus(cpus);
            let mut next = 0;
            for cpu in 0..cpus {
                let share = config.share(cpu);
                assert_eq!(share.start, next);
                assert!(share.end > share.start);
                next = share.end;
            }
            assert_eq!(next, 2560);
        }
        let parameters = churn(64 << 20, 40 << 20, 16 << 20).with_cpus(4).parameters(9, 3, 0);
        assert_eq!(parameters.working_set, boot::RAM_START + WORKING_SET_START + (12 << 20));
        assert_eq!((parameters.pages, parameters.cpu, parameters.cpus), (1024, 3, 4));
        assert_eq!((parameters.burst_pages, parameters.wait_us), payload::pages::burst(10 << 20));
    }

    #[test]
    fn idle_fills_at_most_half_of_memory() {
        let idle =
            |memory_bytes| GuestConfig { memory_bytes, cpus: 1, payload: Payload::Idle, low_bytes: None };
        assert_eq!(idle(512 << 20).working_set_bytes(), 16 << 20);
        assert_eq!(idle(4 << 20).working_set_bytes(), 2 << 20);
        assert_eq!(idle((4 << 20) + 4096).working_set_bytes(), 2 << 20);
    }
}
