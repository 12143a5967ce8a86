//! Frames out of a file or a stream, with the place of each.

use std::io::Read;

use ferry_protocol::LinkFault;
use ferry_protocol::frame::{FrameKind, HEADER_BYTES, PageHead};

use crate::framing::{garbled, io_fault, read_head};
use crate::link::Socket;

/// What is wrong with a file or stream, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}, byte {offset}: {what}")]
pub struct Damage {
    /// The file, or what else is read.
    pub place: String,
    /// Where the frame begins that cannot be used.
    pub offset: u64,
    /// What is wrong with it.
    pub what: String,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    Frame(FrameKind, Vec<u8>),
    /// Nothing more, at the end of a frame.
    End,
    /// Room for a custody that was never written.
    Unfinished,
}

/// Reads frame after frame; whoever takes a page frame also takes its data from the socket.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) socket: Socket,
    place: String,
    /// Where the last frame began, and where the next one will.
    begin: u64,
    end: u64,
}

impl Reader {
    pub(crate) fn new(socket: Socket, place: String) -> Self {
        Self { socket, place, begin: 0, end: 0 }
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Where the next frame begins.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// What is wrong with the frame that was read last.
    pub(crate) fn damage(&self, what: impl Into<String>) -> Damage {
        Damage { place: self.place.clone(), offset: self.begin, what: what.into() }
    }

    pub(crate) fn fault(&self, fault: &LinkFault) -> Damage {
        match fault {
            LinkFault::Closed => self.damage("it ends in the middle of what begins here"),
            LinkFault::Silent => self.damage("nothing came for too long"),
            LinkFault::Failed(text) | LinkFault::Garbled(text) | LinkFault::Machine(text) => {
                self.damage(text.as_str())
            }
            LinkFault::OtherProtocol(_) => self.damage("what begins here is not of Ferry's making"),
        }
    }

    pub(crate) fn next(&mut self) -> Result<Next, Damage> {
        self.begin = self.end;
        let mut header = [0; HEADER_BYTES];
        let mut have = 0;
        while have < HEADER_BYTES {
            match (&self.socket).read(header.get_mut(have..).unwrap_or_default()) {
                Ok(0) if have == 0 => return Ok(Next::End),
                Ok(0) => return Err(self.fault(&LinkFault::Closed)),
                Ok(count) => have += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fault(&io_fault(&error))),
            }
        }
        if header == [0; HEADER_BYTES] {
            return Ok(Next::Unfinished);
        }
        let (kind, head) = read_head(&self.socket, &header).map_err(|fault| self.fault(&fault))?;
        let mut bytes = HEADER_BYTES as u64 + head.len() as u64;
        if kind == FrameKind::Pages {
            bytes += self.page_head(kind, &head)?.data_bytes();
        }
        self.end += bytes;
        Ok(Next::Frame(kind, head))
    }

    pub(crate) fn page_head(&self, kind: FrameKind, head: &[u8]) -> Result<PageHead, Damage> {
        PageHead::parse(kind, head).map_err(|error| self.fault(&garbled(&error)))
    }
}
