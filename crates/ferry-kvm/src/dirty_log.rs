//! Which pages the guest wrote: KVM's dirty log.
//!
//! [`DirtyLog::start`], then [`DirtyLog::harvest`] once a round, then [`DirtyLog::stop`].
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst, 4.8 (`KVM_GET_DIRTY_LOG`), 4.117
//! (`KVM_CLEAR_DIRTY_LOG`) and 7.18 (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`, whose value is the set of
//! flags that it takes):
//!
//! - With `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`, reading the log neither clears it nor protects
//!   pages; clearing does both, for the pages named. So a live harvest reads, then clears exactly
//!   what it read: a page written in between is read by the engine after the harvest, a page
//!   written after the clearing faults and is noted again. A paused harvest only reads.
//! - With `KVM_DIRTY_LOG_INITIALLY_SET` switching the log on sets every bit and protects nothing,
//!   which makes the switch cheap under KVM's lock. Those bits say nothing about the guest: `start`
//!   clears them all itself, a piece at a time, which protects every page. Pages written after
//!   `start` returns are noted, and the first harvest holds only those. (Left to the first harvest,
//!   all memory would be sent twice.)
//! - Without either, switching the log on protects every page at once, and reading the log clears
//!   it and protects what it held, in one step.

use ferry_memory::{PAGE_SIZE, PageSet};
use ferry_migrate::Harvest;
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use std::os::raw::c_ulong;
use vmm_sys_util::errno;

use crate::ioctl::{PAGES_PER_WORD, clear_dirty_log};
use crate::memory::{MemoryError, MemorySlots, Slot};

/// Words of the bitmap that one clearing names at most: 1 GiB of memory. Between two the kernel lets
/// go of the lock that the guest's page faults need.
const CLEAR_WORDS_MAX: usize = 4096;

/// The same in pages.
const CLEAR_PAGES_MAX: u64 = CLEAR_WORDS_MAX as u64 * PAGES_PER_WORD;

/// The dirty log could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirtyLogError {
    /// KVM refused the manual mode that it offers.
    #[error("KVM refuses the dirty log's manual mode: {0}")]
    Mode(errno::Error),
    /// The log could not be switched on or off.
    #[error("KVM cannot switch the dirty log of a memory slot")]
    Switch(#[from] MemoryError),
    /// The log could not be read.
    #[error("KVM cannot read the dirty log of slot {slot}: {source}")]
    Read {
        /// Number of the slot.
        slot: u32,
        /// What KVM said.
        source: errno::Error,
    },
    /// The log could not be cleared.
    #[error("KVM cannot clear the dirty log of slot {slot}: {source}")]
    Clear {
        /// Number of the slot.
        slot: u32,
        /// What KVM said.
        source: errno::Error,
    },
}

/// Who clears the log and protects the pages again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protect {
    /// `KVM_GET_DIRTY_LOG` itself.
    OnRead,
    /// `KVM_CLEAR_DIRTY_LOG`; the log starts empty, every page protected.
    Manual,
    /// `KVM_CLEAR_DIRTY_LOG`; the log starts full, nothing protected.
    ManualInitiallySet,
}

impl Protect {
    /// The best that a KVM with these flags in `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` offers.
    fn offered(flags: u32) -> Self {
        let both = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
        if flags & both == both {
            Self::ManualInitiallySet
        } else if flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0 {
            Self::Manual
        } else {
            Self::OnRead
        }
    }

    /// The flags that choose this mode.
    fn flags(self) -> u32 {
        match self {
            Self::OnRead => 0,
            Self::Manual => KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
            Self::ManualInitiallySet => KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
        }
    }
}

/// The dirty log of one VM's memory slots.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    protect: Protect,
    on: bool,
}

impl DirtyLog {
    /// The log of a VM, off.
    pub(crate) fn new(vm: &VmFd) -> Self {
        let offered = vm.check_extension_raw(c_ulong::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
        Self { protect: Protect::offered(u32::try_from(offered).unwrap_or(0)), on: false }
    }

    /// The same in this mode, if KVM offers it.
    #[cfg(test)]
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn in_mode(vm: &VmFd, protect: Protect) -> Option<Self> {
        let offered = Self::new(vm).protect;
        (protect.flags() & offered.flags() == protect.flags()).then_some(Self { protect, on: false })
    }

    /// Switches the log on. Every page written after this returns is in a later harvest.
    pub(crate) fn start(&mut self, memory: &MemorySlots) -> Result<(), DirtyLogError> {
        if self.on {
            self.stop(memory)?;
        }
        self.choose_mode(memory.vm())?;
        self.on = true;
        let started = self.switch_on(memory);
        if started.is_err()
            && let Err(error) = self.stop(memory)
        {
            tracing::warn!(%error, "the dirty log that did not start could not be switched off");
        }
        started
    }

    /// Adds what was written since the last harvest to `into`. See [`ferry_migrate::Machine::harvest_dirty`].
    pub(crate) fn harvest(
        &mut self,
        memory: &MemorySlots,
        when: Harvest,
        into: &mut PageSet,
    ) -> Result<(), DirtyLogError> {
        for (region, slot) in memory.slots().iter().enumerate() {
            let words = read(memory.vm(), slot)?;
            into.insert_bitmap(region, &words);
            if when == Harvest::Live && self.protect != Protect::OnRead {
                clear(memory.vm(), slot, &words)?;
            }
        }
        Ok(())
    }

    /// Switches the log off.
    pub(crate) fn stop(&mut self, memory: &MemorySlots) -> Result<(), DirtyLogError> {
        for slot in memory.slots() {
            memory.set_flags(slot, 0)?;
        }
        self.on = false;
        Ok(())
    }

    fn choose_mode(&self, vm: &VmFd) -> Result<(), DirtyLogError> {
        if self.protect == Protect::OnRead {
            return Ok(());
        }
        let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
        cap.args[0] = u64::from(self.protect.flags());
        vm.enable_cap(&cap).map_err(DirtyLogError::Mode)
    }

    fn switch_on(&self, memory: &MemorySlots) -> Result<(), DirtyLogError> {
        for slot in memory.slots() {
            memory.set_flags(slot, KVM_MEM_LOG_DIRTY_PAGES)?;
            if self.protect == Protect::ManualInitiallySet {
                clear_all(memory.vm(), slot)?;
            }
        }
        Ok(())
    }
}

/// Adds what the log has of all slots.
pub(crate) fn read_all(memory: &MemorySlots, into: &mut PageSet) -> Result<(), DirtyLogError> {
    for (region, slot) in memory.slots().iter().enumerate() {
        into.insert_bitmap(region, &read(memory.vm(), slot)?);
    }
    Ok(())
}

/// Reads the log of a slot: one bit a page, the first page in bit 0 of the first word.
fn read(vm: &VmFd, slot: &Slot) -> Result<Vec<u64>, DirtyLogError> {
    let failed = |source| DirtyLogError::Read { slot: slot.number, source };
    let bytes = usize::try_from(slot.length).map_err(|_| failed(errno::Error::new(libc::EINVAL)))?;
    vm.get_dirty_log(slot.number, bytes).map_err(failed)
}

/// Clears the pages set in `words`, which stand for the whole slot.
fn clear(vm: &VmFd, slot: &Slot, words: &[u64]) -> Result<(), DirtyLogError> {
    for (piece, words) in pieces(slot.length / PAGE_SIZE).zip(words.chunks(CLEAR_WORDS_MAX)) {
        // Only what lies between the first and the last set bit costs the kernel anything.
        let Some(first) = words.iter().position(|&word| word != 0) else { continue };
        let last = words.iter().rposition(|&word| word != 0).unwrap_or(first);
        let part = piece.part(first as u64, last as u64);
        clear_piece(vm, slot, &part, words.get(first..=last).unwrap_or_default())?;
    }
    Ok(())
}

/// Clears every page of the slot.
fn clear_all(vm: &VmFd, slot: &Slot) -> Result<(), DirtyLogError> {
    let ones = vec![u64::MAX; CLEAR_WORDS_MAX];
    pieces(slot.length / PAGE_SIZE).try_for_each(|piece| clear_piece(vm, slot, &piece, &ones))
}

fn clear_piece(vm: &VmFd, slot: &Slot, piece: &Piece, words: &[u64]) -> Result<(), DirtyLogError> {
    let failed = |source| DirtyLogError::Clear { slot: slot.number, source };
    let pages = u32::try_from(piece.pages).map_err(|_| failed(errno::Error::new(libc::EINVAL)))?;
    clear_dirty_log(vm, slot.number, piece.first, pages, words).map_err(failed)
}

/// A run of a slot's pages that one clearing names: it begins at a multiple of 64 and is a multiple
/// of 64 long, unless it ends with the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    first: u64,
    pages: u64,
}

impl Piece {
    /// The part from its word `first` to its word `last`.
    fn part(&self, first: u64, last: u64) -> Self {
        let skipped = first * PAGES_PER_WORD;
        let pages = ((last - first + 1) * PAGES_PER_WORD).min(self.pages - skipped);
        Self { first: self.first + skipped, pages }
    }
}

/// The pieces of a slot of so many pages.
fn pieces(pages: u64) -> impl Iterator<Item = Piece> {
    (0..pages.div_ceil(CLEAR_PAGES_MAX)).map(move |index| {
        let first = index * CLEAR_PAGES_MAX;
        Piece { first, pages: CLEAR_PAGES_MAX.min(pages - first) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_the_kernels_rules_and_cover_every_page() {
        for pages in [1, 63, 64, 65, CLEAR_PAGES_MAX, CLEAR_PAGES_MAX + 1, 3 * CLEAR_PAGES_MAX + 77] {
            let mut next = 0;
            for piece in pieces(pages) {
                assert_eq!(piece.first, next);
                assert!(piece.first.is_multiple_of(64));
                next += piece.pages;
                assert!(piece.pages.is_multiple_of(64) || next == pages);
            }
            assert_eq!(next, pages);
        }
    }

    #[test]
    fn a_part_ends_with_its_piece() {
        let piece = Piece { first: 128, pages: 64 * 3 + 5 };
        assert_eq!(piece.part(0, 3), piece);
        assert_eq!(piece.part(1, 2), Piece { first: 192, pages: 128 });
        assert_eq!(piece.part(3, 3), Piece { first: 320, pages: 5 });
    }

    #[test]
    fn the_best_mode_offered_is_taken() {
        assert_eq!(Protect::offered(0), Protect::OnRead);
        assert_eq!(Protect::offered(1), Protect::Manual);
        assert_eq!(Protect::offered(2), Protect::OnRead);
        assert_eq!(Protect::offered(3), Protect::ManualInitiallySet);
    }
}
