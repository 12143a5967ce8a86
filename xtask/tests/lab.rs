//! `cargo xtask lab` on machines that lack what it needs, and with names that are none.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "this crate is nothing but tests; clippy exempts only functions marked so"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The lab with a cache of its own.
fn lab(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("lab").args(arguments).env("FERRY_LAB_CACHE", cache);
    command
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_here(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|folder| folder.join(program).is_file())
}

#[test]
fn a_machine_without_apt_is_told_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = lab(folder.path(), &["prepare", "amd/6.12/EPYC"]);
    let said = error(&command.env("PATH", folder.path()).output().unwrap());
    assert!(said.contains("this machine has no apt-config: the lab takes kernels"), "{said}");
}

#[test]
fn a_machine_without_network_is_told_so_and_keeps_nothing_that_is_half() {
    if !is_here("apt-get") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let sources = folder.path().join("sources.list");
    // Nobody listens on the port `discard`.
    fs::write(&sources, "deb http://127.0.0.1:9/debian trixie main\n").unwrap();
    let cache = folder.path().join("cache");
    let mut command = lab(&cache, &["prepare", "amd/6.12/EPYC"]);
    let said = error(&command.env("FERRY_LAB_SOURCES", &sources).output().unwrap());
    assert!(said.contains("cannot fetch the list of packages from Debian's trixie"), "{said}");
    assert!(said.contains("127.0.0.1:9"), "{said}");
    assert_eq!(fs::read_dir(cache.join("partial")).unwrap().count(), 0);
    assert!(!cache.join("items").exists());
}

#[test]
fn a_name_that_is_none_has_its_nearest() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["prepare", "probe", "shell"] {
        let said = error(&lab(folder.path(), &[command, "amd/6.11/EPYC"]).output().unwrap());
        assert!(said.contains("the nearest are 6.12, 6.16, 6.17"), "{said}");
    }
    let said = error(&lab(folder.path(), &["run", "amd/6.12", "--", "true"]).output().unwrap());
    assert!(said.contains("says no processor model") && said.contains("EPYC-Rome"), "{said}");
}
