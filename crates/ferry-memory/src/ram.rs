//! A handle on a guest's memory.
//!
//! A VMM that holds its memory as a `vm-memory` backend makes a [`GuestRam`] from it and goes on
//! using its own; [`GuestRam::anonymous`] is for machines that have no other holder. Reads and
//! writes here serve devices and payload loaders; pages move by [`send_pages`](crate::send_pages)
//! and [`receive_pages`](crate::receive_pages).

use std::any::Any;
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::file::{FilePart, FileRegion, Stored};
use crate::host::{Host, Page, Window};
use crate::{Layout, LayoutError, PAGE_BYTES, PAGE_SIZE, PageRange, Span, size};

/// A handle on the memory of one guest; clones share it.
///
/// The memory stays mapped as long as one clone lives. Every access is safe while the guest runs:
/// it may then see, or leave behind, a mixture of old and new bytes.
///
/// Writes through this handle (devices', received pages) are noted by no one: neither by KVM's
/// dirty log nor by the bitmap that the backend may have. Who writes while a guest is being
/// migrated adds the pages to the dirty set.
#[derive(Clone)]
pub struct GuestRam {
    shared: Arc<Shared>,
}

struct Shared {
    layout: Layout,
    /// In the order of the layout's regions.
    backing: Vec<Backing>,
    /// Owns the mappings that the hosts among them point to.
    backend: Arc<dyn Any + Send + Sync>,
}

/// What is behind a region.
#[derive(Clone)]
pub(crate) enum Backing {
    /// Mapped memory; and where it lies in a file, if it does.
    Memory(Host, Option<FileOffset>),
    /// A file that is not mapped.
    File(Arc<Stored>),
}

/// A part of one region.
pub(crate) enum Part<'a> {
    Memory(Window<'a>),
    File(FilePart<'a>),
}

impl Part<'_> {
    /// Copies it out. `into` is as long as the part.
    pub(crate) fn copy_out(self, into: &mut [u8]) -> Result<(), RamError> {
        match self {
            Self::Memory(window) => window.copy_out(into),
            Self::File(part) => part.read(into)?,
        }
        Ok(())
    }

    /// Copies into it. `from` is as long as the part.
    fn copy_in(self, from: &[u8]) -> Result<(), RamError> {
        match self {
            Self::Memory(window) => window.copy_in(from),
            Self::File(part) => part.write(from)?,
        }
        Ok(())
    }
}

/// Why guest memory could not be made or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// Bytes that are not all inside guest memory. None was touched.
    #[error("{length:#x} bytes at {address:#x} are not inside guest memory")]
    Outside {
        /// Guest-physical address of the first byte.
        address: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Pages that are not all inside one region of guest memory. None was touched.
    #[error("{} pages from frame {:#x} on are not inside one region of guest memory", range.count, range.first)]
    OutsidePages {
        /// The pages.
        range: PageRange,
    },
    /// The host did not provide pages.
    #[error("the host does not provide {} pages from frame {:#x} on", range.count, range.first)]
    Populate {
        /// The pages.
        range: PageRange,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host gave no memory.
    #[error("{bytes} bytes of guest memory could not be mapped")]
    Map {
        /// Bytes of all regions.
        bytes: u64,
        /// What failed.
        source: vm_memory::mmap::FromRangesError,
    },
    /// A file region could not be read or written.
    #[error("{name} cannot be {what} from byte {offset} on")]
    File {
        /// What the file is called.
        name: String,
        /// What was to be done: `read`, `written`, `cleared`.
        what: &'static str,
        /// Where, in bytes from the file's beginning.
        offset: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was written to a file region may not last.
    #[error("what was written to {name} cannot be brought to its disk")]
    Sync {
        /// What the file is called.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was mapped makes no guest memory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl GuestRam {
    /// A handle on memory that a VMM holds. Every region must be plain memory mapped into this
    /// process for the backend's whole life (so not Xen's memory that is mapped on demand), and
    /// make a [`Layout`].
    pub fn new<M>(backend: Arc<M>) -> Result<Self, LayoutError>
    where
        M: GuestMemoryBackend + Send + Sync + 'static,
    {
        let span = |region: &M::R| Span { start: region.start_addr().0, length: region.len() };
        let layout = Layout::new(backend.iter().map(span).collect())?;
        let backing = |region: &M::R| Ok(Backing::Memory(host(region)?, region.file_offset().cloned()));
        let backing = backend.iter().map(backing).collect::<Result<_, LayoutError>>()?;
        Ok(Self { shared: Arc::new(Shared { layout, backing, backend }) })
    }

    /// A handle on the same memory and, above it, on these files, sorted by start: what they hold can be moved, hashed
    /// and reached as memory is.
    pub fn with_files(&self, files: Vec<FileRegion>) -> Result<Self, LayoutError> {
        let spans = self.layout().spans().iter().copied();
        let layout = Layout::new(spans.chain(files.iter().map(FileRegion::span)).collect())?;
        let files = files.into_iter().map(|region| Backing::File(Arc::new(Stored::new(region))));
        let backing = self.shared.backing.iter().cloned().chain(files).collect();
        let backend = Arc::clone(&self.shared.backend);
        Ok(Self { shared: Arc::new(Shared { layout, backing, backend }) })
    }

    /// New memory of this process alone, which reads as zero; the host provides pages as they are
    /// touched.
    pub fn anonymous(layout: &Layout) -> Result<Self, RamError> {
        let ranges: Vec<_> =
            layout.spans().iter().map(|span| (GuestAddress(span.start), size(span.length))).collect();
        let backend = GuestMemoryMmap::<()>::from_ranges(&ranges)
            .map_err(|source| RamError::Map { bytes: layout.bytes(), source })?;
        Ok(Self::new(Arc::new(backend))?)
    }

    /// Where the memory lies.
    pub fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    /// Copies guest memory from guest-physical address `address` on into `into`. The bytes may lie
    /// in regions that touch. Unless a file fails, nothing was copied on an error.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), RamError> {
        self.check(address, into.len())?;
        let mut rest = into;
        self.walk(address, rest.len(), |part, length| {
            let (here, behind) = std::mem::take(&mut rest).split_at_mut(length);
            rest = behind;
            part.copy_out(here)
        })
    }

    /// Copies `from` into guest memory from guest-physical address `address` on. As
    /// [`GuestRam::read`].
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), RamError> {
        self.check(address, from.len())?;
        let mut rest = from;
        self.walk(address, rest.len(), |part, length| {
            let (here, behind) = rest.split_at(length);
            rest = behind;
            part.copy_in(here)
        })
    }

    /// Makes every page of the range read as zero. Pages that already do are only read, so that
    /// memory the host has not provided yet is not provided for this; a file gets a hole.
    pub fn zero(&self, range: PageRange) -> Result<(), RamError> {
        match self.part(range)? {
            Part::Memory(window) => {
                window.pages().filter(|page| !page.is_zero()).for_each(Page::zero);
                Ok(())
            }
            Part::File(part) => part.zero(),
        }
    }

    /// The regions that are memory and no files, as pages.
    pub fn mapped(&self) -> impl Iterator<Item = PageRange> + '_ {
        let is_memory = |backing: &Backing| matches!(backing, Backing::Memory(..));
        let all = self.layout().ranges().zip(&self.shared.backing);
        all.filter(move |(_, backing)| is_memory(backing)).map(|(range, _)| range)
    }

    /// What is behind the regions, in their order.
    pub(crate) fn backing(&self) -> &[Backing] {
        &self.shared.backing
    }

    /// The regions that are files.
    pub(crate) fn stored(&self) -> impl Iterator<Item = &Stored> {
        self.shared.backing.iter().filter_map(|backing| match backing {
            Backing::File(stored) => Some(&**stored),
            Backing::Memory(..) => None,
        })
    }

    /// The memory of a range of pages, none of them in a file.
    pub(crate) fn pages(&self, range: PageRange) -> Result<Window<'_>, RamError> {
        match self.part(range)? {
            Part::Memory(window) => Ok(window),
            Part::File(_) => Err(RamError::OutsidePages { range }),
        }
    }

    /// What is behind a range of pages.
    pub(crate) fn part(&self, range: PageRange) -> Result<Part<'_>, RamError> {
        let outside = || RamError::OutsidePages { range };
        let region = self.layout().region_of(range).ok_or_else(outside)?;
        // The range is inside the layout, so its bytes can be counted.
        self.part_of(region, range.first * PAGE_SIZE, range.count * PAGE_SIZE).ok_or_else(outside)
    }

    /// `length` bytes from `address` on, which must be inside region `region`.
    fn part_of(&self, region: usize, address: u64, length: u64) -> Option<Part<'_>> {
        let offset = address.checked_sub(self.layout().spans().get(region)?.start)?;
        match self.shared.backing.get(region)? {
            Backing::Memory(host, _) => host.window(size(offset), size(length)).map(Part::Memory),
            Backing::File(stored) => stored.part(offset, size(length)).map(Part::File),
        }
    }

    fn check(&self, address: u64, length: usize) -> Result<(), RamError> {
        self.walk(address, length, |_, _| Ok(()))
    }

    /// Shows `act` the parts, one for each region, that together are `length` bytes from
    /// `address` on, each with its length.
    fn walk<'a>(
        &'a self,
        address: u64,
        length: usize,
        mut act: impl FnMut(Part<'a>, usize) -> Result<(), RamError>,
    ) -> Result<(), RamError> {
        let outside = || RamError::Outside { address, length: length as u64 };
        let mut at = address;
        let mut left = length as u64;
        while left > 0 {
            let region = self.layout().region_at(at).ok_or_else(outside)?;
            let span = self.layout().spans().get(region).ok_or_else(outside)?;
            let here = left.min(span.start + span.length - at);
            act(self.part_of(region, at, here).ok_or_else(outside)?, size(here))?;
            at += here;
            left -= here;
        }
        Ok(())
    }
}

impl fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestRam").field("layout", self.layout()).finish_non_exhaustive()
    }
}

/// The memory behind a region of a backend that the caller keeps alive.
fn host<R: GuestMemoryRegion>(region: &R) -> Result<Host, LayoutError> {
    let start = region.start_addr().0;
    let not_mapped = |source| LayoutError::NotMapped { start, source };
    let slice = region.as_volatile_slice().map_err(|error| not_mapped(Some(error)))?;
    let guard = slice.ptr_guard_mut();
    // Memory that is mapped only as long as a guard lives (Xen's) has no lasting host address.
    let lasting = region.get_host_address(vm_memory::MemoryRegionAddress(0)).ok();
    if slice.len() != size(region.len()) || lasting != Some(guard.as_ptr()) {
        return Err(not_mapped(None));
    }
    let base = NonNull::new(guard.as_ptr()).ok_or_else(|| not_mapped(None))?;
    let address = base.addr().get();
    if !address.is_multiple_of(PAGE_BYTES) {
        return Err(LayoutError::HostUnaligned { start, address });
    }
    // SAFETY: the backend vouches for these bytes as long as it is borrowed, by the lifetime of the
    // volatile slice; the `Arc` to it lies beside every `Host`, so nothing can end or change it. A
    // volatile slice excludes plain references to its bytes.
    Ok(unsafe { Host::new(base, slice.len()) })
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use vm_memory::{Bytes, GuestRegionMmap, MmapRegion};

    use super::*;

    fn layout() -> Layout {
        // Two regions that touch, and one above a hole.
        Layout::new(vec![
            Span { start: 0x1000, length: 0x2000 },
            Span { start: 0x3000, length: 0x1000 },
            Span { start: 0x10_0000, length: 0x1000 },
        ])
        .unwrap()
    }

    #[test]
    fn what_is_written_at_any_alignment_is_read_back_and_nothing_else_changes() {
        let ram = GuestRam::anonymous(&layout()).unwrap();
        let pattern: Vec<u8> = (1..=100).collect();
        for offset in 0..9 {
            for length in [0, 1, 7, 8, 9, 63, 64, 65, 100] {
                let from = &pattern[..length];
                ram.write(0x2000 + offset, from).unwrap();
                let mut window = vec![0xee; 128];
                ram.read(0x2000, &mut window).unwrap();
                let (before, rest) = window.split_at(usize::try_from(offset).unwrap());
                let (here, behind) = rest.split_at(length);
                assert_eq!(here, from, "offset {offset}, length {length}");
                assert!(
                    before.iter().chain(behind).all(|&byte| byte == 0),
                    "offset {offset}, length {length}"
                );
                let mut shifted = vec![0; length];
                ram.read(0x2000 + offset, &mut shifted).unwrap();
                assert_eq!(shifted, from);
                ram.zero(PageRange { first: 2, count: 1 }).unwrap();
            }
        }
    }

    #[test]
    fn bytes_may_cross_regions_that_touch_but_no_hole() {
        let ram = GuestRam::anonymous(&layout()).unwrap();
        ram.write(0x2ffd, b"touching").unwrap();
        let mut back = [0; 8];
        ram.read(0x2ffd, &mut back).unwrap();
        assert_eq!(&back, b"touching");

        for (address, length) in [(0xfff, 2), (0x3fff, 2), (0x3ffe, 0x10_0000), (u64::MAX, 1), (0x10_0fff, 2)]
        {
            let mut into = vec![7; length];
            let error = ram.read(address, &mut into).unwrap_err();
            assert!(
                matches!(error, RamError::Outside { address: a, length: l } if (a, l) == (address, length as u64))
            );
            assert!(into.iter().all(|&byte| byte == 7), "nothing may be read");
            assert!(ram.write(address, &into).is_err());
        }
        let mut edge = [0; 2];
        ram.read(0x3ffe, &mut edge).unwrap();
        assert_eq!(edge, [0, 0], "nothing may be written up to the hole");
    }

    #[test]
    fn zero_clears_its_pages_and_no_other() {
        let ram = GuestRam::anonymous(&layout()).unwrap();
        ram.write(0x1000, &[0xff; 0x3000]).unwrap();
        ram.zero(PageRange { first: 2, count: 1 }).unwrap();
        let mut all = vec![0; 0x3000];
        ram.read(0x1000, &mut all).unwrap();
        let is = |bytes: &[u8], value| bytes.iter().all(|&byte| byte == value);
        assert!(is(&all[..0x1000], 0xff) && is(&all[0x1000..0x2000], 0) && is(&all[0x2000..], 0xff));
        for outside in [PageRange { first: 2, count: 2 }, PageRange { first: 1, count: 0 }] {
            let error = ram.zero(outside).unwrap_err();
            assert!(matches!(error, RamError::OutsidePages { range } if range == outside));
        }
    }

    #[test]
    fn a_vmm_and_the_handle_share_the_memory_and_the_handle_keeps_it() {
        let backend =
            Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap());
        let kept: Weak<_> = Arc::downgrade(&backend);
        let ram = GuestRam::new(Arc::clone(&backend)).unwrap();
        backend.write_slice(b"from the VMM", GuestAddress(0x1234)).unwrap();
        let mut back = [0; 12];
        ram.read(0x1234, &mut back).unwrap();
        assert_eq!(&back, b"from the VMM");
        ram.write(0x1000, b"to it").unwrap();
        let mut back = [0; 5];
        backend.read_slice(&mut back, GuestAddress(0x1000)).unwrap();
        assert_eq!(&back, b"to it");

        drop(backend);
        let clone = ram.clone();
        drop(ram);
        assert!(kept.upgrade().is_some(), "a clone keeps the mapping");
        clone.read(0x1000, &mut back).unwrap();
        drop(clone);
        assert!(kept.upgrade().is_none(), "the last clone lets it go");
    }

    #[test]
    fn a_backend_that_makes_no_layout_is_refused() {
        let region = |start, length| {
            GuestRegionMmap::<()>::new(MmapRegion::new(length).unwrap(), GuestAddress(start)).unwrap()
        };
        let uneven = GuestMemoryMmap::from_regions(vec![region(0, 0x800)]).unwrap();
        assert!(matches!(
            GuestRam::new(Arc::new(uneven)),
            Err(LayoutError::Unaligned { start: 0, length: 0x800 })
        ));
        let none = GuestMemoryMmap::<()>::new();
        assert!(matches!(GuestRam::new(Arc::new(none)), Err(LayoutError::Empty)));
    }

    #[test]
    fn memory_that_the_host_cannot_map_is_an_error() {
        let layout = Layout::new(vec![Span { start: 0, length: 1 << 60 }]).unwrap();
        assert!(matches!(GuestRam::anonymous(&layout), Err(RamError::Map { bytes, .. }) if bytes == 1 << 60));
    }
}
