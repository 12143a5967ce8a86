//! What can go wrong in the lab.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the lab could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such host.
    #[error("there is no host `{name}`: {what} `{given}` is not known; the nearest are {}", nearest.join(", "))]
    Name {
        /// The whole name.
        name: String,
        /// Which part of it.
        what: &'static str,
        /// That part as it was given.
        given: String,
        /// The nearest known ones, nearest first.
        nearest: Vec<String>,
    },
    /// A host's name has too few parts.
    #[error(
        "`{name}` says no {what}: a host is VENDOR/KERNEL/MODEL, and there the known ones are {}", known.join(", ")
    )]
    NamePart {
        /// The name as it was given.
        name: String,
        /// Which part it lacks.
        what: &'static str,
        /// What could stand there.
        known: Vec<String>,
    },
    /// The machine has no apt.
    #[error(
        "this machine has no {program}: the lab takes kernels and emulators as Debian's packages and needs apt and dpkg"
    )]
    NoApt {
        /// The program that is missing.
        program: String,
    },
    /// The machine's apt knows no Debian mirror.
    #[error(
        "no source of Debian's packages in {}: add one, or name a file that has one in FERRY_LAB_SOURCES", looked.display()
    )]
    NoSource {
        /// Where it was looked for.
        looked: PathBuf,
    },
    /// A list of packages or a package could not be fetched.
    #[error("cannot fetch {what} from Debian's {suite}: {reason}")]
    Fetch {
        /// Packages or the list of them.
        what: String,
        /// The suite.
        suite: String,
        /// What apt said.
        reason: String,
    },
    /// A suite has no kernel of that series.
    #[error("Debian's {suites} have no kernel {kernel} at present; they have {known}")]
    NoKernel {
        /// The series asked for.
        kernel: String,
        /// Where it was looked for.
        suites: String,
        /// The series that are there.
        known: String,
    },
    /// The host was not prepared.
    #[error("the host {host} is not prepared: `cargo xtask lab prepare {host}` does so")]
    NotPrepared {
        /// Its name.
        host: String,
    },
    /// A file or folder could not be used.
    #[error("cannot {action} {}{}", path.display(), full(source))]
    File {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A program of this machine failed.
    #[error("`{command}` failed: {reason}")]
    Command {
        /// The command line.
        command: String,
        /// What it said last.
        reason: String,
    },
    /// What was fetched is not as expected.
    #[error("{what} is not as expected: {reason}")]
    Content {
        /// What was looked at.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A program that was to run in the lab needs libraries.
    #[error("{} is not statically linked: a lab host has no libraries", path.display())]
    NotStatic {
        /// The program.
        path: PathBuf,
    },
    /// No compiler here builds for that architecture.
    #[error(
        "no compiler here builds for {target}: rustup could not add it (`rustup target add {target}` says why), and Debian's own compiler cannot be had: {reason}"
    )]
    NoTarget {
        /// The target's name.
        target: String,
        /// Why not the distribution's.
        reason: Box<Error>,
    },
    /// A host did not come up, or went away by itself.
    #[error("{host}: {what}; the last of its console:\n{console}")]
    Gone {
        /// Its name.
        host: String,
        /// What happened.
        what: String,
        /// The console's last lines.
        console: String,
    },
    /// A host was silent for too long.
    #[error("{host}: {what} did not end within {} s; the last of its console:\n{console}", after.as_secs())]
    Timeout {
        /// Its name.
        host: String,
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// The console's last lines.
        console: String,
    },
    /// A step of a test or a pair failed.
    #[error("{host}: {script} ended with status {status}: {said}")]
    Status {
        /// The host.
        host: String,
        /// What ran.
        script: String,
        /// How it ended.
        status: i32,
        /// Its standard error.
        said: String,
    },
    /// Something that this kind of host cannot do.
    #[error("{0}")]
    Unable(String),
}

impl Error {
    /// A closure for `map_err` that names the file and what was tried on it.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// The one reason that a reader can do something about at once.
fn full(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::StorageFull {
        " (free some space, or choose another folder by FERRY_LAB_CACHE)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_to_do() {
        let path = Path::new("/dev/full");
        let full = std::fs::write(path, "x").map_err(Error::file("write", path)).unwrap_err().to_string();
        assert!(full.contains("cannot write /dev/full (free some space"), "{full}");
        let other = Error::file("read", path)(io::Error::from(io::ErrorKind::NotFound)).to_string();
        assert_eq!(other, "cannot read /dev/full");
    }
}
