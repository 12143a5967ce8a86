//! A descriptor beside a request: `SCM_RIGHTS` (unix(7)) over the control socket.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Writes `bytes`; the descriptor goes with the first of them.
pub(crate) fn send_with(stream: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    io::Write::write_all(&mut { stream }, bytes.get(sent..).unwrap_or_default())
}

/// Reads a client's bytes and keeps the last descriptor that came with them.
#[derive(Debug)]
pub(crate) struct PassingReader<'a> {
    stream: &'a UnixStream,
    passed: &'a RefCell<Option<OwnedFd>>,
}

impl<'a> PassingReader<'a> {
    pub(crate) fn new(stream: &'a UnixStream, passed: &'a RefCell<Option<OwnedFd>>) -> Self {
        Self { stream, passed }
    }
}

impl Read for PassingReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::net::recvmsg(
            self.stream,
            &mut [IoSliceMut::new(into)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // Those that are one too many are closed here.
                if let Some(fd) = fds.last() {
                    *self.passed.borrow_mut() = Some(fd);
                }
            }
        }
        Ok(got.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_line_and_works() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send_with(&ours, b"first\nsecond\n", writer.as_fd()).unwrap();
        drop(writer);
        let passed = RefCell::new(None);
        let mut line = String::new();
        BufReader::new(PassingReader::new(&theirs, &passed)).read_line(&mut line).unwrap();
        assert_eq!(line, "first\n");
        let fd = passed.take().unwrap();
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        std::fs::File::from(fd).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through", "and no copy of the descriptor is left");
    }
}
