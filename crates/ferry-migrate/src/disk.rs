//! The images of a guest's disks: raw files.
//!
//! A VMM opens each image once, as a [`DiskImage`], and gives it to the disk's device, which reads and writes
//! [`DiskImage::file`] and notes every write with [`DiskImage::wrote`]; and to the machine
//! ([`Machine::disk_images`](crate::Machine::disk_images)). The engine brings them to the disk ([`DiskImage::sync`]): while
//! the guest runs, until little is left, and once more in the pause. The same value then serves both ways for a disk to move:
//!
//! - The target sees the same storage. Image and lock ([`ResourceSet::with_images`](crate::ResourceSet::with_images))
//!   go from host to host: the target opens the image while it builds the machine, and takes the lock once the source,
//!   paused and with everything flushed, has let go of it.
//! - The image moves with the guest ([`Migration::with_disks`](crate::Migration::with_disks)). Its blocks are pages
//!   above those of memory, and cross with them: all that hold something, then those that were written again, the last
//!   of them with the pause. The target writes a new image, at the place that [`DiskPlaces`] has for the disk: beside
//!   it under the name `PATH.incoming`, until all of it is on the disk. Its name it gets last, before the target says that
//!   it is ready. When nothing becomes of the migration it is removed, and what it replaced has its name again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_memory::{FileRegion, GuestRam, Layout, PAGE_SIZE, PageRange, PageSet, Span};
use ferry_protocol::{DiskSpan, MAX_DISK_BYTES};
use rustix::fs::OFlags;

use crate::MachineError;

mod lock;
mod newborn;
mod places;
mod spot;
mod sync;

pub(crate) use lock::ImageLocks;
use newborn::Newborn;
pub use places::{DiskPlace, DiskPlaces};
use spot::Identity;
use sync::Syncing;

/// Bytes of a sector: an image has whole ones.
pub const SECTOR_BYTES: u64 = 512;

/// The image of one of a guest's disks.
#[derive(Debug)]
pub struct DiskImage {
    disk: u32,
    path: PathBuf,
    read_only: bool,
    bytes: u64,
    file: Arc<File>,
    /// Pages that were written since the last harvest, while a migration copies the image.
    written: Mutex<Option<PageSet>>,
    syncing: Syncing,
    /// Of an image that a target made, until the guest runs on it.
    newborn: Mutex<Option<Newborn>>,
}

/// An image that cannot be used as it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskImageError {
    /// It is not there, or may not be opened so.
    #[error("the image {} cannot be opened", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("{} is no image of a disk: give a raw file or a block device", .0.display())]
    Kind(PathBuf),
    /// Its length is not that of a disk.
    #[error("the image {} has {bytes} bytes: a disk has whole sectors of 512 bytes, at least one, at most 16 TiB", path.display())]
    Length {
        /// The image.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Somebody else has its lock.
    #[error("the image {} is in use: {holder} has its lock", path.display())]
    Held {
        /// The image.
        path: PathBuf,
        /// Who, as far as it can be known.
        holder: String,
    },
    /// It cannot be locked.
    #[error("the image {} cannot be locked", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nobody said where the image of a disk is to lie.
    #[error("disk {disk} comes with the guest, and no place for its image is known here")]
    NoPlace {
        /// Which disk.
        disk: u32,
    },
    /// It is no place for a new image.
    #[error("{} is no image of a disk that can be made anew: name a file in a folder", .0.display())]
    NoFile(PathBuf),
    /// Two disks were given one place, perhaps under two names.
    #[error("the images of two disks cannot both lie at {}: give each its own", .0.display())]
    SamePlace(PathBuf),
    /// Something is where a new image is to lie.
    #[error("a file is at {} already, with {bytes} bytes: name another place for the disk, or say that it may be overwritten", path.display())]
    Exists {
        /// The place.
        path: PathBuf,
        /// Length of what is there.
        bytes: u64,
    },
    /// The name of an image that comes is that of somebody else's file.
    #[error("the file {} is in the way, and nothing says that Ferry made it: remove it if nobody needs it, or name another place for the disk", .0.display())]
    Foreign(PathBuf),
    /// A target died before it removed the image that the guest's had replaced. Whether the guest ran is in its journal.
    #[error("{} replaced {} when a guest was about to come, and may be its only disk: ask `ferry recover` whether it ran here, then move one of the two away", path.display(), replaced.display())]
    Replaced {
        /// The place.
        path: PathBuf,
        /// Where the earlier image is.
        replaced: PathBuf,
    },
    /// It cannot be made, or what was written to it may not last.
    #[error("the image {} cannot be {what}", path.display())]
    Make {
        /// The image.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl DiskImage {
    /// Opens the image of the guest's disk of this number, which is there. It is not locked yet.
    pub fn open(disk: u32, path: &Path, read_only: bool) -> Result<Arc<Self>, DiskImageError> {
        let failed = |source| DiskImageError::Open { path: path.to_owned(), source };
        let is_image = |kind: std::fs::FileType| kind.is_file() || kind.is_block_device();
        // Looked at before it is opened: to open another device may do something.
        if !is_image(std::fs::metadata(path).map_err(failed)?.file_type()) {
            return Err(DiskImageError::Kind(path.to_owned()));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A pipe of that name must not make this wait.
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let bytes = match meta.file_type() {
            kind if kind.is_file() => meta.len(),
            kind if kind.is_block_device() => file.seek(SeekFrom::End(0)).map_err(failed)?,
            _ => return Err(DiskImageError::Kind(path.to_owned())),
        };
        check_length(path, bytes)?;
        Ok(Arc::new(Self::new(disk, path, read_only, bytes, file)))
    }

    /// Opens the images of all of a guest's disks; no two may be one file, whatever they are called.
    pub fn open_all(
        places: impl IntoIterator<Item = (u32, DiskPlace)>,
    ) -> Result<Vec<Arc<Self>>, DiskImageError> {
        let (mut images, mut seen) = (Vec::new(), BTreeSet::new());
        for (disk, DiskPlace { path, read_only }) in places {
            let image = Self::open(disk, &path, read_only)?;
            let identity = Identity::of(image.file());
            if !seen.insert(identity.map_err(|source| DiskImageError::Open { path: path.clone(), source })?) {
                return Err(DiskImageError::SamePlace(path));
            }
            images.push(image);
        }
        Ok(images)
    }

    fn new(disk: u32, path: &Path, read_only: bool, bytes: u64, file: File) -> Self {
        let (written, newborn) = (Mutex::new(None), Mutex::new(None));
        let (path, file, syncing) = (path.to_owned(), Arc::new(file), Syncing::new());
        Self { disk, path, read_only, bytes, file, written, syncing, newborn }
    }

    /// Which of the guest's disks it is.
    pub fn disk(&self) -> u32 {
        self.disk
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the guest may not write to it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its length, which does not change.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file itself. Use it by offsets; its position is nobody's.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Notes that the guest wrote so many bytes, or made them zero. Call it after the write: a page noted before it may
    /// be sent without it, and one before the write is not brought to the disk by a [`sync`](Self::sync) that comes in
    /// between. Costs next to nothing while no migration copies the image.
    pub fn wrote(&self, offset: u64, bytes: u64) {
        self.syncing.wrote();
        if let Some(pages) = &mut *lock(&self.written)
            && bytes > 0
        {
            let first = (self.start() + offset.min(self.bytes - 1)) / PAGE_SIZE;
            let last = (self.start() + offset.saturating_add(bytes).clamp(1, self.bytes) - 1) / PAGE_SIZE;
            pages.insert(PageRange { first, count: last.saturating_sub(first) + 1 });
        }
    }

    /// Brings to the disk all that was [noted as written](Self::wrote): the device for the guest's flush, the engine while
    /// the guest moves. It may take long. An error is also the next call's, until the guest was told of it
    /// ([`take_failure`](Self::take_failure)): the kernel says it once, and perhaps not to the one who asks for the guest.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_by(File::sync_data)
    }

    /// The same by other means than the kernel's: for tests.
    #[doc(hidden)]
    pub fn sync_by(&self, bring: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.syncing.sync(|| bring(&self.file)) }
    }

    /// Whether [`sync`](Self::sync) has nothing to do and nothing to say.
    pub(crate) fn is_settled(&self) -> bool {
        self.syncing.is_settled()
    }

    /// What failed of the guest's data on its way to the disk, once: whoever asks tells the guest, by a flush that fails.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.syncing.take_failure()
    }

    /// What a target must make for it.
    pub fn span(&self) -> DiskSpan {
        let allocated = self.file.metadata().ok().filter(std::fs::Metadata::is_file);
        let allocated = allocated.map_or(self.bytes, |meta| meta.blocks().saturating_mul(512));
        DiskSpan { disk: self.disk, bytes: self.bytes, allocated_bytes: allocated.min(self.bytes) }
    }

    fn start(&self) -> u64 {
        self.shape().region().start
    }

    /// Which disk of what length.
    fn shape(&self) -> DiskSpan {
        DiskSpan { disk: self.disk, bytes: self.bytes, allocated_bytes: 0 }
    }

    /// Whether it is what the other side speaks of.
    pub(crate) fn is(&self, span: &DiskSpan) -> bool {
        (self.disk, self.bytes) == (span.disk, span.bytes)
    }

    /// From now on writes are noted.
    pub(crate) fn start_tracking(&self) {
        let region = self.shape().region();
        // A span of whole pages above all memory is a layout.
        let layout = Layout::new(vec![Span { start: region.start, length: region.length }]);
        *lock(&self.written) = layout.ok().map(|layout| PageSet::empty(&layout));
    }

    /// Adds what was noted and forgets it.
    pub(crate) fn harvest(&self, into: &mut PageSet) {
        if let Some(pages) = &mut *lock(&self.written) {
            for range in pages.ranges() {
                into.insert(range);
            }
            pages.clear();
        }
    }

    pub(crate) fn stop_tracking(&self) {
        *lock(&self.written) = None;
    }

    /// Whether a migration copies it.
    fn is_copied(&self) -> bool {
        lock(&self.written).is_some()
    }

    /// A new image is whole on the disk when this returns.
    pub(crate) fn settle(&self) -> Result<(), DiskImageError> {
        lock(&self.newborn).as_ref().map_or(Ok(()), Newborn::settle)
    }

    /// A new image has its name when this returns; what it replaced can still come back.
    pub(crate) fn place(&self) -> Result<(), DiskImageError> {
        lock(&self.newborn).as_mut().map_or(Ok(()), Newborn::place)
    }

    /// The guest runs on it: it stays, whatever comes.
    pub(crate) fn keep(&self) {
        if let Some(newborn) = &mut *lock(&self.newborn) {
            newborn.keep();
        }
    }

    /// Removes what a new image replaced, if the guest runs on that. A large file takes its time.
    pub(crate) fn forget_replaced(&self) {
        let kept = lock(&self.newborn).take_if(|newborn| newborn.is_kept());
        drop(kept);
    }

    /// Whether it is to be removed if nothing becomes of the migration.
    fn is_on_trial(&self) -> bool {
        lock(&self.newborn).as_ref().is_some_and(|newborn| !newborn.is_kept())
    }
}

/// Memory, and above it the images.
pub(crate) fn beside(memory: GuestRam, images: &[Arc<DiskImage>]) -> Result<GuestRam, MachineError> {
    if images.is_empty() {
        return Ok(memory);
    }
    let by_disk: BTreeMap<_, _> = images.iter().map(|image| (image.disk, image)).collect();
    let region = |image: &&Arc<DiskImage>| FileRegion {
        start: image.start(),
        bytes: image.bytes,
        file: Arc::clone(&image.file),
        name: format!("the image {}", image.path.display()),
    };
    memory.with_files(by_disk.values().map(region).collect()).map_err(|error| {
        MachineError::with_source("the guest's disks have no place beside its memory", error)
    })
}

fn check_length(path: &Path, bytes: u64) -> Result<(), DiskImageError> {
    if !bytes.is_multiple_of(SECTOR_BYTES) || !(SECTOR_BYTES..=MAX_DISK_BYTES).contains(&bytes) {
        return Err(DiskImageError::Length { path: path.to_owned(), bytes });
    }
    Ok(())
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
