//! Disks of Linux guests, made and checked by the lab's e2fsprogs.

use std::fs::File;
use std::path::Path;

use ferry_lab::{Lab, Machine};
use tempfile::TempDir;

use crate::{STEP_MAX, ok};

/// The size of a disk.
const BYTES: u64 = 16 << 20;

/// A folder with an empty ext4 file system in the file `disk`.
pub(super) fn new(lab: &Lab) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    File::create(&disk).and_then(|file| file.set_len(BYTES)).unwrap();
    tool(lab, "mke2fs", &["-q", "-F", "-t", "ext4"], &disk);
    folder
}

/// Checks a disk of a guest that has ended, which must be clean; answers with what the program says last.
pub(super) fn check(lab: &Lab, host: &mut Machine, path: &str) -> String {
    ok(host, &format!("rm -rf /tmp/out; mkdir /tmp/out && mv {path} /tmp/out/disk"));
    let folder = tempfile::tempdir().unwrap();
    host.fetch("/tmp/out", folder.path(), STEP_MAX).unwrap();
    let said = tool(lab, "e2fsck", &["-f", "-n"], &folder.path().join("disk"));
    said.lines().last().unwrap_or_default().to_owned()
}

/// Runs a program of e2fsprogs, which must find nothing wrong.
fn tool(lab: &Lab, program: &str, arguments: &[&str], disk: &Path) -> String {
    let output = lab.file_system_tool(program).args(arguments).arg(disk).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {} {said}", disk.display(), output.status);
    said
}
