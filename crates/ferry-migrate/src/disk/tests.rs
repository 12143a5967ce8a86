//! Images, their places and their locks.

use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use ferry_contract::FindingKind;
use ferry_protocol::GuestId;
use ferry_state::Resources;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use super::*;
use crate::{ResourceSet, sentence};

const BYTES: u64 = 100 * PAGE_SIZE + 512;

fn image(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    path
}

fn span(disk: u32, allocated_bytes: u64) -> DiskSpan {
    DiskSpan { disk, bytes: BYTES, allocated_bytes }
}

fn places(path: &Path) -> DiskPlaces {
    DiskPlaces::new([(0, DiskPlace { path: path.to_owned(), read_only: false })])
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn incoming(path: &Path) -> PathBuf {
    path.with_file_name("disk.incoming")
}

/// Makes the image at that place, which may have something in it.
fn make(path: &Path) -> Arc<DiskImage> {
    places(path).overwriting(true).make(&[span(0, 0)]).unwrap().remove(0)
}

/// Why it cannot be made there; the offer is refused for the same reason.
fn cannot(places: &DiskPlaces) -> String {
    let error = sentence(&places.make(&[span(0, 0)]).unwrap_err());
    let findings = places.judge(&[span(0, 0)]);
    assert!(findings.iter().any(|finding| finding.to_string().contains(&error)), "{error}: {findings:?}");
    error
}

fn guest() -> GuestId {
    "web-1".parse().unwrap()
}

#[test]
fn what_is_no_image_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let odd = folder.path().join("odd");
    std::fs::write(&odd, [0; 513]).unwrap();
    let empty = folder.path().join("empty");
    File::create(&empty).unwrap();
    for (path, word) in [
        (folder.path().join("none"), "none cannot be opened: No such file"),
        (pipe, "pipe is no image of a disk"),
        ("/dev/null".into(), "is no image of a disk"),
        (odd, "odd has 513 bytes: a disk has whole sectors"),
        (empty, "empty has 0 bytes"),
    ] {
        let error = sentence(&DiskImage::open(0, &path, false).unwrap_err());
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn writes_are_noted_as_whole_pages_while_a_migration_copies_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = DiskImage::open(3, &image(folder.path(), "a"), false).unwrap();
    let region = image.span().region();
    let layout = Layout::new(vec![Span { start: region.start, length: region.length }]).unwrap();
    let first = region.start / PAGE_SIZE;
    let harvest = || {
        let mut pages = PageSet::empty(&layout);
        image.harvest(&mut pages);
        pages.ranges().map(|range| (range.first - first, range.count)).collect::<Vec<_>>()
    };
    image.wrote(0, 512);
    assert_eq!(harvest(), []);
    image.start_tracking();
    assert_eq!(harvest(), [], "what was written before is in the first round");
    image.wrote(4096 - 512, 1024);
    image.wrote(50 * 4096, 4096);
    image.wrote(9 * 4096, 0);
    image.wrote(BYTES - 512, 512);
    assert_eq!(harvest(), [(0, 2), (50, 1), (100, 1)]);
    assert_eq!(harvest(), []);
    // A device that is wrong about its own size makes too many pages dirty, never too few.
    image.wrote(BYTES - 512, u64::MAX);
    image.wrote(u64::MAX, 2);
    assert_eq!(harvest(), [(100, 1)]);
    image.stop_tracking();
    image.wrote(0, 512);
    assert_eq!(harvest(), []);
}

#[test]
fn an_image_has_one_writer_or_many_readers_and_the_refusal_names_who() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "a");
    let open = |read_only| DiskImage::open(0, &path, read_only).unwrap();
    let (one, other, reader, second) = (open(false), open(false), open(true), open(true));
    one.lock().unwrap();
    one.lock().unwrap();
    let process = format!("process {} (", std::process::id());
    for image in [&other, &reader] {
        let refusal = image.lock().unwrap_err().to_string();
        assert!(refusal.contains("a is in use") && refusal.contains(&process), "{refusal}");
    }
    one.unlock().unwrap();
    one.unlock().unwrap();
    reader.lock().unwrap();
    second.lock().unwrap();
    assert!(matches!(other.lock(), Err(DiskImageError::Held { .. })));
    drop((reader, second));
    other.lock().unwrap();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        vec![0; usize::try_from(BYTES).unwrap()],
        "no byte was written"
    );
}

#[test]
fn an_image_that_a_guest_uses_is_told_from_one_that_nobody_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "a");
    for (user, looker) in [(false, false), (false, true), (true, false), (true, true)] {
        let open = |read_only| DiskImage::open(0, &path, read_only).unwrap();
        let (used, looked_at) = (open(user), open(looker));
        assert!(looked_at.is_unlocked());
        used.lock().unwrap();
        assert!(!looked_at.is_unlocked(), "to look takes no lock that stays");
        assert!(!looked_at.is_unlocked(), "nor one away");
    }
}

#[test]
fn locks_are_resources_by_the_disks_numbers_and_none_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let images = ["a", "b"].map(|name| image(folder.path(), name));
    let open = || {
        let images = (0..).zip(&images).map(|(disk, path)| DiskImage::open(disk, path, false).unwrap());
        images.collect::<Vec<_>>()
    };
    let (here, there) = (open(), open());
    let all = Resources { released: here.iter().map(|image| image.resource()).collect() };
    assert_eq!(all.released[1].to_string(), "image-lock disk1");
    let mut source = ResourceSet::new().with_images(&here);
    let mut target = ResourceSet::new().with_images(&there);
    assert!(source.missing().is_err(), "a guest does not run before its disks are its own");
    source.take(&guest(), &all).unwrap();
    let error = sentence(&target.take(&guest(), &all).unwrap_err());
    assert!(
        error.contains("`image-lock disk0` cannot be taken: its disk cannot be used: the image"),
        "{error}"
    );
    assert_eq!(source.release().unwrap(), all);
    let some = Resources { released: all.released[..1].to_vec() };
    let error = sentence(&target.take(&guest(), &some).unwrap_err());
    assert!(error.contains("needs the resource `image-lock disk1`"), "{error}");
    let mut foreign = all.clone();
    foreign.released[0].name = images[0].to_str().unwrap().to_owned();
    let error = sentence(&ResourceSet::new().with_images(&there[..0]).take(&guest(), &foreign).unwrap_err());
    assert!(error.contains("no disk of the name `/"), "{error}");
    target.take(&guest(), &all).unwrap();
    target.missing().unwrap();

    // A migration that copies the images leaves the source's locks where they are.
    target.release().unwrap();
    source.take(&guest(), &all).unwrap();
    for image in &here {
        image.start_tracking();
    }
    assert_eq!(source.release().unwrap(), all);
    assert!(target.take(&guest(), &all).is_err());
    for image in &here {
        image.stop_tracking();
    }
    source.take(&guest(), &all).unwrap();
    source.missing().unwrap();
    drop((source, here));
    target.take(&guest(), &all).unwrap();
}

#[test]
fn a_new_image_has_its_name_once_it_is_whole_and_stays_once_a_guest_ran() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let new = || places(&path).make(&[span(0, 0)]).unwrap().remove(0);
    let made = new();
    assert_eq!(names(folder.path()), ["disk.incoming"]);
    let permissions = std::fs::metadata(incoming(&path)).unwrap().permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
    assert!(cannot(&places(&path)).contains("disk.incoming is in use"));
    drop(made);
    assert!(names(folder.path()).is_empty(), "nothing became of it");

    let made = new();
    made.settle().unwrap();
    assert_eq!(names(folder.path()), ["disk.incoming"]);
    made.place().unwrap();
    made.place().unwrap();
    assert_eq!(names(folder.path()), ["disk"]);
    drop(made);
    assert!(names(folder.path()).is_empty(), "and not of this one either");

    let made = new();
    made.file().write_all_at(b"guest", 0).unwrap();
    made.settle().unwrap();
    made.place().unwrap();
    made.keep();
    drop(made);
    let found = std::fs::read(&path).unwrap();
    assert_eq!((found.len() as u64, &found[..5]), (BYTES, &b"guest"[..]));
}

#[test]
fn what_a_killed_process_left_is_begun_anew_and_nobody_elses_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(incoming(&path), vec![0xee; 1 << 20]).unwrap();
    let error = cannot(&places(&path));
    assert!(error.contains("disk.incoming is in the way, and nothing says that Ferry made it"), "{error}");
    // The mark does not help a file that has another name as well: it may be somebody's disk.
    match setxattr(incoming(&path), "user.ferry.incoming", b"1", XattrFlags::empty()) {
        Ok(()) => {}
        Err(errno) => {
            return println!("skipped: the file system of {} has no marks: {errno}", path.display());
        }
    }
    std::fs::hard_link(incoming(&path), folder.path().join("other")).unwrap();
    assert!(cannot(&places(&path)).contains("is in the way"));
    assert_eq!(std::fs::read(incoming(&path)).unwrap(), vec![0xee; 1 << 20]);
    std::fs::remove_file(folder.path().join("other")).unwrap();
    let made = make(&path);
    let mut all = vec![1; usize::try_from(BYTES).unwrap()];
    made.file().read_exact_at(&mut all, 0).unwrap();
    assert!(all.iter().all(|&byte| byte == 0), "it reads as zero");
    // Once it is whole it is no leftover any more, even if its name says so.
    made.place().unwrap();
    made.keep();
    drop(made);
    std::fs::rename(&path, incoming(&path)).unwrap();
    assert!(cannot(&places(&path)).contains("is in the way"));
    // One that Ferry made and did not come to mark.
    File::create(incoming(&path)).unwrap();
    drop(make(&path));
    assert!(names(folder.path()).is_empty());
}

/// A place with an old image, of a mode of its own, that may be replaced.
fn with_old() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, "precious").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    (folder, path)
}

#[test]
fn what_is_replaced_stays_until_the_guest_runs_and_comes_back_if_it_does_not() {
    let (folder, path) = with_old();
    assert!(matches!(places(&path).make(&[span(0, 0)]), Err(DiskImageError::Exists { bytes: 8, .. })));
    for place in [false, true] {
        let made = make(&path);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        if place {
            made.settle().unwrap();
            made.place().unwrap();
            assert_eq!(names(folder.path()), ["disk", "disk.replaced"]);
            assert_eq!(std::fs::read(folder.path().join("disk.replaced")).unwrap(), b"precious");
            made.forget_replaced();
        }
        drop(made);
        assert_eq!(names(folder.path()), ["disk"], "placed: {place}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
    let made = make(&path);
    made.place().unwrap();
    made.keep();
    made.forget_replaced();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (BYTES, 0o640));
    assert_eq!(names(folder.path()), ["disk"]);
}

#[test]
fn what_is_replaced_is_locked_until_then_and_so_is_what_replaces_it() {
    let (_folder, path) = with_old();
    std::fs::write(&path, [0; 512]).unwrap();
    let thief = |path: &Path| DiskImage::open(0, path, false).unwrap().lock();
    let made = make(&path);
    assert!(matches!(thief(&path), Err(DiskImageError::Held { .. })));
    made.place().unwrap();
    // The engine lets go of resources before it drops what did not come.
    let mut set = ResourceSet::new().with_images(&[Arc::clone(&made)]);
    set.take(&guest(), &Resources { released: vec![made.resource()] }).unwrap();
    set.release().unwrap();
    assert!(matches!(thief(&path), Err(DiskImageError::Held { .. })));
    assert!(matches!(thief(&path.with_file_name("disk.replaced")), Err(DiskImageError::Held { .. })));
    drop((set, made));
    thief(&path).unwrap();
    // Between the offer and the machine somebody took it.
    let guests = DiskImage::open(0, &path, false).unwrap();
    guests.lock().unwrap();
    assert!(cannot(&places(&path).overwriting(true)).contains("disk is in use"));
}

#[test]
fn only_what_was_judged_is_replaced() {
    let (folder, path) = with_old();
    let made = make(&path);
    std::fs::write(folder.path().join("new"), "more precious").unwrap();
    std::fs::rename(folder.path().join("new"), &path).unwrap();
    let error = sentence(&made.place().unwrap_err());
    assert!(error.contains("another file took its place meanwhile"), "{error}");
    drop(made);
    assert_eq!(
        (std::fs::read(&path).unwrap(), names(folder.path())),
        (b"more precious".to_vec(), vec!["disk".to_owned()])
    );
    // An empty file was judged, and something was written to it.
    File::create(&path).unwrap();
    let made = places(&path).make(&[span(0, 0)]).unwrap().remove(0);
    std::fs::write(&path, "new").unwrap();
    assert!(matches!(made.place(), Err(DiskImageError::Exists { bytes: 3, .. })));
    drop(made);
    // Nothing was judged, and something came to lie there.
    std::fs::remove_file(&path).unwrap();
    let made = make(&path);
    std::fs::write(&path, "new").unwrap();
    let error = sentence(&made.place().unwrap_err());
    assert!(error.contains("cannot be given its name: File exists"), "{error}");
    // And what took the place of the new image itself is neither named nor removed.
    std::fs::write(incoming(&path), "foreign").unwrap();
    std::fs::remove_file(incoming(&path)).unwrap();
    std::fs::write(incoming(&path), "foreign").unwrap();
    assert!(made.place().is_err());
    drop(made);
    assert_eq!(names(folder.path()), ["disk", "disk.incoming"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
}

#[test]
fn an_image_that_an_earlier_target_replaced_and_left_is_told() {
    let (folder, path) = with_old();
    std::fs::write(folder.path().join("disk.replaced"), "older").unwrap();
    let error = cannot(&places(&path).overwriting(true));
    assert!(error.contains("disk replaced ") && error.contains("disk.replaced when a guest"), "{error}");
    assert_eq!(names(folder.path()), ["disk", "disk.replaced"]);
    // It comes to be there meanwhile.
    std::fs::remove_file(folder.path().join("disk.replaced")).unwrap();
    let made = make(&path);
    std::fs::write(folder.path().join("disk.replaced"), "older").unwrap();
    let error = sentence(&made.place().unwrap_err());
    assert!(error.contains("cannot be given its name: File exists"), "{error}");
    drop(made);
    assert_eq!(names(folder.path()), ["disk", "disk.replaced"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_link_at_the_place_is_followed_and_stays() {
    let (folder, path) = with_old();
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    let made = make(&link);
    made.place().unwrap();
    made.keep();
    drop(made);
    assert!(link.is_symlink());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), BYTES);
    assert_eq!(names(folder.path()), ["disk", "link"]);
    symlink("nothing", folder.path().join("dangles")).unwrap();
    assert!(cannot(&places(&folder.path().join("dangles"))).contains("No such file"));
}

#[test]
fn two_disks_never_have_one_file_whatever_it_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk");
    symlink(folder.path(), folder.path().join("link")).unwrap();
    symlink("disk", folder.path().join("soft")).unwrap();
    std::fs::hard_link(&path, folder.path().join("hard")).unwrap();
    let place = |path: &Path| DiskPlace { path: path.to_owned(), read_only: false };
    for other in ["./disk", "link/disk", "soft", "hard"] {
        let places = [(0, place(&path)), (1, place(&folder.path().join(other)))];
        let error = DiskImage::open_all(places.clone()).unwrap_err();
        assert!(matches!(error, DiskImageError::SamePlace(_)), "{other}: {error}");
        let error = DiskPlaces::new(places).overwriting(true).make(&[span(0, 0), span(1, 0)]).unwrap_err();
        assert!(matches!(error, DiskImageError::SamePlace(_)), "{other}: {error}");
    }
    let new = [(0, place(&folder.path().join("new"))), (1, place(&folder.path().join("link/new")))];
    let findings = DiskPlaces::new(new).judge(&[span(0, 0), span(1, 0)]);
    assert!(findings[0].to_string().contains("two disks cannot both lie"), "{findings:?}");
    image(folder.path(), "other");
    let apart = ["disk", "other"].map(|name| place(&folder.path().join(name)));
    assert_eq!(DiskImage::open_all((0..).zip(apart)).unwrap().len(), 2);
}

#[test]
fn places_are_judged_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let judge = |places: &DiskPlaces, disks: &[DiskSpan]| {
        let findings = places.judge(disks);
        findings.into_iter().map(|finding| (finding.kind, finding.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(judge(&places(&path), &[span(0, BYTES)]), []);
    let refused = |places: &DiskPlaces, disks: &[DiskSpan], word: &str| {
        let findings = judge(places, disks);
        assert!(findings.iter().any(|(_, text)| text.contains(word)), "{findings:?}");
        assert!(findings.iter().all(|(kind, _)| *kind == FindingKind::Refusal), "{findings:?}");
        assert!(places.make(disks).is_err() || word.contains("free"));
    };
    refused(&places(&path), &[span(1, 0)], "disk 1 comes with the guest, and no place");
    refused(&places(folder.path()), &[span(0, 0)], "is no image of a disk");
    refused(&places(&folder.path().join("no/disk")), &[span(0, 0)], "no cannot be opened");
    let odd = DiskSpan { bytes: 513, ..span(0, 0) };
    refused(&places(&path), &[odd], "has 513 bytes");
    let same = DiskPlace { path: path.clone(), read_only: false };
    let same = DiskPlaces::new([(0, same.clone()), (1, same)]);
    refused(&same, &[span(0, 0), span(1, 0)], "two disks cannot both lie");

    // More than any disk of today has, and less than a disk may claim.
    let huge = |allocated_bytes| DiskSpan { disk: 0, bytes: MAX_DISK_BYTES, allocated_bytes };
    let free = rustix::fs::statvfs(folder.path()).unwrap();
    if free.f_blocks * free.f_frsize < MAX_DISK_BYTES {
        refused(&places(&path), &[huge(0)], "bytes free");
        refused(&places(&path), &[huge(MAX_DISK_BYTES)], "bytes free");
    }
    let nearly = free.f_bavail.midpoint(free.f_blocks) * free.f_frsize / 512 * 512;
    let sparse = DiskSpan { disk: 0, bytes: nearly, allocated_bytes: 4096 };
    let notices = judge(&places(&path), &[sparse]);
    assert!(
        matches!(&notices[..], [(FindingKind::Notice, text)] if text.contains("I/O errors")),
        "{notices:?}"
    );
    assert!(names(folder.path()).is_empty());
}
