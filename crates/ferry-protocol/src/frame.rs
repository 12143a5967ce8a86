//! Frames: how messages, state sections and pages lie in a stream.
//!
//! Every frame starts with a header of [`HEADER_BYTES`] bytes, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | the bytes `FERY` |
//! | 4 | 2 | kind ([`FrameKind`]) |
//! | 6 | 2 | reserved, zero |
//! | 8 | 4 | length of the head, in bytes |
//! | 12 | 4 | CRC32C (Castagnoli) of the 12 bytes before and of the head |
//!
//! The head follows: a message, a state section, or the page ranges of a page frame. After the head
//! of a [`FrameKind::Pages`] frame come the pages themselves, in the order of its ranges; nothing
//! else in the stream is page data. The checksum covers control and state; page data has one of its
//! own in the last round ([`PageHead::checksum`]), when the guest does not write any more.
//!
//! This module does no input or output: [`Header::parse`] takes bytes, [`encode`] gives bytes.

use crate::message::MAX_MESSAGE_BYTES;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 16;

/// The most page ranges in one page frame.
pub const MAX_RANGES: usize = 512;

/// The most pages whose data follows one frame: 4 MiB.
pub const MAX_DATA_PAGES: u64 = 1024;

/// The most bytes of a state section's frame.
pub const MAX_SECTION_BYTES: usize = 2 * 1024 * 1024;

const MAGIC: [u8; 4] = *b"FERY";
const RANGE_BYTES: usize = 16;
const PAGE_HEAD_BYTES: usize = 16;
const HAS_CHECKSUM: u32 = 1;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A [`ToTarget`](crate::message::ToTarget) message.
    ToTarget,
    /// A [`ToSource`](crate::message::ToSource) message.
    ToSource,
    /// A section of the state.
    Section,
    /// Pages whose data follows the head.
    Pages,
    /// Ranges of pages that hold only zeros; no data follows.
    Zeros,
}

impl FrameKind {
    fn code(self) -> u16 {
        match self {
            Self::ToTarget => 1,
            Self::ToSource => 2,
            Self::Section => 3,
            Self::Pages => 4,
            Self::Zeros => 5,
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        [Self::ToTarget, Self::ToSource, Self::Section, Self::Pages, Self::Zeros]
            .into_iter()
            .find(|kind| kind.code() == code)
    }

    /// The longest head of a frame of this kind, in bytes.
    pub fn max_head_bytes(self) -> usize {
        match self {
            Self::ToTarget | Self::ToSource => MAX_MESSAGE_BYTES,
            Self::Section => MAX_SECTION_BYTES,
            Self::Pages | Self::Zeros => PAGE_HEAD_BYTES + MAX_RANGES * RANGE_BYTES,
        }
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The first four bytes are not `FERY`.
    #[error("the peer does not speak Ferry's protocol: its bytes start with {0:02x?}, not with `FERY`")]
    OtherProtocol([u8; 4]),
    /// A kind of frame that this build does not know.
    #[error("a frame has the unknown kind {0}")]
    UnknownKind(u16),
    /// The reserved field is not zero.
    #[error("a frame's reserved field is {0:#06x}, not zero")]
    Reserved(u16),
    /// A head longer than its kind allows.
    #[error("a frame's head claims {length} bytes, more than the {limit} that its kind allows")]
    TooLong {
        /// The claimed length in bytes.
        length: u32,
        /// The bound in bytes.
        limit: usize,
    },
    /// The checksum of header and head does not match.
    #[error("a frame's checksum is {found:08x}, not {expected:08x}: the stream is garbled")]
    Checksum {
        /// What the frame says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// The head of a page frame does not fit its own counts.
    #[error("a page frame's head is malformed: {0}")]
    PageHead(&'static str),
}

/// A parsed header; its head is still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the frame carries.
    pub kind: FrameKind,
    /// Length of the head that follows, within the kind's bound.
    pub head_bytes: usize,
    crc: u32,
    fixed: [u8; 12],
}

impl Header {
    /// Parses a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [a, b, c, d, k0, k1, r0, r1, l0, l1, l2, l3, c0, c1, c2, c3] = *bytes;
        if [a, b, c, d] != MAGIC {
            return Err(FrameError::OtherProtocol([a, b, c, d]));
        }
        let code = u16::from_le_bytes([k0, k1]);
        let kind = FrameKind::from_code(code).ok_or(FrameError::UnknownKind(code))?;
        let reserved = u16::from_le_bytes([r0, r1]);
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let limit = kind.max_head_bytes();
        let head_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if head_bytes > limit {
            return Err(FrameError::TooLong { length, limit });
        }
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        let fixed = [a, b, c, d, k0, k1, r0, r1, l0, l1, l2, l3];
        Ok(Self { kind, head_bytes, crc, fixed })
    }

    /// Checks the head against the header's checksum.
    pub fn check(&self, head: &[u8]) -> Result<(), FrameError> {
        let expected = crc32c::crc32c_append(crc32c::crc32c(&self.fixed), head);
        if expected == self.crc { Ok(()) } else { Err(FrameError::Checksum { found: self.crc, expected }) }
    }
}

/// Header and head of a frame, ready to be sent.
pub fn encode(kind: FrameKind, head: &[u8]) -> Vec<u8> {
    debug_assert!(head.len() <= kind.max_head_bytes());
    let length = u32::try_from(head.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + head.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&kind.code().to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), head);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(head);
    bytes
}

/// A run of pages: guest frame number of the first, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WireRange {
    /// Guest-physical address of the first page, divided by the page size.
    pub first: u64,
    /// Number of pages, not zero.
    pub count: u64,
}

/// The head of a page frame, of data or of zeros.
///
/// Little-endian: round (u32), flags (u32, bit 0: a checksum is there), CRC32C of the data (u32),
/// number of ranges (u32), then for each range first page (u64) and count (u64).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageHead {
    /// The round to which the pages belong.
    pub round: u32,
    /// CRC32C of the page data that follows; only in the last round.
    pub checksum: Option<u32>,
    /// Ascending, none overlapping the one before.
    pub ranges: Vec<WireRange>,
}

impl PageHead {
    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PAGE_HEAD_BYTES + self.ranges.len() * RANGE_BYTES);
        let flags = if self.checksum.is_some() { HAS_CHECKSUM } else { 0 };
        let count = u32::try_from(self.ranges.len()).unwrap_or(u32::MAX);
        for word in [self.round, flags, self.checksum.unwrap_or(0), count] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for range in &self.ranges {
            bytes.extend_from_slice(&range.first.to_le_bytes());
            bytes.extend_from_slice(&range.count.to_le_bytes());
        }
        bytes
    }

    /// How many pages its ranges hold together.
    pub fn pages(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.count))
    }

    /// Bytes of page data that follow a head of [`FrameKind::Pages`].
    pub fn data_bytes(&self) -> u64 {
        self.pages().saturating_mul(4096)
    }

    /// Parses a head of the given kind and checks the order of its ranges and the bound on its data.
    pub fn parse(kind: FrameKind, bytes: &[u8]) -> Result<Self, FrameError> {
        let (words, rest) = bytes
            .split_at_checked(PAGE_HEAD_BYTES)
            .ok_or(FrameError::PageHead("it is shorter than its fixed part"))?;
        let word = |n: usize| words.get(n * 4..n * 4 + 4).map_or(0, le_u32);
        let (round, flags, crc, count) = (word(0), word(1), word(2), word(3));
        if flags & !HAS_CHECKSUM != 0 {
            return Err(FrameError::PageHead("it has unknown flags"));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count == 0 || count > MAX_RANGES || rest.len() != count.saturating_mul(RANGE_BYTES) {
            return Err(FrameError::PageHead("the number of ranges does not fit its length"));
        }
        let ranges = rest.chunks_exact(RANGE_BYTES).map(wire_range).collect();
        let head = Self { round, checksum: (flags & HAS_CHECKSUM != 0).then_some(crc), ranges };
        head.check_ranges(kind)?;
        Ok(head)
    }

    fn check_ranges(&self, kind: FrameKind) -> Result<(), FrameError> {
        let (mut free_from, mut total) = (0_u64, 0_u64);
        for range in &self.ranges {
            let end =
                range.first.checked_add(range.count).ok_or(FrameError::PageHead("a range overflows"))?;
            if range.count == 0 || range.first < free_from {
                return Err(FrameError::PageHead("its ranges are empty, unsorted or overlap"));
            }
            free_from = end;
            total = total.saturating_add(range.count);
        }
        if kind == FrameKind::Pages && total > MAX_DATA_PAGES {
            return Err(FrameError::PageHead("it has more pages than one frame may carry"));
        }
        Ok(())
    }
}

fn le_u32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, &byte| (value << 8) | u32::from(byte))
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte))
}

fn wire_range(bytes: &[u8]) -> WireRange {
    let (first, count) = bytes.split_at(bytes.len() / 2);
    WireRange { first: le_u64(first), count: le_u64(count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8]) -> Result<Header, FrameError> {
        Header::parse(bytes[..HEADER_BYTES].try_into().unwrap())
    }

    #[test]
    fn a_frame_comes_back() {
        let bytes = encode(FrameKind::Section, b"head");
        let parsed = header(&bytes).unwrap();
        assert_eq!((parsed.kind, parsed.head_bytes), (FrameKind::Section, 4));
        assert_eq!(parsed.check(&bytes[HEADER_BYTES..]), Ok(()));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let good = encode(FrameKind::ToTarget, b"message");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let seen = header(&bad).and_then(|h| {
                let head = bad.get(HEADER_BYTES..HEADER_BYTES + h.head_bytes);
                head.map_or(Ok(()), |head| h.check(head)) // a longer head: the stream would end early
            });
            let longer = header(&bad).is_ok_and(|h| h.head_bytes > 7);
            assert!(seen.is_err() || longer, "bit {bit}");
        }
    }

    #[test]
    fn another_program_is_told_apart_from_a_garbled_stream() {
        let mut bytes = encode(FrameKind::ToTarget, b"");
        bytes[..4].copy_from_slice(b"SSH-");
        assert_eq!(header(&bytes), Err(FrameError::OtherProtocol(*b"SSH-")));
    }

    #[test]
    fn a_length_over_the_bound_is_refused_before_anything_is_allocated() {
        let mut bytes = encode(FrameKind::Zeros, b"");
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(header(&bytes), Err(FrameError::TooLong { length: u32::MAX, .. })));
    }

    #[test]
    fn page_heads_come_back_and_bad_ones_are_refused() {
        let range = |first, count| WireRange { first, count };
        let head = |ranges: &[WireRange]| PageHead { round: 3, checksum: Some(9), ranges: ranges.to_vec() };
        let good = head(&[range(0, 2), range(2, 1), range(9, 4)]);
        assert_eq!(PageHead::parse(FrameKind::Pages, &good.to_bytes()), Ok(good));
        for bad in [
            head(&[]),
            head(&[range(0, 0)]),
            head(&[range(4, 2), range(5, 1)]),
            head(&[range(4, 2), range(0, 1)]),
            head(&[range(u64::MAX, 2)]),
            head(&[range(0, MAX_DATA_PAGES + 1)]),
            head(&vec![range(0, 1); MAX_RANGES + 1]),
        ] {
            assert!(PageHead::parse(FrameKind::Pages, &bad.to_bytes()).is_err(), "{bad:?}");
        }
        let long_zeros = head(&[range(0, MAX_DATA_PAGES + 1)]);
        assert!(PageHead::parse(FrameKind::Zeros, &long_zeros.to_bytes()).is_ok());
    }
}
