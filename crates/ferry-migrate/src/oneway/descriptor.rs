//! Descriptors that carry a guest one way: pipes and stream sockets.
//!
//! A pipe is opened once more through `/proc/self/fd` (proc(5)), so that it can be made not to block
//! without a change for others who have it; sockets get timeouts (socket(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

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
        let file = rustix::fs::open(path, flags, Mode::empty()).map_or_else(|_| self.fd.into(), File::from);
        Ok(Socket::Plain(file, silence))
    }
}
