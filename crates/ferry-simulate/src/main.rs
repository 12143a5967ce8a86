//! What `cargo xtask simulate` runs: many seeds, or one with its story.

#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::Parser;
use ferry_protocol::{Rule, Rules};
use ferry_simulate::{Plan, Telling, search, shrink, simulate};

/// Simulates hand-overs of a guest from many seeds, and says which of them break what
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds: 10000, or 1 if a seed is named
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// This seed alone; with `--seeds` the first of them
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Without one of the rules: then a violation must be found
    #[arg(long, value_name = "RULE")]
    without: Option<Rule>,
    /// Tells what happened, as a person would
    #[arg(long)]
    story: bool,
    /// Tells every message, job and decision
    #[arg(long, conflicts_with = "story")]
    steps: bool,
    /// How many threads; as many as there are processors, if it is not said
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl Arguments {
    fn rules(&self) -> Rules {
        self.without.map_or(Rules::default(), Rules::without)
    }

    fn telling(&self) -> Telling {
        match (self.steps, self.story) {
            (true, _) => Telling::Steps,
            (_, true) => Telling::Story,
            _ => Telling::Nothing,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let found = match (arguments.seed, arguments.seeds) {
        (Some(seed), None | Some(1)) => one(&arguments, seed),
        (first, count) => many(&arguments, first.unwrap_or(0), count.unwrap_or(10_000)),
    };
    // With all rules nothing may be found; without one something must.
    if found == arguments.without.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(arguments: &Arguments, seed: u64) -> bool {
    let plan = Plan::of(seed);
    print_faults(&plan);
    let report = simulate(&plan, arguments.rules(), arguments.telling());
    report.story.iter().for_each(|line| say(line));
    let Some(violation) = report.violation else {
        say(&format!("seed {seed}: {}\nnothing is broken", report.tally));
        return false;
    };
    say(&format!("seed {seed}: {violation}"));
    tell_shrunk(&plan, arguments, violation.broken);
    true
}

fn many(arguments: &Arguments, first: u64, count: u64) -> bool {
    let threads =
        arguments.threads.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let began = Instant::now();
    let batch = search(first, count, arguments.rules(), threads);
    let seconds = began.elapsed().as_secs_f64().max(0.001);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let a_minute = batch.seeds as f64 * 60.0 / seconds;
    say(&format!(
        "{} seeds in {seconds:.1} s: {a_minute:.0} seeds a minute on {threads} threads",
        batch.seeds
    ));
    say(&batch.tally);
    let Some(failing) = batch.failing else {
        say(&"nothing is broken");
        return false;
    };
    say(&format!("seed {}: {}", failing.seed, failing.violation));
    tell_shrunk(&Plan::of(failing.seed), arguments, failing.violation.broken);
    true
}

fn tell_shrunk(plan: &Plan, arguments: &Arguments, broken: ferry_simulate::Broken) {
    let small = shrink(plan, arguments.rules(), broken);
    say(&"the shortest story that breaks it:");
    print_faults(&small);
    let telling = if arguments.steps { Telling::Steps } else { Telling::Story };
    simulate(&small, arguments.rules(), telling).story.iter().for_each(|line| say(&format!("  {line}")));
    let without = arguments.without.map(|rule| format!(" --without {rule}")).unwrap_or_default();
    say(&format!("again: cargo xtask simulate --seed {}{without}", plan.seed));
}

fn print_faults(plan: &Plan) {
    for fault in &plan.faults {
        say(&format!("  fault: {fault}"));
    }
}

/// One line for the reader; whoever reads no further is no error.
fn say(line: &dyn Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
