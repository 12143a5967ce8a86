//! The machine description: what the target must build before it can take a guest.

use ferry_contract::MAX_CONTRACT_BYTES;
use minicbor::{Decode, Encode};

/// The most memory regions of one guest.
pub const MAX_REGIONS: usize = 512;

/// The most vCPUs of one guest; KVM's own bound on x86-64 is 4096 (`KVM_MAX_VCPUS`).
pub const MAX_VCPUS: u32 = 4096;

/// The most bytes of a VMM's own configuration.
pub const MAX_CONFIG_BYTES: usize = 64 * 1024;

/// The longest name of a kind of machine, in bytes.
pub const MAX_KIND_BYTES: usize = 64;

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

/// What the target must build: the kind of machine, its vCPUs, its memory, the VMM's own
/// configuration, and the guest's contract.
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
    /// The guest's contract in its wire form; empty for a kind of machine that has none. The builder on
    /// the target reads it.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub contract: Vec<u8>,
}

/// Why a machine description makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptionError {
    /// The kind is empty, too long or not printable ASCII.
    #[error("the machine's kind is not 1 to {MAX_KIND_BYTES} printable ASCII characters")]
    Kind,
    /// No vCPU, or more than [`MAX_VCPUS`].
    #[error("{0} vCPUs is not within 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// No region, or more than [`MAX_REGIONS`].
    #[error("{0} memory regions is not within 1 to {MAX_REGIONS}")]
    RegionCount(usize),
    /// A region that is empty, not page-aligned, past the end of the address space, or not after the
    /// one before it.
    #[error(
        "memory region {index} (start {start:#x}, length {length:#x}) is empty, unaligned or out of order"
    )]
    Region {
        /// The region's place in the list.
        index: usize,
        /// Its start in bytes.
        start: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// The VMM's configuration is longer than [`MAX_CONFIG_BYTES`].
    #[error("the VMM's configuration has {0} bytes, more than {MAX_CONFIG_BYTES}")]
    Config(usize),
    /// The contract is longer than [`MAX_CONTRACT_BYTES`].
    #[error("the contract has {0} bytes, more than {MAX_CONTRACT_BYTES}")]
    Contract(usize),
}

impl MachineDescription {
    /// Bytes of guest memory in all regions.
    pub fn memory_bytes(&self) -> u64 {
        self.regions.iter().fold(0, |sum, region| sum.saturating_add(region.length))
    }

    /// Checks every bound of this module.
    pub fn check(&self) -> Result<(), DescriptionError> {
        let printable = self.kind.bytes().all(|b| b.is_ascii_graphic());
        if self.kind.is_empty() || self.kind.len() > MAX_KIND_BYTES || !printable {
            return Err(DescriptionError::Kind);
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(DescriptionError::Vcpus(self.vcpus));
        }
        if self.regions.is_empty() || self.regions.len() > MAX_REGIONS {
            return Err(DescriptionError::RegionCount(self.regions.len()));
        }
        if self.config.len() > MAX_CONFIG_BYTES {
            return Err(DescriptionError::Config(self.config.len()));
        }
        if self.contract.len() > MAX_CONTRACT_BYTES {
            return Err(DescriptionError::Contract(self.contract.len()));
        }
        self.check_regions()
    }

    fn check_regions(&self) -> Result<(), DescriptionError> {
        const PAGE: u64 = 4096;
        let mut free_from = 0;
        for (index, &RegionSpan { start, length }) in self.regions.iter().enumerate() {
            let aligned = start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
            match start.checked_add(length) {
                Some(end) if aligned && length > 0 && start >= free_from => free_from = end,
                _ => return Err(DescriptionError::Region { index, start, length }),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(regions: &[(u64, u64)]) -> MachineDescription {
        MachineDescription {
            kind: "sim".into(),
            vcpus: 1,
            regions: regions.iter().map(|&(start, length)| RegionSpan { start, length }).collect(),
            config: Vec::new(),
            contract: Vec::new(),
        }
    }

    #[test]
    fn regions_must_be_aligned_sorted_and_apart() {
        assert_eq!(description(&[(0, 8192), (8192, 4096)]).check(), Ok(()));
        for bad in [
            &[(0, 0)][..],
            &[(0, 100)],
            &[(1, 4096)],
            &[(4096, 4096), (0, 4096)],
            &[(0, 8192), (4096, 4096)],
            &[(u64::MAX - 4095, 8192)],
        ] {
            assert!(matches!(description(bad).check(), Err(DescriptionError::Region { .. })), "{bad:?}");
        }
        assert_eq!(description(&[]).check(), Err(DescriptionError::RegionCount(0)));
    }

    #[test]
    fn the_other_bounds_hold() {
        let good = description(&[(0, 4096)]);
        assert_eq!(MachineDescription { vcpus: 0, ..good.clone() }.check(), Err(DescriptionError::Vcpus(0)));
        assert_eq!(
            MachineDescription { kind: "a b".into(), ..good.clone() }.check(),
            Err(DescriptionError::Kind)
        );
        let config = vec![0; MAX_CONFIG_BYTES + 1];
        assert_eq!(
            MachineDescription { config, ..good.clone() }.check(),
            Err(DescriptionError::Config(MAX_CONFIG_BYTES + 1))
        );
        let contract = vec![0; MAX_CONTRACT_BYTES + 1];
        assert_eq!(
            MachineDescription { contract, ..good }.check(),
            Err(DescriptionError::Contract(MAX_CONTRACT_BYTES + 1))
        );
    }
}
