//! `cargo xtask fuzz`: libFuzzer on the stable toolchain.
//!
//! Each binary of `fuzz/` is one target. libFuzzer itself comes with the crate libfuzzer-sys, which
//! builds it with the machine's C++ compiler. Its coverage counters are put in by LLVM's own pass,
//! which the stable compiler runs when asked by name. A run starts from the seeds in `fuzz/corpus`
//! and keeps what it finds in the build folder; only an input that broke something goes to
//! `fuzz/artifacts`.

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fuzz::report::Report;
use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

/// The crate of the fuzz targets.
const CRATE: &str = "ferry-fuzz";

/// Coverage by 8-bit counters in every edge (level 4: indirect calls, too), the table of their
/// places, and the operands of comparisons, from which libFuzzer learns magic values.
/// LLVM, `SanitizerCoverage.cpp`.
const INSTRUMENTATION: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// One input may take this long before it counts as a hang.
const INPUT_SECONDS_MAX: u32 = 5;

/// A target that takes more memory than this has believed a length from outside.
const MEMORY_MIB_MAX: u32 = 512;

/// What to fuzz, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A target of fuzz/; all of them, one after another, if none is named
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u32,
    /// Runs the target on this one input only
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,
}

/// Builds the targets and runs them.
pub(crate) fn run(tree: &Tree, arguments: &Arguments) -> Result<(), Failure> {
    let targets = chosen(tree, arguments.target.as_deref())?;
    let programs = build(tree, &targets)?;
    if let Some(input) = &arguments.replay {
        // Cargo leaves the working folder alone, so the path is as the caller typed it.
        return targets.iter().try_for_each(|name| run::pass(Command::new(programs.join(name)).arg(input)));
    }
    let mut broken = 0;
    for name in &targets {
        let report = fuzz(tree, &programs, name, arguments.seconds)?;
        say::line(&report);
        broken += u32::from(!report.is_fine());
    }
    if broken == 0 {
        say::line(&format!("fuzz: {} targets, nothing found", targets.len()));
        return Ok(());
    }
    Err(Failure::Found(format!("fuzz: {broken} of {} targets found something", targets.len())))
}

/// The targets asked for.
fn chosen<'a>(tree: &'a Tree, name: Option<&str>) -> Result<Vec<&'a str>, Failure> {
    let all: Vec<&str> = tree
        .package(CRATE)
        .iter()
        .flat_map(|package| &package.targets)
        .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
        .map(|target| target.name.as_str())
        .collect();
    let Some(name) = name else { return Ok(all) };
    let found: Vec<&str> = all.iter().copied().filter(|target| *target == name).collect();
    if found.is_empty() {
        let known = all.join(", ");
        return Err(Failure::Unknown(format!("there is no fuzz target `{name}`: choose one of {known}")));
    }
    Ok(found)
}

/// Builds the targets; answers with the folder of the programs.
fn build(tree: &Tree, targets: &[&str]) -> Result<PathBuf, Failure> {
    let host = run::capture(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let host = String::from_utf8_lossy(&host).trim().to_owned();
    let folder = folder(tree);
    // Naming the host as a target keeps the flags away from build scripts and procedural macros,
    // which have no libFuzzer to link with.
    let mut command = run::cargo(tree, &["build", "--package", CRATE, "--features", "libfuzzer"]);
    command.args(["--profile", "fuzz", "--target", &host, "--target-dir"]).arg(&folder);
    for name in targets {
        command.args(["--bin", name]);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    run::pass(&mut command)?;
    Ok(folder.join(host).join("fuzz"))
}

/// Where fuzzing builds and keeps what it finds.
fn folder(tree: &Tree) -> PathBuf {
    tree.target.join("libfuzzer")
}

/// Runs one target for that long.
fn fuzz(tree: &Tree, programs: &Path, name: &str, seconds: u32) -> Result<Report, Failure> {
    let found = folder(tree).join("corpus").join(name);
    let seeds = tree.root.join("fuzz/corpus").join(name);
    let artifacts = tree.root.join("fuzz/artifacts").join(name);
    for folder in [&found, &seeds, &artifacts] {
        fs::create_dir_all(folder).map_err(Failure::file("create", folder))?;
    }
    let mut command = Command::new(programs.join(name));
    // The first folder is where new inputs go.
    command.current_dir(&tree.root).arg(&found).arg(&seeds);
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
    command.arg("-print_final_stats=1");
    let output =
        command.output().map_err(|source| Failure::Start { command: run::shown(&command), source })?;
    Ok(Report::read(name, output.status.success(), &String::from_utf8_lossy(&output.stderr)))
}
