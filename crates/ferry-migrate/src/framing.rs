//! Frames on sockets: what both pumps share.

use std::io::{self, Read, Write};

use ferry_memory::{IoError, RamError};
use ferry_protocol::LinkFault;
use ferry_protocol::frame::{FrameError, FrameKind, HEADER_BYTES, Header, encode};
use ferry_protocol::message::{Message, MessageError};

use crate::link::Socket;
use crate::sentence;

/// A frame's head grows by at most this much before its bytes have come: nothing is allocated on the
/// peer's word.
const STEP_BYTES: usize = 64 * 1024;

/// Reads one frame's kind and head; page data, if any, is still in the socket.
pub(crate) fn read_frame(socket: &Socket) -> Result<(FrameKind, Vec<u8>), LinkFault> {
    let mut bytes = [0; HEADER_BYTES];
    read_exact(socket, &mut bytes)?;
    read_head(socket, &bytes)
}

/// Reads what follows a frame's header.
pub(crate) fn read_head(
    socket: &Socket,
    header: &[u8; HEADER_BYTES],
) -> Result<(FrameKind, Vec<u8>), LinkFault> {
    let header = Header::parse(header).map_err(|error| garbled(&error))?;
    let mut head = Vec::new();
    while head.len() < header.head_bytes {
        let at = head.len();
        head.resize(header.head_bytes.min(at + STEP_BYTES), 0);
        read_exact(socket, head.get_mut(at..).unwrap_or_default())?;
    }
    header.check(&head).map_err(|error| garbled(&error))?;
    Ok((header.kind, head))
}

fn read_exact(mut socket: &Socket, into: &mut [u8]) -> Result<(), LinkFault> {
    socket.read_exact(into).map_err(|error| io_fault(&error))
}

/// Sends one message.
pub(crate) fn send_message<M: Message>(
    mut socket: &Socket,
    kind: FrameKind,
    message: &M,
) -> Result<(), LinkFault> {
    socket.write_all(&encode(kind, &message.to_bytes())).map_err(|error| io_fault(&error))
}

/// Parses a message that came in a frame.
pub(crate) fn parse_message<M: Message>(head: &[u8]) -> Result<M, LinkFault> {
    M::from_bytes(head).map_err(|error: MessageError| {
        let source =
            std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        LinkFault::Garbled(format!("{error}{source}"))
    })
}

pub(crate) fn garbled(error: &FrameError) -> LinkFault {
    match error {
        FrameError::OtherProtocol(_) => LinkFault::OtherProtocol(error.to_string()),
        _ => LinkFault::Garbled(error.to_string()),
    }
}

/// What an error of the operating system says of the link.
pub(crate) fn io_fault(error: &io::Error) -> LinkFault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LinkFault::Closed,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LinkFault::Silent,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            LinkFault::Failed("the other side closed the link in the middle".into())
        }
        _ => LinkFault::Failed(format!("the link failed: {error}")),
    }
}

/// What an error of a page transfer says of the link.
pub(crate) fn page_fault(error: IoError) -> LinkFault {
    match error {
        IoError::Ended { .. } => LinkFault::Closed,
        IoError::TimedOut { .. } => LinkFault::Silent,
        IoError::Outside(error) => memory_fault(&error),
        IoError::File { source, .. } => memory_fault(&source),
        IoError::Os { source, .. } => io_fault(&source),
        other => LinkFault::Machine(sentence(&other)),
    }
}

/// What an error of guest memory says: pages that are not there are the peer's mistake, a disk that fails is this side's
/// affair.
pub(crate) fn memory_fault(error: &RamError) -> LinkFault {
    match error {
        RamError::Outside { .. } | RamError::OutsidePages { .. } => LinkFault::Garbled(error.to_string()),
        error => LinkFault::Machine(sentence(error)),
    }
}
