//! A set of pages of a layout.
use crate::{Layout, PageRange};

/// A set of pages of one layout: one bit a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    layout: Layout,
}

impl PageSet {
    /// No page of the layout.
    pub fn empty(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }
    /// Every page of the layout.
    pub fn full(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }
    /// Adds every page of the range. False, and nothing is added, if a page lies outside the layout.
    pub fn insert(&mut self, _range: PageRange) -> bool {
        false
    }
    /// Adds the pages whose bits are set in a KVM dirty bitmap of region `region` (index into the layout).
    pub fn insert_bitmap(&mut self, _region: usize, _words: &[u64]) {}
    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        0
    }
}
