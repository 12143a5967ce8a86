//! Which parts of guest memory hold data at all: [`GuestRam::resident`].
//!
//! Memory that was never touched reads as zero and needs neither to be read nor to be sent nor to be
//! populated. Where memory lies in a file (a memfd), the file knows.
//!
//! Facts from lseek(2): `SEEK_DATA` gives the next place that may hold data; a file system that does
//! not know says that everything does. hugetlbfs is one of these: there the pieces are read, through the
//! file, which unlike a mapping gives zeros for what is not there without providing it. tmpfs, on which memfds live, counts
//! swapped pages as data. And from proc(5), `/proc/self/maps`: an `s` in the fourth place of the
//! permissions marks a shared mapping; only what is written through such a mapping is in the file.

use std::fs::{self, File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use vm_memory::FileOffset;

use crate::file::is_zero;
use crate::ram::Backing;
use crate::{GuestRam, PAGE_SIZE, PageRange, Span};

/// Pieces into which a region is divided at most.
const PIECES_MAX: u64 = 4096;

/// Bytes that a piece has at least.
const PIECE_BYTES_MIN: u64 = 256 * 1024;

/// What is read at once of a file that does not tell: it stays in the processor's nearest caches.
const READ_BYTES: usize = 16 * 1024;

impl GuestRam {
    /// The pages that may hold something other than zeros, in ascending ranges; all others have never
    /// been written, or hold zeros (as in memory of reserved huge pages, which this reads). Coarse: it looks at pieces of 256 KiB or more, and gives at most 2048 ranges a
    /// region. None if the memory is not wholly in files that tell, mapped so that they hold it.
    /// Of memory alone: [`GuestRam::add_stored`] tells of file regions.
    ///
    /// The guest may run. A page that it touches for the first time meanwhile may be missing: who
    /// needs to know starts dirty tracking before this call and adds its harvest.
    pub fn resident(&self) -> Option<Vec<PageRange>> {
        let maps = fs::read_to_string("/proc/self/maps").ok()?;
        let mut found = Vec::new();
        for (span, backing) in self.layout().spans().iter().zip(self.backing()) {
            let Backing::Memory(host, part) = backing else { continue };
            let part = part.as_ref()?;
            let file = reopen(part.file())?;
            let address = host.address();
            if !is_mapped_shared(&maps, address, *span, part, &file.metadata().ok()?) {
                return None;
            }
            find_data(&file, part.start(), *span, &mut found)?;
        }
        Some(found)
    }
}

/// The file with a position of its own: seeking must not disturb who else has the file.
fn reopen(file: &File) -> Option<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// Whether all of a region's memory at `address` is a shared mapping of its part of the file.
fn is_mapped_shared(maps: &str, address: u64, span: Span, part: &FileOffset, file: &Metadata) -> bool {
    let end = address + span.length;
    let mut covered = address;
    for mapping in maps.lines().filter_map(Mapping::parse) {
        if covered < end && (mapping.start..mapping.end).contains(&covered) {
            let offset = mapping.offset + (covered - mapping.start);
            let wanted = part.start() + (covered - address);
            if !mapping.shared || mapping.inode != file.ino() || offset != wanted {
                return false;
            }
            covered = mapping.end;
        }
    }
    covered >= end
}

/// One line of `/proc/self/maps`.
struct Mapping {
    start: u64,
    end: u64,
    shared: bool,
    offset: u64,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let shared = words.next()?.as_bytes().get(3) == Some(&b's');
        let offset = hexadecimal(words.next()?)?;
        let _device = words.next()?;
        let inode = words.next()?.parse().ok()?;
        Some(Self { start: hexadecimal(start)?, end: hexadecimal(end)?, shared, offset, inode })
    }
}

/// Adds the pieces of a region in which its file may hold data. None if the file does not tell.
fn find_data(file: &File, file_start: u64, span: Span, found: &mut Vec<PageRange>) -> Option<()> {
    let piece = PIECE_BYTES_MIN.max(span.length.div_ceil(PIECES_MAX).next_multiple_of(PAGE_SIZE));
    let first_of_region = found.len();
    let tells = rustix::fs::fstatfs(file).ok()?.f_type != libc::HUGETLBFS_MAGIC;
    let mut at = 0;
    while at < span.length {
        let from = file_start + at;
        let next =
            if tells { seek_data(file, from)? } else { read_data(file, from, file_start + span.length)? };
        let Some(data) = next else { break };
        let data = data.saturating_sub(file_start);
        if data >= span.length {
            break;
        }
        let start = data / piece * piece;
        let end = (start + piece).min(span.length);
        let range = PageRange { first: (span.start + start) / PAGE_SIZE, count: (end - start) / PAGE_SIZE };
        match found.get_mut(first_of_region..).and_then(<[_]>::last_mut) {
            Some(last) if last.first + last.count == range.first => last.count += range.count,
            _ => found.push(range),
        }
        at = end;
    }
    Some(())
}

/// Shows `act` where the first `bytes` of a file may hold data: from a place to another. None if the file does not
/// tell.
pub(crate) fn each_data(file: &File, bytes: u64, act: &mut dyn FnMut(u64, u64)) -> Option<()> {
    let file = reopen(file)?;
    let mut at = 0;
    while let Some(data) = seek_data(&file, at)?.filter(|&data| data < bytes) {
        // A file's end is a hole.
        let hole = seek(&file, data, libc::SEEK_HOLE)??.clamp(data + 1, bytes.max(data + 1));
        act(data, hole);
        at = hole;
    }
    Some(())
}

/// The first place from `from` on that may hold data; none if there is none. None at all if the file
/// does not tell.
#[expect(clippy::option_option, reason = "the outer one ends the search, the inner one the file")]
fn seek_data(file: &File, from: u64) -> Option<Option<u64>> {
    seek(file, from, libc::SEEK_DATA)
}

#[expect(clippy::option_option, reason = "as seek_data")]
fn seek(file: &File, from: u64, whence: libc::c_int) -> Option<Option<u64>> {
    let from = i64::try_from(from).ok()?;
    // SAFETY: the call takes three integers and touches no memory.
    let place = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    if let Ok(place) = u64::try_from(place) {
        return Some(Some(place));
    }
    (std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO)).then_some(None)
}

/// The first place from `from` on, up to `end`, that does not read as zero, at most [`READ_BYTES`] too
/// low; as [`seek_data`].
#[expect(clippy::option_option, reason = "as seek_data")]
fn read_data(file: &File, from: u64, end: u64) -> Option<Option<u64>> {
    let mut bytes = [0; READ_BYTES];
    let mut at = from;
    while at < end {
        let wanted = bytes.len().min(usize::try_from(end - at).ok()?);
        let here = bytes.get_mut(..wanted)?;
        file.read_exact_at(here, at).ok()?;
        if !is_zero(here) {
            return Some(Some(at));
        }
        at += wanted as u64;
    }
    Some(None)
}
