//! Which pages the guest wrote: KVM's dirty rings, one a vCPU.
//!
//! [`MemorySlots::enable_dirty_ring`] before the first vCPU exists, or [`DirtyRing::enable`] where memory comes
//! after the vCPUs, then [`MemorySlots::use_dirty_ring`]; [`KvmMachine::new`](crate::KvmMachine::new) maps the
//! rings and harvests them. The VMM does one thing: where `KVM_RUN` comes back because a ring is full
//! (`KVM_EXIT_DIRTY_RING_FULL`, which kvm-ioctls calls `VcpuExit::Unsupported(31)`), it calls
//! [`DirtyRing::make_room`] with the vCPU's index and runs on.
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
//! - The call frees entries only while they follow one another from where it last stopped, ring by ring, and
//!   returns how many. It ends early for a signal, and then returns what it had done; so here each
//!   ring is emptied by itself and the call is made until all of its entries are free.
//! - The kernel keeps entries in reserve for what it writes between noticing that a ring is full and
//!   leaving `KVM_RUN`. A KVM that emulates long stretches of code at once (`kvm_pvm` at privilege level 0)
//!   can need more, and then writes over entries ([`ring`]): pages are lost, and harvests fail with
//!   [`DirtyRingError::Overflowed`] until tracking is started anew. The ring itself is set right
//!   again, so that the guest runs on and the next tracking is whole.
//! - With rings `KVM_GET_DIRTY_LOG` fails with ENXIO, and the log's manual mode must stay off: with it,
//!   switching tracking on would protect nothing.
//! - What the kernel writes for no vCPU (on arm64 the tables of the GIC, when they are saved) is in no ring but in the
//!   dirty log, where `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP` is enabled: after the rings, before the first memory
//!   slot. Where it is offered it is enabled, and the harvest of the paused guest takes the log as well, which is
//!   when there are such writes (api.rst: the log is whole once the vCPUs stand still). x86 has none and offers none.
//! - A processor that logs pages itself (Intel's PML) holds up to 512 of them per vCPU until its next
//!   exit. A live harvest may lack those; a later one has them, the paused one at the latest, and the
//!   engine is as right as with pages written a moment later.

mod ring;

use std::io;
use std::os::raw::c_ulong;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_memory::{Layout, LayoutError, PAGE_SIZE, PageRange, PageSet, Span};
use ferry_migrate::Harvest;
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
    KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::errno;

use self::ring::{ENTRY_BYTES, Ring};
use crate::ioctl::reset_dirty_rings;
use crate::memory::{MemoryError, MemorySlots};

/// How often in a row a reset may free nothing before it is believed: a signal ends it early, too.
const IDLE_RESETS_MAX: u32 = 16;

/// How often a ring that is written over while it is emptied is looked at again, at one time.
const WALKS_MAX: u32 = 4;

/// The dirty rings could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyRingError {
    /// This KVM has no rings.
    #[error("this KVM offers no dirty ring: use the dirty log")]
    NotOffered,
    /// No ring can have so many entries.
    #[error("a dirty ring cannot have {entries} entries: use a power of two from 256 to {max}")]
    Entries {
        /// Entries asked for.
        entries: u32,
        /// The most that this KVM offers.
        max: u32,
    },
    /// There is no such vCPU, or its ring is not attached.
    #[error("vCPU {vcpu} has no dirty ring here")]
    NoSuchVcpu {
        /// Index of the vCPU.
        vcpu: u32,
    },
    /// KVM refused the rings that it offers.
    #[error(
        "KVM refuses dirty rings of {entries} entries: {source}; enable them before the first vCPU, on arm64 before the first memory slot"
    )]
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
    #[error(
        "a dirty ring overflowed, so that not every written page is known: use more entries, or the dirty log"
    )]
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
    /// Whether what the kernel writes for no vCPU is in the dirty log.
    has_log: bool,
    rings: Mutex<Rings>,
}

#[derive(Debug)]
struct Rings {
    mapped: Vec<Ring>,
    /// Pages taken out of a ring and not yet harvested; none before there is memory.
    taken: Option<PageSet>,
    /// Whether a page was lost since tracking began.
    overflowed: bool,
}

/// What a KVM offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    /// The capability that is enabled.
    cap: u32,
    /// The most bytes of a ring.
    bytes_max: u32,
    /// Whether there are writes beside the rings.
    has_log: bool,
}

impl Offer {
    fn of(check: impl Fn(c_ulong) -> i32) -> Result<Self, DirtyRingError> {
        let offered = |cap: u32| u32::try_from(check(c_ulong::from(cap))).unwrap_or(0);
        let has_log = offered(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0;
        [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING]
            .into_iter()
            .map(|cap| Self { cap, bytes_max: offered(cap), has_log })
            .find(|offer| offer.bytes_max > 0)
            .ok_or(DirtyRingError::NotOffered)
    }
}

impl DirtyRing {
    /// Entries of a vCPU's ring that suit most guests: 64 KiB, full after 16 MiB.
    pub const ENTRIES: u32 = 4096;

    /// Fails where [`enable`](Self::enable) would, for want of a KVM that offers rings.
    pub fn is_offered(kvm: &Kvm) -> Result<(), DirtyRingError> {
        Offer::of(|cap| kvm.check_extension_raw(cap)).map(drop)
    }

    /// Gives every vCPU of the VM, which must have none yet, a ring of so many entries, a power of two (see
    /// [`DirtyRing::ENTRIES`]). Its memory is registered with [`MemorySlots::use_dirty_ring`].
    pub fn enable(vm: &Arc<VmFd>, entries: u32) -> Result<Self, DirtyRingError> {
        let Offer { cap, bytes_max, has_log } = Offer::of(|cap| vm.check_extension_raw(cap))?;
        let bytes = u64::from(entries) * ENTRY_BYTES as u64;
        if !entries.is_power_of_two() || bytes < PAGE_SIZE || bytes > u64::from(bytes_max) {
            let max = bytes_max / u32::try_from(ENTRY_BYTES).unwrap_or(u32::MAX);
            return Err(DirtyRingError::Entries { entries, max });
        }
        let failed = |source| DirtyRingError::Enable { entries, source };
        let mut request = kvm_enable_cap { cap, ..Default::default() };
        request.args[0] = bytes;
        vm.enable_cap(&request).map_err(failed)?;
        if has_log {
            let cap = KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP;
            vm.enable_cap(&kvm_enable_cap { cap, ..Default::default() }).map_err(failed)?;
        }
        let rings = Mutex::new(Rings { mapped: Vec::new(), taken: None, overflowed: false });
        Ok(Self { shared: Arc::new(Shared { vm: Arc::clone(vm), entries, has_log, rings }) })
    }

    /// Notes pages of this memory from now on.
    pub(crate) fn track(&self, memory: &MemorySlots) -> Result<(), DirtyRingError> {
        let span = |slot: ferry_protocol::RegionSpan| Span { start: slot.start, length: slot.length };
        let layout = Layout::new(memory.regions().into_iter().map(span).collect())?;
        self.lock().taken = Some(PageSet::empty(&layout));
        Ok(())
    }

    /// Empties the ring of a vCPU, so that it can run on. Call it on the vCPU's thread each time its
    /// `KVM_RUN` comes back with `KVM_EXIT_DIRTY_RING_FULL`. The pages are not lost: the next harvest
    /// has them.
    pub fn make_room(&self, vcpu: u32) -> Result<(), DirtyRingError> {
        let mut rings = self.lock();
        let index = usize::try_from(vcpu).ok().filter(|&index| index < rings.mapped.len());
        let index = index.ok_or(DirtyRingError::NoSuchVcpu { vcpu })?;
        let taken = self.empty(&mut rings, index)?;
        let Some(ring) = rings.mapped.get_mut(index) else { return Ok(()) };
        let was_written_over = ring.was_written_over;
        if taken > 0 || !ring.is_full_while_empty() {
            return Ok(());
        }
        // What was lost before this tracking began is not missed in it.
        rings.overflowed |= !was_written_over;
        self.empty(&mut rings, index).map(drop)
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
            // What an earlier tracking left in the rings; in one that was written over it is found in steps.
            let mut rings = self.lock();
            for index in 0..rings.mapped.len() {
                for _ in 0..WALKS_MAX {
                    if self.empty(&mut rings, index)? == 0 {
                        break;
                    }
                }
            }
            rings.taken.as_mut().map(PageSet::clear);
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

    /// Whether the dirty log has what the kernel writes for no vCPU.
    pub(crate) fn has_log(&self) -> bool {
        self.shared.has_log
    }

    /// Adds what was written since the last harvest to `into`. See [`ferry_migrate::Machine::harvest_dirty`].
    pub(crate) fn harvest(&self, when: Harvest, into: &mut PageSet) -> Result<(), DirtyRingError> {
        let mut rings = self.lock();
        match when {
            Harvest::Live => self.empty_all(&mut rings)?,
            // Nothing is written any more, so nothing needs to be protected.
            Harvest::Paused => rings.look_at_all(),
        }
        if rings.overflowed {
            return Err(DirtyRingError::Overflowed);
        }
        match &mut rings.taken {
            Some(taken) if into.union(taken) => {
                taken.clear();
                Ok(())
            }
            _ => Err(DirtyRingError::Layout(LayoutError::Empty)),
        }
    }

    /// Switches tracking off.
    pub(crate) fn stop(memory: &MemorySlots) -> Result<(), DirtyRingError> {
        switch(memory, 0)
    }

    /// Takes every page out of the rings, and protects them again.
    fn empty_all(&self, rings: &mut Rings) -> Result<(), DirtyRingError> {
        for index in 0..rings.mapped.len() {
            self.empty(rings, index)?;
        }
        Ok(())
    }

    /// Takes every page out of one ring and protects them again; how many entries that freed.
    fn empty(&self, rings: &mut Rings, index: usize) -> Result<u32, DirtyRingError> {
        let mut freed_in_all = 0;
        for _ in 0..WALKS_MAX {
            let taken = rings.take(index);
            let freed = self.reset(taken)?;
            freed_in_all += freed;
            let Some(ring) = rings.mapped.get_mut(index) else { break };
            ring.freed(freed);
            if freed == taken {
                break;
            }
            // An entry was written over after it was taken: its page is in no entry and not protected.
            ring.was_written_over = true;
            rings.overflowed = true;
        }
        Ok(freed_in_all)
    }

    /// Lets the kernel free entries of one ring, the only one with any to free; how many it did.
    fn reset(&self, entries: u32) -> Result<u32, DirtyRingError> {
        let (mut freed, mut idle) = (0, 0);
        while freed < entries && idle < IDLE_RESETS_MAX {
            let more = reset_dirty_rings(&self.shared.vm).map_err(DirtyRingError::Reset)?;
            idle = if more == 0 { idle + 1 } else { 0 };
            freed += more;
        }
        Ok(freed)
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.shared.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn switch(memory: &MemorySlots, flags: u32) -> Result<(), DirtyRingError> {
    memory.slots().iter().try_for_each(|slot| memory.set_flags(slot, flags)).map_err(Into::into)
}

impl Rings {
    /// Takes the pages of every ring, and leaves the rings as they are.
    fn look_at_all(&mut self) {
        let Self { mapped, taken, overflowed } = self;
        for ring in mapped {
            let count = ring.look(|slot, offset| note(taken, slot, offset));
            *overflowed |= count == ring.entries();
        }
    }

    /// Takes every page out of one ring; how many of its entries wait to be freed now.
    fn take(&mut self, index: usize) -> u32 {
        let Self { mapped, taken, overflowed } = self;
        let Some(ring) = mapped.get_mut(index) else { return 0 };
        let count = ring.take(|slot, offset| note(taken, slot, offset));
        *overflowed |= count == ring.entries();
        count
    }
}

/// Notes a slot's page. A slot that is none of ours belongs to the VMM: its pages are not guest memory to
/// move.
fn note(pages: &mut Option<PageSet>, slot: u32, offset: u64) {
    if let Some(pages) = pages
        && let Some(first) = page_of(pages.layout(), slot, offset)
    {
        pages.insert(PageRange { first, count: 1 });
    }
}

/// The frame number of a slot's page: slot *i* is region *i*. A VMM that registers slots for the address
/// space of system management mode, too (the upper half of the number), gives twins the same number.
fn page_of(layout: &Layout, slot: u32, offset: u64) -> Option<u64> {
    let region = layout.spans().get((slot & 0xffff) as usize)?.pages();
    (offset < region.count).then(|| region.first + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_in_order_come_first_and_writes_beside_them_are_known() {
        let offers = |caps: &[(u32, i32)]| {
            let caps = caps.to_vec();
            Offer::of(move |cap| {
                caps.iter().find(|known| c_ulong::from(known.0) == cap).map_or(0, |known| known.1)
            })
        };
        let refused = |caps: &[(u32, i32)]| matches!(offers(caps), Err(DirtyRingError::NotOffered));
        let (old, ordered) = ((KVM_CAP_DIRTY_LOG_RING, 4096), (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 1 << 20));
        let log = (KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 1);
        assert!(refused(&[]) && refused(&[(KVM_CAP_DIRTY_LOG_RING, -1)]) && refused(&[log]));
        let offer = |(cap, bytes_max): (u32, i32), has_log| Offer {
            cap,
            bytes_max: bytes_max.unsigned_abs(),
            has_log,
        };
        assert_eq!(offers(&[old]).unwrap(), offer(old, false));
        assert_eq!(offers(&[old, ordered]).unwrap(), offer(ordered, false));
        assert_eq!(offers(&[ordered, log]).unwrap(), offer(ordered, true));
    }
}
