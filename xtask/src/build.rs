//! `cargo xtask build`: the program as one static file, for this machine's architecture or another.

use ferry_lab::{Architecture, Programs};

use crate::run::Failure;
use crate::say;
use crate::tree::Tree;

/// What to build for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Target {
    /// Machines with x86-64 processors
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    /// Machines with arm64 processors
    #[value(alias = "aarch64")]
    Arm64,
}

/// Builds `ferry`, and says where it lies.
pub(crate) fn run(tree: &Tree, target: Target) -> Result<(), Failure> {
    let architecture = match target {
        Target::X86_64 => Architecture::X86_64,
        Target::Arm64 => Architecture::Arm64,
    };
    let programs = Programs { root: &tree.root, target: &tree.target, say: &|text| say::step(&text) };
    let path = programs.ferry(architecture)?;
    say::line(&path.display());
    Ok(())
}
