//! Where a target makes the images of disks that come with a guest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ferry_contract::{Finding, FindingKind, Layer};
use ferry_protocol::DiskSpan;

use super::newborn::{Newborn, Old};
use super::spot::Spot;
use super::{DiskImage, DiskImageError, check_length};

/// Where the image of one disk is to lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlace {
    /// The image's path. Nothing, or an empty file, is there. A symbolic link at its end is followed.
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
#[derive(Debug)]
struct Need {
    folder: PathBuf,
    free: u64,
    capacity: u64,
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
    /// guest ran on them. What they are to replace is locked from now on.
    pub fn make(&self, disks: &[DiskSpan]) -> Result<Vec<Arc<DiskImage>>, DiskImageError> {
        self.check_twice(disks)?;
        let make = |span: &DiskSpan| {
            let (place, spot, old) = self.check(span)?;
            let (newborn, file) = Newborn::make(spot, span.bytes, old)?;
            let image = DiskImage::new(span.disk, &place.path, place.read_only, span.bytes, file);
            Ok(Arc::new(DiskImage { newborn: Mutex::new(Some(newborn)), ..image }))
        };
        disks.iter().map(make).collect()
    }

    fn check_twice(&self, disks: &[DiskSpan]) -> Result<(), DiskImageError> {
        let mut seen: Vec<Spot> = Vec::new();
        for place in disks.iter().filter_map(|disk| self.places.get(&disk.disk)) {
            // What is no place has its own refusal.
            let Ok(spot) = Spot::find(&place.path) else { continue };
            if seen.iter().any(|other| other.is(&spot)) {
                return Err(DiskImageError::SamePlace(place.path.clone()));
            }
            seen.push(spot);
        }
        Ok(())
    }

    /// The place of a disk, if its image can be made there, and what it replaces.
    fn check(&self, span: &DiskSpan) -> Result<(&DiskPlace, Spot, Option<Old>), DiskImageError> {
        let place = self.places.get(&span.disk).ok_or(DiskImageError::NoPlace { disk: span.disk })?;
        check_length(&place.path, span.bytes)?;
        let spot = Spot::find(&place.path)?;
        let old = Old::hold(&spot, self.overwrites)?;
        Newborn::can_be_made(&spot)?;
        Ok((place, spot, old))
    }

    /// What each file system must hold.
    fn needs(&self, disks: &[DiskSpan]) -> Vec<Need> {
        let mut needs: BTreeMap<u64, Need> = BTreeMap::new();
        for span in disks {
            let Some(place) = self.places.get(&span.disk) else { continue };
            let Ok(spot) = Spot::find(&place.path) else { continue };
            let (Ok(device), Ok(stat)) = (spot.device(), rustix::fs::fstatvfs(spot.folder())) else {
                continue;
            };
            let need = needs.entry(device).or_insert_with(|| Need {
                folder: spot.path().parent().unwrap_or(Path::new("")).to_owned(),
                free: stat.f_bavail.saturating_mul(stat.f_frsize),
                capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
                allocated: 0,
                whole: 0,
            });
            need.allocated = need.allocated.saturating_add(span.allocated_bytes.min(span.bytes));
            need.whole = need.whole.saturating_add(span.bytes);
        }
        needs.into_values().collect()
    }
}

impl Need {
    /// Refuses what does not fit; says what may not once every block of the images is written.
    fn judge(&self) -> Option<Finding> {
        let (free, capacity, folder) = (self.free, self.capacity, self.folder.display());
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
