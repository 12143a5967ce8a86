//! `cargo xtask test`: builds and runs every test of the workspace, documentation examples included.
//!
//! Plain `cargo test` is enough. It builds everything before it runs anything, the `ferry` program
//! too, whose path the end-to-end tests have from `env!("CARGO_BIN_EXE_ferry")`. What a machine
//! cannot run is said here first, because cargo hides what a passing test prints.

use std::fs::OpenOptions;
use std::io;
use std::time::Instant;

use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

const KVM: &str = "/dev/kvm";

/// Runs the tests; `arguments` go to `cargo test`.
pub(crate) fn run(tree: &Tree, arguments: &[String]) -> Result<(), Failure> {
    if let Some(reason) = kvm_is_missing() {
        say::notice(&format!(
            "{reason}: tests on a real KVM will be skipped; the same tests run on the simulated machine"
        ));
    }
    let mut command = run::cargo(tree, &["test", "--no-fail-fast"]);
    if !names_a_crate(arguments) {
        command.arg("--workspace");
    }
    let start = Instant::now();
    run::pass(command.args(arguments))?;
    say::line(&format!("test: all passed, {} s with the build", start.elapsed().as_secs()));
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
