//! A journal of vCPU runs, so that tests can see that no two processes ever run one guest.
//!
//! A [`RunLog`] is a [`RunWatch`]. Before vCPUs are let go it takes a lock on `PATH.lock` and appends
//! a line to `PATH`; once they have stopped it appends another and lets the lock go. The kernel lets
//! go of a dead process's lock, so a killed runner counts as stopped. If another runner holds the
//! lock, the line says `DOUBLE-RUN`: that is what tests look for.
//!
//! A line is one JSON object: `at_ns` (`CLOCK_MONOTONIC`), `pid`, `guest`, `epoch`, and `event`:
//! `run`, `stop` or `DOUBLE-RUN`. Lines are appended by one write each, so processes can share the
//! file. Facts: flock(2), write(2) on `O_APPEND`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ferry_migrate::{Custody, RunWatch};
use rustix::fs::FlockOperation;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

/// The journal of one process.
#[derive(Debug)]
pub struct RunLog {
    journal: File,
    lock_path: PathBuf,
    /// The locked file, while this process runs the guest.
    held: Mutex<Option<File>>,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLine {
    /// `CLOCK_MONOTONIC` in nanoseconds: one clock for all processes of a host.
    pub at_ns: u64,
    /// The process.
    pub pid: u32,
    /// The guest.
    pub guest: String,
    /// The custody's epoch.
    pub epoch: u64,
    /// What happened.
    pub event: RunEvent,
}

/// What a line of the journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunEvent {
    /// The vCPUs are about to run.
    #[serde(rename = "run")]
    Run,
    /// No vCPU runs any more.
    #[serde(rename = "stop")]
    Stop,
    /// The vCPUs are about to run while another runner has not stopped.
    #[serde(rename = "DOUBLE-RUN")]
    DoubleRun,
}

impl RunLog {
    /// Opens the journal, or begins it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let journal = OpenOptions::new().create(true).append(true).open(path)?;
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        Ok(Self { journal, lock_path: lock_path.into(), held: Mutex::new(None) })
    }

    /// Every line of a journal.
    pub fn read(path: &Path) -> io::Result<Vec<RunLine>> {
        std::fs::read_to_string(path)?
            .lines()
            .map(|line| serde_json::from_str(line).map_err(io::Error::from))
            .collect()
    }

    fn try_lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new().create(true).append(true).open(&self.lock_path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn append(&self, custody: &Custody, event: RunEvent) -> io::Result<()> {
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let line = RunLine {
            at_ns: seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0),
            pid: std::process::id(),
            guest: custody.guest().to_string(),
            epoch: custody.epoch().0,
            event,
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        (&self.journal).write_all(&bytes)
    }

    /// A journal that cannot be written must not go unseen, nor stop the guest.
    fn say(&self, custody: &Custody, event: RunEvent) {
        if let Err(error) = self.append(custody, event) {
            tracing::error!(%error, ?event, "the journal of runs cannot be written");
        }
    }
}

impl RunWatch for RunLog {
    fn starts(&self, custody: &Custody) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match self.try_lock() {
            Ok(Some(lock)) => {
                *held = Some(lock);
                self.say(custody, RunEvent::Run);
            }
            Ok(None) => self.say(custody, RunEvent::DoubleRun),
            Err(error) => {
                tracing::error!(%error, "the journal's lock cannot be taken; counted as a double run");
                self.say(custody, RunEvent::DoubleRun);
            }
        }
    }

    fn stops(&self, custody: &Custody) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // The line comes first: who takes the lock next writes after it.
        self.say(custody, RunEvent::Stop);
        *held = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custody() -> Custody {
        Custody::born("g".parse().unwrap())
    }

    fn events(path: &Path) -> Vec<RunEvent> {
        RunLog::read(path).unwrap().into_iter().map(|line| line.event).collect()
    }

    #[test]
    fn a_run_after_a_stop_is_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs");
        let (source, target) = (RunLog::open(&path).unwrap(), RunLog::open(&path).unwrap());
        source.starts(&custody());
        source.stops(&custody());
        target.starts(&custody());
        // Dropped without a stop, as a killed process would leave it: the lock is free again.
        drop(target);
        source.starts(&custody());
        assert_eq!(events(&path), [RunEvent::Run, RunEvent::Stop, RunEvent::Run, RunEvent::Run]);
        let first = RunLog::read(&path).unwrap().remove(0);
        assert_eq!((first.guest.as_str(), first.epoch, first.pid), ("g", 1, std::process::id()));
    }

    #[test]
    fn two_runners_at_once_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs");
        let (source, target) = (RunLog::open(&path).unwrap(), RunLog::open(&path).unwrap());
        source.starts(&custody());
        target.starts(&custody());
        assert_eq!(events(&path), [RunEvent::Run, RunEvent::DoubleRun]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""event":"DOUBLE-RUN""#), "{text}");
    }
}
