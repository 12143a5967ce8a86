//! Where guest memory lies: regions and ranges of pages.

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// One region: guest-physical start and length in bytes, both multiples of [`PAGE_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Length in bytes, not zero.
    pub length: u64,
}

/// A run of pages inside one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// Guest frame number of the first page (guest-physical address / [`PAGE_SIZE`]).
    pub first: u64,
    /// Number of pages, not zero.
    pub count: u64,
}

/// Why regions make no layout.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// placeholder
    #[error("placeholder")]
    Empty,
}

/// The regions of a guest, sorted, none overlapping another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    spans: Vec<Span>,
}

impl Layout {
    /// Checks and takes the regions.
    pub fn new(spans: Vec<Span>) -> Result<Self, LayoutError> {
        Ok(Self { spans })
    }

    /// The regions, sorted by start.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Pages in all regions.
    pub fn pages(&self) -> u64 {
        self.spans.iter().map(|s| s.length / PAGE_SIZE).sum()
    }
}
