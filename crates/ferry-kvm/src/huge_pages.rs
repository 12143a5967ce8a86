//! Guest memory in huge pages, where the host has them.
//!
//! [`HugePages`] is the wish, [`allocate_in`] maps memory accordingly and says in which [`Pages`] it lies,
//! [`HugePages::reserved`] says beforehand what cannot be. Each side of a migration decides for itself: pages
//! cross and are tracked 4 KiB at a time whatever they lie in, for KVM maps memory in ordinary pages while its
//! dirty log is on.
//!
//! Facts: a memfd of reserved pages is `MFD_HUGETLB` with the binary logarithm of their size from bit 26 on
//! (`memfd_create(2)`); the pools are under `/sys/kernel/mm/hugepages` (Documentation/admin-guide/mm/hugetlbpage.rst).
//! vm-memory maps without a reservation, and a page that the pool cannot give is then a SIGBUS at its first
//! touch: therefore `fallocate(2)` takes every page before memory is mapped. Shared memory has transparent
//! huge pages where `shmem_enabled` lets `MADV_HUGEPAGE` have an effect
//! (Documentation/admin-guide/mm/transhuge.rst).

use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;

use ferry_protocol::RegionSpan;
use rustix::fs::{FallocateFlags, MemfdFlags};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use crate::memory::{MemoryError, bytes_of, map, memfd};

/// The size of the pages that [`HugePages::Auto`] takes, and of transparent ones.
const USUAL_BYTES: u64 = 2 << 20;

/// Where `memfd_create(2)` finds the binary logarithm of the page size.
const SIZE_SHIFT: u32 = 26;

/// The pages that the host has reserved, one folder a size.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// Whether the host gives shared memory transparent huge pages.
const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage";

/// In which pages guest memory is to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Reserved pages of 2 MiB if enough for all of it are free, else transparent ones if the host gives
    /// them, else ordinary pages.
    #[default]
    Auto,
    /// Ordinary pages.
    Off,
    /// Huge pages that the kernel makes of ordinary ones where it can.
    Transparent,
    /// Reserved pages of this many bytes.
    Reserved(u64),
}

/// A text that names no huge pages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are no such pages: use `auto`, `off`, `transparent`, or a page size as 2M or 1G")]
pub struct HugePagesError;

/// In which pages guest memory lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pages {
    /// In ordinary ones; with the sentence that says why, unless they were asked for.
    Ordinary {
        /// Why there are no huge pages.
        reason: Option<String>,
    },
    /// In ordinary ones of which the kernel makes huge ones where it can.
    Transparent,
    /// In reserved pages of this many bytes.
    Reserved(u64),
}

impl FromStr for HugePages {
    type Err = HugePagesError;

    fn from_str(text: &str) -> Result<Self, HugePagesError> {
        let shift = match text {
            "auto" => return Ok(Self::Auto),
            "off" => return Ok(Self::Off),
            "transparent" => return Ok(Self::Transparent),
            _ if text.ends_with('K') => 10,
            _ if text.ends_with('M') => 20,
            _ if text.ends_with('G') => 30,
            _ => return Err(HugePagesError),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| HugePagesError)?;
        let bytes = number.checked_mul(1 << shift).ok_or(HugePagesError)?;
        let huge = bytes.is_power_of_two() && bytes > ferry_memory::PAGE_SIZE;
        huge.then_some(Self::Reserved(bytes)).ok_or(HugePagesError)
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Transparent => f.write_str("transparent"),
            Self::Reserved(bytes) => f.write_str(&size_name(*bytes)),
        }
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordinary { .. } => f.write_str("ordinary"),
            Self::Transparent => f.write_str("transparent huge"),
            Self::Reserved(bytes) => write!(f, "reserved {}", size_name(*bytes)),
        }
    }
}

impl HugePages {
    /// Whether memory of these regions would be taken from reserved pages, and their size; what the host
    /// has available otherwise is then of no matter. An error says why the wish cannot be had.
    pub fn reserved(self, regions: &[RegionSpan]) -> Result<Option<u64>, MemoryError> {
        match self {
            Self::Off => Ok(None),
            Self::Transparent => transparent_is_given().map(|()| None),
            Self::Auto => Ok(fits(regions, USUAL_BYTES).ok().map(|()| USUAL_BYTES)),
            Self::Reserved(page_bytes) => fits(regions, page_bytes).map(|()| Some(page_bytes)),
        }
    }
}

/// Maps guest memory for these regions, in such pages, as [`allocate`](crate::allocate) does in ordinary
/// ones. Reserved pages are all taken at once, and cleared: that takes as long as clearing memory does.
pub fn allocate_in(regions: &[RegionSpan], wish: HugePages) -> Result<(GuestMemoryMmap, Pages), MemoryError> {
    match wish {
        HugePages::Off => Ok((crate::allocate(regions)?, Pages::Ordinary { reason: None })),
        HugePages::Transparent => Ok((transparent(regions)?, Pages::Transparent)),
        HugePages::Reserved(bytes) => Ok((reserved(regions, bytes)?, Pages::Reserved(bytes))),
        HugePages::Auto => {
            let no_reserved = match reserved(regions, USUAL_BYTES) {
                Ok(memory) => return Ok((memory, Pages::Reserved(USUAL_BYTES))),
                Err(error) => error,
            };
            let no_transparent = match transparent(regions) {
                Ok(memory) => return Ok((memory, Pages::Transparent)),
                Err(error) => error,
            };
            let reason = Some(format!("{no_reserved}; {no_transparent}"));
            Ok((crate::allocate(regions)?, Pages::Ordinary { reason }))
        }
    }
}

fn transparent(regions: &[RegionSpan]) -> Result<GuestMemoryMmap, MemoryError> {
    transparent_is_given()?;
    let memory = crate::allocate(regions)?;
    for region in memory.iter() {
        let length = region.size();
        // SAFETY: the region is a mapping of this length; the advice changes no byte of it.
        let result = unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        if result != 0 {
            let source = Some(std::io::Error::last_os_error());
            return Err(MemoryError::Transparent { source });
        }
    }
    Ok(memory)
}

fn reserved(regions: &[RegionSpan], page_bytes: u64) -> Result<GuestMemoryMmap, MemoryError> {
    fits(regions, page_bytes)?;
    let bytes = bytes_of(regions)?;
    let flags = MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(page_bytes.ilog2() << SIZE_SHIFT);
    let file = memfd(bytes, flags, |file| take_all(file, bytes));
    let file = file.map_err(|errno| match fits(regions, page_bytes) {
        // Somebody was faster.
        Err(error) => error,
        Ok(()) => MemoryError::Allocate { bytes, source: errno.into() },
    })?;
    map(regions, file)
}

/// Takes every page of the file from the pool. What was taken before a signal stays taken.
fn take_all(file: &OwnedFd, bytes: u64) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes))
}

/// Whether so many pages are free, as far as can be known without taking them.
fn fits(regions: &[RegionSpan], page_bytes: u64) -> Result<(), MemoryError> {
    if !pool(page_bytes).is_dir() {
        return Err(MemoryError::NoSuchPages { page: size_name(page_bytes) });
    }
    if let Some(region) = regions.iter().find(|region| !region.length.is_multiple_of(page_bytes)) {
        return Err(MemoryError::NotHugePages { length: region.length, page: size_name(page_bytes) });
    }
    let wanted = bytes_of(regions)? / page_bytes;
    let free = free_pages(page_bytes);
    if free < wanted { Err(short_of(page_bytes, wanted, free)) } else { Ok(()) }
}

fn short_of(page_bytes: u64, wanted: u64, free: u64) -> MemoryError {
    MemoryError::PoolTooSmall {
        page: size_name(page_bytes),
        wanted,
        free,
        more: wanted.saturating_sub(free).max(1),
        pool: pool(page_bytes).join("nr_hugepages"),
    }
}

fn pool(page_bytes: u64) -> PathBuf {
    PathBuf::from(POOLS).join(format!("hugepages-{}kB", page_bytes >> 10))
}

/// Pages that are free and promised to nobody, and those that the kernel may try to add.
fn free_pages(page_bytes: u64) -> u64 {
    let pool = pool(page_bytes);
    let number = |name: &str| -> u64 {
        fs::read_to_string(pool.join(name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    let surplus = number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages"));
    number("free_hugepages").saturating_sub(number("resv_hugepages")).saturating_add(surplus)
}

/// Whether advice on shared memory has an effect.
fn transparent_is_given() -> Result<(), MemoryError> {
    let chosen = |path: String| fs::read_to_string(path).ok().as_deref().and_then(chosen).map(str::to_owned);
    let general = chosen(format!("{TRANSPARENT}/shmem_enabled"));
    // Since Linux 6.11 each size has its own word.
    let own = chosen(format!("{TRANSPARENT}/hugepages-{}kB/shmem_enabled", USUAL_BYTES >> 10));
    if is_given(general.as_deref(), own.as_deref()) {
        Ok(())
    } else {
        Err(MemoryError::Transparent { source: None })
    }
}

fn is_given(general: Option<&str>, own: Option<&str>) -> bool {
    let gives = |word| matches!(word, Some("always" | "within_size" | "advise"));
    match (general, own) {
        (Some("force"), _) => true,
        (Some("deny") | None, _) => false,
        (_, None | Some("inherit")) => gives(general),
        (_, own) => gives(own),
    }
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|parts| parts.0)
}

fn size_name(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        30.. => format!("{}G", bytes >> 30),
        20.. => format!("{}M", bytes >> 20),
        _ => format!("{}K", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_memory::GuestRam;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    fn regions(bytes: u64) -> [RegionSpan; 1] {
        [RegionSpan { start: 0, length: bytes }]
    }

    #[test]
    fn names_return_and_no_other_text_is_taken() {
        for text in ["auto", "off", "transparent", "64K", "2M", "1G"] {
            assert_eq!(text.parse::<HugePages>().unwrap().to_string(), text);
        }
        assert_eq!("2M".parse(), Ok(HugePages::Reserved(2 << 20)));
        assert_eq!("2048K".parse(), Ok(HugePages::Reserved(2 << 20)));
        for text in ["", "on", "3M", "4K", "0M", "-2M", "2m", "M", "99999999999G", "17179869184G", "é"] {
            assert_eq!(text.parse::<HugePages>(), Err(HugePagesError), "{text}");
        }
    }

    #[test]
    fn the_kernels_words_for_transparent_pages() {
        assert_eq!(chosen("always within_size advise [never] deny force\n"), Some("never"));
        assert_eq!(chosen("never"), None);
        for (general, own, given) in [
            (Some("advise"), None, true),
            (Some("advise"), Some("inherit"), true),
            (Some("never"), Some("inherit"), false),
            (Some("never"), Some("advise"), true),
            (Some("always"), Some("never"), false),
            (Some("deny"), Some("always"), false),
            (Some("force"), Some("never"), true),
            (None, None, false),
        ] {
            assert_eq!(is_given(general, own), given, "{general:?} {own:?}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_one_sentence_with_the_remedy() {
        let asked = |wish: HugePages, bytes| allocate_in(&regions(bytes), wish).unwrap_err().to_string();
        assert_eq!(
            asked(HugePages::Reserved(8 << 40), 8 << 40),
            "this host has no pages of 8192G: /sys/kernel/mm/hugepages shows those that it has"
        );
        if pool(2 << 20).is_dir() {
            assert_eq!(
                asked(HugePages::Reserved(2 << 20), 5 << 20),
                "a region of 5242880 bytes of guest memory is no whole number of 2M pages: give a multiple, or take smaller pages"
            );
            let wanted = 1 << 24;
            let text = asked(HugePages::Reserved(2 << 20), wanted << 21);
            let start = format!("guest memory needs {wanted} of the reserved 2M pages, ");
            assert!(text.starts_with(&start), "{text}");
            assert!(
                text.ends_with(
                    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, or take ordinary pages"
                ),
                "{text}"
            );
        }
        if transparent_is_given().is_err() {
            let text = asked(HugePages::Transparent, 2 << 20);
            assert!(text.contains("write `advise` to"), "{text}");
        }
    }

    #[test]
    fn auto_never_fails_and_says_why_pages_are_ordinary() {
        let (memory, pages) = allocate_in(&regions(6 << 20), HugePages::Auto).unwrap();
        memory.write_obj(7_u64, GuestAddress(5 << 20)).unwrap();
        if let Pages::Ordinary { reason } = pages {
            let reason = reason.unwrap();
            assert!(reason.contains("2M") && reason.contains("transparent"), "{reason}");
        }
        // No multiple of a huge page, so never in reserved ones.
        let (_, pages) = allocate_in(&regions(4096), HugePages::Auto).unwrap();
        assert!(!matches!(pages, Pages::Reserved(_)), "{pages:?}");
        let (_, pages) = allocate_in(&regions(4096), HugePages::Off).unwrap();
        assert_eq!(pages, Pages::Ordinary { reason: None });
    }

    #[test]
    fn reserved_pages_are_taken_before_memory_is_touched() {
        const BYTES: u64 = 8 << 20;
        let two = [regions(BYTES)[0], RegionSpan { start: 4 << 30, length: BYTES }];
        let wish = HugePages::Reserved(2 << 20);
        if let Err(error) = wish.reserved(&two) {
            println!("skipped: {error}");
            return;
        }
        let (memory, pages) = allocate_in(&two, wish).unwrap();
        assert_eq!(pages, Pages::Reserved(2 << 20));
        let (files, ram) = (memory.clone(), GuestRam::new(Arc::new(memory)).unwrap());
        let file = files.iter().next().unwrap().file_offset().unwrap().file();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert_eq!(blocks * 512, 2 * BYTES, "every page is there");
        assert_eq!(ram.resident().unwrap(), [], "and none was written");
        ram.write((4 << 30) + 5 * 4096, b"x").unwrap();
        assert_eq!(ram.resident().unwrap().len(), 1);
        ram.populate(&[ferry_memory::PageRange { first: 3, count: 600 }]).unwrap();
    }

    #[test]
    fn transparent_pages_are_huge_where_the_host_gives_them() {
        if let Err(error) = HugePages::Transparent.reserved(&[]) {
            println!("skipped: {error}");
            return;
        }
        let (memory, _) = allocate_in(&regions(16 << 20), HugePages::Transparent).unwrap();
        memory.write_obj(7_u64, GuestAddress(8 << 20)).unwrap();
        let address = memory.iter().next().unwrap().as_ptr() as usize;
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{address:x}-");
        let own: Vec<_> = smaps.lines().skip_while(|line| !line.starts_with(&start)).take(30).collect();
        let huge = own.iter().find(|line| line.starts_with("ShmemPmdMapped:")).unwrap();
        assert!(huge.contains("2048 kB"), "{huge}");
    }
}
