//! A new image on its way to its name.
//!
//! Until all of it is on the disk it is called `PATH.incoming`, so that no one takes a half for a whole; what a process
//! that was killed left there is begun anew by the next. A file of the final name that may be overwritten stays as it
//! is until then.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{DiskImageError, lock};

/// Who may use a new image: as long as nobody says otherwise, its owner alone.
const MODE: u32 = 0o600;

/// An image that is removed when it is dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct Newborn {
    /// What it is called now.
    name: PathBuf,
    /// The file, by device and inode: only it is removed.
    identity: (u64, u64),
    /// What it may replace.
    replaces: bool,
    is_kept: bool,
}

impl Newborn {
    /// Makes an image of so many bytes, all zero, locked, for this final name.
    pub(super) fn make(path: &Path, bytes: u64, replaces: bool) -> Result<(Self, File), DiskImageError> {
        let name = incoming(path);
        let failed = |source| DiskImageError::Make { path: name.clone(), what: "made", source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed())
            .open(&name)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(DiskImageError::Kind(name));
        }
        lock::take(&file, &name, FlockOperation::NonBlockingLockExclusive)?;
        let identity = identity_of(&file.metadata().map_err(failed)?);
        // Who had the lock may just have given it its final name, or removed it.
        if std::fs::symlink_metadata(&name).map(|meta| identity_of(&meta)).ok() != Some(identity) {
            let source = io::Error::other("another process was making it; try again");
            return Err(DiskImageError::Make { path: name, what: "made", source });
        }
        let newborn = Self { name, identity, replaces, is_kept: false };
        let prepared = prepare(&file, path, bytes);
        prepared.map_err(|source| DiskImageError::Make {
            path: newborn.name.clone(),
            what: "made",
            source,
        })?;
        Ok((newborn, file))
    }

    /// Brings all of it to the disk, then gives it its name.
    pub(super) fn settle(&mut self, file: &File, path: &Path) -> Result<(), DiskImageError> {
        if self.name == path {
            return Ok(());
        }
        let failed = |what| move |source| DiskImageError::Make { path: path.to_owned(), what, source };
        file.sync_all().map_err(failed("brought to its disk"))?;
        rename(&self.name, path, self.replaces).map_err(failed("given its name"))?;
        path.clone_into(&mut self.name);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
        folder.map_err(failed("given its name for good"))
    }

    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let is_it = std::fs::symlink_metadata(&self.name).map(|meta| identity_of(&meta) == self.identity);
        let removed = match is_it {
            Ok(true) => std::fs::remove_file(&self.name),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.name.display(), %error, "the image of a guest that did not come stays");
        }
    }
}

/// What the image of this name is called while it comes.
pub(super) fn incoming(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".incoming");
    name.into()
}

fn prepare(file: &File, path: &Path, bytes: u64) -> io::Result<()> {
    // What an earlier attempt left is gone with the first; holes are made by the second.
    file.set_len(0)?;
    file.set_len(bytes)?;
    let mode = std::fs::metadata(path).map_or(MODE, |replaced| replaced.permissions().mode() & 0o7777);
    file.set_permissions(Permissions::from_mode(mode))
}

/// A file that came to lie there in the meantime is not replaced.
fn rename(from: &Path, to: &Path, replaces: bool) -> io::Result<()> {
    if replaces {
        return std::fs::rename(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot do both in one (NFS); a link is not made over a file either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => other.map_err(io::Error::from),
    }
}

fn identity_of(meta: &std::fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}
