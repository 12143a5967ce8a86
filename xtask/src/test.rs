//! `cargo xtask test`: builds and runs every test of the workspace, documentation examples included.
//!
//! Plain `cargo test` is enough. It builds everything before it runs anything, the `ferry` program
//! too, whose path the end-to-end tests have from `env!("CARGO_BIN_EXE_ferry")`. What a machine
//! cannot run is said here first, because cargo hides what a passing test prints.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use ferry_lab::{Architecture, Host, Lab, Programs};

use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

const KVM: &str = "/dev/kvm";

/// What the tests in the lab are told; see `lab/tests`. The first three and
/// `FERRY_LAB_LOAD` have `_ARM64` behind them for arm64 hosts.
const LAB_PROGRAM: &str = "FERRY_LAB_PROGRAM";
const LAB_TRUTH: &str = "FERRY_LAB_TRUTH";
const LAB_TESTS: &str = "FERRY_LAB_TESTS";
const LAB_CONTRACT_TRUTH: &str = "FERRY_LAB_CONTRACT_TRUTH";
const LAB_REPORT: &str = "FERRY_LAB_REPORT";
const LAB_LOAD: &str = "FERRY_LAB_LOAD";
const LAB_LINUX_REPORT: &str = "FERRY_LAB_LINUX_REPORT";

/// The tests of the lab with Linux guests: that they move, and that they begin and end.
const LINUX: [&str; 2] = ["linux::", "boot::"];

/// The name of a variable for hosts of an architecture.
fn variable(name: &str, architecture: Architecture) -> String {
    match architecture {
        Architecture::X86_64 => name.to_owned(),
        Architecture::Arm64 => format!("{name}_ARM64"),
    }
}

/// Which tests run in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum InLab {
    /// Those that two AMD and two arm64 hosts serve
    Smoke,
    /// The matrix of verdicts, moves between unlike hosts, Intel: most of an hour on two cores
    All,
    /// Linux guests that boot, restart and move under load, and nothing else
    Linux,
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
    // What an earlier call wrote.
    let reports = ["lab/matrix.txt", "lab/linux.txt"].map(|name| tree.target.join(name));
    for (report, variable) in reports.iter().zip([LAB_REPORT, LAB_LINUX_REPORT]) {
        let _ = fs::remove_file(report);
        command.env(variable, report);
    }
    command.env_remove(LAB_CONTRACT_TRUTH);
    for architecture in [Architecture::X86_64, Architecture::Arm64] {
        for name in [LAB_PROGRAM, LAB_TRUTH, LAB_TESTS, LAB_LOAD] {
            command.env_remove(variable(name, architecture));
        }
        if is_ready(lab, architecture)? {
            arm(tree, lab, architecture, &mut command)?;
        }
    }
    if lab == InLab::Linux {
        command.args(["--package", "ferry-lab", "--test", "hosts"]);
    } else if !names_a_crate(arguments) {
        command.arg("--workspace");
    }
    command.args(arguments);
    if lab == InLab::Linux {
        if !arguments.iter().any(|argument| argument == "--") {
            command.arg("--");
        }
        command.args(LINUX);
    }
    let start = Instant::now();
    let passed = run::pass(&mut command);
    // Where a test did not run, there is none.
    for report in reports {
        if let Ok(text) = fs::read_to_string(&report) {
            say::line(&text);
        }
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
            let wanted = of([Host::tested(), Host::smoke(), Host::with_vectors()].concat());
            hosts.prepare(&wanted, &|text| say::step(&text))?;
            hosts.prepare_linux(&of(Host::with_linux()), &|text| say::step(&text))?;
            Ok(true)
        }
        InLab::Linux => {
            hosts.prepare_linux(&of(Host::with_linux()), &|text| say::step(&text))?;
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

/// Builds what the hosts of an architecture run, unless nothing here can, and tells the tests where it is.
fn arm(tree: &Tree, lab: InLab, architecture: Architecture, command: &mut Command) -> Result<(), Failure> {
    let programs = Programs { root: &tree.root, target: &tree.target, say: &|text| say::step(&text) };
    match programs.ferry(architecture) {
        Err(error @ ferry_lab::Error::NoTarget { .. }) => {
            let name = architecture.machine();
            say::notice(&format!("{error}; tests on {name} hosts will be skipped"));
            return Ok(());
        }
        built => command.env(variable(LAB_PROGRAM, architecture), built?),
    };
    if matches!(lab, InLab::Linux | InLab::All) {
        command.env(variable(LAB_LOAD, architecture), programs.load(architecture)?);
    }
    if lab == InLab::Linux {
        return Ok(());
    }
    let mut packages = vec!["ferry-kvm"];
    if lab == InLab::All {
        packages.push("ferry-vmm");
        command.env(variable(LAB_TRUTH, architecture), programs.truth(architecture)?);
    }
    if lab == InLab::All && architecture == Architecture::Arm64 {
        command.env(LAB_CONTRACT_TRUTH, programs.contract_truth()?);
    }
    command.env(variable(LAB_TESTS, architecture), tests(&programs, architecture, &packages)?);
    Ok(())
}

/// Builds the tests of packages; answers as the tests in the lab want to hear it.
fn tests(programs: &Programs<'_>, architecture: Architecture, packages: &[&str]) -> Result<String, Failure> {
    let mut named = Vec::new();
    for package in packages {
        let paths: Vec<PathBuf> = programs.tests(architecture, package)?;
        named.extend(paths.iter().map(|path| format!("{package}={}", path.display())));
    }
    Ok(named.join(":"))
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
