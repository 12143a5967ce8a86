//! What a workload writes into a page, and how the page is held against it later.
//!
//! A page is 512 words of 64 bits, little endian: its index, the sequence number of the write, a
//! check made of seed, index and sequence number, and then words that all follow from the check. So
//! a page that is stale, swapped with another, or changed in any bit is told from the right one.

use ferry_memory::PAGE_SIZE;

use crate::generator::{Generator, join};

/// Bytes of a page, as the length of a buffer.
pub(crate) const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_BYTES as u64 == PAGE_SIZE);

/// Words of a page.
const WORDS: usize = PAGE_BYTES / 8;

/// Where the check lies in a page, in words.
const CHECK_WORD: usize = 2;

/// A page that does not hold what the workload wrote there last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The page: guest-physical address / [`PAGE_SIZE`].
    pub page: u64,
    /// The first word that differs, in bytes from the start of the page. At 0 lies the page's index,
    /// at 8 the sequence number of the write, at 16 the check.
    pub offset: u64,
    /// The word that the workload wrote.
    pub expected: u64,
    /// The word that is there.
    pub found: u64,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "page {} holds {:#018x} at offset {}, {:#018x} was written there",
            self.page, self.found, self.offset, self.expected
        )
    }
}

/// One content of one page: who wrote it, where, and as which write of that page. The sequence
/// number 0 stands for a page that was never written and holds zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) seed: u64,
    pub(crate) page: u64,
    pub(crate) sequence: u64,
}

impl Stamp {
    /// The words of the page, in order.
    fn words(self) -> impl Iterator<Item = u64> {
        let check = join(join(self.seed, self.page), self.sequence);
        let mut rest = Generator::new(check);
        let written = self.sequence != 0;
        (0..WORDS).map(move |word| match word {
            _ if !written => 0,
            0 => self.page,
            1 => self.sequence,
            CHECK_WORD => check,
            _ => rest.next(),
        })
    }

    /// Fills a buffer with the page.
    pub(crate) fn fill(self, buffer: &mut [u8; PAGE_BYTES]) {
        let (places, _) = buffer.as_chunks_mut::<8>();
        for (place, word) in places.iter_mut().zip(self.words()) {
            *place = word.to_le_bytes();
        }
    }

    /// The first difference between a page and this content.
    pub(crate) fn differs(self, buffer: &[u8; PAGE_BYTES]) -> Option<Fault> {
        let (places, _) = buffer.as_chunks::<8>();
        places
            .iter()
            .map(|place| u64::from_le_bytes(*place))
            .zip(self.words())
            .zip((0..).step_by(8))
            .find(|((found, expected), _)| found != expected)
            .map(|((found, expected), offset)| Fault { page: self.page, offset, expected, found })
    }
}

/// The check that a page carries.
pub(crate) fn check_in(page: &[u8; PAGE_BYTES]) -> u64 {
    let (words, _) = page.as_chunks::<8>();
    words.get(CHECK_WORD).map_or(0, |word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { seed: 7, page: 3, sequence: 9 };

    fn filled(stamp: Stamp) -> [u8; PAGE_BYTES] {
        let mut page = [0xff; PAGE_BYTES];
        stamp.fill(&mut page);
        page
    }

    #[test]
    fn a_page_holds_what_was_written() {
        assert_eq!(STAMP.differs(&filled(STAMP)), None);
        assert_eq!(&filled(STAMP)[..16], [3, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn every_single_changed_bit_is_found() {
        let mut page = filled(STAMP);
        for byte in 0..PAGE_BYTES {
            page[byte] ^= 1 << (byte % 8);
            let fault = STAMP.differs(&page).unwrap();
            assert_eq!(fault.offset, byte as u64 / 8 * 8);
            assert_eq!((fault.expected ^ fault.found).count_ones(), 1);
            page[byte] ^= 1 << (byte % 8);
        }
    }

    #[test]
    fn stale_swapped_and_foreign_pages_are_told_apart() {
        let stale = STAMP.differs(&filled(Stamp { sequence: 8, ..STAMP })).unwrap();
        assert_eq!((stale.offset, stale.expected, stale.found), (8, 9, 8));
        let swapped = STAMP.differs(&filled(Stamp { page: 4, ..STAMP })).unwrap();
        assert_eq!((swapped.offset, swapped.expected, swapped.found), (0, 3, 4));
        let foreign = STAMP.differs(&filled(Stamp { seed: 8, ..STAMP })).unwrap();
        assert_eq!(foreign.offset, 16);
    }

    #[test]
    fn a_page_never_written_holds_zeros() {
        let never = Stamp { sequence: 0, ..STAMP };
        assert_eq!(filled(never), [0; PAGE_BYTES]);
        assert_eq!(never.differs(&filled(STAMP)).unwrap().expected, 0);
    }
}
