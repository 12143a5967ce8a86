//! Descriptors that carry a guest one way: pipes and stream sockets.
//!
//! A pipe is opened once more through `/proc/self/fd` (proc(5)), so that it can be made not to block
//! without a change for others who have it; sockets get timeouts (socket(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{SocketType, sockopt};

use crate::link::Socket;

/// Which way the guest goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Out of this process.
    Out,
    /// Into this process.
    In,
}

/// Why a descriptor cannot carry a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// It is something else.
    #[error("the descriptor is neither a pipe nor a stream socket: for a file use file:PATH")]
    Kind,
    /// It is open for the other direction only.
    #[error("the descriptor is not open for {0}")]
    Access(&'static str),
    /// The kernel said no.
    #[error("the descriptor cannot be used")]
    Os(#[source] io::Error),
}

/// A pipe or stream socket that is ours alone.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    direction: Direction,
}

impl Stream {
    /// Checks what the descriptor is.
    pub fn new(fd: OwnedFd, direction: Direction) -> Result<Self, DescriptorError> {
        let os = |errno: rustix::io::Errno| DescriptorError::Os(errno.into());
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(os)?.st_mode);
        match kind {
            FileType::Fifo => {}
            FileType::Socket if sockopt::socket_type(&fd).map_err(os)? == SocketType::STREAM => {}
            _ => return Err(DescriptorError::Kind),
        }
        let access = rustix::fs::fcntl_getfl(&fd).map_err(os)? & OFlags::RWMODE;
        match direction {
            Direction::Out if access == OFlags::RDONLY => Err(DescriptorError::Access("writing")),
            Direction::In if access == OFlags::WRONLY => Err(DescriptorError::Access("reading")),
            _ => Ok(Self { fd, direction }),
        }
    }

    pub(crate) fn into_socket(self, silence: Duration) -> io::Result<Socket> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&self.fd)?.st_mode);
        if kind == FileType::Socket {
            let timeout = match self.direction {
                Direction::Out => sockopt::Timeout::Send,
                Direction::In => sockopt::Timeout::Recv,
            };
            sockopt::set_socket_timeout(&self.fd, timeout, Some(silence))?;
            return Ok(Socket::Plain(self.fd.into(), silence));
        }
        let access = if self.direction == Direction::Out { OFlags::WRONLY } else { OFlags::RDONLY };
        let path = format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd());
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // Without /proc, or where the pipe is another user's, it blocks: only the reader ends a wait then.
        let opened = rustix::fs::open(path, flags, Mode::empty()).map(File::from).ok();
        let file = opened.filter(|_| !self.has_no_writer()).unwrap_or_else(|| self.fd.into());
        Ok(Socket::Plain(file, silence))
    }

    /// Whether nobody can write into it any more. A FIFO that is opened then, not to block, never tells
    /// poll(2) that it has ended (fs/pipe.c, `fifo_open`): the wait would be for ever. The descriptor that
    /// was given does tell, and blocks no reader now: what is left is there, and then its end.
    fn has_no_writer(&self) -> bool {
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        let polls = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        self.direction == Direction::In && polls.is_ok() && polled[0].revents().contains(PollFlags::HUP)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::link::is_ready;

    #[test]
    fn a_fifo_whose_writer_is_gone_is_read_to_its_end_without_a_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let writer = std::thread::spawn({
            let path = path.clone();
            move || File::options().write(true).open(path).unwrap().write_all(b"left").unwrap()
        });
        let reader = File::open(&path).unwrap();
        writer.join().unwrap();
        let stream = Stream::new(reader.into(), Direction::In).unwrap();
        let Socket::Plain(mut file, _) = stream.into_socket(Duration::from_secs(9)).unwrap() else {
            panic!("a pipe is no socket")
        };
        let mut left = [0; 4];
        file.read_exact(&mut left).unwrap();
        let soon = Duration::from_secs(5);
        assert!(is_ready(&file, PollFlags::IN, soon).unwrap(), "its end is not told");
        assert_eq!((left, file.read(&mut [0; 1]).unwrap()), (*b"left", 0));
    }
}
