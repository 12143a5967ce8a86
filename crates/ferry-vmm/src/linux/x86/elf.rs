//! An ELF executable with a PVH entry: its segments are held against what else lies in guest memory before one is loaded,
//! for the loader writes each where the file says.
//!
//! Facts: System V ABI, "Object files" (header, program header); Xen's docs/misc/pvh.pandoc.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::GuestAddress;

use super::super::format::at;
use super::{
    Entry, FIRMWARE_END, LinuxError, Source, Surroundings, low_end, memory_map, place, pvh, unloadable,
};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const LOADABLE: u32 = 1;

/// The most program headers: a kernel has about five.
const MAX_HEADERS: u16 = 64;

/// Loads it with all that it is told.
pub(super) fn load(
    mut kernel: Source,
    initramfs: Option<Source>,
    around: &Surroundings<'_>,
) -> Result<Entry, LinuxError> {
    let segments = places(&kernel, low_end(around))?;
    let end = segments.iter().map(|segment| segment.end).max().unwrap_or(FIRMWARE_END);
    let loaded = Elf::load(around.memory, None, &mut kernel.file, Some(GuestAddress(FIRMWARE_END)))
        .map_err(|source| unloadable(&kernel, around, source))?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Some(entry.0),
        _ => None,
    };
    let Some(entry) = entry.filter(|entry| segments.iter().any(|segment| segment.contains(entry))) else {
        let (entry, option) = ("PVH entry", "CONFIG_PVH");
        return Err(LinuxError::NoEntry { path: kernel.path, entry, option });
    };
    let placed = place(initramfs, end.max(loaded.kernel_end), u32::MAX.into(), around)?;
    pvh::write_to(around.memory, placed, &memory_map(around))?;
    Ok(Entry::Pvh { kernel: entry })
}

/// Where its segments lie: apart, in memory before the hole, above what the kernel is told.
fn places(kernel: &Source, available: u64) -> Result<Vec<Range<u64>>, LinuxError> {
    let mut places: Vec<Range<u64>> = Vec::new();
    for header in headers(kernel)? {
        let field = |offset| at(&header, offset).map_or(0, u64::from_le_bytes);
        let kind = at(&header, 0).map_or(0, u32::from_le_bytes);
        let (address, in_file, bytes) = (field(24), field(32), field(40));
        if kind != LOADABLE || (bytes, in_file) == (0, 0) {
            continue;
        }
        let place = address..address.saturating_add(bytes);
        let meets = |other: &Range<u64>| other.start < place.end && place.start < other.end;
        let problem = if in_file > bytes {
            Some("and has more for there: is the file whole?")
        } else if address < FIRMWARE_END {
            Some("where the guest's tables are: give a kernel that is loaded at 1 MiB or above")
        } else if place.end > crate::boot::LOW_BYTES_MAX {
            Some("and no guest has memory in one piece up to there: is the file whole?")
        } else if places.iter().any(meets) {
            Some("where another of its segments is: is the file whole?")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(LinuxError::Place { path: kernel.path.clone(), bytes, address, problem });
        }
        if place.end > available {
            return Err(LinuxError::TooLarge { needed: place.end, available });
        }
        places.push(place);
    }
    Ok(places)
}

/// Its program headers, as they are in the file.
fn headers(kernel: &Source) -> Result<Vec<[u8; PROGRAM_HEADER_BYTES]>, LinuxError> {
    let read = |bytes: &mut [u8], offset| {
        kernel.file.read_exact_at(bytes, offset).map_err(|source| kernel.unreadable(source))
    };
    let mut header = [0; HEADER_BYTES];
    read(&mut header, 0)?;
    let start = at(&header, 32).map_or(0, u64::from_le_bytes);
    let count = at(&header, 56).map_or(0, u16::from_le_bytes);
    if !(1..=MAX_HEADERS).contains(&count) {
        return Err(LinuxError::Headers { path: kernel.path.clone(), count, max: MAX_HEADERS });
    }
    let mut headers = Vec::new();
    for index in 0..u64::from(count) {
        let mut header = [0; PROGRAM_HEADER_BYTES];
        // Behind the end of any file where it does not fit.
        read(&mut header, start.saturating_add(index * PROGRAM_HEADER_BYTES as u64))?;
        headers.push(header);
    }
    Ok(headers)
}
