//! Taking over a descriptor that the process inherited (`fd:3` on a command line).
//!
//! A descriptor that this process opened itself is closed on exec (`FD_CLOEXEC`, fcntl(2)): Rust's
//! library and every crate here open theirs so. One that is not was left open on purpose by whoever
//! started the process; it belongs to nobody here yet, until it is adopted, once.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// Two threads do not adopt the same number.
static ADOPTING: Mutex<()> = Mutex::new(());

/// Makes an inherited descriptor this process's own; it is closed on exec and when dropped.
///
/// Standard input is duplicated and stays open. Standard output and error, numbers that are not open,
/// and descriptors that this process opened or adopted before are refused.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    if fd == 1 || fd == 2 {
        return Err(refused("standard output and error carry what the program says: use 3 or above"));
    }
    let _alone = ADOPTING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: F_GETFD takes an integer and touches no memory.
    let flags = checked(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    if fd == 0 {
        // SAFETY: F_DUPFD_CLOEXEC takes integers and touches no memory.
        let duplicate = checked(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
        // SAFETY: the kernel just made this number, and nobody else knows it.
        return Ok(unsafe { OwnedFd::from_raw_fd(duplicate) });
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(refused("this process did not inherit it, or has it in use already"));
    }
    // SAFETY: F_SETFD takes integers and touches no memory.
    checked(unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and it was inherited and not adopted before, so nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn an_inherited_descriptor_is_adopted_once() {
        let (reader, writer) = io::pipe().unwrap();
        // As after exec: open, not closed on exec, and nobody's.
        let number = OwnedFd::from(writer).into_raw_fd();
        // SAFETY: F_SETFD takes integers and touches no memory.
        assert_eq!(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }, 0);
        let adopted = adopt(number).unwrap();
        assert_eq!(adopted.as_raw_fd(), number);
        assert!(adopt(number).is_err(), "it has an owner now");
        assert!(adopt(reader.as_raw_fd()).is_err(), "this process opened it itself");
    }

    #[test]
    fn what_is_not_open_and_what_is_written_to_is_refused() {
        for number in [-1, 1, 2, 1 << 20] {
            assert!(adopt(number).is_err(), "{number}");
        }
        assert!(adopt(0).is_ok_and(|fd| fd.as_raw_fd() > 2));
    }
}
