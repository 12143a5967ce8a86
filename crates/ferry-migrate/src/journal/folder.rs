//! The folder in which the processes of one host keep their journals.
//!
//! It must survive a restart of the host, and belong to this host alone: the locks that tell the living
//! from the dead are this kernel's. Journals that nobody needs any more are removed after a month, or
//! earlier where there are very many; one that leaves something open stays until that is decided.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::never;
use ferry_protocol::InstanceId;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::JournalError;
use super::file::FileJournal;
use super::lives::Lives;

/// How long a journal is kept that leaves nothing open.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How many of them are kept at the most.
const MAX_SETTLED: usize = 1024;

/// How long another process may take to see whether a guest can be born.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether it is done.
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// A folder of journals.
#[derive(Debug, Clone)]
pub struct StateFolder {
    path: PathBuf,
}

/// While this is held no other process of the folder lets a guest be born.
#[derive(Debug)]
pub struct BirthHold {
    _lock: File,
}

impl StateFolder {
    /// The folder, made if it is not there, and closed to others then.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |source| JournalError::new(path, source);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        Ok(Self { path: path.into() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins the journal of this process, and removes those that nobody needs any more.
    pub fn begin(&self, instance: InstanceId) -> Result<FileJournal, JournalError> {
        let journal = FileJournal::create(&self.path, instance)?;
        match self.prune(SystemTime::now()) {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "journals that nobody needs any more"),
            Err(error) => tracing::warn!(%error, "old journals stay"),
        }
        Ok(journal)
    }

    /// Every journal that is here.
    pub fn lives(&self) -> Result<Lives, JournalError> {
        Lives::read(&self.path)
    }

    /// Keeps other processes from letting a guest be born, so that two of one name are not born at once.
    pub fn hold_births(&self) -> Result<BirthHold, JournalError> {
        let path = self.path.join("births.lock");
        let failed = |source| JournalError::new(&path, source);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(BirthHold { _lock: lock }),
                Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                    let _ = never::<()>().recv_timeout(BETWEEN_TRIES);
                }
                Err(Errno::WOULDBLOCK) => {
                    let text = "another process holds it and does not come to an end";
                    return Err(failed(io::Error::new(io::ErrorKind::TimedOut, text)));
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    /// Removes journals that leave nothing open and are old, or too many.
    fn prune(&self, now: SystemTime) -> Result<usize, JournalError> {
        let lives = self.lives()?;
        let settled = lives.settled();
        let too_many = settled.len().saturating_sub(MAX_SETTLED);
        let is_old = |modified: Option<SystemTime>| {
            modified.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age > KEPT)
        };
        let mut removed = 0;
        for (number, life) in settled.into_iter().enumerate() {
            if number < too_many || is_old(life.modified) {
                std::fs::remove_file(&life.path).map_err(|source| JournalError::new(&life.path, source))?;
                removed += 1;
            }
        }
        self.clear_unfinished();
        Ok(removed)
    }

    /// Removes journals whose process died before they had their name: nothing was written there.
    fn clear_unfinished(&self) {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "new") {
                continue;
            }
            let dead = File::open(&path)
                .is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok());
            if dead {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}
