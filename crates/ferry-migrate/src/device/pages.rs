//! The pages that a device wrote to guest memory by itself.

use std::sync::{Mutex, PoisonError};

use ferry_memory::{Layout, PAGE_SIZE, PageRange, PageSet};

use crate::MachineError;

/// Pages that a device wrote since the last harvest; its threads note them, the engine harvests.
///
/// ```
/// # use ferry_memory::{Layout, PageSet, Span};
/// # use ferry_migrate::DevicePages;
/// # let layout = Layout::new(vec![Span { start: 0, length: 1 << 20 }]).unwrap();
/// let pages = DevicePages::new(&layout);
/// // … the device wrote 10 bytes to 0x4ffe, and only then:
/// assert!(pages.wrote(0x4ffe, 10));
/// let mut dirty = PageSet::empty(&layout);
/// pages.harvest(&mut dirty)?;
/// assert!(dirty.contains(4) && dirty.contains(5));
/// # Ok::<(), ferry_migrate::MachineError>(())
/// ```
#[derive(Debug)]
pub struct DevicePages {
    written: Mutex<PageSet>,
}

impl DevicePages {
    /// No page of memory with this layout: that of [`GuestRam::layout`](ferry_memory::GuestRam::layout).
    pub fn new(layout: &Layout) -> Self {
        Self { written: Mutex::new(PageSet::empty(layout)) }
    }

    /// Notes a write of so many bytes at a guest-physical address. Call it after the write: a page
    /// noted before it may be harvested and sent without it. False, and nothing is noted, if the
    /// bytes do not lie inside one region of guest memory.
    #[must_use = "what is not noted may be lost when the guest moves"]
    pub fn wrote(&self, address: u64, bytes: u64) -> bool {
        let Some(last) = bytes.checked_sub(1) else { return true };
        let Some(end) = address.checked_add(last) else { return false };
        let first = address / PAGE_SIZE;
        let range = PageRange { first, count: end / PAGE_SIZE - first + 1 };
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(range)
    }

    /// Adds the noted pages and forgets them. Fails, and forgets nothing, if the set has another
    /// layout.
    pub fn harvest(&self, into: &mut PageSet) -> Result<(), MachineError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if !into.union(&written) {
            return Err(MachineError::new("the page set has another layout than the device's guest memory"));
        }
        written.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_memory::Span;

    #[test]
    fn writes_are_noted_once_and_only_inside_memory() {
        let layout = Layout::new(vec![Span { start: 0, length: 16 * PAGE_SIZE }]).unwrap();
        let pages = DevicePages::new(&layout);
        assert!(pages.wrote(PAGE_SIZE - 1, 2));
        assert!(pages.wrote(5 * PAGE_SIZE, PAGE_SIZE));
        assert!(pages.wrote(9 * PAGE_SIZE, 0));
        assert!(!pages.wrote(15 * PAGE_SIZE, PAGE_SIZE + 1));
        assert!(!pages.wrote(u64::MAX, 2));
        let mut dirty = PageSet::empty(&layout);
        pages.harvest(&mut dirty).unwrap();
        let found: Vec<PageRange> = dirty.ranges().collect();
        assert_eq!(found, [PageRange { first: 0, count: 2 }, PageRange { first: 5, count: 1 }]);
        dirty.clear();
        pages.harvest(&mut dirty).unwrap();
        assert!(dirty.is_empty());
    }

    #[test]
    fn a_set_of_other_memory_loses_nothing() {
        let layout = |length| Layout::new(vec![Span { start: 0, length }]).unwrap();
        let pages = DevicePages::new(&layout(16 * PAGE_SIZE));
        assert!(pages.wrote(0, 1));
        assert!(pages.harvest(&mut PageSet::empty(&layout(8 * PAGE_SIZE))).is_err());
        let mut dirty = PageSet::empty(&layout(16 * PAGE_SIZE));
        pages.harvest(&mut dirty).unwrap();
        assert_eq!(dirty.count(), 1);
    }
}
