//! The machine description: what the target must build before it can take a guest.

use minicbor::{Decode, Encode};

/// The most memory regions of one guest.
pub const MAX_REGIONS: usize = 512;

/// The most bytes of a VMM's own configuration.
pub const MAX_CONFIG_BYTES: usize = 64 * 1024;

/// One region of guest memory: guest-physical start and length, both in bytes, both multiples of
/// the page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(array)]
pub struct RegionSpan {
    /// Guest-physical address of the first byte.
    #[n(0)]
    pub start: u64,
    /// Length in bytes.
    #[n(1)]
    pub length: u64,
}

/// What the target must build: the kind of machine, its vCPUs, its memory, and the VMM's own
/// configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct MachineDescription {
    /// The kind of machine, for example `kvm-x86_64` or `sim`: only a machine of the same kind can
    /// take the state.
    #[n(0)]
    pub kind: String,
    /// Number of vCPUs.
    #[n(1)]
    pub vcpus: u32,
    /// Regions of guest memory, sorted by start, none overlapping another.
    #[n(2)]
    pub regions: Vec<RegionSpan>,
    /// The VMM's own words for everything else that it must build; Ferry carries them unread.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub config: Vec<u8>,
}

impl MachineDescription {
    /// Bytes of guest memory in all regions.
    pub fn memory_bytes(&self) -> u64 {
        self.regions.iter().fold(0, |sum, region| sum.saturating_add(region.length))
    }
}
