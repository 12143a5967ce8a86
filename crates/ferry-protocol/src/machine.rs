//! The machine description: what the target must build before it can take a guest.

use ferry_contract::MAX_CONTRACT_BYTES;
use minicbor::{Decode, Encode};

/// Bytes of a page.
const PAGE: u64 = 4096;

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

/// The most disks whose images move with one guest.
pub const MAX_DISKS: usize = 64;

/// The largest image of a disk, in bytes.
pub const MAX_DISK_BYTES: u64 = 1 << 44;

/// Where the images of disks lie among a guest's pages: above any memory, whose addresses have at most 52 bits on x86-64
/// (Intel SDM volume 3, 4.1.4) and on arm64 (`ID_AA64MMFR0_EL1.PARange`) alike. Each has [`MAX_DISK_BYTES`] of room.
pub const DISKS_START: u64 = 1 << 52;

/// A disk whose image moves with the guest. Its blocks cross as pages of memory do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct DiskSpan {
    /// Which of the guest's disks, below [`MAX_DISKS`].
    #[n(0)]
    pub disk: u32,
    /// Length of the image in bytes, at most [`MAX_DISK_BYTES`]; not zero.
    #[n(1)]
    pub bytes: u64,
    /// Bytes that it takes up on the source, where holes take none; for a look at the target's free space alone.
    #[n(2)]
    pub allocated_bytes: u64,
}

impl DiskSpan {
    /// Where the disk's image lies among the guest's pages; whole pages.
    pub fn region(&self) -> RegionSpan {
        let length = self.bytes.min(MAX_DISK_BYTES).next_multiple_of(PAGE);
        RegionSpan { start: DISKS_START + u64::from(self.disk).saturating_mul(MAX_DISK_BYTES), length }
    }
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
    /// The disks whose images move with the guest, by ascending number. None of those that the target finds on storage
    /// that both hosts share.
    #[n(5)]
    #[cbor(default, skip_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpan>,
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
    /// A region that is empty, not page-aligned, past the last address that memory can have, or not after
    /// the one before it.
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
    /// A disk that is empty, too large, or not after the one before it; or too many.
    #[error("disk {disk} of {bytes} bytes is empty, too large, out of order or one too many")]
    Disk {
        /// Its number.
        disk: u32,
        /// The length of its image.
        bytes: u64,
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

    /// Bytes of guest memory and of the disks that move with it.
    pub fn moved_bytes(&self) -> u64 {
        self.disks.iter().fold(self.memory_bytes(), |sum, disk| sum.saturating_add(disk.bytes))
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
        self.check_regions()?;
        self.check_disks()
    }

    fn check_disks(&self) -> Result<(), DescriptionError> {
        let mut free_from = 0;
        for &DiskSpan { disk, bytes, .. } in &self.disks {
            let is_free = disk >= free_from && (disk as usize) < MAX_DISKS;
            if !is_free || !(1..=MAX_DISK_BYTES).contains(&bytes) {
                return Err(DescriptionError::Disk { disk, bytes });
            }
            free_from = disk + 1;
        }
        Ok(())
    }

    fn check_regions(&self) -> Result<(), DescriptionError> {
        let mut free_from = 0;
        for (index, &RegionSpan { start, length }) in self.regions.iter().enumerate() {
            let aligned = start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
            match start.checked_add(length) {
                Some(end) if aligned && length > 0 && start >= free_from && end <= DISKS_START => {
                    free_from = end;
                }
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
            disks: Vec::new(),
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
            &[(DISKS_START - 4096, 8192)],
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

    #[test]
    fn disks_have_room_above_memory_and_none_overlaps() {
        const LIMIT: u32 = 64;
        assert_eq!(LIMIT as usize, MAX_DISKS);
        let disk = |disk, bytes| DiskSpan { disk, bytes, allocated_bytes: 0 };
        let with = |disks: Vec<DiskSpan>| MachineDescription { disks, ..description(&[(0, 4096)]) };
        let last = disk(LIMIT - 1, MAX_DISK_BYTES);
        let good = with(vec![disk(0, 1), disk(2, 4097), last]);
        assert_eq!(good.check(), Ok(()));
        assert_eq!(good.moved_bytes(), 4096 + 1 + 4097 + MAX_DISK_BYTES);
        let regions: Vec<_> = good.disks.iter().map(DiskSpan::region).collect();
        assert_eq!((regions[0].start, regions[0].length, regions[1].length), (DISKS_START, 4096, 8192));
        assert!(regions.windows(2).all(|pair| pair[0].start + pair[0].length <= pair[1].start));
        assert!(regions[2].start.checked_add(regions[2].length).is_some());
        for bad in [
            vec![disk(0, 0)],
            vec![disk(0, MAX_DISK_BYTES + 1)],
            vec![disk(LIMIT, 512)],
            vec![disk(1, 512), disk(1, 512)],
            vec![disk(1, 512), disk(0, 512)],
        ] {
            assert!(matches!(with(bad.clone()).check(), Err(DescriptionError::Disk { .. })), "{bad:?}");
        }
    }
}
