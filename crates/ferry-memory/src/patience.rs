//! Waiting for a descriptor that does not block, for a bounded time (poll(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Waits until `events` (`POLLIN` or `POLLOUT`), an end or an error is there; `TimedOut` otherwise.
pub(crate) fn wait(fd: BorrowedFd<'_>, events: libc::c_short, patience: Duration) -> io::Result<()> {
    if patience.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let millis = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `polled` is one pollfd that lives through the call; the kernel writes its `revents`.
    match unsafe { libc::poll(&raw mut polled, 1, millis) } {
        0 => Err(io::ErrorKind::TimedOut.into()),
        count if count < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
