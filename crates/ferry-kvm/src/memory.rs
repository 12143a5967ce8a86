//! Guest memory on a memfd, and its registration with KVM.
//!
//! [`x86_layout`] and [`arm64_layout`] say where memory lies, [`allocate`] maps it, [`MemorySlots::register`] gives it
//! to a VM. A VMM that already has its memory as a `GuestMemoryMmap` needs only the last.
//!
//! Facts: the hole below 4 GiB is where chipset, local APIC and firmware have their registers on
//! every PC (memory from 3 GiB up is moved above 4 GiB); `KVM_SET_USER_MEMORY_REGION` is 4.35 of
//! the kernel's Documentation/virt/kvm/api.rst: setting what is already set changes nothing, a size
//! of zero deletes the slot.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use ferry_protocol::RegionSpan;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::errno;

use crate::dirty_ring::{DirtyRing, DirtyRingError};

/// Where the hole for the machine's own registers begins: memory below lies at its own address.
pub const HOLE_START: u64 = 3 << 30;

/// Where the hole ends and the rest of memory begins.
pub const HOLE_END: u64 = 4 << 30;

/// Guest memory could not be had or registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The kernel gave no memory of that size.
    #[error("{bytes} bytes of guest memory cannot be had: {source}; ask for less or free some")]
    Allocate {
        /// Bytes asked for, in all regions.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host has no pages of that size.
    #[error("this host has no pages of {page}: /sys/kernel/mm/hugepages shows those that it has")]
    NoSuchPages {
        /// The size.
        page: String,
    },
    /// Memory that is no multiple of its pages.
    #[error(
        "a region of {length} bytes of guest memory is no whole number of {page} pages: give a multiple, or take smaller pages"
    )]
    NotHugePages {
        /// Bytes of the region.
        length: u64,
        /// The size.
        page: String,
    },
    /// Too few reserved pages are free.
    #[error(
        "guest memory needs {wanted} of the reserved {page} pages, {free} are free: add {more} to {}, or take ordinary pages", pool.display()
    )]
    PoolTooSmall {
        /// The size.
        page: String,
        /// Pages wanted.
        wanted: u64,
        /// Pages free.
        free: u64,
        /// Pages to add at least.
        more: u64,
        /// Where the number of reserved pages is written.
        pool: PathBuf,
    },
    /// The host gives shared memory no transparent huge pages.
    #[error(
        "this host gives shared memory no transparent huge pages: write `advise` to /sys/kernel/mm/transparent_hugepage/shmem_enabled"
    )]
    Transparent {
        /// What the kernel said to the advice, if it was asked.
        source: Option<io::Error>,
    },
    /// The regions make no memory: empty, out of order, one over another, or too large to count.
    #[error("the memory regions make no guest memory: {0}")]
    Regions(String),
    /// KVM refused a region.
    #[error(
        "KVM refuses {length:#x} bytes of memory at {start:#x} as slot {slot}: {source}; check that no other slot lies there"
    )]
    Slot {
        /// Number of the slot.
        slot: u32,
        /// Guest-physical address.
        start: u64,
        /// Bytes.
        length: u64,
        /// What KVM said.
        source: errno::Error,
    },
}

/// Where `memory_bytes` of guest memory lie on x86: from address 0 to `low_end` at most ([`HOLE_START`], where
/// there is no reason for less), the rest from 4 GiB.
pub fn x86_layout(memory_bytes: u64, low_end: u64) -> Vec<RegionSpan> {
    let low = RegionSpan { start: 0, length: memory_bytes.min(low_end.min(HOLE_START)) };
    let high = RegionSpan { start: HOLE_END, length: memory_bytes - low.length };
    [low, high].into_iter().filter(|region| region.length > 0).collect()
}

/// Where memory begins on arm64: below lie the registers of devices.
pub const ARM64_RAM_START: u64 = 1 << 30;

/// Where memory of a guest of arm64 goes on that is cut in two, below the 40 bits that every KVM has.
pub const ARM64_HIGH_START: u64 = 512 << 30;

/// Where `memory_bytes` of guest memory lie on arm64: from 1 GiB on, but what is beyond the first `low_bytes` from 512 GiB.
pub fn arm64_layout(memory_bytes: u64, low_bytes: u64) -> Vec<RegionSpan> {
    let low = RegionSpan { start: ARM64_RAM_START, length: memory_bytes.min(low_bytes) };
    let high = RegionSpan { start: ARM64_HIGH_START, length: memory_bytes - low.length };
    [low, high].into_iter().filter(|region| region.length > 0).collect()
}

/// Maps guest memory for these regions on one memfd, shared, reading as zero. Pages take room only
/// once they are written.
pub fn allocate(regions: &[RegionSpan]) -> Result<GuestMemoryMmap, MemoryError> {
    let bytes = bytes_of(regions)?;
    let file = memfd(bytes, MemfdFlags::empty(), |_| Ok(()));
    map(regions, file.map_err(|errno| MemoryError::Allocate { bytes, source: errno.into() })?)
}

/// Bytes of all regions.
pub(crate) fn bytes_of(regions: &[RegionSpan]) -> Result<u64, MemoryError> {
    regions
        .iter()
        .try_fold(0_u64, |sum, region| sum.checked_add(region.length))
        .ok_or_else(|| MemoryError::Regions("their sizes overflow".to_owned()))
}

/// Maps the regions one after the other from the file, which is as large as all of them.
pub(crate) fn map(regions: &[RegionSpan], file: OwnedFd) -> Result<GuestMemoryMmap, MemoryError> {
    let file = Arc::new(File::from(file));
    let mut offset = 0;
    let mut ranges = Vec::with_capacity(regions.len());
    for region in regions {
        let length = usize::try_from(region.length)
            .map_err(|_| MemoryError::Regions("a region is larger than an address space".to_owned()))?;
        let part = FileOffset::from_arc(Arc::clone(&file), offset);
        ranges.push((GuestAddress(region.start), length, Some(part)));
        offset += region.length;
    }
    GuestMemoryMmap::from_ranges_with_files(ranges).map_err(|error| MemoryError::Regions(error.to_string()))
}

/// A memfd of this size, made ready by `prepare`, whose size cannot change any more: a mapping never loses
/// its file.
pub(crate) fn memfd(
    bytes: u64,
    kind: MemfdFlags,
    prepare: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind;
    let fd = rustix::fs::memfd_create("ferry-guest", flags)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    prepare(&fd)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(fd)
}

/// One slot: a region as KVM knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    pub(crate) start: u64,
    pub(crate) length: u64,
    host_address: u64,
}

/// Guest memory as registered with one VM: region *i* of the memory is slot *i*.
///
/// While this lives the mapping lives; when it is dropped the slots are deleted first, so that a VM
/// that outlives it can reach nothing. A slot that the VMM registered before, with the same
/// addresses and no flags, is taken over as it is.
#[derive(Debug)]
pub struct MemorySlots {
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
    slots: Vec<Slot>,
    ring: Option<DirtyRing>,
}

impl MemorySlots {
    /// Registers every region of `memory` with `vm`.
    pub fn register(vm: Arc<VmFd>, memory: GuestMemoryMmap) -> Result<Self, MemoryError> {
        let found: Vec<Slot> = memory
            .iter()
            .zip(0..)
            .map(|(region, number)| Slot {
                number,
                start: region.start_addr().raw_value(),
                length: region.len(),
                host_address: region.as_ptr() as u64,
            })
            .collect();
        let mut registered = Self { vm, memory, slots: Vec::with_capacity(found.len()), ring: None };
        for slot in found {
            registered.set(&slot, slot.length, 0)?;
            registered.slots.push(slot);
        }
        Ok(registered)
    }

    /// Makes the machine note written pages in a ring for each vCPU instead of in the dirty log. Call
    /// it before the first vCPU is created; each ring has `entries` entries, a power of two (see
    /// [`DirtyRing::ENTRIES`]). The vCPUs' threads need what it returns: see
    /// [`DirtyRing::make_room`]. Where KVM offers no rings this fails, and the log stays in use.
    pub fn enable_dirty_ring(&mut self, entries: u32) -> Result<DirtyRing, DirtyRingError> {
        let ring = DirtyRing::enable(&self.vm, entries)?;
        self.use_dirty_ring(&ring)?;
        Ok(ring)
    }

    /// The same with rings that the VM has already: those of a VM whose vCPUs were made before its memory.
    pub fn use_dirty_ring(&mut self, ring: &DirtyRing) -> Result<(), DirtyRingError> {
        ring.track(self)?;
        self.ring = Some(ring.clone());
        Ok(())
    }

    /// The rings, if they are in use.
    pub(crate) fn dirty_ring(&self) -> Option<&DirtyRing> {
        self.ring.as_ref()
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Where the memory lies, as a machine description has it.
    pub fn regions(&self) -> Vec<RegionSpan> {
        self.slots.iter().map(|slot| RegionSpan { start: slot.start, length: slot.length }).collect()
    }

    /// The slots, in the order of the regions.
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Changes the flags of a slot.
    pub(crate) fn set_flags(&self, slot: &Slot, flags: u32) -> Result<(), MemoryError> {
        self.set(slot, slot.length, flags)
    }

    fn set(&self, slot: &Slot, memory_size: u64, flags: u32) -> Result<(), MemoryError> {
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            flags,
            guest_phys_addr: slot.start,
            memory_size,
            userspace_addr: slot.host_address,
        };
        // SAFETY: the addresses are those of a mapping that `self.memory` owns; `Drop` deletes the
        // slot before the mapping can go, or keeps the mapping for ever.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot {
            slot: slot.number,
            start: slot.start,
            length: slot.length,
            source,
        })
    }
}

impl Drop for MemorySlots {
    fn drop(&mut self) {
        let deleted = self.slots.iter().all(|slot| self.set(slot, 0, 0).is_ok());
        if !deleted {
            // KVM may still reach the mapping: better never to unmap it than to unmap it under a guest.
            std::mem::forget(self.memory.clone());
            tracing::error!("KVM did not let go of guest memory; its mapping stays until the process ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_goes_around_the_hole() {
        assert_eq!(x86_layout(4096, HOLE_START), [RegionSpan { start: 0, length: 4096 }]);
        assert_eq!(x86_layout(3 << 30, HOLE_START), [RegionSpan { start: 0, length: 3 << 30 }]);
        assert_eq!(
            x86_layout((3 << 30) + 8192, HOLE_START),
            [RegionSpan { start: 0, length: 3 << 30 }, RegionSpan { start: 4 << 30, length: 8192 }]
        );
    }

    #[test]
    fn memory_of_arm64_begins_after_the_devices() {
        assert_eq!(arm64_layout(4096, u64::MAX), [RegionSpan { start: 1 << 30, length: 4096 }]);
        assert_eq!(
            arm64_layout(12288, 8192),
            [RegionSpan { start: 1 << 30, length: 8192 }, RegionSpan { start: 512 << 30, length: 4096 }]
        );
    }

    #[test]
    fn regions_on_one_memfd_do_not_share_pages() {
        let spans = [RegionSpan { start: 0, length: 8192 }, RegionSpan { start: HOLE_END, length: 8192 }];
        let memory = allocate(&spans).unwrap();
        memory.write_obj(7_u64, GuestAddress(4096)).unwrap();
        memory.write_obj(9_u64, GuestAddress(HOLE_END)).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(4096)).unwrap(), 7);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(HOLE_END)).unwrap(), 9);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
    }

    #[test]
    fn impossible_memory_is_an_error() {
        let huge = allocate(&[RegionSpan { start: 0, length: 1 << 62 }]).unwrap_err();
        assert!(matches!(huge, MemoryError::Allocate { .. } | MemoryError::Regions(_)), "{huge}");
        let wrap = [RegionSpan { start: 0, length: u64::MAX }, RegionSpan { start: 0, length: 4096 }];
        assert!(matches!(allocate(&wrap).unwrap_err(), MemoryError::Regions(_)));
        let overlap = [RegionSpan { start: 0, length: 8192 }, RegionSpan { start: 4096, length: 8192 }];
        assert!(matches!(allocate(&overlap).unwrap_err(), MemoryError::Regions(_)));
    }
}
