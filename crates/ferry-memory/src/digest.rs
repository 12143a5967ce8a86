//! Checksums of pages and the hash of all memory.
//!
//! Both read guest memory piece by piece into a buffer of their own, because a checksum reads a byte
//! more than once and guest memory may change in between. They mean something only for pages that
//! nobody writes: after the pause.

use crate::{GuestRam, PAGE_BYTES, PageRange, RamError, size};

/// Six pages: the piece in which the `crc32c` crate runs three streams side by side.
const CHECKSUM_BUFFER: usize = 6 * PAGE_BYTES;
/// Large enough for BLAKE3 to fill its widest vectors, small enough for a core's own cache.
const HASH_BUFFER: usize = 256 * 1024;

impl GuestRam {
    /// CRC-32C (Castagnoli) over the pages of the ranges, in their order. No ranges give 0.
    pub fn checksum(&self, ranges: &[PageRange]) -> Result<u32, RamError> {
        for &range in ranges {
            self.part(range)?;
        }
        let mut buffer = vec![0; CHECKSUM_BUFFER];
        let mut sum = 0;
        for &range in ranges {
            self.for_each_piece(range, &mut buffer, |piece| sum = crc32c::crc32c_append(sum, piece))?;
        }
        Ok(sum)
    }

    /// BLAKE3 over all regions in order: of each its start and its length in bytes, as 64-bit
    /// little-endian numbers, then its bytes. Fails only where a file does.
    pub fn hash(&self) -> Result<[u8; 32], RamError> {
        let mut buffer = vec![0; HASH_BUFFER];
        let mut hasher = blake3::Hasher::new();
        for span in self.layout().spans() {
            hasher.update(&span.start.to_le_bytes());
            hasher.update(&span.length.to_le_bytes());
            self.for_each_piece(span.pages(), &mut buffer, |piece| {
                hasher.update(piece);
            })?;
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Copies the range's bytes through `buffer`, whose length is whole pages.
    pub(crate) fn for_each_piece(
        &self,
        range: PageRange,
        buffer: &mut [u8],
        mut act: impl FnMut(&[u8]),
    ) -> Result<(), RamError> {
        let pages_at_once = (buffer.len() / PAGE_BYTES) as u64;
        let mut first = range.first;
        let mut left = range.count;
        while left > 0 {
            let piece = PageRange { first, count: left.min(pages_at_once) };
            let (here, _) = buffer.split_at_mut(size(piece.count) * PAGE_BYTES);
            self.part(piece)?.copy_out(here)?;
            act(here);
            first += piece.count;
            left -= piece.count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, Span};

    fn ram() -> GuestRam {
        // 13 pages are no multiple of the checksum's buffer; 130 are none of the hash's.
        let spans =
            vec![Span { start: 0x1000, length: 13 << 12 }, Span { start: 0x10_0000, length: 130 << 12 }];
        let ram = GuestRam::anonymous(&Layout::new(spans).unwrap()).unwrap();
        for (range, step) in ram.layout().clone().ranges().zip([7u64, 11]) {
            for page in range.first..range.first + range.count {
                ram.write(page * 4096 + page % 4000, &(page * step).to_le_bytes()).unwrap();
            }
        }
        ram
    }

    fn bytes(ram: &GuestRam, range: PageRange) -> Vec<u8> {
        let mut bytes = vec![0; size(range.count) * PAGE_BYTES];
        ram.read(range.first * 4096, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_checksum_is_crc32c_of_the_pages_in_the_order_asked() {
        let ram = ram();
        let ranges = [PageRange { first: 0x105, count: 20 }, PageRange { first: 1, count: 13 }];
        let expected = crc32c::crc32c(&ranges.map(|range| bytes(&ram, range)).concat());
        assert_eq!(ram.checksum(&ranges).unwrap(), expected);
        let swapped = [ranges[1], ranges[0]];
        assert_ne!(ram.checksum(&swapped).unwrap(), expected);
        assert_eq!(ram.checksum(&[]).unwrap(), 0);
        let outside = [ranges[0], PageRange { first: 13, count: 2 }];
        assert!(
            matches!(ram.checksum(&outside), Err(RamError::OutsidePages { range }) if range == outside[1])
        );
        // A figure from elsewhere: the CRC-32C of 4096 zeros.
        let zeros =
            GuestRam::anonymous(&Layout::new(vec![Span { start: 0, length: 4096 }]).unwrap()).unwrap();
        assert_eq!(zeros.checksum(&[PageRange { first: 0, count: 1 }]).unwrap(), 0x98f9_4189);
    }

    #[test]
    fn the_hash_covers_every_region_with_its_place() {
        let ram = ram();
        let mut expected = blake3::Hasher::new();
        for span in ram.layout().spans() {
            expected.update(&span.start.to_le_bytes()).update(&span.length.to_le_bytes());
            expected.update(&bytes(&ram, span.pages()));
        }
        assert_eq!(ram.hash().unwrap(), *expected.finalize().as_bytes());

        let before = ram.hash().unwrap();
        ram.write(0x10_0000 + (130 << 12) - 1, &[1]).unwrap();
        assert_ne!(ram.hash().unwrap(), before, "the last byte counts");

        let empty_at = |start| {
            GuestRam::anonymous(&Layout::new(vec![Span { start, length: 0x1000 }]).unwrap())
                .unwrap()
                .hash()
                .unwrap()
        };
        assert_ne!(empty_at(0), empty_at(0x1000), "the place counts");
    }
}
