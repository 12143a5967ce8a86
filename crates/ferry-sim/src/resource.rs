//! What only one machine may hold: a lock file that stands for a lock on a shared disk.
//!
//! The lock is `flock(2)`'s, so it goes when its holder dies, however it dies. The file holds the
//! holder's process id as text, so that a refusal can name it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A lock that is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ResourceError {
    #[error("the lock {path} is held by {holder}; release it there first")]
    Held { path: PathBuf, holder: String },
    #[error("the lock {path} cannot be used")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One lock file, held or not.
#[derive(Debug)]
pub(crate) struct Resource {
    path: PathBuf,
    held: Option<File>,
}

impl Resource {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, held: None }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Takes the lock; holding it already is no error.
    pub(crate) fn take(&mut self) -> Result<(), ResourceError> {
        if self.is_held() {
            return Ok(());
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)
            .map_err(|source| self.unusable(source))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(self.held_by(&file)),
            Err(errno) => return Err(self.unusable(errno.into())),
        }
        write_holder(&mut file, &format!("{}\n", std::process::id())).map_err(|e| self.unusable(e))?;
        self.held = Some(file);
        Ok(())
    }

    /// Lets go of the lock; not holding it is no error.
    pub(crate) fn release(&mut self) -> Result<(), ResourceError> {
        let Some(mut file) = self.held.take() else {
            return Ok(());
        };
        // Emptied before it is let go, so that nobody reads the name of a holder that is gone.
        write_holder(&mut file, "").map_err(|e| self.unusable(e))
    }

    fn unusable(&self, source: io::Error) -> ResourceError {
        ResourceError::Io { path: self.path.clone(), source }
    }

    fn held_by(&self, file: &File) -> ResourceError {
        let mut text = String::new();
        let read = file.take(32).read_to_string(&mut text);
        let holder = match (read, text.trim().parse::<u32>()) {
            (Ok(_), Ok(pid)) => format!("process {pid}"),
            _ => "a process that did not write its id".to_owned(),
        };
        ResourceError::Held { path: self.path.clone(), holder }
    }
}

/// Replaces the file's content.
fn write_holder(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_the_refusal_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.lock");
        let (mut one, mut other) = (Resource::new(path.clone()), Resource::new(path));
        one.take().unwrap();
        one.take().unwrap();
        let refusal = other.take().unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        assert!(!other.is_held());
        one.release().unwrap();
        one.release().unwrap();
        other.take().unwrap();
        assert!(matches!(one.take(), Err(ResourceError::Held { .. })));
        drop(other);
        one.take().unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_is_an_error_with_its_cause() {
        let mut lost = Resource::new("/nonexistent/folder/disk.lock".into());
        let error = lost.take().unwrap_err();
        assert!(error.to_string().contains("/nonexistent/folder/disk.lock"));
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_holder_without_a_name_is_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.lock");
        let file = File::create(&path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let refusal = Resource::new(path).take().unwrap_err().to_string();
        assert!(refusal.contains("did not write its id"), "{refusal}");
    }
}
