//! Where guest memory lies: regions and ranges of pages.
//!
//! A [`Layout`] is checked once, when it is made; whatever is derived from it (page sets, the memory
//! itself) relies on its order and on its numbers not overflowing. Its regions are those that the
//! VMM registers as memory slots, so that the n-th dirty bitmap of KVM belongs to the n-th region.

/// Bytes of a page: the unit of dirty tracking and of transfer, whatever page size the host uses.
pub const PAGE_SIZE: u64 = 4096;

/// One region: guest-physical start and length in bytes, both multiples of [`PAGE_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Length in bytes, not zero.
    pub length: u64,
}

impl Span {
    /// The region's pages. Meaningful for the spans of a [`Layout`], which are aligned.
    pub fn pages(self) -> PageRange {
        PageRange { first: self.start / PAGE_SIZE, count: self.length / PAGE_SIZE }
    }
}

/// A run of pages inside one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// Guest frame number of the first page (guest-physical address / [`PAGE_SIZE`]).
    pub first: u64,
    /// Number of pages, not zero.
    pub count: u64,
}

impl PageRange {
    /// Frame number behind the last page, or `None` where that overflows.
    pub fn end(self) -> Option<u64> {
        self.first.checked_add(self.count)
    }
}

/// Why regions make no layout, or why memory cannot be used as guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A guest without memory.
    #[error("guest memory has no region")]
    Empty,
    /// Start or length is no multiple of [`PAGE_SIZE`].
    #[error("memory region at {start:#x} of {length:#x} bytes is not aligned to pages of 4096 bytes")]
    Unaligned {
        /// Guest-physical start of the region.
        start: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// A region without a page.
    #[error("memory region at {start:#x} has length zero")]
    ZeroLength {
        /// Guest-physical start of the region.
        start: u64,
    },
    /// The region ends beyond the last 64-bit address.
    #[error("memory region at {start:#x} of {length:#x} bytes ends beyond the 64-bit address space")]
    Overflow {
        /// Guest-physical start of the region.
        start: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// A region starts before the one in front of it in the list.
    #[error("memory region at {start:#x} comes after the one at {previous:#x}: regions must be sorted")]
    Unsorted {
        /// Guest-physical start of the region.
        start: u64,
        /// Start of the region in front of it.
        previous: u64,
    },
    /// A region starts inside the one in front of it.
    #[error("memory region at {start:#x} overlaps the one in front of it, which ends at {previous_end:#x}")]
    Overlap {
        /// Guest-physical start of the region.
        start: u64,
        /// Where the region in front of it ends.
        previous_end: u64,
    },
    /// The backend gives no access to a region as plain mapped memory.
    #[error("memory region at {start:#x} is not mapped into this process as plain memory")]
    NotMapped {
        /// Guest-physical start of the region.
        start: u64,
        /// What the backend said, if it said anything.
        source: Option<vm_memory::GuestMemoryError>,
    },
    /// The region's memory in this process does not start at a page.
    #[error(
        "memory region at {start:#x} is mapped at host address {address:#x}, which is not aligned to a page"
    )]
    HostUnaligned {
        /// Guest-physical start of the region.
        start: u64,
        /// Host address of its first byte.
        address: usize,
    },
}

/// The regions of a guest, sorted, none overlapping another. Two may touch and are still two.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    spans: Vec<Span>,
}

impl Layout {
    /// Checks and takes the regions. Each error names the first region that is wrong.
    ///
    /// The length is not bounded otherwise: who takes a layout from outside holds its
    /// [`pages`](Self::pages) against a limit before building page sets or memory for it.
    pub fn new(spans: Vec<Span>) -> Result<Self, LayoutError> {
        if spans.is_empty() {
            return Err(LayoutError::Empty);
        }
        let mut previous: Option<Span> = None;
        for &span in &spans {
            check_alone(span)?;
            if let Some(previous) = previous {
                check_order(previous, span)?;
            }
            previous = Some(span);
        }
        Ok(Self { spans })
    }

    /// The regions, sorted by start.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Pages in all regions.
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_SIZE
    }

    /// Bytes in all regions.
    pub fn bytes(&self) -> u64 {
        // Cannot overflow: the regions lie side by side below 2^64.
        self.spans.iter().map(|span| span.length).sum()
    }

    /// Whether the whole range lies inside one region. A range of no pages lies nowhere.
    pub fn contains(&self, range: PageRange) -> bool {
        self.region_of(range).is_some()
    }

    /// Index of the region in which the whole range lies.
    pub fn region_of(&self, range: PageRange) -> Option<usize> {
        let end = range.end()?;
        let region = self.spans.partition_point(|span| span.pages().first <= range.first).checked_sub(1)?;
        let pages = self.spans.get(region)?.pages();
        (range.count > 0 && end <= pages.first + pages.count).then_some(region)
    }

    /// Index of the region in which the byte at guest-physical `address` lies.
    pub fn region_at(&self, address: u64) -> Option<usize> {
        self.region_of(PageRange { first: address / PAGE_SIZE, count: 1 })
    }

    /// One range for each region, in order.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = PageRange> + '_ {
        self.spans.iter().map(|span| span.pages())
    }
}

fn check_alone(span: Span) -> Result<(), LayoutError> {
    let Span { start, length } = span;
    if !start.is_multiple_of(PAGE_SIZE) || !length.is_multiple_of(PAGE_SIZE) {
        return Err(LayoutError::Unaligned { start, length });
    }
    if length == 0 {
        return Err(LayoutError::ZeroLength { start });
    }
    if start.checked_add(length).is_none() {
        return Err(LayoutError::Overflow { start, length });
    }
    Ok(())
}

/// Both spans have passed [`check_alone`].
fn check_order(previous: Span, span: Span) -> Result<(), LayoutError> {
    let previous_end = previous.start + previous.length;
    if span.start < previous.start {
        return Err(LayoutError::Unsorted { start: span.start, previous: previous.start });
    }
    if span.start < previous_end {
        return Err(LayoutError::Overlap { start: span.start, previous_end });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(spans: &[(u64, u64)]) -> Result<Layout, LayoutError> {
        Layout::new(spans.iter().map(|&(start, length)| Span { start, length }).collect())
    }

    fn range(first: u64, count: u64) -> PageRange {
        PageRange { first, count }
    }

    #[test]
    fn each_fault_has_its_own_error_with_the_values() {
        use LayoutError as E;
        assert!(matches!(layout(&[]), Err(E::Empty)));
        assert!(matches!(layout(&[(0x1001, 0x1000)]), Err(E::Unaligned { start: 0x1001, length: 0x1000 })));
        assert!(matches!(layout(&[(0x1000, 0x1800)]), Err(E::Unaligned { start: 0x1000, length: 0x1800 })));
        assert!(matches!(layout(&[(0x1000, 0)]), Err(E::ZeroLength { start: 0x1000 })));
        let top = u64::MAX - 0xfff;
        assert!(
            matches!(layout(&[(top, 0x1000)]), Err(E::Overflow { start, length: 0x1000 }) if start == top)
        );
        assert!(matches!(
            layout(&[(0x4000, 0x1000), (0x1000, 0x1000)]),
            Err(E::Unsorted { start: 0x1000, previous: 0x4000 })
        ));
        assert!(matches!(
            layout(&[(0x1000, 0x2000), (0x2000, 0x1000)]),
            Err(E::Overlap { start: 0x2000, previous_end: 0x3000 })
        ));
        assert!(matches!(layout(&[(0x1000, 0x1000), (0x1000, 0x1000)]), Err(E::Overlap { .. })));
    }

    #[test]
    fn errors_name_the_region() {
        let message = layout(&[(0x1000, 0x2000), (0x2000, 0x1000)]).unwrap_err().to_string();
        assert_eq!(message, "memory region at 0x2000 overlaps the one in front of it, which ends at 0x3000");
    }

    #[test]
    fn sizes_and_ranges_follow_the_regions() {
        let layout = layout(&[(0, 0x3000), (0x3000, 0x1000), (0x10_0000, 0x2000)]).unwrap();
        assert_eq!((layout.bytes(), layout.pages()), (0x6000, 6));
        assert_eq!(layout.ranges().collect::<Vec<_>>(), [range(0, 3), range(3, 1), range(0x100, 2)]);
    }

    #[test]
    fn a_range_lies_inside_one_region_or_nowhere() {
        let layout = layout(&[(0x1000, 0x3000), (0x4000, 0x1000), (0x10_0000, 0x2000)]).unwrap();
        for inside in [range(1, 1), range(1, 3), range(3, 1), range(4, 1), range(0x100, 2), range(0x101, 1)] {
            assert!(layout.contains(inside), "{inside:?}");
        }
        let outside = [range(0, 1), range(0, 2), range(3, 2), range(5, 1), range(0x101, 2), range(2, 0)];
        for outside in
            outside.into_iter().chain([range(u64::MAX, 1), range(1, u64::MAX), range(u64::MAX, u64::MAX)])
        {
            assert!(!layout.contains(outside), "{outside:?}");
        }
        assert_eq!(layout.region_of(range(0x100, 1)), Some(2));
        assert_eq!((layout.region_at(0x3fff), layout.region_at(0x4000)), (Some(0), Some(1)));
        assert_eq!((layout.region_at(0xfff), layout.region_at(u64::MAX)), (None, None));
    }
}
