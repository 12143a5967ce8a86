//! The `ferry` program: moves running KVM guests between hosts that are not alike.

#![forbid(unsafe_code)]

mod artefact;
mod bench;
mod catalog;
mod children;
mod cli;
mod control;
mod error;
mod folder;
mod form;
mod noise;
mod output;
mod progress;
mod size;
mod spread;
mod terminal;
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
    outlive_full_files();
    let format = cli.output;
    let done = match cli.verb {
        Verb::Demo(args) => verbs::demo::demo(&args, format),
        Verb::Run(args) => verbs::run::run(&args, format),
        Verb::Receive(args) => verbs::receive::receive(&args, format),
        Verb::Migrate(args) => verbs::migrate::migrate(&args, format),
        Verb::Import(args) => verbs::import::import(&args, format),
        Verb::Probe(args) => verbs::probe::probe(&args, format),
        Verb::Check(args) => verbs::check::check(&args, format),
        Verb::Status(args) => verbs::status::status(&args, format),
        Verb::Bench(BenchArgs { what: Bench::Precopy(args) }) => bench::precopy(&args, format),
        Verb::Bench(BenchArgs { what: Bench::Journal(args) }) => bench::journal(&args, format),
        Verb::Watch(args) => verbs::watch::watch(&args, format),
        Verb::Inspect(args) => verbs::inspect::inspect(&args, format),
        Verb::Completions(args) => Ok(verbs::completions::completions(&args)),
        Verb::Cancel(args) => verbs::watch::cancel(&args, format),
        Verb::Recover(args) => verbs::recover::recover(&args, format),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => output::error(&error, format),
    }
}

/// A file that may not grow any further (`RLIMIT_FSIZE`, getrlimit(2)) is a write that fails, and no end
/// of the process that has the guest.
fn outlive_full_files() {
    let unused = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, unused) {
        tracing::warn!(%error, "SIGXFSZ still ends this process");
    }
}

/// `SIGXFSZ` of x86-64 and arm64 (include/uapi/asm-generic/signal.h).
const SIGXFSZ: i32 = 25;

/// Diagnostics go to standard error, and only what `RUST_LOG` asks for.
fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
