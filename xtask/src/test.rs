//! `cargo xtask test`: builds and runs every test of the workspace, documentation examples included.
//!
//! Plain `cargo test` is enough. It builds everything before it runs anything, the `ferry` program
//! too, whose path the end-to-end tests have from `env!("CARGO_BIN_EXE_ferry")`. What a machine
//! cannot run is said here first, because cargo hides what a passing test prints.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use ferry_lab::{Host, Lab};

use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

const KVM: &str = "/dev/kvm";

/// Names the static `ferry` for the tests in the lab; see `lab/tests`.
const LAB_PROGRAM: &str = "FERRY_LAB_PROGRAM";

/// Which tests run in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum InLab {
    /// Those that two AMD hosts serve
    Smoke,
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
    match lab_program(tree, lab)? {
        Some(program) => command.env(LAB_PROGRAM, program),
        None => command.env_remove(LAB_PROGRAM),
    };
    if !names_a_crate(arguments) {
        command.arg("--workspace");
    }
    let start = Instant::now();
    run::pass(command.args(arguments))?;
    say::line(&format!("test: all passed, {} s with the build", start.elapsed().as_secs()));
    Ok(())
}

/// The program that the lab's hosts run, if they are prepared; else says what is left out.
fn lab_program(tree: &Tree, lab: InLab) -> Result<Option<PathBuf>, Failure> {
    let hosts = Lab::open();
    if lab == InLab::Off {
        say::notice(&"the lab is off: tests on and between unlike KVM hosts will be skipped");
        return Ok(None);
    }
    if !Host::smoke().iter().all(|host| hosts.is_prepared(host)) {
        say::notice(
            &"the lab is not prepared (`cargo xtask lab prepare --smoke` does so): tests on and between \
              unlike KVM hosts will be skipped",
        );
        return Ok(None);
    }
    let program = ferry_lab::ferry(&tree.root, &tree.target, &|text| say::step(&text))?;
    Ok(Some(program))
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
