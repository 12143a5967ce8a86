//! The lock on an image: `flock(2)` on the image itself, into which nothing is written for that.
//!
//! On NFS Linux turns the lock into one of the server's (flock(2), "NFS details"), and taking it lets go of what the
//! client had cached of the file, as letting go of it writes back what the client still held (`do_setlk`, `do_unlk` in
//! fs/nfs/file.c); on a block device that two hosts share `POSIX_FADV_DONTNEED` drops it. So a guest that moves sees
//! what it wrote. Who holds a lock on this host is in `/proc/locks` (proc(5)); of another host's nothing is known.
//!
//! The resource's name is the disk's in the guest (`disk0`) and no path. Each host has its own places for images: with
//! `--copy-storage` the two locks are on two files. And no source can make a target lock, or even look for, a file of
//! the source's choice.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use ferry_protocol::GuestId;
use ferry_state::ResourceName;
use rustix::fs::{Advice, FlockOperation, flock};
use rustix::io::Errno;

use super::{DiskImage, DiskImageError};
use crate::{MachineError, Resource, ResourceKind};

/// Opens the locks of one guest's images by their disks' names.
#[derive(Debug)]
pub(crate) struct ImageLocks(pub(crate) Vec<Arc<DiskImage>>);

struct ImageLock(Arc<DiskImage>);

impl DiskImage {
    /// The kind of resource that the lock of an image is.
    pub const LOCK: &'static str = "image-lock";

    /// The resource that its lock is.
    pub fn resource(&self) -> ResourceName {
        ResourceName { kind: Self::LOCK.to_owned(), name: format!("disk{}", self.disk) }
    }

    /// Takes the lock: shared if the guest only reads the image, else for itself alone. Holding it already is no error.
    /// What this host has of the image in its page cache from before is dropped then, for another one may have written it.
    pub fn lock(&self) -> Result<(), DiskImageError> {
        let operation = if self.is_read_only() {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        take(self.file(), self.path(), operation)?;
        if let Err(error) = rustix::fs::fadvise(self.file(), 0, None, Advice::DontNeed) {
            tracing::debug!(path = %self.path().display(), %error, "the image's cached pages stay");
        }
        Ok(())
    }

    /// Whether nobody else has its lock, of a file: a guest that runs on it holds one. Looked at by taking the lock and
    /// letting go of it, so not for an image that is in use here. Where that cannot be known nobody is said to be missing:
    /// of a block device, whose locks stay on their host, and of what the file system does not lock (on NFS an image that
    /// was opened for reading alone).
    pub fn is_unlocked(&self) -> bool {
        let is_file = self.file().metadata().is_ok_and(|meta| meta.is_file());
        is_file
            && take(self.file(), self.path(), FlockOperation::NonBlockingLockExclusive).is_ok()
            && self.unlock().is_ok()
    }

    /// Lets go of it.
    pub fn unlock(&self) -> Result<(), DiskImageError> {
        let failed =
            |errno: Errno| DiskImageError::Lock { path: self.path().to_owned(), source: errno.into() };
        flock(self.file(), FlockOperation::Unlock).map_err(failed)
    }
}

/// Takes the lock of an open image.
pub(super) fn take(
    file: &std::fs::File,
    path: &Path,
    operation: FlockOperation,
) -> Result<(), DiskImageError> {
    match flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(DiskImageError::Held { path: path.to_owned(), holder: holder(file) }),
        Err(errno) => Err(DiskImageError::Lock { path: path.to_owned(), source: errno.into() }),
    }
}

/// Who has a lock on it, as far as this host knows.
fn holder(file: &std::fs::File) -> String {
    let inode = file.metadata().ok().map(|meta| meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = inode.and_then(|inode| locks.lines().find_map(|line| flock_of(line, inode)));
    let Some(pid) = pid else { return "somebody, perhaps on another host,".to_owned() };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {pid}"),
        name => format!("process {pid} ({name})"),
    }
}

/// The process of a line of `/proc/locks`, if it is of a `flock` on a file of this inode. Its device is not compared: a
/// file system may show another one (btrfs, overlayfs), and this is for a message alone.
fn flock_of(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        // A waiting process has an arrow there.
        return None;
    }
    let pid = words.nth(2)?.parse().ok()?;
    let of = words.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
    (of == inode && pid != 0).then_some(pid)
}

impl ResourceKind for ImageLocks {
    fn kind(&self) -> &'static str {
        DiskImage::LOCK
    }

    fn open(&self, name: &str) -> Result<Box<dyn Resource>, MachineError> {
        let image = self.0.iter().find(|image| image.resource().name == name);
        let unknown = || MachineError::new(format!("this machine has no disk of the name `{name}`"));
        Ok(Box::new(ImageLock(Arc::clone(image.ok_or_else(unknown)?))))
    }
}

impl Resource for ImageLock {
    fn take(&mut self, _: &GuestId) -> Result<(), MachineError> {
        self.0.lock().map_err(|error| MachineError::with_source("its disk cannot be used", error))
    }

    /// An image that moves with the guest stays locked until it is let go of for good: the target has one of its own,
    /// and this one is still being read. One that a target made stays locked until it was kept or removed.
    fn release(&mut self) -> Result<(), MachineError> {
        if self.0.is_copied() || self.0.is_on_trial() {
            return Ok(());
        }
        self.0.unlock().map_err(|error| MachineError::with_source("its disk cannot be let go of", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_list_are_read() {
        let line = "3: FLOCK  ADVISORY  WRITE 4242 08:01:1311 0 EOF";
        assert_eq!(flock_of(line, 1311), Some(4242));
        for other in [
            (line, 1312),
            ("3: POSIX  ADVISORY  WRITE 4242 08:01:1311 0 EOF", 1311),
            ("3: -> FLOCK  ADVISORY  WRITE 4242 08:01:1311 0 EOF", 1311),
            ("3: FLOCK  ADVISORY  WRITE 0 08:01:1311 0 EOF", 1311),
            ("3: FLOCK", 1311),
            ("", 1311),
        ] {
            assert_eq!(flock_of(other.0, other.1), None, "{other:?}");
        }
    }
}
