//! What another user may not do. These tests need root, to become nobody; else they say that they
//! are skipped.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::house::House;
use crate::support::process::Process;
use crate::support::skipped;

const NOBODY: u32 = 65534;

/// Whether this user can become another one, and that one can start the program.
fn can_be_nobody() -> bool {
    if !rustix::process::geteuid().is_root() {
        skipped("tests as another user: only root can become one");
        return false;
    }
    let mut version = Command::new(env!("CARGO_BIN_EXE_ferry"));
    let started = version.arg("--version").uid(NOBODY).gid(NOBODY).output();
    let can = started.as_ref().is_ok_and(|done| done.status.success());
    if !can {
        skipped(&format!("tests as another user, who cannot start the program here: {started:?}"));
    }
    can
}

/// A house whose folder of sockets is nobody's.
fn nobodys_house() -> House {
    let house = House::new("sim");
    std::fs::set_permissions(house.path(""), Permissions::from_mode(0o755)).unwrap();
    chown(house.path("run"), Some(NOBODY), Some(NOBODY)).unwrap();
    house
}

fn as_nobody(house: &House, words: &[&str]) -> Process {
    let mut command = house.command(words);
    command.arg("--output=json").uid(NOBODY).gid(NOBODY);
    house.start(command)
}

fn kvm_is_closed_to_nobody() -> bool {
    use std::os::unix::fs::MetadataExt;
    let closed = std::fs::metadata("/dev/kvm").is_ok_and(|meta| meta.mode() & 0o006 == 0);
    if !closed {
        skipped("KVM without permission: /dev/kvm is not there, or open to everybody");
    }
    closed
}

#[test]
fn without_permission_on_kvm_it_is_an_error_or_the_simulated_machine() {
    if !can_be_nobody() || !kvm_is_closed_to_nobody() {
        return;
    }
    let house = nobodys_house();
    for words in [
        &["run", "--memory=16M", "--backend=kvm"][..],
        &["receive", "--listen=127.0.0.1:0", "--backend=kvm"],
        &["demo", "--memory=16M", "--backend=kvm"],
    ] {
        as_nobody(&house, words).end().failed(1, &["/dev/kvm", "permission", "group"]);
    }
    let done = as_nobody(&house, &["demo", "--memory=16M"]).end();
    assert_eq!(done.document()["backend"], "sim");
    assert_eq!(done.errors.lines().count(), 1, "one line: {done:?}");
    for words in ["simulated machine, because", "/dev/kvm", "permission"] {
        assert!(done.errors.contains(words), "`{words}` is not in {done:?}");
    }
    let guest = as_nobody(&house, &["run", "--memory=16M", "--id=g"]).ready("running");
    guest.await_work();
    assert_eq!(guest.status()["backend"], "sim");
    assert!(guest.errors().contains("simulated machine, because"));
}

#[test]
fn a_folder_without_permission_cannot_be_listened_in() {
    if !can_be_nobody() {
        return;
    }
    let house = nobodys_house();
    let closed = house.path("closed");
    std::fs::create_dir(&closed).unwrap();
    let address = format!("unix:{}", closed.join("s").display());
    let done = as_nobody(&house, &["receive", "--backend=sim", "--listen", &address]).end();
    done.failed(1, &[&address, "no permission", "another folder"]);
    assert!(!Path::new(&closed.join("s")).exists());
}

#[test]
fn a_folder_of_control_sockets_that_is_anothers_is_refused() {
    if !can_be_nobody() {
        return;
    }
    let house = nobodys_house();
    std::fs::create_dir(house.sockets()).unwrap();
    let words = ["run", "--backend=sim", "--memory=16M"];
    as_nobody(&house, &words).end().failed(1, &["not a folder of yours", "XDG_RUNTIME_DIR"]);
    // Nor does root put its sockets where nobody could change them.
    chown(house.sockets(), Some(NOBODY), Some(NOBODY)).unwrap();
    house.json(&words).failed(1, &["not a folder of yours", "XDG_RUNTIME_DIR"]);
    let guest = as_nobody(&house, &words).ready("running");
    guest.await_work();
}
