//! A name in a folder that is held open, so that what is done there later is done in the folder that was looked at.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, fstat, linkat, openat, renameat, renameat_with,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::DiskImageError;

/// A file, whatever it is called: device and inode, or of a block device its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Identity {
    File(u64, u64),
    Device(u64),
}

/// Where a file is to lie.
#[derive(Debug)]
pub(super) struct Spot {
    folder: File,
    identity: Identity,
    name: OsString,
    /// The same as it is said to people.
    path: PathBuf,
}

impl Identity {
    pub(super) fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(fstat(file)?.into())
    }
}

impl From<Stat> for Identity {
    fn from(stat: Stat) -> Self {
        if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
            Self::Device(stat.st_rdev)
        } else {
            Self::File(stat.st_dev, stat.st_ino)
        }
    }
}

impl Spot {
    /// The place that a path names. A symbolic link at its end is followed: what it means is replaced, not the link.
    pub(super) fn find(path: &Path) -> Result<Self, DiskImageError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| DiskImageError::Open { path, source }
        };
        let path = match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_symlink() => std::fs::canonicalize(path).map_err(failed(path))?,
            _ => path.to_owned(),
        };
        let name = path.file_name().ok_or_else(|| DiskImageError::NoFile(path.clone()))?.to_owned();
        let at = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECTORY.bits().cast_signed())
            .open(at)
            .map_err(failed(at))?;
        let identity = Identity::of(&folder).map_err(failed(at))?;
        Ok(Self { folder, identity, name, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn folder(&self) -> &File {
        &self.folder
    }

    /// The folder's file system.
    pub(super) fn device(&self) -> io::Result<u64> {
        Ok(fstat(&self.folder)?.st_dev)
    }

    /// Whether two paths mean one place: one name in one folder, or two names of one file.
    pub(super) fn is(&self, other: &Self) -> bool {
        let there = self.identity_of(&self.name);
        let same_name = (self.identity, &self.name) == (other.identity, &other.name);
        same_name || (there.is_some() && there == other.identity_of(&other.name))
    }

    /// Its own name.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The name with this behind it.
    pub(super) fn with(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// A path of the folder, for people.
    pub(super) fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// What has a name in the folder; a symbolic link is itself.
    pub(super) fn look(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn identity_of(&self, name: &OsStr) -> Option<Identity> {
        self.look(name).ok().flatten().map(Identity::from)
    }

    /// Opens a file for reading and writing; with a mode it is made, and was not there before.
    pub(super) fn open(&self, name: &OsStr, makes: Option<u32>) -> io::Result<File> {
        // Neither a pipe nor a link of that name must lead elsewhere.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match makes {
            Some(mode) => {
                openat(&self.folder, name, flags | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(mode))
            }
            None => openat(&self.folder, name, flags, Mode::empty()),
        };
        Ok(opened.map(File::from)?)
    }

    /// Gives a file a name that nothing has.
    pub(super) fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        match renameat_with(&self.folder, from, &self.folder, to, RenameFlags::NOREPLACE) {
            // The file system cannot do both in one (NFS); a link is not made over a file either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                self.link(from, to)?;
                // Two names for one file are worse than none.
                self.remove(from).inspect_err(|_| drop(self.remove(to)))
            }
            other => Ok(other?),
        }
    }

    /// Gives a file a name, whatever has it.
    pub(super) fn rename_over(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.folder, from, &self.folder, to)?)
    }

    /// Exchanges two names in one step; false, if the file system cannot.
    pub(super) fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<bool> {
        match renameat_with(&self.folder, one, &self.folder, other, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS) => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    pub(super) fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(linkat(&self.folder, from, &self.folder, to, AtFlags::empty())?)
    }

    pub(super) fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.folder, name, AtFlags::empty())?)
    }

    /// Names that were given last, whatever happens to the host.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.folder.sync_all()
    }
}
