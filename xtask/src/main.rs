//! What a developer of Ferry runs: `cargo xtask lint`, `test`, `build`, `bench`, `fuzz`, `simulate`, `lab`.
//!
//! Continuous integration runs these very commands (`.ci/run`) and knows nothing beyond them.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod fuzz;
mod lab;
mod lint;
mod run;
mod say;
mod simulate;
mod test;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::run::Failure;
use crate::tree::Tree;

/// Runs Ferry's checks, tests, benchmarks and fuzzers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Checks formatting, clippy, the documentation, and the house's own rules
    Lint,
    /// Builds and runs all tests, documentation examples included
    Test {
        /// Which tests run in the lab, on real and unlike KVM hosts
        #[arg(long, value_enum, default_value_t = test::InLab::Smoke)]
        lab: test::InLab,
        /// Goes to `cargo test` as it is: a filter, `-p CRATE`, `-- --nocapture`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Builds `ferry` as one static file, for hosts without libraries or of another architecture
    Build {
        /// The architecture
        #[arg(long, value_enum)]
        target: build::Target,
    },
    /// Runs the benchmarks: one by name, `move` for a whole migration, or all of them
    Bench {
        /// A bench of a crate, or `move`
        name: Option<String>,
    },
    /// Fuzzes the parsers on the stable toolchain; needs a C++ compiler
    Fuzz(fuzz::Arguments),
    /// Real KVM hosts on any machine, by emulation
    #[command(subcommand)]
    Lab(lab::Command),
    /// Simulates hand-overs from seeds, faults and all; `--help` goes to the simulator
    #[command(disable_help_flag = true)]
    Simulate {
        /// Go to the simulator as they are: `--seeds N`, `--seed S`, `--without RULE`, `--story`, `--steps`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    match perform(task) {
        Ok(status) => status,
        Err(failure) => {
            say::error(&failure);
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode, Failure> {
    let tree = Tree::load()?;
    match task {
        Task::Lint => lint::run(&tree),
        Task::Test { lab, arguments } => test::run(&tree, lab, &arguments),
        Task::Build { target } => build::run(&tree, target),
        Task::Bench { name } => bench::run(&tree, name.as_deref()),
        Task::Fuzz(arguments) => fuzz::run(&tree, &arguments),
        Task::Simulate { arguments } => simulate::run(&tree, &arguments),
        Task::Lab(command) => return lab::run(&tree, command),
    }?;
    Ok(ExitCode::SUCCESS)
}
