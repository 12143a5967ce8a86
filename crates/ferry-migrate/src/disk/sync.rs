//! What a guest wrote to an image is brought to the disk, by its own flushes and by the engine's; and an error
//! reaches the guest, whoever met it.
//!
//! Linux says once to each open file that data could not be written back (`file_check_and_advance_wb_err` in the
//! kernel's mm/filemap.c). If the engine hears it the guest's next flush would find nothing wrong, and the guest would
//! believe that its data is safe. So the error is kept here until the guest is told.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock;

/// What is known of an image's way to the disk.
#[derive(Debug)]
pub(super) struct Syncing {
    /// Something may not be on the disk: from the beginning, since who had the image before may have written it.
    is_behind: AtomicBool,
    /// What failed, until the guest is told. Held while the image is brought to the disk: who finds no error here finds
    /// none that another has just met.
    failure: Mutex<Option<Failure>>,
}

/// An error that can be told more than once.
#[derive(Debug, Clone, Copy)]
struct Failure {
    code: Option<i32>,
    kind: io::ErrorKind,
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        Self { code: error.raw_os_error(), kind: error.kind() }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        failure.code.map_or_else(|| failure.kind.into(), Self::from_raw_os_error)
    }
}

impl Syncing {
    pub(super) fn new() -> Self {
        Self { is_behind: AtomicBool::new(true), failure: Mutex::new(None) }
    }

    /// Something was written.
    pub(super) fn wrote(&self) {
        self.is_behind.store(true, Ordering::Release);
    }

    /// Calls `bring`, unless nothing was written since it succeeded. Fails also with what failed before, until that
    /// [`was told`](Self::take_failure).
    pub(super) fn sync(&self, bring: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut failure = lock(&self.failure);
        // What is written from here on is for the next time.
        if self.is_behind.swap(false, Ordering::AcqRel)
            && let Err(error) = bring()
        {
            self.wrote();
            *failure = Some(Failure::from(&error));
        }
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Whether everything is on the disk, and the guest has been told of whatever failed. False, too, while somebody brings it there.
    pub(super) fn is_settled(&self) -> bool {
        let failure = self.failure.try_lock();
        failure.is_ok_and(|failure| failure.is_none()) && !self.is_behind.load(Ordering::Acquire)
    }

    /// What failed, for the guest: it is forgotten.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        lock(&self.failure).take().map(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(5))
    }

    #[test]
    fn an_error_is_kept_until_the_guest_is_told_and_only_then_forgotten() {
        let syncing = Syncing::new();
        syncing.sync(|| Ok(())).unwrap();
        syncing.wrote();
        assert_eq!(syncing.sync(broken).unwrap_err().raw_os_error(), Some(5));
        // The kernel has said it, and says it no more.
        assert_eq!(syncing.sync(|| Ok(())).unwrap_err().raw_os_error(), Some(5));
        assert_eq!(syncing.take_failure().and_then(|error| error.raw_os_error()), Some(5));
        syncing.sync(|| Ok(())).unwrap();
        assert!(syncing.take_failure().is_none());
    }

    #[test]
    fn nothing_is_brought_twice_and_nothing_that_was_written_meanwhile_is_left_out() {
        let syncing = Syncing::new();
        let mut times = 0;
        let mut sync = |writes_meanwhile| {
            let bring = || {
                times += 1;
                if writes_meanwhile {
                    syncing.wrote();
                }
                Ok(())
            };
            syncing.sync(bring).unwrap();
            times
        };
        assert_eq!([sync(false), sync(false)], [1, 1], "what was there before is brought once");
        syncing.wrote();
        assert_eq!([sync(true), sync(false), sync(false)], [2, 3, 3]);
    }

    #[test]
    fn what_failed_is_brought_again() {
        let syncing = Syncing::new();
        syncing.sync(broken).unwrap_err();
        syncing.take_failure();
        let mut was_brought = false;
        let again = syncing.sync(|| {
            was_brought = true;
            Ok(())
        });
        again.unwrap();
        assert!(was_brought);
    }
}
