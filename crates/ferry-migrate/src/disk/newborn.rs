//! A new image on its way to its name.
//!
//! Until all of it is on the disk it is called `PATH.incoming`, so that no one takes a half for a whole. It is marked as
//! Ferry's own by an extended attribute: what a process that was killed left there is begun anew by the next, and a file
//! that is somebody else's is left alone. Where a file system has no such attributes (`user.`: tmpfs before 6.6, NFS
//! before 4.2, FAT) only an empty file is begun anew.
//!
//! What a new image replaces is locked from the beginning, and found to be the same file at the end. The two names are
//! exchanged in one step (`RENAME_EXCHANGE`, rename(2)), and the old image is called `PATH.replaced` until the guest runs
//! on the new one: before that the way back is one rename. Where the file system cannot exchange (NFS) the old image
//! gets its second name by a link first; then a file that comes to lie there between the look and the rename is lost.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{FlockOperation, XattrFlags, fgetxattr, fremovexattr, fsetxattr};

use super::spot::{Identity, Spot};
use super::{DiskImageError, lock};

/// Who may use a new image: as long as nobody says otherwise, its owner alone.
const MODE: u32 = 0o600;

/// The extended attribute of an image that is not whole yet, and its value.
const MARK: &str = "user.ferry.incoming";
const MARKED: &[u8] = b"1";

/// An image that is removed when it is dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct Newborn {
    spot: Spot,
    /// It. Its lock is held until it was kept or removed: what is removed is nobody else's.
    file: File,
    identity: Identity,
    old: Option<Old>,
    stage: Stage,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is called `PATH.incoming`.
    Comes,
    /// It has its name, and what it replaced is called `PATH.replaced`.
    Named,
    /// The guest runs on it.
    Kept,
}

/// What is to be replaced, locked.
#[derive(Debug)]
pub(super) struct Old {
    file: File,
    identity: Identity,
    /// Whether it may hold something.
    overwrites: bool,
}

impl Old {
    /// Takes hold of what is at a place, if something is, and if it may be replaced.
    pub(super) fn hold(spot: &Spot, overwrites: bool) -> Result<Option<Self>, DiskImageError> {
        let path = || spot.path().to_owned();
        let failed = |source| DiskImageError::Open { path: path(), source };
        let Some(stat) = spot.look(spot.name()).map_err(failed)? else { return Ok(None) };
        // Looked at before it is opened: to open a device may do something.
        if !is_file(stat.st_mode) {
            return Err(DiskImageError::NoFile(path()));
        }
        if stat.st_size != 0 && !overwrites {
            return Err(DiskImageError::Exists { path: path(), bytes: stat.st_size.unsigned_abs() });
        }
        let file = spot.open(spot.name(), None).map_err(failed)?;
        // A guest's disk is not taken away from under it.
        lock::take(&file, spot.path(), FlockOperation::NonBlockingLockExclusive)?;
        let identity = Identity::of(&file).map_err(failed)?;
        let old = Self { file, identity, overwrites };
        old.is_still(spot)?;
        let replaced = spot.with(REPLACED);
        if spot.look(&replaced).map_err(failed)?.is_some() {
            return Err(DiskImageError::Replaced { path: path(), replaced: spot.path_of(&replaced) });
        }
        Ok(Some(old))
    }

    /// Whether it is what lies there, and may be replaced as before.
    fn is_still(&self, spot: &Spot) -> Result<(), DiskImageError> {
        let failed = |source| DiskImageError::Open { path: spot.path().to_owned(), source };
        self.has(spot, spot.name()).map_err(failed)?;
        let bytes = self.file.metadata().map_err(failed)?.len();
        if bytes > 0 && !self.overwrites {
            return Err(DiskImageError::Exists { path: spot.path().to_owned(), bytes });
        }
        Ok(())
    }

    /// Whether this name is its own.
    fn has(&self, spot: &Spot, name: &OsStr) -> io::Result<()> {
        if spot.identity_of(name) == Some(self.identity) { Ok(()) } else { Err(taken()) }
    }
}

impl Newborn {
    /// Whether one can be made there, as far as it can be known; nothing is made.
    pub(super) fn can_be_made(spot: &Spot) -> Result<(), DiskImageError> {
        open(spot, false).map(drop)
    }

    /// Makes an image of so many bytes, all zero, locked, for this place.
    pub(super) fn make(spot: Spot, bytes: u64, old: Option<Old>) -> Result<(Self, File), DiskImageError> {
        let path = spot.path_of(&spot.with(INCOMING));
        let failed = |source| DiskImageError::Make { path: path.clone(), what: "made", source };
        let file = open(&spot, true)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let identity = Identity::of(&file).map_err(failed)?;
        let image = file.try_clone().map_err(failed)?;
        let newborn = Self { spot, file, identity, old, stage: Stage::Comes };
        newborn.prepare(bytes).map_err(failed)?;
        Ok((newborn, image))
    }

    fn prepare(&self, bytes: u64) -> io::Result<()> {
        if let Err(errno) = fsetxattr(&self.file, MARK, MARKED, XattrFlags::empty()) {
            tracing::debug!(path = %self.spot.path().display(), %errno, "a new image has no mark");
        }
        // What an earlier attempt left is gone with the first; holes are made by the second.
        self.file.set_len(0)?;
        self.file.set_len(bytes)?;
        let old = self.old.as_ref().map(|old| old.file.metadata()).transpose()?;
        let mode = old.map_or(MODE, |old| old.permissions().mode() & 0o7777);
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    /// Brings all of it to the disk.
    pub(super) fn settle(&self) -> Result<(), DiskImageError> {
        self.file.sync_all().map_err(self.failed("brought to its disk"))
    }

    /// Gives it its name, once; what had it before is called `PATH.replaced`.
    pub(super) fn place(&mut self) -> Result<(), DiskImageError> {
        if self.stage != Stage::Comes {
            return Ok(());
        }
        let incoming = self.spot.with(INCOMING);
        if self.spot.identity_of(&incoming) != Some(self.identity) {
            let path = self.spot.path_of(&incoming);
            return Err(DiskImageError::Make { path, what: "kept", source: taken() });
        }
        // From here on nobody may begin it anew, whatever it is called.
        if let Err(errno) = fremovexattr(&self.file, MARK) {
            tracing::debug!(path = %self.spot.path().display(), %errno, "a new image keeps its mark");
        }
        match &self.old {
            None => self.spot.rename_new(&incoming, self.spot.name()),
            Some(old) => {
                old.is_still(&self.spot)?;
                self.replace(old, &incoming)
            }
        }
        .map_err(self.failed("given its name"))?;
        self.stage = Stage::Named;
        self.spot.sync().map_err(self.failed("given its name for good"))
    }

    /// Puts it where the old one is, in one step if the file system can.
    fn replace(&self, old: &Old, incoming: &OsStr) -> io::Result<()> {
        let (spot, name) = (&self.spot, self.spot.name());
        if !spot.exchange(incoming, name)? {
            return self.replace_by_link(old, incoming);
        }
        let aside = old.has(spot, incoming).and_then(|()| spot.rename_new(incoming, &spot.with(REPLACED)));
        aside.inspect_err(|_| warn(spot.exchange(incoming, name).map(drop), spot.path()))
    }

    /// The same where names cannot be exchanged.
    fn replace_by_link(&self, old: &Old, incoming: &OsStr) -> io::Result<()> {
        let (spot, replaced) = (&self.spot, self.spot.with(REPLACED));
        spot.link(spot.name(), &replaced)?;
        let placed = old.has(spot, &replaced).and_then(|()| spot.rename_over(incoming, spot.name()));
        placed.inspect_err(|_| warn(spot.remove(&replaced), &spot.path_of(&replaced)))
    }

    /// The guest runs on it: it stays, whatever comes. What it replaced goes when this is dropped.
    pub(super) fn keep(&mut self) {
        self.stage = Stage::Kept;
    }

    pub(super) fn is_kept(&self) -> bool {
        self.stage == Stage::Kept
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> DiskImageError + use<> {
        let path = self.spot.path().to_owned();
        move |source| DiskImageError::Make { path: path.clone(), what, source }
    }

    /// Removes what has this name, if it is this file.
    fn remove(&self, name: &OsStr, identity: Identity) -> io::Result<()> {
        match self.spot.look(name)? {
            Some(stat) if Identity::from(stat) == identity => self.spot.remove(name),
            _ => Ok(()),
        }
    }

    /// Makes the place what it was before.
    fn undo(&self) -> io::Result<()> {
        let (spot, name, replaced) = (&self.spot, self.spot.name(), self.spot.with(REPLACED));
        match &self.old {
            Some(old) if spot.identity_of(&replaced) == Some(old.identity) => {
                if spot.identity_of(name) != Some(self.identity) {
                    return Err(taken());
                }
                spot.rename_over(&replaced, name)?;
            }
            _ => self.remove(name, self.identity)?,
        }
        spot.sync()
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        let (incoming, replaced) = (self.spot.with(INCOMING), self.spot.with(REPLACED));
        match (self.stage, &self.old) {
            (Stage::Comes, _) => warn(self.remove(&incoming, self.identity), &self.spot.path_of(&incoming)),
            (Stage::Named, _) => warn(self.undo(), self.spot.path()),
            (Stage::Kept, Some(old)) => {
                warn(self.remove(&replaced, old.identity), &self.spot.path_of(&replaced));
            }
            (Stage::Kept, None) => {}
        }
    }
}

/// Of an image that comes, and of one that was replaced.
pub(super) const INCOMING: &str = ".incoming";
pub(super) const REPLACED: &str = ".replaced";

/// Opens the file of an image that comes and locks it: an earlier one's, or a new one if it is to be made.
fn open(spot: &Spot, makes: bool) -> Result<Option<File>, DiskImageError> {
    let name: OsString = spot.with(INCOMING);
    let path = spot.path_of(&name);
    let failed = |source| DiskImageError::Make { path: path.clone(), what: "made", source };
    let found = spot.look(&name).map_err(failed)?;
    if found.is_some_and(|stat| !is_file(stat.st_mode)) {
        return Err(DiskImageError::NoFile(path));
    }
    if found.is_none() && !makes {
        return Ok(None);
    }
    let file = spot.open(&name, found.is_none().then_some(MODE)).map_err(failed)?;
    lock::take(&file, &path, FlockOperation::NonBlockingLockExclusive)?;
    let meta = file.metadata().map_err(failed)?;
    // Who had the lock may just have given it its final name, or removed it.
    if spot.identity_of(&name) != Some(Identity::of(&file).map_err(failed)?) {
        return Err(failed(io::Error::other("another process was making it; try again")));
    }
    // A second name may be that of somebody's disk.
    if meta.nlink() != 1 || (meta.len() > 0 && !is_marked(&file)) {
        return Err(DiskImageError::Foreign(path));
    }
    Ok(Some(file))
}

/// Whether Ferry made it and it was never whole.
fn is_marked(file: &File) -> bool {
    let mut value = [0; MARKED.len()];
    let read = fgetxattr(file, MARK, &mut value[..]);
    read == Ok(MARKED.len()) && value == MARKED
}

fn taken() -> io::Error {
    io::Error::other("another file took its place meanwhile")
}

fn is_file(mode: u32) -> bool {
    rustix::fs::FileType::from_raw_mode(mode).is_file()
}

fn warn(done: io::Result<()>, path: &std::path::Path) {
    if let Err(error) = done {
        tracing::warn!(path = %path.display(), %error, "what a guest that did not come left cannot be put in order");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_names_cannot_be_exchanged_the_old_image_comes_back_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, "precious").unwrap();
        for is_kept in [false, true] {
            let spot = Spot::find(&path).unwrap();
            let old = Old::hold(&spot, true).unwrap();
            let (mut newborn, _image) = Newborn::make(spot, 4096, old).unwrap();
            let incoming = newborn.spot.with(INCOMING);
            newborn.replace_by_link(newborn.old.as_ref().unwrap(), &incoming).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
            newborn.stage = if is_kept { Stage::Kept } else { Stage::Named };
            drop(newborn);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), if is_kept { 4096 } else { 8 });
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn without_an_exchange_another_file_is_found_before_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, "precious").unwrap();
        let spot = Spot::find(&path).unwrap();
        let old = Old::hold(&spot, true).unwrap();
        let (newborn, _image) = Newborn::make(spot, 4096, old).unwrap();
        std::fs::write(folder.path().join("other"), "other").unwrap();
        std::fs::rename(folder.path().join("other"), &path).unwrap();
        let incoming = newborn.spot.with(INCOMING);
        newborn.replace_by_link(newborn.old.as_ref().unwrap(), &incoming).unwrap_err();
        drop(newborn);
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
