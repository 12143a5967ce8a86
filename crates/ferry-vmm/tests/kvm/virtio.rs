//! What a machine with virtio devices needs of its host, and what crosses of it. What drivers do with the devices is tested
//! beside them, and with Debian's in the lab.

use std::path::{Path, PathBuf};

use ferry_contract::Verdict;
use ferry_migrate::{Builder, DiskImage, Machine, MachineError};
use ferry_protocol::MachineDescription;
use ferry_state::Resources;
use ferry_state::device::VirtioBlock;
use ferry_vmm::{
    Birth, Board, DeviceSpec, GuestConfig, Image, KvmBuilder, KvmGuest, Level, MachineConfig, Payload,
    Places, VmmError,
};

use crate::common::{custody, kvm_is_here};
use crate::crossing::copy_all;

/// A program that stays where it is: HLT and a jump back to it; on arm64 a branch to itself.
#[cfg(target_arch = "x86_64")]
const PROGRAM: &[u8] = &[0xf4, 0xeb, 0xfd];
#[cfg(target_arch = "aarch64")]
const PROGRAM: &[u8] = &[0, 0, 0, 0x14];

const CONFIG: GuestConfig = GuestConfig {
    memory_bytes: 8 << 20,
    cpus: 1,
    payload: Payload::Image { level: Level::Kernel },
    low_bytes: None,
};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A new image of so many bytes.
    fn image(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, vec![0; bytes]).unwrap();
        path
    }
}

fn disk(path: &Path) -> DeviceSpec {
    DeviceSpec::Disk { path: path.display().to_string(), read_only: false }
}

fn create(devices: Vec<DeviceSpec>) -> Result<KvmGuest, VmmError> {
    let board = Board { linux: None, devices };
    let image = Image::parse(PROGRAM).unwrap();
    let birth = Birth { board: Some(&board), image: Some(&image), ..Birth::plain(1) };
    ferry_vmm::create_on_kvm(&CONFIG, birth, None)
}

fn guest(devices: Vec<DeviceSpec>) -> KvmGuest {
    create(devices).unwrap()
}

/// Takes the locks of its disks, as at birth.
fn take(guest: &mut KvmGuest) -> Result<(), MachineError> {
    let released = guest.disk_images().iter().map(|image| image.resource()).collect();
    guest.take_resources(custody().guest(), &Resources { released })
}

/// An error with all that caused it.
fn all_of(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn at(disk: u32, path: &Path) -> Places {
    Places { disks: [(disk, path.display().to_string())].into(), ..Places::default() }
}

fn judge(places: Places, machine: &MachineDescription) -> Verdict {
    KvmBuilder::new().unwrap().with_places(places).judge(machine)
}

#[test]
fn a_guest_with_devices_crosses_to_a_host_that_has_them_elsewhere() {
    if !kvm_is_here() {
        return;
    }
    let place = Place::new();
    let (here, there) = (place.image("here", 1 << 20), place.image("there", 1 << 20));
    let mut source = guest(vec![disk(&here), DeviceSpec::Entropy, DeviceSpec::Console]);
    let error = source.resume(custody()).unwrap_err();
    assert!(all_of(&error).contains("`image-lock disk0` is not held"), "{}", all_of(&error));
    take(&mut source).unwrap();
    source.resume(custody()).unwrap();
    let mut builder = KvmBuilder::new().unwrap().with_places(at(0, &there));
    let mut target = builder.build(&source.description()).unwrap();
    let its = MachineConfig::from_bytes(&target.description().config).unwrap();
    assert_eq!(its.board.devices[0], disk(&there), "the next host is told of this one's places");

    let custody = source.pause().unwrap();
    let released = source.release_resources().unwrap();
    let (state, devices) = (source.capture().unwrap(), source.capture_devices().unwrap());
    let names: Vec<_> = devices
        .sections
        .iter()
        .filter(|section| section.name.contains("virtio"))
        .map(|section| (section.name.as_str(), section.index))
        .collect();
    assert_eq!(
        names,
        [("device/virtio-block", 0), ("device/virtio-entropy", 1), ("device/virtio-console", 2)]
    );
    let saved = devices.section("device/virtio-block", 0).unwrap().unwrap();
    assert_eq!(saved.read::<VirtioBlock>().unwrap().capacity_sectors, 2048);
    copy_all(&source, &target);
    target.take_resources(custody.guest(), &released).unwrap();
    target.restore(&state).unwrap();
    target.restore_devices(&devices).unwrap();
    target.resume(custody).unwrap();
    assert!(DiskImage::open(0, &here, false).unwrap().lock().is_ok(), "the source's image is free");
    let error = all_of(&DiskImage::open(0, &there, false).unwrap().lock().unwrap_err());
    assert!(error.contains("is in use: process "), "{error}");
}

#[test]
fn an_image_that_is_in_use_makes_no_second_guest() {
    if !kvm_is_here() {
        return;
    }
    let place = Place::new();
    let path = place.image("image", 4096);
    let (mut first, mut second) = (guest(vec![disk(&path)]), guest(vec![disk(&path)]));
    take(&mut first).unwrap();
    let error = all_of(&take(&mut second).unwrap_err());
    assert!(error.contains("image-lock disk0") && error.contains("is in use"), "{error}");
    drop(first);
    take(&mut second).unwrap();
}

#[test]
fn what_a_host_has_not_is_said_at_birth_and_at_the_offer() {
    if !kvm_is_here() {
        return;
    }
    let place = Place::new();
    let (path, small) = (place.image("image", 4096), place.image("small", 700));
    let net = || DeviceSpec::Net { tap: "ferry-none".to_owned(), mac: [2, 0, 0, 0, 0, 1] };
    let error = all_of(&create(vec![net()]).unwrap_err());
    assert!(error.contains("there is no tap device `ferry-none` on this host"), "{error}");
    let error = all_of(&create(vec![disk(&small)]).unwrap_err());
    assert!(error.contains("has 700 bytes: a disk has whole sectors"), "{error}");

    let offered = guest(vec![disk(&path)]).description();
    assert!(!judge(Places::same(), &offered).is_refusal());
    let refused = judge(Places::default(), &offered);
    assert!(refused.is_refusal() && refused.findings[0].remedy.contains("`--disk 0=PATH`"), "{refused:?}");
    let mut with_net = MachineConfig::from_bytes(&offered.config).unwrap();
    with_net.board.devices.push(net());
    let with_net = MachineDescription { config: with_net.to_bytes(), ..offered.clone() };
    let mut with_link = MachineConfig::from_bytes(&offered.config).unwrap();
    let link = place.0.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    with_link.board.devices.push(disk(&link));
    let with_link = MachineDescription { config: with_link.to_bytes(), ..offered.clone() };
    for (places, machine, subject, reason) in [
        (Places::same(), &with_net, "net 0", "there is no tap device `ferry-none`"),
        (at(0, &small), &offered, "disk 0", "has 700 bytes"),
        (at(0, Path::new("/nowhere/image")), &offered, "disk 0", "cannot be opened: No such file"),
        (Places { same_paths: true, ..at(1, &path) }, &offered, "disk 1", "was told a place for one more"),
        (Places::same(), &with_link, "disks", "the images of two disks cannot both lie at"),
    ] {
        let verdict = judge(places, machine);
        let finding = verdict.findings.first().unwrap();
        assert!(verdict.is_refusal() && finding.subject == subject, "{finding}");
        assert!(finding.target.contains(reason), "{finding}");
    }
}
