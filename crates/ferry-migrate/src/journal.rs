//! What a process remembers over its end: the journal that the pumps write, and where it is kept.
//!
//! A source writes that it may give custody away, a target that it may run the guest, both before any
//! page crosses; what they promise and how it is read is in [`ferry_protocol::journal`]. Programs whose
//! guests matter keep a [`FileJournal`] in a [`StateFolder`] that survives a restart of the host. A
//! caller who can do without (a test, a benchmark, an embedder who decides for every restart by hand)
//! says so with [`Volatile`].

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ferry_protocol::journal::{Past, Record};
use ferry_protocol::{GuestId, InstanceId};

mod file;
mod folder;
mod form;
mod lives;
#[cfg(test)]
mod tests;

pub use file::FileJournal;
pub use folder::{BirthHold, StateFolder};
pub use form::{Condition, Content, MAX_JOURNAL_BYTES};
pub use lives::{Life, Lives, Open, OpenKind};

/// Where a process writes what it must not forget. One process has one, for all its migrations.
pub trait Journal: Debug + Send + Sync {
    /// This life of the process: the journal is kept under it, and the other side knows it by it.
    fn instance(&self) -> InstanceId;

    /// Writes a record. It is on disk when this returns; on an error nothing of it is.
    fn write(&self, record: &Record) -> Result<(), JournalError>;

    /// Writes a record that may be lost: only people read it.
    fn note(&self, record: &Record);

    /// What processes wrote that kept their journals in the same place.
    fn past(&self) -> Result<Past, JournalError>;

    /// The journal of a process that lives and has a guest of this name, or may get it back; neither this
    /// process nor the one named: the source of the very guest may be on this host. Nothing is known of
    /// others where journals are not kept in one place.
    fn holder(&self, guest: &GuestId, source: Option<InstanceId>) -> Result<Option<PathBuf>, JournalError> {
        let _ = (guest, source);
        Ok(None)
    }

    /// Writes the record by which a guest comes to be here, unless there is a [`holder`](Self::holder) of
    /// its name: looked at and written in one step, so that of two processes that take one name at once
    /// one gets it.
    fn take_name(&self, record: &Record, source: Option<InstanceId>) -> Result<(), JournalError> {
        let _ = source;
        self.write(record)
    }
}

/// Nothing may be done that rests on what was to be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A journal, or the folder of them, cannot be written or read.
    #[error("{} cannot be used", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process that lives has a guest of the name.
    #[error(
        "a process that lives has a guest `{guest}` (journal {}): end that guest, or settle it with `ferry recover {guest}`",
        path.display()
    )]
    Taken {
        /// The name.
        guest: GuestId,
        /// The journal of that process.
        path: PathBuf,
    },
}

impl JournalError {
    /// What failed, and where.
    pub fn new(path: &Path, source: io::Error) -> Self {
        Self::Unusable { path: path.into(), source }
    }
}

/// The most records that a journal in memory keeps.
const MAX_VOLATILE: usize = 4096;

/// A journal in memory: it is forgotten with its process, so what a restarted process is asked about
/// the one before stays unknown.
#[derive(Debug)]
pub struct Volatile {
    instance: InstanceId,
    records: Mutex<Vec<Record>>,
}

impl Volatile {
    /// An empty journal of a process that chose this number at random.
    pub fn new(instance: InstanceId) -> Self {
        Self { instance, records: Mutex::default() }
    }

    /// What was written last.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Journal for Volatile {
    fn instance(&self) -> InstanceId {
        self.instance
    }

    fn write(&self, record: &Record) -> Result<(), JournalError> {
        self.note(record);
        Ok(())
    }

    fn note(&self, record: &Record) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() >= MAX_VOLATILE {
            records.remove(0);
        }
        records.push(record.clone());
    }

    fn past(&self) -> Result<Past, JournalError> {
        Ok(Past::default())
    }
}
