//! A set of pages of a layout: dirty pages, pages still to be sent.
//!
//! One bit a page, in one bitmap a region whose form is that of `KVM_GET_DIRTY_LOG` (bit 0 of the
//! first word is the region's first page; Documentation/virt/kvm/api.rst, section 4.8). A harvest
//! goes in by [`PageSet::insert_bitmap`]; what is to be sent comes out by [`PageSet::ranges`] or
//! [`PageSet::chunks`], at the cost of one look at every 64 pages.

use crate::{Layout, PageRange, size};

/// A set of pages of one layout: one bit a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    layout: Layout,
    /// In the order of the layout's regions. Bits past a region's end are never set.
    bitmaps: Vec<Vec<u64>>,
}

impl PageSet {
    /// No page of the layout. Allocates a bit for each page of the layout: who takes the layout
    /// from outside bounds it first.
    pub fn empty(layout: &Layout) -> Self {
        let bitmaps = layout.ranges().map(|pages| vec![0; size(pages.count.div_ceil(64))]).collect();
        Self { layout: layout.clone(), bitmaps }
    }

    /// Every page of the layout. Allocates as [`PageSet::empty`].
    pub fn full(layout: &Layout) -> Self {
        let mut set = Self::empty(layout);
        for (words, pages) in set.bitmaps.iter_mut().zip(layout.ranges()) {
            change(words, 0, pages.count, |word, mask| *word |= mask);
        }
        set
    }

    /// The layout whose pages these are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Adds every page of the range. False, and nothing is added, if the range does not lie inside
    /// one region.
    pub fn insert(&mut self, range: PageRange) -> bool {
        self.change(range, |word, mask| *word |= mask)
    }

    /// Takes every page of the range out. False, and nothing is removed, if the range does not lie
    /// inside one region.
    pub fn remove(&mut self, range: PageRange) -> bool {
        self.change(range, |word, mask| *word &= !mask)
    }

    fn change(&mut self, range: PageRange, with: impl Fn(&mut u64, u64)) -> bool {
        let Some(region) = self.layout.region_of(range) else { return false };
        let (Some(span), Some(words)) = (self.layout.spans().get(region), self.bitmaps.get_mut(region))
        else {
            return false;
        };
        change(words, range.first - span.pages().first, range.count, with);
        true
    }

    /// Whether the page with this frame number is in the set.
    pub fn contains(&self, page: u64) -> bool {
        let Some(region) = self.layout.region_of(PageRange { first: page, count: 1 }) else { return false };
        let (Some(span), Some(words)) = (self.layout.spans().get(region), self.bitmaps.get(region)) else {
            return false;
        };
        let bit = page - span.pages().first;
        words.get(size(bit / 64)).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Adds the pages whose bits are set in a KVM dirty bitmap of region `region` (index into the
    /// layout). Bits past the region's end are ignored, pages that `words` does not reach stay as
    /// they are. False if there is no such region.
    pub fn insert_bitmap(&mut self, region: usize, words: &[u64]) -> bool {
        let (Some(span), Some(own)) = (self.layout.spans().get(region), self.bitmaps.get_mut(region)) else {
            return false;
        };
        for (own, word) in own.iter_mut().zip(words) {
            *own |= word;
        }
        let in_last_word = span.pages().count % 64;
        if let (Some(last), 1..) = (own.last_mut(), in_last_word) {
            *last &= (1 << in_last_word) - 1;
        }
        true
    }

    /// The bitmap of region `region`, in the form of [`PageSet::insert_bitmap`].
    pub fn bitmap(&self, region: usize) -> Option<&[u64]> {
        self.bitmaps.get(region).map(Vec::as_slice)
    }

    /// Adds every page of `other`. False, and nothing is added, if its layout is neither that of this set nor its first
    /// regions, as that of memory is beside the files above it.
    #[must_use = "if the layouts differ nothing is added"]
    pub fn union(&mut self, other: &Self) -> bool {
        if !self.layout.spans().starts_with(other.layout.spans()) {
            return false;
        }
        for (own, other) in self.bitmaps.iter_mut().zip(&other.bitmaps) {
            own.iter_mut().zip(other).for_each(|(own, other)| *own |= other);
        }
        true
    }

    /// Number of pages in the set. Looks at every word.
    pub fn count(&self) -> u64 {
        self.bitmaps.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.bitmaps.iter().flatten().all(|&word| word == 0)
    }

    /// Takes every page out.
    pub fn clear(&mut self) {
        for words in &mut self.bitmaps {
            words.fill(0);
        }
    }

    /// The longest runs of pages, ascending; none crosses from one region into the next.
    pub fn ranges(&self) -> Ranges<'_> {
        self.chunks(u64::MAX)
    }

    /// As [`PageSet::ranges`], but runs are cut so that none has more than `max_pages` pages
    /// (0 counts as 1).
    pub fn chunks(&self, max_pages: u64) -> Ranges<'_> {
        Ranges { set: self, region: 0, next: 0, max_pages: max_pages.max(1) }
    }
}

/// Runs of the pages of a set, ascending. Made by [`PageSet::ranges`] and [`PageSet::chunks`].
#[derive(Debug, Clone)]
pub struct Ranges<'a> {
    set: &'a PageSet,
    region: usize,
    /// The first page of the region not yet looked at, counted from its start.
    next: u64,
    max_pages: u64,
}

impl Iterator for Ranges<'_> {
    type Item = PageRange;

    fn next(&mut self) -> Option<PageRange> {
        loop {
            let words = self.set.bitmaps.get(self.region)?;
            let pages = self.set.layout.spans().get(self.region)?.pages();
            if let Some(start) = first_set(words, self.next) {
                // Looking no further than one chunk keeps the cost of a long run linear.
                let limit = start.saturating_add(self.max_pages).min(pages.count);
                let end = run_end(words, start, limit);
                self.next = end;
                return Some(PageRange { first: pages.first + start, count: end - start });
            }
            self.region += 1;
            self.next = 0;
        }
    }
}

impl std::iter::FusedIterator for Ranges<'_> {}

/// Applies `with` to each word that the bits `first..first + count` touch, with their mask in it.
fn change(words: &mut [u64], first: u64, count: u64, with: impl Fn(&mut u64, u64)) {
    let end = first + count;
    let mut bit = first;
    while bit < end {
        let low = bit % 64;
        let here = (64 - low).min(end - bit);
        let Some(word) = words.get_mut(size(bit / 64)) else { return };
        with(word, u64::MAX >> (64 - here) << low);
        bit += here;
    }
}

/// The first set bit at or after `from`.
fn first_set(words: &[u64], from: u64) -> Option<u64> {
    let start = size(from / 64);
    let rest = words.get(start..)?;
    let (first, others) = rest.split_first()?;
    let first = first & (u64::MAX << (from % 64));
    if first != 0 {
        return Some((from & !63) + u64::from(first.trailing_zeros()));
    }
    let skipped = others.iter().position(|&word| word != 0)?;
    let word = others.get(skipped)?;
    Some((from & !63) + 64 * (skipped as u64 + 1) + u64::from(word.trailing_zeros()))
}

/// The first clear bit at or after `from`, or `limit` if there is none before it.
fn run_end(words: &[u64], from: u64, limit: u64) -> u64 {
    let mut bit = from;
    while bit < limit {
        let Some(word) = words.get(size(bit / 64)) else { break };
        let left_in_word = 64 - bit % 64;
        // The shift brings in zeros from above, so that ones never reach past the word.
        let ones = u64::from((word >> (bit % 64)).trailing_ones());
        bit += ones;
        if ones < left_in_word {
            break;
        }
    }
    bit.min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Span;

    fn layout() -> Layout {
        // 70 pages, then 3 that touch them, then 130 far above.
        let spans = [(0, 70), (70, 3), (0x1000, 130)];
        Layout::new(spans.map(|(first, count)| Span { start: first << 12, length: count << 12 }).to_vec())
            .unwrap()
    }

    fn range(first: u64, count: u64) -> PageRange {
        PageRange { first, count }
    }

    #[test]
    fn a_full_set_is_the_layout_and_touching_regions_stay_apart() {
        let full = PageSet::full(&layout());
        assert_eq!(full.count(), 203);
        assert_eq!(full.ranges().collect::<Vec<_>>(), layout().ranges().collect::<Vec<_>>());
        let cut: Vec<_> = full.chunks(64).collect();
        assert_eq!(
            cut,
            [
                range(0, 64),
                range(64, 6),
                range(70, 3),
                range(0x1000, 64),
                range(0x1040, 64),
                range(0x1080, 2)
            ]
        );
        assert_eq!(full.chunks(0).count(), 203);
    }

    #[test]
    fn a_range_that_is_not_inside_one_region_changes_nothing() {
        let mut set = PageSet::empty(&layout());
        for outside in [range(69, 2), range(72, 2), range(0, 0), range(u64::MAX, 2), range(0x1000, 131)] {
            assert!(!set.insert(outside), "{outside:?}");
        }
        assert!(set.is_empty());
        let mut set = PageSet::full(&layout());
        assert!(!set.remove(range(69, 2)));
        assert_eq!(set, PageSet::full(&layout()));
    }

    #[test]
    fn a_bitmap_with_bits_and_words_past_the_end_adds_only_pages_of_its_region() {
        let mut set = PageSet::empty(&layout());
        assert!(set.insert_bitmap(0, &[1, u64::MAX, u64::MAX]));
        assert_eq!(set.ranges().collect::<Vec<_>>(), [range(0, 1), range(64, 6)]);
        assert_eq!(set.bitmap(0), Some(&[1, 0x3f][..]));
        assert!(set.insert_bitmap(2, &[0, 2]), "a bitmap may be short");
        assert!(set.contains(0x1041) && !set.contains(0x1040));
        assert!(!set.insert_bitmap(3, &[1]));
        assert_eq!((set.count(), set.bitmap(3)), (8, None));
    }

    #[test]
    fn sets_of_different_layouts_do_not_mix() {
        let other = Layout::new(vec![Span { start: 0, length: 0x1000 }]).unwrap();
        let mut set = PageSet::empty(&layout());
        assert!(!set.union(&PageSet::full(&other)));
        assert!(set.is_empty());

        let memory = Layout::new(layout().spans()[..2].to_vec()).unwrap();
        assert!(set.union(&PageSet::full(&memory)), "the first regions are the same");
        assert_eq!(set.ranges().collect::<Vec<_>>(), [range(0, 70), range(70, 3)]);
        assert!(!PageSet::empty(&memory).union(&set));
    }
}
