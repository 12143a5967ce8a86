//! `cargo xtask test`: builds and runs every test of the workspace, documentation examples included.
//!
//! Plain `cargo test` is enough. It builds everything before it runs anything, the `ferry` program
//! too, whose path the end-to-end tests have from `env!("CARGO_BIN_EXE_ferry")`. What a machine
//! cannot run is said here first, because cargo hides what a passing test prints.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use ferry_lab::{Architecture, Host, Lab, Programs};

use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

const KVM: &str = "/dev/kvm";

/// What the tests in the lab are told; see `lab/tests`.
const LAB_PROGRAM: &str = "FERRY_LAB_PROGRAM";
const LAB_PROGRAM_ARM64: &str = "FERRY_LAB_PROGRAM_ARM64";
const LAB_TRUTH: &str = "FERRY_LAB_TRUTH";
const LAB_TESTS: &str = "FERRY_LAB_TESTS";
const LAB_REPORT: &str = "FERRY_LAB_REPORT";

/// Which tests run in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum InLab {
    /// Those that two AMD and two arm64 hosts serve
    Smoke,
    /// The matrix of verdicts, moves between unlike hosts, Intel: about half an hour
    All,
    /// None
    Off,
}

/// Runs the tests; `arguments` go to `cargo test`.
pub(crate) fn run(tree: &Tree, lab: InLab, arguments: &[String]) -> Result<(), Failure> {
    if let Some(reason) = kvm_is_missing() {
        say::notice(&format!(
            "{reason}: tests on a real KVM will be skipped; the same tests run on the simulated machine"
        ));
    }
    let mut command = run::cargo(tree, &["test", "--no-fail-fast"]);
    for variable in [LAB_PROGRAM, LAB_PROGRAM_ARM64, LAB_TRUTH, LAB_TESTS, LAB_REPORT] {
        command.env_remove(variable);
    }
    let report = tree.target.join("lab/matrix.txt");
    if is_ready(lab, Architecture::X86_64)? {
        arm(tree, lab, &report, &mut command)?;
    }
    if is_ready(lab, Architecture::Arm64)? {
        arm_arm64(tree, &mut command)?;
    }
    if !names_a_crate(arguments) {
        command.arg("--workspace");
    }
    let start = Instant::now();
    let passed = run::pass(command.args(arguments));
    if lab == InLab::All
        && let Ok(text) = fs::read_to_string(&report)
    {
        say::line(&text);
    }
    passed?;
    say::line(&format!("test: all passed, {} s with the build", start.elapsed().as_secs()));
    Ok(())
}

/// Whether the lab has the hosts of an architecture; else says what is left out. For all of its tests it
/// fetches them.
fn is_ready(lab: InLab, architecture: Architecture) -> Result<bool, Failure> {
    let (hosts, name) = (Lab::open(), architecture.machine());
    let of = |hosts: Vec<Host>| -> Vec<Host> {
        hosts.into_iter().filter(|host| host.vendor.architecture() == architecture).collect()
    };
    match lab {
        InLab::Off => {
            say::notice(&format!("the lab is off: tests on and between {name} hosts will be skipped"));
            Ok(false)
        }
        InLab::All => {
            hosts.prepare(&of([Host::tested(), Host::smoke()].concat()), &|text| say::step(&text))?;
            Ok(true)
        }
        InLab::Smoke if of(Host::smoke()).iter().all(|host| hosts.is_prepared(host)) => Ok(true),
        InLab::Smoke => {
            say::notice(&format!(
                "the lab is not prepared (`cargo xtask lab prepare --smoke` does so): tests on and between \
                 {name} hosts will be skipped"
            ));
            Ok(false)
        }
    }
}

/// Builds what the hosts run, and tells the tests where it is.
fn arm(tree: &Tree, lab: InLab, report: &Path, command: &mut Command) -> Result<(), Failure> {
    let programs = Programs { root: &tree.root, target: &tree.target, say: &|text| say::step(&text) };
    command.env(LAB_PROGRAM, programs.ferry(Architecture::X86_64)?);
    let mut packages = vec!["ferry-kvm"];
    if lab == InLab::All {
        packages.push("ferry-vmm");
        command.env(LAB_TRUTH, programs.truth()?).env(LAB_REPORT, report);
        // What an earlier call wrote.
        let _ = fs::remove_file(report);
    }
    let mut tests = Vec::new();
    for package in packages {
        let paths: Vec<PathBuf> = programs.tests(package)?;
        tests.extend(paths.iter().map(|path| format!("{package}={}", path.display())));
    }
    command.env(LAB_TESTS, tests.join(":"));
    Ok(())
}

/// The same for arm64 hosts, unless nothing here can build for them.
fn arm_arm64(tree: &Tree, command: &mut Command) -> Result<(), Failure> {
    let programs = Programs { root: &tree.root, target: &tree.target, say: &|text| say::step(&text) };
    match programs.ferry(Architecture::Arm64) {
        Err(error @ ferry_lab::Error::NoTarget { .. }) => {
            say::notice(&format!("{error}; tests on aarch64 hosts will be skipped"));
        }
        built => drop(command.env(LAB_PROGRAM_ARM64, built?)),
    }
    Ok(())
}

/// Why this machine cannot run a guest on a real KVM.
fn kvm_is_missing() -> Option<String> {
    let error = OpenOptions::new().read(true).write(true).open(KVM).err()?;
    Some(match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {KVM}"),
        io::ErrorKind::PermissionDenied => {
            format!("{KVM} may not be opened by this user (join the group kvm)")
        }
        _ => format!("{KVM} cannot be opened ({error})"),
    })
}

/// Whether the arguments for cargo choose crates themselves.
fn names_a_crate(arguments: &[String]) -> bool {
    let own = arguments.iter().take_while(|argument| *argument != "--");
    let mut choosing = own.filter(|argument| argument.starts_with("-p") || argument.starts_with("--package"));
    choosing.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_chosen_before_the_dashes_only() {
        let chosen = |line: &str| names_a_crate(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert!(chosen("-p ferry") && chosen("--package=ferry name") && chosen("-pferry"));
        assert!(!chosen("name -- -p") && !chosen("--release"));
    }
}
