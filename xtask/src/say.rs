//! What xtask itself prints; all of it goes through here.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the place where this program prints")]

use std::fmt::Display;

/// Prints one line of a result.
pub(crate) fn line(text: &dyn Display) {
    println!("{text}");
}

/// Says what is about to run, so that its own output can be told apart.
pub(crate) fn step(text: &dyn Display) {
    println!("==> {text}");
}

/// Says something that a reader should know but that is no failure.
pub(crate) fn notice(text: &dyn Display) {
    println!("notice: {text}");
}

/// Says how something goes on, beside standard output, which belongs to a program.
pub(crate) fn aside(text: &dyn Display) {
    eprintln!("{text}");
}

/// Prints a failure with all its causes on one line.
pub(crate) fn error(failure: &dyn std::error::Error) {
    eprint!("error: {failure}");
    let mut cause = failure.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
}
