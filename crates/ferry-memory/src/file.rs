//! Regions that lie in a file and not in memory: the images of a guest's disks.
//!
//! An image moves with the machinery of memory: rounds, page sets, checksums, hashes. It is not mapped for that,
//! because a mapping turns an I/O error or a full disk into a signal that ends the process; it is read and written
//! (`pread(2)`, `pwrite(2)`) through bounded buffers, and what fails is an error that names file and place.
//!
//! What is written leaves for the disk while more comes: `sync_file_range(2)` starts it, and whenever
//! [`UNSYNCED_BYTES_MAX`] are not known to be on the disk they are waited for. So the last
//! [`GuestRam::sync`], for which a paused guest waits, has little left to do.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::{GuestRam, PAGE_BYTES, PAGE_SIZE, PageRange, PageSet, RamError, Span};

/// Bytes written to one file that may not be on its disk yet.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// What is looked at at once where a file has no holes.
const ZERO_BUFFER: usize = 16 * PAGE_BYTES;

/// A file that is a region of a layout.
#[derive(Debug, Clone)]
pub struct FileRegion {
    /// Address of its first byte: above all memory, a multiple of [`PAGE_SIZE`].
    pub start: u64,
    /// Bytes of the file that belong to it, from its first on; not zero. The region has whole pages: what its last one
    /// has behind these bytes reads as zero, and is not kept when it is written.
    pub bytes: u64,
    /// The file. Its position is not used.
    pub file: Arc<File>,
    /// What it is called in errors, for example its path.
    pub name: String,
}

/// The same in a [`GuestRam`].
#[derive(Debug)]
pub(crate) struct Stored {
    region: FileRegion,
    /// Bytes written that may not be on the disk yet.
    unsynced: AtomicU64,
}

/// A part of a file region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FilePart<'a> {
    stored: &'a Stored,
    /// From the file's beginning.
    offset: u64,
    length: usize,
}

impl FileRegion {
    /// Where it lies. Not of use as part of a layout where that overflows.
    pub(crate) fn span(&self) -> Span {
        let length = self.bytes.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
        Span { start: self.start, length }
    }
}

impl Stored {
    pub(crate) fn new(region: FileRegion) -> Self {
        Self { region, unsynced: AtomicU64::new(0) }
    }

    /// A part of the region, or `None` where it is not inside.
    pub(crate) fn part(&self, offset: u64, length: usize) -> Option<FilePart<'_>> {
        let end = offset.checked_add(length as u64)?;
        (end <= self.region.span().length).then_some(FilePart { stored: self, offset, length })
    }

    fn failed(&self, what: &'static str, offset: u64, source: io::Error) -> RamError {
        RamError::File { name: self.region.name.clone(), what, offset, source }
    }

    /// Waits until everything written is on the disk.
    fn sync(&self) -> Result<(), RamError> {
        self.unsynced.store(0, Relaxed);
        self.region
            .file
            .sync_all()
            .map_err(|source| RamError::Sync { name: self.region.name.clone(), source })
    }

    /// Lets what was just written leave for the disk, and does not let too much wait.
    fn written(&self, offset: u64, bytes: u64) -> Result<(), RamError> {
        let unsynced = self.unsynced.fetch_add(bytes, Relaxed) + bytes;
        if unsynced >= UNSYNCED_BYTES_MAX {
            self.unsynced.store(0, Relaxed);
            let synced = self.region.file.sync_data();
            return synced.map_err(|source| RamError::Sync { name: self.region.name.clone(), source });
        }
        if let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) {
            let fd = self.region.file.as_raw_fd();
            // SAFETY: the call takes four integers and touches no memory. It is a hint: what fails here
            // fails again, and is told, when the file is waited for.
            unsafe { libc::sync_file_range(fd, offset, bytes, libc::SYNC_FILE_RANGE_WRITE) };
        }
        Ok(())
    }

    /// Adds the pages in which the file may hold data; all, if it does not tell.
    fn add_data(&self, into: &mut PageSet) {
        let span = self.region.span();
        let tells = crate::resident::each_data(&self.region.file, self.region.bytes, &mut |from, to| {
            let first = (span.start + from) / PAGE_SIZE;
            let count = (span.start + to).div_ceil(PAGE_SIZE) - first;
            into.insert(PageRange { first, count });
        });
        if tells.is_none() {
            into.insert(span.pages());
        }
    }
}

impl FilePart<'_> {
    pub(crate) fn length(self) -> usize {
        self.length
    }

    /// How much of it is kept by the file; what is behind that is zero.
    fn kept(self) -> usize {
        let left = self.stored.region.bytes.saturating_sub(self.offset);
        usize::try_from(left).unwrap_or(usize::MAX).min(self.length)
    }

    /// Reads it. `into` is as long as the part.
    pub(crate) fn read(self, into: &mut [u8]) -> Result<(), RamError> {
        debug_assert_eq!(into.len(), self.length);
        let (here, behind) = into.split_at_mut(self.kept());
        behind.fill(0);
        self.stored.region.file.read_exact_at(here, self.offset).map_err(|error| {
            let short = "it has become shorter";
            let is_short = error.kind() == io::ErrorKind::UnexpectedEof;
            let source = if is_short { io::Error::new(error.kind(), short) } else { error };
            self.stored.failed("read", self.offset, source)
        })
    }

    /// Writes it. `from` is as long as the part.
    pub(crate) fn write(self, from: &[u8]) -> Result<(), RamError> {
        debug_assert_eq!(from.len(), self.length);
        let (here, _) = from.split_at(self.kept());
        let failed = |source| self.stored.failed("written", self.offset, source);
        self.stored.region.file.write_all_at(here, self.offset).map_err(failed)?;
        self.stored.written(self.offset, here.len() as u64)
    }

    /// Makes it read as zero: by a hole, where the file can have one.
    pub(crate) fn zero(self) -> Result<(), RamError> {
        let kept = self.kept();
        if kept == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match rustix::fs::fallocate(&self.stored.region.file, hole, self.offset, kept as u64) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => return self.write_zeros(),
                Err(error) => return Err(self.stored.failed("cleared", self.offset, error.into())),
            }
        }
    }

    /// For files without holes: only what is not zero is written.
    fn write_zeros(self) -> Result<(), RamError> {
        let mut buffer = vec![0; ZERO_BUFFER];
        for part in self.pieces(ZERO_BUFFER) {
            let (here, _) = buffer.split_at_mut(part.length);
            part.read(here)?;
            if !is_zero(here) {
                here.fill(0);
                part.write(here)?;
            }
        }
        Ok(())
    }

    /// The same in pieces of at most so many bytes, in order.
    pub(crate) fn pieces(self, bytes: usize) -> impl Iterator<Item = Self> {
        (0..self.length).step_by(bytes).map(move |at| FilePart {
            stored: self.stored,
            offset: self.offset + at as u64,
            length: bytes.min(self.length - at),
        })
    }
}

impl GuestRam {
    /// Adds the pages of file regions in which the files may hold something other than zeros. All pages of a file that
    /// does not tell; none of memory, of which [`GuestRam::resident`] knows.
    ///
    /// A page that is written meanwhile may be missing: who needs to know notes writes before this call.
    pub fn add_stored(&self, into: &mut PageSet) {
        self.stored().for_each(|stored| stored.add_data(into));
    }

    /// Waits until everything that was written to file regions is on their disks.
    pub fn sync(&self) -> Result<(), RamError> {
        self.stored().try_for_each(Stored::sync)
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    let zero = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    words.iter().all(|word| zero(word)) && zero(rest)
}
