//! What became of custody that went into a file: looked up in the file itself, and taken out of the
//! world if it is not there.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use ferry_protocol::message::{OfEpoch, Taken};
use rustix::fs::FlockOperation;

use super::survey::survey_file;

/// Where custody of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    /// It is in this file: who reads the file has the guest, or had it.
    There {
        /// The file.
        path: PathBuf,
        /// Who took it.
        taken: Option<Taken>,
    },
    /// The file is there without it, so nobody can have got it from there.
    NotThere {
        /// The file.
        path: PathBuf,
    },
    /// No file of this migration is there: it was moved, or removed.
    Gone,
}

/// Looks for the custody of a migration into `path`, which may not have got its name yet.
pub fn look(path: &Path, of: OfEpoch) -> io::Result<Whereabouts> {
    let mut found = Whereabouts::Gone;
    for path in [path.to_owned(), partial(path)] {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match look_into(&file, &path, of)? {
            there @ Whereabouts::There { .. } => return Ok(there),
            Whereabouts::Gone => {}
            not_there @ Whereabouts::NotThere { .. } => found = not_there,
        }
    }
    Ok(found)
}

/// The same; a file without the custody is removed, for good when this returns, so that nobody can get
/// it from there later, either. What is to be written down is written `before` that, when it is certain,
/// and nothing is removed if it cannot be.
pub fn withdraw<E: From<io::Error>>(
    path: &Path,
    of: OfEpoch,
    before: impl FnOnce() -> Result<(), E>,
) -> Result<Whereabouts, E> {
    let found = look(path, of)?;
    let Whereabouts::NotThere { path } = &found else { return Ok(found) };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // Who reads it has this lock, and looked into it under the lock.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from)?;
    let again = look_into(&file, path, of)?;
    if let Whereabouts::NotThere { path } = &again {
        before()?;
        std::fs::remove_file(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(again)
}

fn look_into(file: &File, path: &Path, of: OfEpoch) -> io::Result<Whereabouts> {
    let found = survey_file(file, path)?;
    let is_it = found.hello.is_some_and(|hello| (hello.session, hello.epoch) == (of.session, of.epoch));
    Ok(match (is_it, found.custody) {
        (false, _) => Whereabouts::Gone,
        (true, Some(_)) => Whereabouts::There { path: path.into(), taken: found.taken },
        (true, None) => Whereabouts::NotThere { path: path.into() },
    })
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".partial");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use ferry_protocol::frame::{FrameKind, encode};
    use ferry_protocol::message::{Hello, Message, Offer, RoundEnd, StateEnd, ToTarget};
    use ferry_protocol::{Epoch, MachineDescription, RegionSpan, SessionId};

    use super::*;

    const OF: OfEpoch = OfEpoch { session: SessionId(5), epoch: Epoch(2) };

    fn withdraw_now(path: &Path, of: OfEpoch) -> io::Result<Whereabouts> {
        withdraw(path, of, || Ok(()))
    }

    fn file(custody: bool) -> Vec<u8> {
        let guest = "g".parse().unwrap();
        let (session, epoch) = (OF.session, OF.epoch);
        let hello = Hello { version_min: 1, version_max: 1, session, guest, epoch, program: String::new() };
        let regions = vec![RegionSpan { start: 0, length: 4096 }];
        let machine = MachineDescription {
            kind: "sim".into(),
            vcpus: 1,
            regions,
            config: vec![],
            contract: vec![],
            disks: vec![],
        };
        let offer = Offer::plain(machine);
        let mut messages = vec![
            ToTarget::Hello(hello),
            ToTarget::Offer(offer),
            ToTarget::RoundEnd(RoundEnd { round: 0, data_pages: 0, zero_pages: 0, last: true }),
            ToTarget::StateEnd(StateEnd { sections: 0 }),
        ];
        messages.extend(custody.then_some(ToTarget::Custody(OF)));
        messages.iter().flat_map(|message| encode(FrameKind::ToTarget, &message.to_bytes())).collect()
    }

    #[test]
    fn custody_is_found_under_either_name_and_a_file_without_it_is_withdrawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.ferry");
        let working = folder.path().join("g.ferry.partial");
        assert_eq!(withdraw_now(&path, OF).unwrap(), Whereabouts::Gone);
        for at in [&path, &working] {
            std::fs::write(at, file(true)).unwrap();
            let there = Whereabouts::There { path: at.clone(), taken: None };
            assert_eq!((look(&path, OF).unwrap(), withdraw_now(&path, OF).unwrap()), (there.clone(), there));
            let other = OfEpoch { session: SessionId(6), ..OF };
            assert_eq!(withdraw_now(&path, other).unwrap(), Whereabouts::Gone, "another migration's file");
            std::fs::remove_file(at).unwrap();
        }
        let mut bytes = file(false);
        bytes.extend([0; 40]);
        std::fs::write(&working, bytes).unwrap();
        let not_there = Whereabouts::NotThere { path: working.clone() };
        assert_eq!(look(&path, OF).unwrap(), not_there);
        let reader = File::open(&working).unwrap();
        rustix::fs::flock(&reader, FlockOperation::LockExclusive).unwrap();
        assert!(withdraw_now(&path, OF).is_err(), "somebody reads it");
        drop(reader);
        let full = || Err(io::ErrorKind::StorageFull.into());
        assert!(withdraw::<io::Error>(&path, OF, full).is_err() && working.exists(), "nothing is lost");
        assert_eq!(withdraw_now(&path, OF).unwrap(), not_there);
        assert!(!working.exists());
    }
}
