//! A look at a file without a machine: every frame's head, every message and section; page data is
//! passed over.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use ferry_protocol::frame::FrameKind;
use ferry_protocol::message::{Hello, OfEpoch, Offer, Taken, ToTarget};
use ferry_state::{MAX_SECTIONS, Section};

use super::reader::{Damage, Next, Reader};
use crate::framing::parse_message;
use crate::intake::MAX_STATE_BYTES;
use crate::link::Socket;

/// What is in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survey {
    /// Whose guest, and under which epoch it will run.
    pub hello: Option<Hello>,
    /// What must be built for it.
    pub offer: Option<Offer>,
    /// Rounds, the last one included.
    pub rounds: u32,
    /// Whether the last of them was sent from the paused guest.
    pub last_round_done: bool,
    /// Pages whose data is there, each as often as it was sent.
    pub data_pages: u64,
    /// Pages of zeros, each as often as it was sent.
    pub zero_pages: u64,
    /// The hash of all memory.
    pub memory_hash: Option<[u8; 32]>,
    /// The sections of the state, undecoded.
    pub sections: Vec<Section>,
    /// How many sections the source says that it wrote.
    pub sections_expected: Option<u32>,
    /// The custody, once everything before it is whole.
    pub custody: Option<OfEpoch>,
    /// Who took it.
    pub taken: Option<Taken>,
    /// Where the custody ends: what follows is a mark.
    pub custody_end: u64,
    /// How long the file is.
    pub file_bytes: u64,
    /// Where reading it ended too early, and why.
    pub damage: Option<Damage>,
}

/// Reads a file. Only a file that cannot be opened or is none is an error; what is wrong in it is in
/// [`Survey::damage`].
pub fn survey(path: &Path) -> io::Result<Survey> {
    survey_file(&File::open(path)?, path)
}

/// The same of an open file, from its beginning. Its offset moves.
pub(super) fn survey_file(file: &File, path: &Path) -> io::Result<Survey> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(0))?;
    let reader = Reader::new(Socket::Plain(file.try_clone()?, Duration::ZERO), path.display().to_string());
    let found = Survey { file_bytes: meta.len(), ..Survey::default() };
    let mut surveyor = Surveyor { reader, file, found, state_bytes: 0 };
    let walked = surveyor.walk();
    surveyor.found.damage = walked.err();
    Ok(surveyor.found)
}

struct Surveyor {
    reader: Reader,
    file: File,
    found: Survey,
    state_bytes: usize,
}

impl Surveyor {
    fn walk(&mut self) -> Result<(), Damage> {
        loop {
            match self.reader.next()? {
                Next::Frame(kind, head) if self.found.custody.is_none() => self.frame(kind, &head)?,
                Next::Frame(kind, head) => return self.mark(kind, &head),
                Next::End if self.found.custody.is_some() => return Ok(()),
                Next::End | Next::Unfinished => {
                    return Err(self
                        .reader
                        .damage("it ends here, before its custody: it was never finished"));
                }
            }
        }
    }

    fn frame(&mut self, kind: FrameKind, head: &[u8]) -> Result<(), Damage> {
        match kind {
            FrameKind::ToTarget => {
                let message = parse_message(head).map_err(|fault| self.reader.fault(&fault))?;
                self.message(message)
            }
            FrameKind::ToSource => Err(self.reader.damage("an answer of a target is no part of a file")),
            FrameKind::Section => self.section(head),
            FrameKind::Pages => {
                let pages = self.reader.page_head(kind, head)?.pages();
                if self.reader.end() > self.found.file_bytes {
                    return Err(self.reader.damage("it ends in the middle of the pages that begin here"));
                }
                self.found.data_pages += pages;
                let sought = self.file.seek(SeekFrom::Start(self.reader.end()));
                sought.map(drop).map_err(|error| self.reader.damage(error.to_string()))
            }
            FrameKind::Zeros => {
                let pages = self.reader.page_head(kind, head)?.pages();
                self.found.zero_pages = self.found.zero_pages.saturating_add(pages);
                Ok(())
            }
        }
    }

    fn section(&mut self, head: &[u8]) -> Result<(), Damage> {
        self.state_bytes += head.len();
        if self.found.sections.len() >= MAX_SECTIONS || self.state_bytes > MAX_STATE_BYTES {
            return Err(self.reader.damage("more sections of the state than any machine has"));
        }
        let section = Section::from_bytes(head).map_err(|error| self.reader.damage(error.to_string()))?;
        self.found.sections.push(section);
        Ok(())
    }

    fn message(&mut self, message: ToTarget) -> Result<(), Damage> {
        let found = &mut self.found;
        match message {
            ToTarget::Hello(hello) if found.hello.is_none() => found.hello = Some(hello),
            ToTarget::Offer(offer) if found.hello.is_some() && found.offer.is_none() => {
                found.offer = Some(offer);
            }
            ToTarget::RoundEnd(end) if found.offer.is_some() && !found.last_round_done => {
                found.rounds = found.rounds.saturating_add(1);
                found.last_round_done = end.last;
            }
            ToTarget::MemoryHash(hash) => found.memory_hash = Some(hash.blake3),
            ToTarget::StateEnd(end) if found.last_round_done => found.sections_expected = Some(end.sections),
            ToTarget::Custody(of) if found.sections_expected.is_some() => {
                found.custody = Some(of);
                found.custody_end = self.reader.end();
            }
            ToTarget::Abort(reason) => {
                return Err(self.reader.damage(format!("the source ended the migration: {reason}")));
            }
            other => {
                let what = format!("`{}` does not belong here", other.name());
                return Err(self.reader.damage(what));
            }
        }
        Ok(())
    }

    /// What follows the custody: one mark and nothing else.
    fn mark(&mut self, kind: FrameKind, head: &[u8]) -> Result<(), Damage> {
        let message = match kind {
            FrameKind::ToTarget => parse_message(head).map_err(|fault| self.reader.fault(&fault))?,
            _ => return Err(self.reader.damage("only a mark that it was taken may follow the custody")),
        };
        match message {
            ToTarget::Taken(taken) if self.found.custody == Some(taken.of) => {
                self.found.taken = Some(taken);
                if self.reader.end() == self.found.file_bytes {
                    Ok(())
                } else {
                    Err(self.reader.damage("bytes follow the mark that it was taken"))
                }
            }
            _ => Err(self.reader.damage("only a mark that it was taken may follow the custody")),
        }
    }
}
