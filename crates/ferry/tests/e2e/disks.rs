//! Disks that go with a guest, or stay where both hosts see them. The guests here run a program that leaves its disks
//! alone: what crosses is what was in the images. Guests that write to theirs move in the lab.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::support::house::House;
use crate::support::process::Process;
use crate::support::{kvm_is_here, skipped, wait_until};

/// A vCPU that does nothing for ever.
#[cfg(target_arch = "x86_64")]
const IDLER: &[u8] = &[0xeb, 0xfe]; // jmp to itself
#[cfg(target_arch = "aarch64")]
const IDLER: &[u8] = &[0, 0, 0, 0x14]; // b to itself

/// Bytes of an image; it is sparse.
const BYTES: u64 = (24 << 20) + 512;

/// A house with the idler's program in it; none without KVM, since the simulated machine has no disks.
fn house() -> Option<House> {
    if !kvm_is_here() {
        skipped("guests with disks");
        return None;
    }
    let house = House::new("kvm");
    std::fs::write(house.path("idler"), IDLER).unwrap();
    Some(house)
}

/// An image with something at its beginning, in its middle and in its last sector.
fn image(path: &Path, mark: u8) {
    let file = File::create(path).unwrap();
    file.set_len(BYTES).unwrap();
    for place in [0, BYTES / 2 + 77, BYTES - 300] {
        file.write_all_at(&[mark; 300], place).unwrap();
    }
}

fn run(house: &House, disks: &[&str]) -> Process {
    let payload = format!("--payload={}", house.path("idler").display());
    let words = ["run", "--id=g", "--memory=16M", "--backend=kvm", &payload];
    let mut command = house.command(&words);
    command.args(["--output=json", "--die-with-parent"]);
    command.args(disks.iter().map(|disk| format!("--disk={}", house.path(disk).display())));
    house.start(command).ready("running")
}

/// The flags of a receiver that has the disks there.
fn at(house: &House, disks: &[&str]) -> Vec<String> {
    let places = disks.iter().enumerate();
    places.map(|(number, disk)| format!("--disk={number}={}", house.path(disk).display())).collect()
}

fn words(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

fn are_alike(house: &House, one: &str, other: &str) {
    let [one, other] = [one, other].map(|name| std::fs::read(house.path(name)).unwrap());
    assert_eq!(one.len(), other.len());
    assert_eq!(one.iter().zip(&other).position(|(one, other)| one != other), None);
}

/// Somebody who wants the image hears which process has it.
fn is_locked_by(house: &House, name: &str, process: &Process) {
    let payload = format!("--payload={}", house.path("idler").display());
    let disk = format!("--disk={}", house.path(name).display());
    let other = house.json(&["run", "--id=other", "--backend=kvm", "--memory=16M", &payload, &disk]);
    other.failed(1, &[name, "is in use: process ", &process.pid().to_string()]);
}

#[test]
fn a_guest_takes_its_disks_along() {
    let Some(house) = house() else { return };
    image(&house.path("a"), 1);
    image(&house.path("b"), 2);
    let source = run(&house, &["a", "b,readonly"]);
    is_locked_by(&house, "a", &source);
    let target = house.receiver(&words(&at(&house, &["a2", "b2"])));
    let migrate =
        ["migrate", "g", "--to", &target.listen, "--wait", "--verify", "--copy-storage", "--lanes=2"];
    let report = house.json(&migrate).document();
    assert_eq!((&report["outcome"], &report["hashes_equal"]), (&"moved".into(), &true.into()), "{report}");
    assert_eq!(report["disk_bytes"], 2 * BYTES, "{report}");
    assert!(report["data_bytes"].as_u64().unwrap() < 2 << 20, "holes are not sent: {report}");
    assert_eq!(source.end().status, 0);
    for (from, to) in [("a", "a2"), ("b", "b2")] {
        are_alike(&house, from, to);
        let held = house.path(to).metadata().unwrap().blocks() * 512;
        assert!(held < BYTES / 4, "holes stay holes: {held} bytes");
        assert!(!house.path(&format!("{to}.incoming")).exists());
    }
    is_locked_by(&house, "a2", &target);
}

#[test]
fn a_disk_that_both_hosts_see_stays_where_it_is_and_its_lock_moves() {
    let Some(house) = house() else { return };
    image(&house.path("a"), 1);
    let source = run(&house, &["a"]);
    let target = house.receiver(&["--same-paths"]);
    let report = house.json(&["migrate", "g", "--to", &target.listen, "--wait"]).document();
    assert_eq!((&report["outcome"], &report["disk_bytes"]), (&"moved".into(), &0.into()), "{report}");
    assert_eq!(source.end().status, 0);
    is_locked_by(&house, "a", &target);
    // The same by another path.
    std::os::unix::fs::symlink("a", house.path("link")).unwrap();
    let next = house.receiver(&words(&at(&house, &["link"])));
    let report = house.json(&["migrate", "g", "--to", &next.listen, "--wait"]).document();
    assert_eq!(report["outcome"], "moved", "{report}");
    assert_eq!(target.end().status, 0);
    is_locked_by(&house, "a", &next);
}

/// A copy of the image lies where the image was meant: locks are per file, so only that of the guest's own is held.
#[test]
fn another_image_than_the_guests_is_refused_while_it_runs() {
    let Some(house) = house() else { return };
    image(&house.path("a"), 1);
    image(&house.path("b"), 2);
    let source = run(&house, &["a", "b,readonly"]);
    for (name, mark) in [("old-a", 3), ("old-b", 3)] {
        image(&house.path(name), mark);
    }
    for (disks, wrong, right) in [(["old-a", "b"], "disk 0", "disk 1"), (["a", "old-b"], "disk 1", "disk 0")]
    {
        let target = house.receiver(&words(&at(&house, &disks)));
        let done = house.json(&["migrate", "g", "--to", &target.listen, "--wait"]);
        let said = [wrong, "old-", "another image than its own", "`migrate --copy-storage`"];
        let error = done.failed(3, &said).to_string();
        assert!(!error.contains(right), "the other image is the guest's: {error}");
        source.await_state("running");
    }
    // Looking left no lock behind, and took none away.
    is_locked_by(&house, "a", &source);
    let target = house.receiver(&words(&at(&house, &["a", "b"])));
    assert_eq!(house.migrate("g", &target.listen).document()["outcome"], "moved");
    is_locked_by(&house, "a", &target);
}

#[test]
fn a_target_opens_nothing_that_it_was_not_told_of() {
    let Some(house) = house() else { return };
    image(&house.path("a"), 1);
    image(&house.path("b"), 1);
    let source = run(&house, &["a", "b"]);
    let refused = |flags: &[&str], moves: &[&str], said: &[&str]| {
        let target = house.receiver(flags);
        let words = [&["migrate", "g", "--to", &target.listen, "--wait"], moves].concat();
        house.json(&words).failed(3, said);
        source.await_state("running");
    };
    for moves in [&[][..], &["--copy-storage"]] {
        refused(&[], moves, &["disk 0", "was not told which image", "`--disk 0=PATH`", "`--same-paths`"]);
    }
    let there = at(&house, &["a", "b", "c"]);
    refused(&words(&there[..1]), &[], &["disk 1", "`--disk 1=PATH`"]);
    refused(&words(&there), &[], &["disk 2", "leave `--disk 2=` out"]);
    refused(&["--same-paths", "--kernel=k"], &[], &["kernel", "leave `--kernel` out"]);
    refused(&["--same-paths", "--net=0=tap0"], &[], &["net 0", "leave `--net 0=` out"]);
    // Two names of one file.
    std::fs::hard_link(house.path("a"), house.path("hard")).unwrap();
    refused(&words(&at(&house, &["a", "hard"])), &[], &["two disks cannot both lie at", "hard"]);
    assert!(!house.path("c").exists());
    // A guest in a file names its places as one that comes over a link.
    let place = format!("file:{}", house.path("saved").display());
    assert_eq!(house.migrate("g", &place).document()["outcome"], "moved");
    let read = ["receive", "--from", &place, "--backend=kvm"];
    house.json(&read).failed(3, &["disk 0", "`--disk 0=PATH`"]);
    let guest = house.reading(&place, &["--same-paths"], true);
    is_locked_by(&house, "a", &guest);
}

#[test]
fn a_simulated_guest_has_no_places() {
    let house = House::new("sim");
    for flag in ["--disk=0=/a", "--net=0=tap0", "--kernel=/k"] {
        let done = house.json(&["receive", "--listen=127.0.0.1:0", "--backend=sim", flag]);
        done.failed(1, &["the simulated machine has no processor and no devices"]);
    }
    let done = house.json(&["receive", "--listen=127.0.0.1:0", "--disk=0=/a", "--disk=0=/b"]);
    done.failed(2, &["--disk 0= is there twice"]);
}

#[test]
fn a_place_that_is_taken_is_refused_unless_it_may_be_overwritten() {
    let Some(house) = house() else { return };
    image(&house.path("a"), 1);
    std::fs::write(house.path("precious"), "data").unwrap();
    let source = run(&house, &["a"]);
    let there = at(&house, &["precious"]);
    let target = house.receiver(&words(&there));
    let copies = |to: &str| house.json(&["migrate", "g", "--to", to, "--wait", "--copy-storage"]);
    copies(&target.listen).failed(3, &["a file is at ", "precious already, with 4 bytes"]);
    assert_eq!(std::fs::read(house.path("precious")).unwrap(), b"data");
    source.await_state("running");
    // Where it lies on the source, on the source's own host.
    let same = house.receiver(&["--overwrite-disks", "--same-paths"]);
    copies(&same.listen).failed(3, &["a is in use: process ", &source.pid().to_string()]);
    let target = house.receiver(&words(&[&there[..], &["--overwrite-disks".to_owned()]].concat()));
    assert_eq!(copies(&target.listen).document()["outcome"], "moved");
    are_alike(&house, "a", "precious");
    wait_until("the old image is gone", || !house.path("precious.replaced").exists());
}

#[test]
fn what_was_to_be_replaced_is_there_again_when_the_guest_does_not_come() {
    let Some(house) = house() else { return };
    image(&house.path("a"), 1);
    std::fs::write(house.path("precious"), "data").unwrap();
    let source = run(&house, &["a"]);
    let flags =
        [&at(&house, &["precious"])[..], &["--overwrite-disks", "--stop-at=ready"].map(str::to_owned)];
    let target = house.receiver(&words(&flags.concat()));
    let migration = house.migrating_to("g", &target.listen, &["--copy-storage"]);
    target.await_stop();
    // The new image has the name already, and nobody else can have it.
    are_alike(&house, "a", "precious");
    assert_eq!(std::fs::read(house.path("precious.replaced")).unwrap(), b"data");
    is_locked_by(&house, "precious", &target);
    source.kill();
    migration.end();
    target.resume();
    wait_until("the old image", || std::fs::read(house.path("precious")).is_ok_and(|old| old == b"data"));
    wait_until("no other", || !house.path("precious.replaced").exists());
}

#[test]
fn a_file_with_a_guest_holds_its_disks_and_gives_them_more_than_once() {
    let Some(house) = house() else { return };
    image(&house.path("a"), 1);
    let source = run(&house, &["a"]);
    let place = format!("file:{}", house.path("saved").display());
    let report = house.json(&["migrate", "g", "--to", &place, "--wait", "--copy-storage"]).document();
    assert_eq!(report["outcome"], "moved", "{report}");
    assert_eq!(source.end().status, 0);
    let shown = house.json(&["inspect", &house.path("saved").display().to_string()]).document();
    assert_eq!(shown["machine"]["disks"][0]["bytes"], BYTES, "{shown}");
    let copy = [at(&house, &["copy"]), vec!["--clone".into(), "--id=twin".into()]].concat();
    let twin = house.reading(&place, &words(&copy), true);
    let guest = house.reading(&place, &words(&at(&house, &["a2"])), true);
    for name in ["copy", "a2"] {
        are_alike(&house, "a", name);
    }
    is_locked_by(&house, "copy", &twin);
    is_locked_by(&house, "a2", &guest);
}

#[test]
fn a_target_that_is_killed_leaves_no_image_that_looks_whole() {
    let Some(house) = house() else { return };
    image(&house.path("a"), 1);
    let source = run(&house, &["a"]);
    let there = at(&house, &["a2"]);
    let target = house.receiver(&[&["--stop-at=receive"], &words(&there)[..]].concat());
    let flags = ["--copy-storage"];
    let migration = house.migrating_to("g", &target.listen, &flags);
    target.await_stop();
    target.kill();
    assert_eq!(migration.end().status, 4);
    source.await_state("running");
    assert!(!house.path("a2").exists() && house.path("a2.incoming").exists());
    if rustix::fs::getxattr(house.path("a2.incoming"), "user.ferry.incoming", &mut [0; 1][..]).is_err() {
        return skipped("what a killed target left, on a file system without marks");
    }
    let target = house.receiver(&words(&there));
    let report = house.json(&["migrate", "g", "--to", &target.listen, "--wait", "--copy-storage"]).document();
    assert_eq!(report["outcome"], "moved", "{report}");
    wait_until("the name", || house.path("a2").exists() && !house.path("a2.incoming").exists());
    are_alike(&house, "a", "a2");
}

#[test]
fn a_guest_without_a_disk_has_nothing_to_copy() {
    let house = House::new("sim");
    let guest = house.guest("g", &["--memory=16M"]);
    let done = house.json(&["migrate", "g", "--to", "127.0.0.1:1", "--copy-storage"]);
    done.failed(2, &["`g` has no disk"]);
    guest.await_state("running");
}
