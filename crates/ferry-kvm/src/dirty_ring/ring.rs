//! The mapped dirty ring of one vCPU.
//!
//! Two counters of the kernel say where things are (`virt/kvm/dirty_ring.c`): the next entry that it fills,
//! and the next that it frees. All entries between are dirty or taken, the others are free. This side
//! knows the second from the numbers that the resets return, and always reads from there on.
//!
//! **A ring that was written over.** When a vCPU fills more entries than a ring has, the first counter is
//! more than one turn ahead. Once every entry is free again it still is, by as many entries as were written
//! over: the kernel counts these as used for ever, and fills the ring from there on, out of sight of
//! a reader that goes on where the resets stopped. If they are so many that the ring counts as full, the vCPU
//! cannot run at all. The reader sets both right from user space, since the kernel frees whatever entry is
//! marked as taken: the first dirty entry found shows where the kernel fills, and those up to it
//! are marked ([`Ring::take`]); where the vCPU cannot run to dirty one, one entry at a time is marked until it
//! can ([`Ring::is_full_while_empty`]). What the marked entries say is old, and freeing them protects a page
//! that is protected already.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use ferry_memory::PAGE_SIZE;
use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = size_of::<kvm_dirty_gfn>();

/// `KVM_DIRTY_GFN_F_DIRTY` of linux/kvm.h: the entry holds a page.
const DIRTY: u32 = 1;

/// `KVM_DIRTY_GFN_F_RESET` of linux/kvm.h: the page was taken.
const RESET: u32 = 2;

const FREE: u32 = 0;

/// The mapped ring of one vCPU.
#[derive(Debug)]
pub(super) struct Ring {
    base: NonNull<kvm_dirty_gfn>,
    entries: u32,
    /// The entry that the kernel frees next.
    first: u32,
    /// It was written over once: where the kernel fills it is looked for each time, since one look cannot tell
    /// whether the kernel is a whole turn ahead.
    pub(super) was_written_over: bool,
    /// The last time that KVM called it full, nothing was in it.
    said_full_while_empty: bool,
}

impl Ring {
    pub(super) fn map(vcpu: &VcpuFd, entries: u32) -> io::Result<Self> {
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
            Some(base) if address != libc::MAP_FAILED => {
                Ok(Self { base, entries, first: 0, was_written_over: false, said_full_while_empty: false })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// How many entries it has.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// Takes every page out, its slot and its number in the slot; how many entries wait to be freed now.
    /// As many as it has: it was written over.
    pub(super) fn take(&mut self, mut see: impl FnMut(u32, u64)) -> u32 {
        if let Some(ahead) = self.find_the_kernel() {
            (0..ahead).for_each(|ahead| self.mark_taken(ahead));
        }
        let count = self.walk(0, |ahead, (slot, offset)| {
            see(slot, offset);
            self.mark_taken(ahead);
        });
        if count > 0 {
            self.said_full_while_empty = false;
        }
        self.was_written_over |= count == self.entries;
        count
    }

    /// The same, and leaves everything as it is: for pages of which nothing is written any more.
    pub(super) fn look(&self, mut see: impl FnMut(u32, u64)) -> u32 {
        self.walk(self.find_the_kernel().unwrap_or(0), |_, (slot, offset)| see(slot, offset))
    }

    /// Goes over all entries that are not free, and shows the dirty ones; how many there are.
    fn walk(&self, from: u32, mut see: impl FnMut(u32, (u32, u64))) -> u32 {
        let mut count = 0;
        while count < self.entries {
            match self.flags(from + count).load(Ordering::Acquire) {
                FREE => break,
                flags if flags & RESET == 0 => see(from + count, self.page(from + count)),
                _ => {}
            }
            count += 1;
        }
        count
    }

    /// The kernel freed so many entries.
    pub(super) fn freed(&mut self, entries: u32) {
        self.first = (self.first + entries) % self.entries;
    }

    /// KVM called it full and nothing was in it: whether this is the second time in a row. The first time it
    /// may have been emptied in between; the second time it was written over, and a free entry is marked, which
    /// makes it one less full.
    pub(super) fn is_full_while_empty(&mut self) -> bool {
        let again = std::mem::replace(&mut self.said_full_while_empty, true);
        if again {
            self.was_written_over = true;
            if self.flags(0).load(Ordering::Acquire) == FREE {
                self.mark_taken(0);
            }
        }
        again
    }

    /// How far ahead the kernel fills a ring that was written over, if a dirty entry tells.
    fn find_the_kernel(&self) -> Option<u32> {
        let is_dirty = |ahead: u32| self.flags(ahead).load(Ordering::Acquire) & DIRTY != 0;
        let mut found = (0..self.entries).filter(|_| self.was_written_over).find(|ahead| is_dirty(*ahead))?;
        // The kernel may have filled the entries before it since they were looked at.
        while found > 0 && is_dirty(found - 1) {
            found -= 1;
        }
        Some(found)
    }

    /// Release: the entry was read before the kernel may use it again.
    fn mark_taken(&self, ahead: u32) {
        self.flags(ahead).store(RESET, Ordering::Release);
    }

    /// The entry that is so far ahead of the one that the kernel frees next.
    fn entry(&self, ahead: u32) -> *mut kvm_dirty_gfn {
        self.base.as_ptr().wrapping_add(((self.first + ahead) % self.entries) as usize)
    }

    fn flags(&self, ahead: u32) -> &AtomicU32 {
        const { assert!(offset_of!(kvm_dirty_gfn, flags) == 0 && offset_of!(kvm_dirty_gfn, slot) == 4) };
        // SAFETY: the flags are a word of an entry that is mapped as long as `self` lives; in this
        // mapping only atomics touch them.
        unsafe { AtomicU32::from_ptr(self.entry(ahead).cast()) }
    }

    /// What a dirty entry says.
    fn page(&self, ahead: u32) -> (u32, u64) {
        const { assert!(offset_of!(kvm_dirty_gfn, offset) == 8) };
        let entry = self.entry(ahead);
        // SAFETY: mapped and aligned; the kernel writes it no more until the entry is reset, unless it
        // writes over it, and then harvests fail.
        let slot = unsafe { entry.cast::<u32>().wrapping_add(1).read_volatile() };
        // SAFETY: as above.
        let offset = unsafe { entry.cast::<u64>().wrapping_add(1).read_volatile() };
        (slot, offset)
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

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: u32 = 16;

    /// At which fill the kernel lets a vCPU go no further.
    const SOFT: u32 = 12;

    /// The kernel's side of a ring (`kvm_dirty_ring_push` and `kvm_dirty_ring_reset`).
    struct Kernel {
        ring: Ring,
        filled: u32,
        freed: u32,
    }

    impl Kernel {
        fn new() -> Self {
            // SAFETY: a new private mapping at an address of the kernel's choice.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    ENTRIES as usize * ENTRY_BYTES,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(address, libc::MAP_FAILED);
            let base = NonNull::new(address.cast()).unwrap();
            let (was_written_over, said_full_while_empty) = (false, false);
            Self {
                ring: Ring { base, entries: ENTRIES, first: 0, was_written_over, said_full_while_empty },
                filled: 0,
                freed: 0,
            }
        }

        fn place(&self, index: u32) -> *mut kvm_dirty_gfn {
            self.ring.base.as_ptr().wrapping_add((index % ENTRIES) as usize)
        }

        fn push(&mut self, page: u64) {
            let entry = kvm_dirty_gfn { flags: DIRTY, slot: 7, offset: page };
            // SAFETY: inside the mapping.
            unsafe { self.place(self.filled).write(entry) };
            self.filled += 1;
        }

        fn is_full(&self) -> bool {
            self.filled.wrapping_sub(self.freed) >= SOFT
        }

        /// Empties the ring as `DirtyRing::empty` does, and what was in it.
        fn empty(&mut self) -> Vec<u64> {
            let mut pages = Vec::new();
            let taken = self.ring.take(|slot, page| {
                assert_eq!(slot, 7);
                pages.push(page);
            });
            let freed = self.reset();
            self.ring.freed(freed);
            self.ring.was_written_over |= freed != taken;
            pages
        }

        fn reset(&mut self) -> u32 {
            let before = self.freed;
            // SAFETY: inside the mapping.
            while unsafe { (*self.place(self.freed)).flags } & RESET != 0 {
                // SAFETY: inside the mapping.
                unsafe { (*self.place(self.freed)).flags = FREE };
                self.freed += 1;
            }
            self.freed - before
        }

        /// As a vCPU that KVM does not let run.
        fn make_room(&mut self) {
            for _ in 0..1000 {
                if !self.is_full() {
                    return;
                }
                if self.empty().is_empty() && self.ring.is_full_while_empty() {
                    self.empty();
                }
            }
            panic!("no room is made: {} filled, {} freed", self.filled, self.freed);
        }
    }

    #[test]
    fn whatever_was_written_over_the_ring_is_right_again_and_shows_every_page() {
        for before in 0..ENTRIES {
            for too_many in 1..3 * ENTRIES {
                let mut kernel = Kernel::new();
                (0..before).for_each(|page| kernel.push(page.into()));
                assert_eq!(kernel.empty().len(), before as usize);
                (0..ENTRIES + too_many).for_each(|page| kernel.push(page.into()));
                assert_eq!(kernel.empty().len(), ENTRIES as usize, "every entry is dirty at once");
                assert!(kernel.ring.was_written_over);
                kernel.make_room();
                for turn in 0..40_u64 {
                    let some = u64::from(before) % 4 + 1;
                    (0..some).for_each(|page| kernel.push(turn * 10 + page));
                    let mut looked = Vec::new();
                    kernel.ring.look(|_, page| looked.push(page));
                    let expected: Vec<_> = (0..some).map(|page| turn * 10 + page).collect();
                    assert_eq!((looked, kernel.empty()), (expected.clone(), expected), "turn {turn}");
                    assert_eq!(kernel.filled, kernel.freed);
                }
            }
        }
    }

    #[test]
    fn entries_written_over_between_taking_and_freeing_are_noticed() {
        for over in 1..=3 * ENTRIES {
            let mut kernel = Kernel::new();
            (0..10).for_each(|page| kernel.push(page));
            assert_eq!(kernel.ring.take(|_, _| {}), 10);
            (0..ENTRIES - 10 + over).for_each(|page| kernel.push(page.into()));
            let freed = kernel.reset();
            assert!(freed < 10, "{over}");
            kernel.ring.freed(freed);
            kernel.ring.was_written_over = true;
            kernel.make_room();
            kernel.empty();
            kernel.push(99);
            assert_eq!(kernel.empty(), [99], "{over}");
        }
    }
}
