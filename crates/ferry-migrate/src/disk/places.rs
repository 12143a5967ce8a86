//! Where a target makes the images of disks that come with a guest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ferry_contract::{Finding, FindingKind, Layer};
use ferry_protocol::DiskSpan;
use rustix::fs::FlockOperation;

use super::newborn::Newborn;
use super::{DiskImage, DiskImageError, check_length, lock};

/// Where the image of one disk is to lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlace {
    /// The image's path. Nothing, or an empty file, is there.
    pub path: PathBuf,
    /// Whether the guest may not write to the disk.
    pub read_only: bool,
}

/// Where the images of all disks are to lie, by their disks' numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskPlaces {
    places: BTreeMap<u32, DiskPlace>,
    overwrites: bool,
}

/// What a file system must hold.
#[derive(Debug, Default)]
struct Need {
    folder: PathBuf,
    allocated: u64,
    whole: u64,
}

impl DiskPlaces {
    /// These places.
    pub fn new(places: impl IntoIterator<Item = (u32, DiskPlace)>) -> Self {
        Self { places: places.into_iter().collect(), overwrites: false }
    }

    /// The same, and what is at these places may be overwritten.
    #[must_use]
    pub fn overwriting(mut self, overwrites: bool) -> Self {
        self.overwrites = overwrites;
        self
    }

    /// Why these disks cannot come here; and, as a notice, that they may not fit once they are full. Nothing is made.
    pub fn judge(&self, disks: &[DiskSpan]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for disk in disks {
            findings.extend(self.check(disk).err().map(|error| refusal(disk, &error)));
        }
        let twice = self.check_twice(disks).err();
        findings.extend(twice.zip(disks.first()).map(|(error, disk)| refusal(disk, &error)));
        if findings.is_empty() {
            findings.extend(self.needs(disks).iter().filter_map(Need::judge));
        }
        findings
    }

    /// Makes the images: new files that read as zero, locked. They are removed again when they are dropped before a
    /// guest ran on them.
    pub fn make(&self, disks: &[DiskSpan]) -> Result<Vec<Arc<DiskImage>>, DiskImageError> {
        self.check_twice(disks)?;
        let make = |span: &DiskSpan| {
            let place = self.check(span)?;
            let replaces = std::fs::symlink_metadata(&place.path).is_ok();
            let (newborn, file) = Newborn::make(&place.path, span.bytes, replaces)?;
            let image = DiskImage::new(span.disk, &place.path, place.read_only, span.bytes, file);
            Ok(Arc::new(DiskImage { newborn: Mutex::new(Some(newborn)), ..image }))
        };
        disks.iter().map(make).collect()
    }

    fn check_twice(&self, disks: &[DiskSpan]) -> Result<(), DiskImageError> {
        let mut seen = BTreeSet::new();
        let mut paths = disks.iter().filter_map(|disk| self.places.get(&disk.disk)).map(|place| &place.path);
        paths
            .find(|path| !seen.insert(*path))
            .map_or(Ok(()), |path| Err(DiskImageError::SamePlace(path.clone())))
    }

    /// The place of a disk, if its image can be made there.
    fn check(&self, span: &DiskSpan) -> Result<&DiskPlace, DiskImageError> {
        let place = self.places.get(&span.disk).ok_or(DiskImageError::NoPlace { disk: span.disk })?;
        let path = &place.path;
        check_length(path, span.bytes)?;
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(DiskImageError::Open { path: path.clone(), source }),
            Ok(there) if !there.is_file() => return Err(DiskImageError::Kind(path.clone())),
            Ok(there) if there.len() > 0 && !self.overwrites => {
                return Err(DiskImageError::Exists { path: path.clone(), bytes: there.len() });
            }
            Ok(_) => {
                let source = |source| DiskImageError::Open { path: path.clone(), source };
                // A guest's disk is not taken away from under it.
                lock::take(
                    &File::open(path).map_err(source)?,
                    path,
                    FlockOperation::NonBlockingLockExclusive,
                )?;
            }
        }
        let folder = folder_of(path);
        let source = match std::fs::metadata(folder) {
            Ok(meta) if meta.is_dir() => return Ok(place),
            Ok(_) => io::ErrorKind::NotADirectory.into(),
            Err(source) => source,
        };
        Err(DiskImageError::Open { path: folder.to_owned(), source })
    }

    /// What each file system must hold.
    fn needs(&self, disks: &[DiskSpan]) -> Vec<Need> {
        let mut needs: BTreeMap<u64, Need> = BTreeMap::new();
        for span in disks {
            let Some(folder) = self.places.get(&span.disk).map(|place| folder_of(&place.path)) else {
                continue;
            };
            let Ok(meta) = std::fs::metadata(folder) else { continue };
            let need = needs.entry(meta.dev()).or_default();
            folder.clone_into(&mut need.folder);
            need.allocated = need.allocated.saturating_add(span.allocated_bytes.min(span.bytes));
            need.whole = need.whole.saturating_add(span.bytes);
        }
        needs.into_values().collect()
    }
}

impl Need {
    /// Refuses what does not fit; says what may not once every block of the images is written.
    fn judge(&self) -> Option<Finding> {
        let stat = rustix::fs::statvfs(&self.folder).ok()?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let capacity = stat.f_blocks.saturating_mul(stat.f_frsize);
        let folder = self.folder.display();
        let finding = |kind, effect: &str, remedy: &str| Finding {
            kind,
            subject: "space for disks".to_owned(),
            layer: Layer::Machine,
            guest: format!("{} bytes of images, of which {} are in use", self.whole, self.allocated),
            target: format!("the file system of {folder} has {free} of its {capacity} bytes free"),
            effect: effect.to_owned(),
            remedy: remedy.to_owned(),
        };
        if self.allocated > free || self.whole > capacity {
            let remedy = "make room there, or name another place for the disks";
            return Some(finding(FindingKind::Refusal, "the images would not fit", remedy));
        }
        let remedy = "see to it that there is room when the guest needs it";
        let effect = "nothing now; once it fills its disks it may get I/O errors";
        (self.whole > free).then(|| finding(FindingKind::Notice, effect, remedy))
    }
}

fn refusal(disk: &DiskSpan, error: &DiskImageError) -> Finding {
    Finding {
        kind: FindingKind::Refusal,
        subject: format!("disk {}", disk.disk),
        layer: Layer::Vmm,
        guest: format!("an image of {} bytes that comes with it", disk.bytes),
        target: crate::sentence(error),
        effect: "the guest would have no disk".to_owned(),
        remedy:
            "do what the reason says, or put the image where both hosts see it and move the guest without \
                 copying its storage"
                .to_owned(),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
