//! A lock file as a resource: `flock(2)` on a file that both hosts see.
//!
//! The kernel lets go of the lock when its holder dies, however it dies. On NFS Linux turns it into
//! a lock of the server's (flock(2), "NFS details"), so it works between hosts where the file lies on
//! storage that both have mounted; that the path means the same file on both is the operator's to
//! see to. The file's first line says what it is, its second who holds it, for messages alone.
//!
//! Where a guest is born [`FileLock::prepare`] makes the file. A target only opens it, since a file
//! that it made itself would lock nobody out; and it writes to no file without that first line, for the
//! path comes from the other side.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ferry_protocol::GuestId;
use ferry_state::{MAX_RESOURCE_NAME_BYTES, ResourceName};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::{MachineError, Resource, ResourceKind};

/// The first line of a lock file.
const HEADER: &str = "ferry lock\n";

/// The most of a lock file that is read, in bytes.
const MAX_READ_BYTES: u64 = 512;

/// A lock file, held or not.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    held: Option<File>,
}

/// A lock file that is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileLockError {
    /// Somebody else has the lock.
    #[error("the lock {} is held by {holder}; it must be released there first", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as the file says.
        holder: String,
    },
    /// The file is something else.
    #[error("{} is no lock file of ferry, and is left alone: name another file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The name is no absolute path in UTF-8 without control characters, or too long.
    #[error(
        "{path:?} cannot name a lock: use an absolute path of plain text, at most {MAX_RESOURCE_NAME_BYTES} bytes"
    )]
    Path {
        /// The name.
        path: PathBuf,
    },
    /// The file was replaced by another one of its name.
    #[error("the lock file {} was replaced while it was being locked; try again", path.display())]
    Replaced {
        /// The lock file.
        path: PathBuf,
    },
    /// The file is not there, or cannot be used.
    #[error("the lock file {} cannot be used; does it lie on storage that both hosts share?", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Opens file locks by their path.
#[derive(Debug)]
pub(crate) struct FileLocks;

impl ResourceKind for FileLocks {
    fn kind(&self) -> &'static str {
        FileLock::KIND
    }

    fn open(&self, name: &str) -> Result<Box<dyn Resource>, MachineError> {
        let lock = FileLock::new(Path::new(name))
            .map_err(|error| MachineError::with_source("this is no file lock", error))?;
        Ok(Box::new(lock))
    }
}

impl FileLock {
    /// The kind of resource.
    pub const KIND: &'static str = "file-lock";

    /// The lock of this name, which is an absolute path. Nothing is opened yet.
    pub fn new(path: &Path) -> Result<Self, FileLockError> {
        let is_plain =
            |text: &str| text.len() <= MAX_RESOURCE_NAME_BYTES && !text.chars().any(char::is_control);
        if !path.is_absolute() || !path.to_str().is_some_and(is_plain) {
            return Err(FileLockError::Path { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), held: None })
    }

    /// For where a guest is born: makes the lock file if it is not there, and gives the resource's
    /// name. Nothing is locked yet. An empty file becomes a lock file, any other is left alone.
    pub fn prepare(path: &Path) -> Result<ResourceName, FileLockError> {
        let path = std::path::absolute(path)
            .map_err(|source| FileLockError::Io { path: path.to_owned(), source })?;
        let lock = Self::new(&path)?;
        let mut file = lock.open(true)?;
        match lock.content(&file)? {
            text if text.starts_with(HEADER) => {}
            text if text.is_empty() => {
                // Whoever takes it at this moment writes the same first line.
                file.write_all(HEADER.as_bytes()).map_err(|source| lock.unusable(source))?;
            }
            _ => return Err(lock.foreign()),
        }
        let name = path.to_str().unwrap_or_default().to_owned();
        Ok(ResourceName { kind: Self::KIND.to_owned(), name })
    }

    /// Whether this process holds it.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Takes the lock for this guest; holding it already is no error.
    pub fn lock(&mut self, guest: &GuestId) -> Result<(), FileLockError> {
        if self.is_held() {
            return Ok(());
        }
        let mut file = self.open(false)?;
        if !self.content(&file)?.starts_with(HEADER) {
            return Err(self.foreign());
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let holder = holder(&self.content(&file)?);
                return Err(FileLockError::Held { path: self.path.clone(), holder });
            }
            Err(errno) => return Err(self.unusable(errno.into())),
        }
        // A lock on a file that its name does not mean any more is worth nothing.
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let (named, locked) = (std::fs::metadata(&self.path), file.metadata());
        match (named.map(identity), locked.map(identity)) {
            (Ok(named), Ok(locked)) if named == locked => {}
            (Ok(_), Ok(_)) => return Err(FileLockError::Replaced { path: self.path.clone() }),
            (Err(error), _) | (_, Err(error)) => return Err(self.unusable(error)),
        }
        let (pid, host) = (std::process::id(), host_name());
        write_holder(&mut file, &format!("guest `{guest}`, process {pid} on {host}\n"))
            .map_err(|source| self.unusable(source))?;
        self.held = Some(file);
        Ok(())
    }

    /// Lets go of the lock; not holding it is no error.
    pub fn unlock(&mut self) -> Result<(), FileLockError> {
        let Some(file) = &mut self.held else { return Ok(()) };
        // Emptied before it is let go, so that nobody reads the name of a holder that is gone. If that
        // fails only a message is wrong some day.
        if let Err(error) = write_holder(file, "") {
            tracing::warn!(path = %self.path.display(), %error, "the holder's name stays in the lock file");
        }
        // Said outright: a copy of the descriptor in a process that is just being started would keep
        // the lock beyond a mere close.
        let unlocked = flock(&*file, FlockOperation::Unlock);
        unlocked.map_err(|errno| self.unusable(errno.into()))?;
        self.held = None;
        Ok(())
    }

    fn open(&self, create: bool) -> Result<File, FileLockError> {
        // Looked at before it is opened: the name may be the other side's, and to open a device may do something.
        if std::fs::metadata(&self.path).is_ok_and(|found| !found.is_file()) {
            return Err(self.foreign());
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            // A pipe of that name must not make this wait.
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&self.path)
            .map_err(|source| self.unusable(source))?;
        let is_file = file.metadata().map_err(|source| self.unusable(source))?.is_file();
        if is_file { Ok(file) } else { Err(self.foreign()) }
    }

    /// The beginning of the file; what is no text is replaced.
    fn content(&self, mut file: &File) -> Result<String, FileLockError> {
        let mut bytes = Vec::new();
        file.rewind().map_err(|source| self.unusable(source))?;
        file.take(MAX_READ_BYTES).read_to_end(&mut bytes).map_err(|source| self.unusable(source))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn unusable(&self, source: io::Error) -> FileLockError {
        FileLockError::Io { path: self.path.clone(), source }
    }

    fn foreign(&self) -> FileLockError {
        FileLockError::Foreign { path: self.path.clone() }
    }
}

impl Resource for FileLock {
    fn take(&mut self, guest: &GuestId) -> Result<(), MachineError> {
        self.lock(guest).map_err(|error| MachineError::with_source("no lock", error))
    }

    fn release(&mut self) -> Result<(), MachineError> {
        self.unlock().map_err(|error| MachineError::with_source("no unlock", error))
    }
}

/// Replaces the file's second line.
fn write_holder(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(HEADER.len() as u64)?;
    file.seek(io::SeekFrom::End(0))?;
    file.write_all(text.as_bytes())
}

/// Who holds a lock file of this content. The text is the holder's own, so it is cut to plain text.
fn holder(content: &str) -> String {
    let line = content.lines().nth(1).unwrap_or_default();
    let plain: String = line.chars().filter(|c| !c.is_control()).collect();
    if plain.trim().is_empty() { "somebody who did not write a name".to_owned() } else { plain }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "an unnamed host".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentence;

    fn guest() -> GuestId {
        "web-1".parse().unwrap()
    }

    fn prepared(folder: &Path) -> PathBuf {
        let name = FileLock::prepare(&folder.join("disk.lock")).unwrap();
        assert_eq!(name.kind, "file-lock");
        name.name.into()
    }

    #[test]
    fn one_holds_it_and_the_refusal_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = prepared(folder.path());
        let (mut one, mut other) = (FileLock::new(&path).unwrap(), FileLock::new(&path).unwrap());
        one.lock(&guest()).unwrap();
        one.lock(&guest()).unwrap();
        let refusal = other.lock(&guest()).unwrap_err().to_string();
        let named = format!("held by guest `web-1`, process {} on {}; ", std::process::id(), host_name());
        assert!(refusal.contains(&named), "{refusal}");
        assert!(!other.is_held());
        one.unlock().unwrap();
        one.unlock().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), HEADER);
        other.lock(&guest()).unwrap();
        assert!(matches!(one.lock(&guest()), Err(FileLockError::Held { .. })));
        // As a killed process leaves it: free, with a name in it.
        drop(other);
        one.lock(&guest()).unwrap();
    }

    #[test]
    fn a_target_makes_no_lock_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.lock");
        let error = FileLocks.open(path.to_str().unwrap()).unwrap().take(&guest()).unwrap_err();
        let text = sentence(&error);
        assert!(text.contains("both hosts share?") && text.contains("No such file"), "{text}");
        assert!(!path.exists());
    }

    #[test]
    fn files_that_are_no_locks_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        for content in ["", "do not touch\n", "ferry lockers\n"] {
            std::fs::write(&path, content).unwrap();
            let taken = FileLock::new(&path).unwrap().lock(&guest());
            assert!(matches!(taken, Err(FileLockError::Foreign { .. })), "{content:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert!(matches!(FileLock::prepare(&path), Err(FileLockError::Foreign { .. })));
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/null")] {
            let taken = FileLock::new(path).unwrap().lock(&guest());
            assert!(matches!(taken, Err(FileLockError::Foreign { .. })), "{taken:?}");
        }
    }

    #[test]
    fn names_that_are_no_absolute_paths_are_refused() {
        let long = format!("/{}", "x".repeat(MAX_RESOURCE_NAME_BYTES));
        for name in ["disk.lock", "", "/disks/a\n.lock", &long] {
            assert!(matches!(FileLock::new(Path::new(name)), Err(FileLockError::Path { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_holder_without_a_name_is_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = prepared(folder.path());
        let file = File::open(&path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let refusal = FileLock::new(&path).unwrap().lock(&guest()).unwrap_err().to_string();
        assert!(refusal.contains("somebody who did not write a name"), "{refusal}");
    }
}
