//! Which pages hold nothing but zeros.
//!
//! Zero pages travel as ranges, without their bytes. A page that reads as zero while the guest runs
//! may be written a moment later: it is then dirty again, and the next round reads it anew.

use crate::file::is_zero;
use crate::ram::Part;
use crate::{GuestRam, PAGE_BYTES, PageRange, RamError};

/// What is read of a file at once.
const FILE_BUFFER: usize = 64 * PAGE_BYTES;

/// Runs of zero pages and runs of data pages, filled by [`GuestRam::classify`].
///
/// Ranges that are classified one after the other are appended; a run that goes on where the last
/// one of its kind ended, in the same region, makes it longer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classified {
    zero: Vec<PageRange>,
    data: Vec<PageRange>,
    zero_pages: u64,
    data_pages: u64,
}

impl Classified {
    /// Nothing classified yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The runs of pages that read as zero, in the order in which they were classified.
    pub fn zero_runs(&self) -> &[PageRange] {
        &self.zero
    }

    /// The runs of pages that hold something, in the order in which they were classified.
    pub fn data_runs(&self) -> &[PageRange] {
        &self.data
    }

    /// Pages in all zero runs.
    pub fn zero_pages(&self) -> u64 {
        self.zero_pages
    }

    /// Pages in all data runs.
    pub fn data_pages(&self) -> u64 {
        self.data_pages
    }

    /// Forgets the runs and keeps their room for the next ones.
    pub fn clear(&mut self) {
        self.zero.clear();
        self.data.clear();
        self.zero_pages = 0;
        self.data_pages = 0;
    }

    fn add(&mut self, zero: bool, run: PageRange, may_join: bool) {
        let (runs, pages) = if zero {
            (&mut self.zero, &mut self.zero_pages)
        } else {
            (&mut self.data, &mut self.data_pages)
        };
        *pages += run.count;
        match runs.last_mut() {
            Some(last) if may_join && last.end() == Some(run.first) => last.count += run.count,
            _ => runs.push(run),
        }
    }
}

impl GuestRam {
    /// Splits a range of pages into runs that read as zero and runs that do not, and appends them
    /// to `into`. On an error nothing is appended.
    ///
    /// A data page costs as many cache lines as it takes to find one that is not zero.
    pub fn classify(&self, range: PageRange, into: &mut Classified) -> Result<(), RamError> {
        let mut runs: Vec<(bool, PageRange)> = Vec::new();
        let mut next = range.first;
        let mut see = |zero| {
            match runs.last_mut() {
                Some((kind, run)) if *kind == zero => run.count += 1,
                _ => runs.push((zero, PageRange { first: next, count: 1 })),
            }
            next += 1;
        };
        match self.part(range)? {
            Part::Memory(window) => window.pages().for_each(|page| see(page.is_zero())),
            Part::File(_) => self.for_each_piece(range, &mut vec![0; FILE_BUFFER], |piece| {
                piece.chunks(PAGE_BYTES).for_each(|page| see(is_zero(page)));
            })?,
        }
        // A run never crosses into a region, even if the one before touches it.
        let starts_region = self.layout().ranges().any(|region| region.first == range.first);
        for (zero, run) in runs {
            into.add(zero, run, !(starts_region && run.first == range.first));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, Span};

    fn range(first: u64, count: u64) -> PageRange {
        PageRange { first, count }
    }

    #[test]
    fn one_byte_anywhere_makes_a_data_page() {
        let layout = Layout::new(vec![Span { start: 0, length: 0x3000 }]).unwrap();
        for at in [0x1000, 0x1001, 0x103f, 0x1040, 0x1800, 0x1fff] {
            let ram = GuestRam::anonymous(&layout).unwrap();
            ram.write(at, &[1]).unwrap();
            let mut found = Classified::new();
            ram.classify(range(0, 3), &mut found).unwrap();
            assert_eq!(
                (found.zero_runs(), found.data_runs()),
                (&[range(0, 1), range(2, 1)][..], &[range(1, 1)][..])
            );
        }
    }

    #[test]
    fn runs_join_inside_a_region_and_never_across() {
        // Frames 0..4 and 4..8 touch.
        let spans = vec![Span { start: 0, length: 0x4000 }, Span { start: 0x4000, length: 0x4000 }];
        let ram = GuestRam::anonymous(&Layout::new(spans).unwrap()).unwrap();
        let mut found = Classified::new();
        for part in [range(0, 2), range(2, 2), range(4, 1), range(5, 3)] {
            ram.classify(part, &mut found).unwrap();
        }
        assert_eq!(found.zero_runs(), [range(0, 4), range(4, 4)]);
        assert_eq!((found.zero_pages(), found.data_pages()), (8, 0));

        found.clear();
        assert_eq!(found, Classified::new());
        ram.write(0x1000, &vec![1; 0x6000]).unwrap();
        for region in ram.layout().clone().ranges() {
            ram.classify(region, &mut found).unwrap();
        }
        assert_eq!(found.zero_runs(), [range(0, 1), range(7, 1)]);
        assert_eq!(found.data_runs(), [range(1, 3), range(4, 3)]);
    }

    #[test]
    fn a_range_outside_is_refused_and_adds_nothing() {
        let ram =
            GuestRam::anonymous(&Layout::new(vec![Span { start: 0, length: 0x2000 }]).unwrap()).unwrap();
        let mut found = Classified::new();
        for outside in [range(1, 2), range(2, 1), range(0, 0), range(u64::MAX, 2)] {
            assert!(matches!(ram.classify(outside, &mut found), Err(RamError::OutsidePages { .. })));
        }
        assert_eq!(found, Classified::new());
    }
}
