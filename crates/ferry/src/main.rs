//! The `ferry` program: moves running KVM guests between hosts that are not alike.

#![forbid(unsafe_code)]

mod artefact;
mod bench;
mod children;
mod cli;
mod control;
mod error;
mod folder;
mod form;
mod output;
mod progress;
mod size;
mod spread;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Bench, BenchArgs, Cli, Verb};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error, &std::env::args_os().collect::<Vec<_>>()),
    };
    init_tracing();
    let format = cli.output;
    let done = match cli.verb {
        Verb::Demo(args) => verbs::demo::demo(&args, format),
        Verb::Run(args) => verbs::run::run(&args, format),
        Verb::Receive(args) => verbs::receive::receive(&args, format),
        Verb::Migrate(args) => verbs::migrate::migrate(&args, format),
        Verb::Probe(args) => verbs::probe::probe(&args, format),
        Verb::Check(args) => verbs::check::check(&args, format),
        Verb::Inspect(args) => verbs::check::inspect(&args, format),
        Verb::Status(args) => verbs::status::status(&args, format),
        Verb::Bench(BenchArgs { what: Bench::Precopy(args) }) => bench::precopy(&args, format),
        Verb::Watch(args) => verbs::watch::watch(&args, format),
        Verb::Cancel(args) => verbs::watch::cancel(&args, format),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => output::error(&error, format),
    }
}

/// Diagnostics go to standard error, and only what `RUST_LOG` asks for.
fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
