//! Which pages the guest wrote: KVM's dirty rings, one a vCPU.
//!
//! [`MemorySlots::enable_dirty_ring`] before the first vCPU exists; [`KvmMachine::new`](crate::KvmMachine::new)
//! then maps the rings and harvests them. The VMM does one thing: where `KVM_RUN` comes back because a ring is full
//! (`KVM_EXIT_DIRTY_RING_FULL`, which kvm-ioctls calls `VcpuExit::Unsupported(31)`), it calls
//! [`DirtyRing::make_room`] and runs on.
//!
//! The log costs by the size of memory, a ring by the number of pages written; where the guest writes
//! fast, a small ring makes it stop often.
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst, 8.29 (`KVM_CAP_DIRTY_LOG_RING`), and
//! `virt/kvm/dirty_ring.c`:
//!
//! - The size in bytes is a power of two, holds the entries that the kernel reserves and no more than
//!   `KVM_CHECK_EXTENSION` says; it is set once, before the first vCPU.
//! - Entry by entry, in order: the kernel fills one and sets `DIRTY`; this side reads the flags with
//!   acquire, takes the page, sets `RESET` with release. `KVM_RESET_DIRTY_RINGS` protects the pages of
//!   all such entries again and frees them. A page is read after that call, never before.
//! - The call may end early for a signal (`EINTR`) and is then made again.
//! - The kernel keeps entries in reserve for what it writes between noticing that a ring is full and
//!   leaving `KVM_RUN`. A KVM that emulates long stretches of code at once (`kvm_pvm` at privilege level 0)
//!   can need more, and then writes over entries: every entry holds a page at once, which never
//!   happens otherwise. Harvests then fail with [`DirtyRingError::Overflowed`] until tracking is
//!   started anew.
//! - With rings `KVM_GET_DIRTY_LOG` fails with ENXIO, and the log's manual mode must stay off: with it,
//!   switching tracking on would protect nothing.
//! - `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP` exists for pages that the kernel writes for no vCPU (the ITS
//!   tables of arm64); x86 has no such writes and does not offer it. Where it is offered, a VM whose
//!   rings are without it would lose them, so [`MemorySlots::enable_dirty_ring`] refuses there.
//! - A processor that logs pages itself (Intel's PML) holds up to 512 of them per vCPU until its next
//!   exit. A live harvest may lack those; a later one has them, the paused one at the latest, and the
//!   engine is as right as with pages written a moment later.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::raw::c_ulong;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_memory::{Layout, LayoutError, PAGE_SIZE, PageRange, PageSet, Span};
use ferry_migrate::Harvest;
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
    KVM_DIRTY_LOG_PAGE_OFFSET, KVM_MEM_LOG_DIRTY_PAGES, kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;

use crate::ioctl::reset_dirty_rings;
use crate::memory::{MemoryError, MemorySlots};

/// `KVM_DIRTY_GFN_F_DIRTY` of linux/kvm.h: the entry holds a page.
const DIRTY: u32 = 1;

/// `KVM_DIRTY_GFN_F_RESET` of linux/kvm.h: the page was taken.
const RESET: u32 = 2;

const ENTRY_BYTES: usize = size_of::<kvm_dirty_gfn>();

/// The dirty rings could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyRingError {
    /// This KVM has no rings, or such as alone would lose pages.
    #[error("this KVM offers no dirty ring that sees every write: use the dirty log")]
    NotOffered,
    /// No ring can have so many entries.
    #[error("a dirty ring cannot have {entries} entries: use a power of two from 256 to {max}")]
    Entries {
        /// Entries asked for.
        entries: u32,
        /// The most that this KVM offers.
        max: u32,
    },
    /// KVM refused the rings that it offers.
    #[error("KVM refuses dirty rings of {entries} entries: {source}; enable them before the first vCPU")]
    Enable {
        /// Entries asked for.
        entries: u32,
        /// What KVM said.
        source: errno::Error,
    },
    /// A vCPU's ring could not be mapped.
    #[error("the dirty ring of a vCPU cannot be mapped: {0}")]
    Map(io::Error),
    /// The pages taken could not be protected again.
    #[error("KVM cannot reset the dirty rings: {0}")]
    Reset(errno::Error),
    /// KVM wrote past a ring's end, over pages that nobody had seen.
    #[error("a dirty ring overflowed and pages were lost: use more entries, or the dirty log")]
    Overflowed,
    /// Tracking could not be switched on or off.
    #[error("KVM cannot switch the dirty tracking of a memory slot")]
    Switch(#[from] MemoryError),
    /// The memory makes no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// The dirty rings of one VM's vCPUs; clones are the same.
#[derive(Debug, Clone)]
pub struct DirtyRing {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    vm: Arc<VmFd>,
    entries: u32,
    rings: Mutex<Rings>,
}

#[derive(Debug)]
struct Rings {
    mapped: Vec<Ring>,
    /// Pages taken out of a ring and not yet harvested.
    taken: PageSet,
    /// Whether a page was lost since tracking began.
    overflowed: bool,
}

impl DirtyRing {
    /// Entries of a vCPU's ring that suit most guests: 64 KiB, full after 16 MiB.
    pub const ENTRIES: u32 = 4096;

    /// Gives every vCPU of the VM, which must have none yet, a ring.
    pub(crate) fn enable(memory: &MemorySlots, entries: u32) -> Result<Self, DirtyRingError> {
        let vm = memory.vm();
        let offered = |cap: u32| u32::try_from(vm.check_extension_raw(c_ulong::from(cap))).unwrap_or(0);
        let ordered = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING];
        let cap = ordered.into_iter().find(|&cap| offered(cap) > 0).ok_or(DirtyRingError::NotOffered)?;
        if offered(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0 {
            return Err(DirtyRingError::NotOffered);
        }
        let bytes = u64::from(entries) * ENTRY_BYTES as u64;
        if !entries.is_power_of_two() || bytes < PAGE_SIZE || bytes > u64::from(offered(cap)) {
            let max = offered(cap) / u32::try_from(ENTRY_BYTES).unwrap_or(u32::MAX);
            return Err(DirtyRingError::Entries { entries, max });
        }
        let mut request = kvm_enable_cap { cap, ..Default::default() };
        request.args[0] = bytes;
        vm.enable_cap(&request).map_err(|source| DirtyRingError::Enable { entries, source })?;
        let span = |slot: ferry_protocol::RegionSpan| Span { start: slot.start, length: slot.length };
        let layout = Layout::new(memory.regions().into_iter().map(span).collect())?;
        let rings = Rings { mapped: Vec::new(), taken: PageSet::empty(&layout), overflowed: false };
        Ok(Self { shared: Arc::new(Shared { vm: Arc::clone(vm), entries, rings: Mutex::new(rings) }) })
    }

    /// Empties the rings, so that the vCPU can run on. Call it on the vCPU's thread each time its
    /// `KVM_RUN` comes back with `KVM_EXIT_DIRTY_RING_FULL`. The pages are not lost: the next harvest
    /// has them.
    pub fn make_room(&self) -> Result<(), DirtyRingError> {
        self.take_all(&mut self.lock())
    }

    /// Maps a vCPU's ring. Pages of vCPUs that are not attached are never seen.
    pub(crate) fn attach(&self, vcpu: &VcpuFd) -> Result<(), DirtyRingError> {
        let ring = Ring::map(vcpu, self.shared.entries).map_err(DirtyRingError::Map)?;
        self.lock().mapped.push(ring);
        Ok(())
    }

    /// Switches tracking on. Every page written after this returns is in a later harvest.
    pub(crate) fn start(&self, memory: &MemorySlots) -> Result<(), DirtyRingError> {
        Self::stop(memory)?;
        {
            // What an earlier tracking left in the rings.
            let mut rings = self.lock();
            self.take_all(&mut rings)?;
            rings.taken.clear();
            rings.overflowed = false;
        }
        let started = switch(memory, KVM_MEM_LOG_DIRTY_PAGES);
        if started.is_err()
            && let Err(error) = Self::stop(memory)
        {
            tracing::warn!(%error, "dirty tracking that did not start could not be switched off");
        }
        started
    }

    /// Adds what was written since the last harvest to `into`. See [`ferry_migrate::Machine::harvest_dirty`].
    pub(crate) fn harvest(&self, when: Harvest, into: &mut PageSet) -> Result<(), DirtyRingError> {
        let mut rings = self.lock();
        match when {
            Harvest::Live => self.take_all(&mut rings)?,
            // Nothing is written any more, so nothing needs to be protected.
            Harvest::Paused => rings.take(),
        }
        if rings.overflowed {
            return Err(DirtyRingError::Overflowed);
        }
        if into.union(&rings.taken) {
            rings.taken.clear();
            return Ok(());
        }
        Err(DirtyRingError::Layout(LayoutError::Empty))
    }

    /// Switches tracking off.
    pub(crate) fn stop(memory: &MemorySlots) -> Result<(), DirtyRingError> {
        switch(memory, 0)
    }

    /// Takes every page out of the rings, and protects them again.
    fn take_all(&self, rings: &mut Rings) -> Result<(), DirtyRingError> {
        rings.take();
        reset_dirty_rings(&self.shared.vm).map_err(DirtyRingError::Reset)
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.shared.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn switch(memory: &MemorySlots, flags: u32) -> Result<(), DirtyRingError> {
    memory.slots().iter().try_for_each(|slot| memory.set_flags(slot, flags)).map_err(Into::into)
}

impl Rings {
    fn take(&mut self) {
        let Self { mapped, taken, overflowed } = self;
        for ring in mapped {
            let mut left = ring.entries;
            while left > 0
                && let Some((slot, offset)) = ring.next_page()
            {
                left -= 1;
                // A slot that is none of ours belongs to the VMM: its pages are not guest memory to move.
                if let Some(first) = page_of(taken.layout(), slot, offset) {
                    taken.insert(PageRange { first, count: 1 });
                }
            }
            *overflowed |= left == 0;
        }
    }
}

/// The frame number of a slot's page: slot *i* is region *i*. A VMM that registers slots for the address
/// space of system management mode, too (the upper half of the number), gives twins the same number.
fn page_of(layout: &Layout, slot: u32, offset: u64) -> Option<u64> {
    let region = layout.spans().get((slot & 0xffff) as usize)?.pages();
    (offset < region.count).then(|| region.first + offset)
}

/// The mapped ring of one vCPU.
#[derive(Debug)]
struct Ring {
    base: NonNull<kvm_dirty_gfn>,
    entries: u32,
    /// The entry that the kernel fills next, or has filled.
    next: u32,
}

impl Ring {
    fn map(vcpu: &VcpuFd, entries: u32) -> io::Result<Self> {
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE.cast_signed();
        // SAFETY: a new shared mapping at an address of the kernel's choice; it disturbs no other.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries as usize * ENTRY_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset,
            )
        };
        match NonNull::new(address.cast::<kvm_dirty_gfn>()) {
            Some(base) if address != libc::MAP_FAILED => Ok(Self { base, entries, next: 0 }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes the next page out: its slot, and its number in the slot.
    fn next_page(&mut self) -> Option<(u32, u64)> {
        const { assert!(offset_of!(kvm_dirty_gfn, flags) == 0 && offset_of!(kvm_dirty_gfn, slot) == 4) };
        const { assert!(offset_of!(kvm_dirty_gfn, offset) == 8) };
        let entry = self.base.as_ptr().wrapping_add((self.next % self.entries) as usize);
        // SAFETY: the flags are a word of the mapped entry; in this mapping only atomics touch them.
        let flags = unsafe { AtomicU32::from_ptr(entry.cast()) };
        // Acquire: what the kernel wrote before it set the flag is seen.
        if flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
            return None;
        }
        // SAFETY: mapped and aligned; the kernel writes it no more until the entry is reset.
        let slot = unsafe { entry.cast::<u32>().wrapping_add(1).read_volatile() };
        // SAFETY: as above.
        let offset = unsafe { entry.cast::<u64>().wrapping_add(1).read_volatile() };
        // Release: the entry was read before the kernel may use it again.
        flags.store(RESET, Ordering::Release);
        self.next = (self.next + 1) % self.entries;
        Some((slot, offset))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference into it outlives the value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.entries as usize * ENTRY_BYTES) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Ring {}
