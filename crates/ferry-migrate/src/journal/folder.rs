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
use ferry_protocol::journal::Record;
use ferry_protocol::{GuestId, InstanceId};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::JournalError;
use super::file::FileJournal;
use super::lives::Lives;

/// How long a journal is kept that leaves nothing open.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How many of them are kept at the most.
const MAX_SETTLED: usize = 1024;

/// How old a journal is at the least that never got its name: no process takes so long to begin one.
const UNFINISHED: Duration = Duration::from_secs(60 * 60);

/// How long another process may take to see whether a guest can be born.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether it is done.
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// A folder of journals.
#[derive(Debug, Clone)]
pub struct StateFolder {
    path: PathBuf,
}

/// While this is held no other process of the folder lets a guest be born, or takes one.
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
        match self.prune(&journal, SystemTime::now()) {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "journals that nobody needs any more"),
            Err(error) => tracing::warn!(%error, "old journals stay"),
        }
        Ok(journal)
    }

    /// Every journal that is here; an error if there are more than a process keeps in its memory.
    pub fn lives(&self) -> Result<Lives, JournalError> {
        Lives::read(&self.path)
    }

    /// The same, of however many journals, with what they say of one guest.
    pub fn lives_of(&self, guest: &GuestId) -> Result<Lives, JournalError> {
        Lives::read_of(&self.path, guest)
    }

    /// Keeps other processes from letting a guest be born, or taking one, so that two of one name are not
    /// here at once.
    pub fn hold_births(&self) -> Result<BirthHold, JournalError> {
        hold_births(&self.path)
    }

    /// Removes journals that leave nothing open and are old, or too many.
    fn prune(&self, journal: &FileJournal, now: SystemTime) -> Result<usize, JournalError> {
        self.clear_unfinished(now);
        let lives = Lives::read_to_clean(&self.path)?;
        let settled = lives.settled();
        let too_many = settled.len().saturating_sub(MAX_SETTLED);
        let is_old = |modified: Option<SystemTime>| {
            modified.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age > KEPT)
        };
        let doomed: Vec<_> = settled
            .into_iter()
            .enumerate()
            .filter(|(number, life)| *number < too_many || is_old(life.modified))
            .map(|(_, life)| life)
            .collect();
        // What they alone knew is on disk elsewhere before they go.
        journal.write_all(lives.floors(&doomed).into_iter().map(Record::Floor))?;
        for life in &doomed {
            match std::fs::remove_file(&life.path) {
                // Another process cleans up, too.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(JournalError::new(&life.path, error));
                }
                _ => {}
            }
        }
        Ok(doomed.len())
    }

    /// Removes journals whose process died before they had their name: nothing was written there. One that
    /// is young may be about to be locked.
    fn clear_unfinished(&self, now: SystemTime) {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "new") {
                continue;
            }
            let is_dead = |file: &File| {
                let made = file.metadata().and_then(|metadata| metadata.modified()).ok();
                let age = made.and_then(|made| now.duration_since(made).ok());
                age.is_some_and(|age| age > UNFINISHED)
                    && rustix::fs::flock(file, FlockOperation::NonBlockingLockShared).is_ok()
            };
            if File::open(&path).is_ok_and(|file| is_dead(&file)) {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}

/// Keeps other processes of a folder from letting a guest be born, or taking one.
pub(super) fn hold_births(folder: &Path) -> Result<BirthHold, JournalError> {
    let path = folder.join("births.lock");
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
