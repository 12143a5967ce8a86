//! Where a one-way migration writes: a file, which appears under its name only with its custody, or a
//! pipe or stream socket.
//!
//! A file is written as `PATH.partial`. Room for the custody message is made, and everything is flushed
//! to the disk (fsync(2)), before custody is given: from then on only errors of the disk itself can
//! come.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_protocol::SourceEvent;
use ferry_protocol::frame::{FrameKind, encode};
use ferry_protocol::message::{Message, OfEpoch, ToTarget};
use rustix::fs::{CWD, RenameFlags};

use super::descriptor::Stream;
use crate::link::Socket;

/// Where a one-way migration goes. Nothing is touched before it begins.
#[derive(Debug)]
pub struct Sink(Kind);

#[derive(Debug)]
enum Kind {
    File(PathBuf),
    Stream(Stream),
}

impl Sink {
    /// A file that is not there yet.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Kind::File(path.into()))
    }

    /// A pipe or stream socket.
    pub fn stream(stream: Stream) -> Self {
        Self(Kind::Stream(stream))
    }

    /// Where that is, as people name it.
    pub(crate) fn place(&self) -> String {
        match &self.0 {
            Kind::File(path) => format!("file:{}", path.display()),
            Kind::Stream(_) => "a pipe or socket".to_owned(),
        }
    }

    pub(crate) fn open(self, silence: Duration) -> Result<(OpenSink, Socket), String> {
        match self.0 {
            Kind::File(path) => {
                let partial = Partial::create(&path)?;
                let file = partial.file.try_clone();
                let file = file.map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
                Ok((OpenSink::File(partial), Socket::Plain(file, silence)))
            }
            Kind::Stream(stream) => {
                let socket = stream.into_socket(silence);
                let socket = socket.map_err(|error| format!("the descriptor cannot be used: {error}"))?;
                Ok((OpenSink::Stream, socket))
            }
        }
    }
}

/// A sink that is being written. A file that is dropped without custody is removed.
#[derive(Debug)]
pub(crate) enum OpenSink {
    File(Partial),
    Stream,
}

impl OpenSink {
    /// Brings what live rounds wrote onto the disk while the guest runs, so that less is left for the
    /// pause.
    pub(crate) fn flush(&self) -> Result<(), String> {
        match self {
            Self::File(partial) => partial.file.sync_data().map_err(|error| {
                format!("{} cannot be written to the disk: {error}", partial.working_path.display())
            }),
            Self::Stream => Ok(()),
        }
    }

    /// Makes everything that was written so far last.
    pub(crate) fn seal(&mut self, of: OfEpoch) -> Result<(), String> {
        match self {
            Self::File(partial) => partial.seal(of).map_err(|error| {
                format!("{} cannot be made to last: {error}", partial.working_path.display())
            }),
            Self::Stream => Ok(()),
        }
    }

    /// Writes the custody; its own was consumed by the caller.
    pub(crate) fn give(&mut self, of: OfEpoch, mut socket: &Socket) -> SourceEvent {
        match self {
            Self::File(partial) => match partial.give(of) {
                Ok(()) => SourceEvent::Delivered,
                Err(known) => SourceEvent::Doubtful(known),
            },
            // Whole or not at all: the frame's own checksum keeps a reader from taking a part of it.
            Self::Stream => match socket.write_all(&custody(of)) {
                Ok(()) => SourceEvent::Delivered,
                Err(error) => SourceEvent::Undelivered(format!(
                    "custody could not be written whole, so nobody can have taken it: {error}"
                )),
            },
        }
    }
}

fn custody(of: OfEpoch) -> Vec<u8> {
    encode(FrameKind::ToTarget, &ToTarget::Custody(of).to_bytes())
}

/// A file without its custody.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    folder: File,
    path: PathBuf,
    working_path: PathBuf,
    /// Where the custody goes.
    end: u64,
    /// Custody may be in it: it is not removed any more.
    keep: bool,
}

impl Partial {
    fn create(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        if path.symlink_metadata().is_ok() {
            return Err(format!("{shown} is there already: choose another name, nothing is overwritten"));
        }
        let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
        if name.is_empty() {
            return Err(format!("{shown} names no file"));
        }
        name.push(".partial");
        let working_path = path.with_file_name(name);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = File::open(folder)
            .map_err(|error| format!("the folder {} cannot be opened: {error}", folder.display()))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&working_path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => format!(
                "{0} is there already, from another migration: if none writes it now and `ferry inspect {0}` \
                 shows no custody in it, remove it",
                working_path.display()
            ),
            _ => format!("{} cannot be made: {error}", working_path.display()),
        })?;
        Ok(Self { file, folder, path: path.into(), working_path, end: 0, keep: false })
    }

    fn seal(&mut self, of: OfEpoch) -> io::Result<()> {
        self.end = self.file.stream_position()?;
        self.file.write_all(&vec![0; custody(of).len()])?;
        self.file.sync_all()?;
        self.folder.sync_all()
    }

    /// Never over another file. Where the file system has no such rename, a second name does it.
    fn rename(&self) -> io::Result<()> {
        use rustix::io::Errno;
        match rustix::fs::renameat_with(CWD, &self.working_path, CWD, &self.path, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => {
                std::fs::hard_link(&self.working_path, &self.path)?;
                std::fs::remove_file(&self.working_path)
            }
            other => Ok(other?),
        }
    }

    /// From the first line on the custody may be in the file; the error says what is known.
    fn give(&mut self, of: OfEpoch) -> Result<(), String> {
        self.keep = true;
        let (path, partial) = (self.path.display(), self.working_path.display());
        let written = self.file.write_all_at(&custody(of), self.end).and_then(|()| self.file.sync_all());
        written.map_err(|error| {
            format!(
                "the last write to {partial} failed ({error}), and custody may be in it: the guest stays \
                 paused here; `ferry inspect {partial}` says whether custody is there, and if it is, end \
                 this process and take the guest with `ferry receive --from file:{partial}`"
            )
        })?;
        self.rename().map_err(|error| {
            format!(
                "custody is in {partial}, which could not be renamed to {path} ({error}): the guest stays \
                     paused here; end this process, and take the guest with `ferry receive --from \
                     file:{partial}`"
            )
        })?;
        self.folder.sync_all().map_err(|error| {
            format!(
                "custody is in {path}, but its folder could not be flushed ({error}): after a crash of this \
                 host the file may be called {partial}; the guest stays paused here"
            )
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_file(&self.working_path)
        {
            tracing::warn!(%error, path = %self.working_path.display(), "a file without custody is left");
        }
    }
}
