//! One process's journal as a file: appended to, on disk before it is acted on, cut back when a write
//! fails.
//!
//! The file is locked (flock(2)) before it has its name and until its process ends, however it ends.
//! The kernel lets go of the lock with the last descriptor, and of those after every thread of the
//! process is out of KVM (`do_exit` in kernel/exit.c): a journal whose lock is free is that of a process
//! that is gone with every guest it ran.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferry_protocol::journal::{Past, Record};
use ferry_protocol::{GuestId, InstanceId};
use rustix::fs::FlockOperation;

use super::folder::hold_births;
use super::form::{HEADER_BYTES, MAX_JOURNAL_BYTES, frame, header};
use super::lives::Lives;
use super::{Journal, JournalError};

/// What a journal's bytes are written to: a file, and in tests one that fails.
pub(super) trait Medium: Send {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn cut(&mut self, length: u64) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Appends records, and never leaves half a one before another.
#[derive(Debug)]
pub(super) struct Writer<M> {
    medium: M,
    /// The bytes that are whole records.
    whole: u64,
    /// Something of a write that failed may follow them.
    frayed: bool,
}

impl<M: Medium> Writer<M> {
    /// Goes on after so many bytes.
    pub(super) fn after(medium: M, whole: u64) -> Self {
        Self { medium, whole, frayed: false }
    }

    /// Appends a record; with `lasting` it is on disk, and everything before it, when this returns.
    pub(super) fn append(&mut self, record: &Record, lasting: bool) -> io::Result<()> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the record is longer than any may be");
        let frame = frame(record).ok_or_else(too_long)?;
        let end = self.whole.saturating_add(u64::try_from(frame.len()).unwrap_or(u64::MAX));
        if end > MAX_JOURNAL_BYTES {
            let text = format!("it has reached its {MAX_JOURNAL_BYTES} bytes: start another process");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        self.mend()?;
        self.frayed = true;
        let written = self.medium.write_at(&frame, self.whole);
        let written = written.and_then(|()| if lasting { self.medium.sync() } else { Ok(()) });
        match written {
            Ok(()) => {
                (self.whole, self.frayed) = (end, false);
                Ok(())
            }
            Err(error) => {
                // If this fails, too, the next record is not written before it succeeds.
                if let Err(also) = self.mend() {
                    tracing::warn!(error = %also, "a journal's torn record cannot be cut off yet");
                }
                Err(error)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn medium(&mut self) -> &mut M {
        &mut self.medium
    }

    fn mend(&mut self) -> io::Result<()> {
        if self.frayed {
            self.medium.cut(self.whole)?;
            self.frayed = false;
        }
        Ok(())
    }
}

/// The journal of this process, in a folder of journals.
#[derive(Debug)]
pub struct FileJournal {
    instance: InstanceId,
    folder: PathBuf,
    path: PathBuf,
    writer: Mutex<Writer<File>>,
}

impl FileJournal {
    /// Makes the file, locked from its first moment under its name.
    pub(super) fn create(folder: &Path, instance: InstanceId) -> Result<Self, JournalError> {
        let path = folder.join(format!("{instance}.journal"));
        let fresh = folder.join(format!("{instance}.new"));
        let made = Self::make(folder, &path, &fresh, instance);
        let writer = made.map_err(|source| {
            let _ = std::fs::remove_file(&fresh);
            JournalError::new(&path, source)
        })?;
        Ok(Self { instance, folder: folder.into(), path, writer: Mutex::new(writer) })
    }

    fn make(folder: &Path, path: &Path, fresh: &Path, instance: InstanceId) -> io::Result<Writer<File>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(fresh)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all_at(&header(instance), 0)?;
        file.sync_all()?;
        // Never over another journal: an instance is chosen at random, and this one was chosen before.
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            fresh,
            rustix::fs::CWD,
            path,
            rustix::fs::RenameFlags::NOREPLACE,
        )?;
        File::open(folder)?.sync_all()?;
        Ok(Writer::after(file, u64::try_from(HEADER_BYTES).unwrap_or(0)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes records; all of them are on disk when this returns.
    pub(super) fn write_all(&self, records: impl IntoIterator<Item = Record>) -> Result<(), JournalError> {
        let (mut writer, mut records) = (self.writer(), records.into_iter().peekable());
        while let Some(record) = records.next() {
            let written = writer.append(&record, records.peek().is_none());
            written.map_err(|source| JournalError::new(&self.path, source))?;
        }
        Ok(())
    }

    /// The journal of another process that lives and has a guest of this name.
    fn other_with(&self, lives: &Lives, guest: &GuestId, source: Option<InstanceId>) -> Option<PathBuf> {
        let mut others = lives
            .living_with(guest)
            .filter(|life| life.instance != self.instance && Some(life.instance) != source);
        others.next().map(|life| life.path.clone())
    }

    fn writer(&self) -> MutexGuard<'_, Writer<File>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for FileJournal {
    fn instance(&self) -> InstanceId {
        self.instance
    }

    fn write(&self, record: &Record) -> Result<(), JournalError> {
        self.writer().append(record, true).map_err(|source| JournalError::new(&self.path, source))
    }

    fn note(&self, record: &Record) {
        if let Err(error) = self.writer().append(record, false) {
            tracing::warn!(%error, ?record, "a note in the journal");
        }
    }

    fn past(&self) -> Result<Past, JournalError> {
        Ok(Lives::read(&self.folder)?.past())
    }

    fn holder(&self, guest: &GuestId, source: Option<InstanceId>) -> Result<Option<PathBuf>, JournalError> {
        let lives = Lives::read_of(&self.folder, guest)?;
        Ok(self.other_with(&lives, guest, source))
    }

    fn take_name(&self, record: &Record, source: Option<InstanceId>) -> Result<(), JournalError> {
        let _hold = hold_births(&self.folder)?;
        let guest = record.guest();
        let lives = Lives::read_of(&self.folder, guest)?;
        if let Some(path) = self.other_with(&lives, guest, source) {
            return Err(JournalError::Taken { guest: guest.clone(), path });
        }
        self.write(record)
    }
}
