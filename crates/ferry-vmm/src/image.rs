//! A guest's program from a file, instead of a built-in payload: ELF64 or flat.
//!
//! An ELF64 executable has its loadable segments copied to their physical addresses and begins
//! at its entry. Any other file is flat: it lies at [`FLAT_ADDRESS`] and begins with its first byte. What
//! the program finds there is written in `docs/payloads.md`.
//!
//! Facts: System V ABI, "Object files" (header, program header) and its supplements for AMD64 and for `AArch64`.

use std::ops::Range;

use crate::boot::{ELF_MACHINE, LOW_BYTES_MAX, RAM_START, WORKING_SET_START};

/// Where a flat image lies, and the lowest address of a segment: what comes before is the boot's.
pub const FLAT_ADDRESS: u64 = RAM_START + WORKING_SET_START;

/// The longest file taken, in bytes.
pub const MAX_IMAGE_BYTES: usize = 64 << 20;

/// The most program headers.
const MAX_SEGMENTS: u16 = 64;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const LOADABLE: u32 = 1;

/// A program to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    segments: Vec<Segment>,
    entry: u64,
}

/// A piece of it. Memory behind its bytes is zero, as all memory is at birth.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    address: u64,
    bytes: Vec<u8>,
    memory_bytes: u64,
}

/// A file that is no image, or one that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Nothing in it.
    #[error("the image is empty: give an ELF64 executable or a flat binary")]
    Empty,
    /// More than is taken.
    #[error("the image has {bytes} bytes: at most {MAX_IMAGE_BYTES} are taken")]
    TooLong {
        /// Bytes of the file.
        bytes: usize,
    },
    /// The file ends before something that its headers place in it.
    #[error("the image ends after {bytes} bytes, before the end of its {what}: it was cut")]
    Truncated {
        /// Bytes of the file.
        bytes: usize,
        /// What is not whole.
        what: &'static str,
    },
    /// An ELF file for another machine, or of another kind.
    #[error(
        "the image is no ELF64 executable for {}, fixed at its addresses ({what} is {found})",
        std::env::consts::ARCH
    )]
    WrongMachine {
        /// The header's field.
        what: &'static str,
        /// Its value.
        found: u16,
    },
    /// More segments than are taken, none, or headers of another size.
    #[error("the image has {count} program headers of {bytes} bytes: 1 to {MAX_SEGMENTS} of 56 are taken")]
    Headers {
        /// How many it says.
        count: u16,
        /// How long each is.
        bytes: u16,
    },
    /// A segment that does not lie in memory above the boot's, or over another.
    #[error(
        "the image's segment of {bytes} bytes at {address:#x} does not fit: segments lie apart, from {FLAT_ADDRESS:#x} to the end of the guest's memory, on x86-64 below 3G"
    )]
    DoesNotFit {
        /// The segment's physical address.
        address: u64,
        /// Its bytes in memory.
        bytes: u64,
    },
    /// The entry lies in no segment.
    #[error("the image's entry {entry:#x} lies in none of its segments")]
    Entry {
        /// The entry.
        entry: u64,
    },
}

impl Image {
    /// Takes a file apart.
    pub fn parse(file: &[u8]) -> Result<Self, ImageError> {
        if file.len() > MAX_IMAGE_BYTES {
            return Err(ImageError::TooLong { bytes: file.len() });
        }
        let image = if file.starts_with(&MAGIC) { Self::elf(file)? } else { Self::flat(file)? };
        image.check_places(u64::MAX)?;
        Ok(image)
    }

    /// Where it begins.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Whether it fits into a guest of so much memory.
    pub fn check_fits(&self, memory_bytes: u64) -> Result<(), ImageError> {
        self.check_places(memory_bytes)
    }

    /// Its pieces and where they lie.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.segments.iter().map(|segment| (segment.address, segment.bytes.as_slice()))
    }

    fn flat(file: &[u8]) -> Result<Self, ImageError> {
        if file.is_empty() {
            return Err(ImageError::Empty);
        }
        let segment =
            Segment { address: FLAT_ADDRESS, bytes: file.to_vec(), memory_bytes: file.len() as u64 };
        Ok(Self { segments: vec![segment], entry: FLAT_ADDRESS })
    }

    fn elf(file: &[u8]) -> Result<Self, ImageError> {
        let header = Fields { file, what: "ELF header" };
        if file.len() < HEADER_BYTES {
            return Err(header.truncated());
        }
        let kinds = [
            ("its class", u16::from(header.u8(4)?), u16::from(CLASS_64)),
            ("its byte order", u16::from(header.u8(5)?), u16::from(LITTLE_ENDIAN)),
            ("its type", header.u16(16)?, EXECUTABLE),
            ("its machine", header.u16(18)?, ELF_MACHINE),
        ];
        for (what, found, wanted) in kinds {
            if found != wanted {
                return Err(ImageError::WrongMachine { what, found });
            }
        }
        let (entry, table) = (header.u64(24)?, header.u64(32)?);
        let (bytes, count) = (header.u16(54)?, header.u16(56)?);
        if u64::from(bytes) != PROGRAM_HEADER_BYTES || !(1..=MAX_SEGMENTS).contains(&count) {
            return Err(ImageError::Headers { count, bytes });
        }
        let headers = Fields { file, what: "program headers" };
        let mut segments = Vec::new();
        for index in 0..u64::from(count) {
            let at = table.checked_add(index * PROGRAM_HEADER_BYTES).ok_or_else(|| headers.truncated())?;
            segments.extend(Self::segment(headers.at(at, PROGRAM_HEADER_BYTES)?, file)?);
        }
        Ok(Self { segments, entry })
    }

    /// The segment of one program header, if it is to be loaded.
    fn segment(header: &[u8], file: &[u8]) -> Result<Option<Segment>, ImageError> {
        let fields = Fields { file: header, what: "program headers" };
        let kind = fields.u32(0)?;
        let (offset, address) = (fields.u64(8)?, fields.u64(24)?);
        let (bytes, memory_bytes) = (fields.u64(32)?, fields.u64(40)?);
        if kind != LOADABLE || memory_bytes == 0 {
            return Ok(None);
        }
        if bytes > memory_bytes {
            return Err(ImageError::DoesNotFit { address, bytes });
        }
        let bytes = Fields { file, what: "segments" }.at(offset, bytes)?.to_vec();
        Ok(Some(Segment { address, bytes, memory_bytes }))
    }

    /// Each segment in its place, and the entry in one of them.
    fn check_places(&self, memory_bytes: u64) -> Result<(), ImageError> {
        let end_max = RAM_START + memory_bytes.min(LOW_BYTES_MAX);
        let mut places: Vec<Range<u64>> = Vec::new();
        for segment in &self.segments {
            let (address, bytes) = (segment.address, segment.memory_bytes);
            let place = address..address.saturating_add(bytes);
            let apart = places.iter().all(|other| other.end <= place.start || place.end <= other.start);
            if place.start < FLAT_ADDRESS || place.end > end_max || !apart {
                return Err(ImageError::DoesNotFit { address, bytes });
            }
            places.push(place);
        }
        if places.iter().any(|place| place.contains(&self.entry)) {
            Ok(())
        } else {
            Err(ImageError::Entry { entry: self.entry })
        }
    }
}

/// Numbers in a piece of a file.
struct Fields<'a> {
    file: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    fn truncated(&self) -> ImageError {
        ImageError::Truncated { bytes: self.file.len(), what: self.what }
    }

    fn at(&self, offset: u64, length: u64) -> Result<&'a [u8], ImageError> {
        let range = offset.checked_add(length).and_then(|end| {
            let start = usize::try_from(offset).ok()?;
            Some(start..usize::try_from(end).ok()?)
        });
        range.and_then(|range| self.file.get(range)).ok_or_else(|| self.truncated())
    }

    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], ImageError> {
        self.at(offset, N as u64)?.try_into().map_err(|_| self.truncated())
    }

    fn u8(&self, offset: u64) -> Result<u8, ImageError> {
        self.array(offset).map(u8::from_le_bytes)
    }

    fn u16(&self, offset: u64) -> Result<u16, ImageError> {
        self.array(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: u64) -> Result<u32, ImageError> {
        self.array(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: u64) -> Result<u64, ImageError> {
        self.array(offset).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the segments of these tests lie.
    const HERE: u64 = RAM_START + 0x40_0000;

    /// An ELF64 executable of these segments: address, bytes in the file, bytes in memory.
    fn elf(entry: u64, segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = vec![0; HEADER_BYTES + 56 * segments.len()];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16] = 2;
        file[18] = ELF_MACHINE.to_le_bytes()[0];
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(segments.len()).unwrap();
        for (index, (address, bytes, memory)) in segments.iter().enumerate() {
            let (at, offset) = (HEADER_BYTES + 56 * index, file.len() as u64);
            file[at] = 1;
            for (place, value) in [(8, offset), (24, *address), (32, bytes.len() as u64), (40, *memory)] {
                file[at + place..at + place + 8].copy_from_slice(&value.to_le_bytes());
            }
            file.extend_from_slice(bytes);
        }
        file
    }

    #[test]
    fn flat_and_elf_are_taken_apart() {
        let flat = Image::parse(&[0x90, 0xc3]).unwrap();
        assert_eq!(flat.entry(), FLAT_ADDRESS);
        assert_eq!(flat.pieces().collect::<Vec<_>>(), [(FLAT_ADDRESS, &[0x90, 0xc3][..])]);
        let file = elf(HERE + 1, &[(HERE, &[1, 2, 3], 4096), (FLAT_ADDRESS, &[], 8)]);
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.entry(), HERE + 1);
        assert_eq!(image.pieces().next(), Some((HERE, &[1, 2, 3][..])));
        image.check_fits(0x40_1000).unwrap();
        assert!(matches!(image.check_fits(0x40_0fff), Err(ImageError::DoesNotFit { address: HERE, .. })));
    }

    #[test]
    fn every_cut_of_an_elf_is_refused() {
        let file = elf(HERE, &[(HERE, &[1, 2, 3], 4096)]);
        for cut in 4..file.len() {
            assert!(matches!(Image::parse(&file[..cut]), Err(ImageError::Truncated { .. })), "{cut}");
        }
        assert_eq!(Image::parse(&[]), Err(ImageError::Empty));
    }

    #[test]
    fn what_is_no_image_has_its_sentence() {
        let good = elf(HERE, &[(HERE, &[1], 1)]);
        let with = |at: usize, value: u8| {
            let mut file = good.clone();
            file[at] = value;
            Image::parse(&file).unwrap_err().to_string()
        };
        assert!(with(4, 1).contains("(its class is 1)"));
        assert!(with(5, 2).contains("(its byte order is 2)"));
        assert!(with(16, 3).contains("(its type is 3)"));
        assert!(with(18, 40).contains("(its machine is 40)"));
        assert!(with(54, 57).contains("1 program headers of 57 bytes"));
        assert!(with(56, 0).contains("0 program headers"));
        assert!(with(39, 0xff).contains("before the end of its program headers"));
        assert!(with(64, 2).contains(&format!("entry {HERE:#x} lies in none")), "no segment is to be loaded");
        for bad in [
            elf(0x1000, &[(0x1000, &[1], 1)]),
            elf(HERE, &[(HERE, &[1], 9), (HERE + 8, &[1], 1)]),
            elf(HERE, &[(HERE, &[1, 2], 1)]),
            elf(u64::MAX, &[(u64::MAX, &[1], 1)]),
            elf(RAM_START + LOW_BYTES_MAX, &[(RAM_START + LOW_BYTES_MAX, &[1], 1)]),
        ] {
            assert!(matches!(Image::parse(&bad), Err(ImageError::DoesNotFit { .. })));
        }
    }
}
