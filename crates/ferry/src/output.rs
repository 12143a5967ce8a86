//! The one place that writes to standard output and standard error.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this module is the program's voice")]

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use crate::cli::Format;
use crate::error::{CliError, Kind};

/// One line for people, on standard output.
pub(crate) fn line(text: &str) {
    println!("{text}");
    // A reader at the other end of a pipe waits for whole lines.
    let _ = std::io::stdout().flush();
}

/// Lines for people, on standard output.
pub(crate) fn lines(lines: &[String]) {
    for text in lines {
        line(text);
    }
}

/// One line for people beside the result, on standard error.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// One JSON document on one line.
pub(crate) fn json(document: &impl Serialize) {
    match serde_json::to_string(document) {
        Ok(text) => line(&text),
        Err(error) => note(&format!("a document could not be written: {error}")),
    }
}

/// An error, in the form that was asked for, and its exit status.
pub(crate) fn error(error: &CliError, format: Format) -> ExitCode {
    match format {
        Format::Text => note(&format!("ferry: {}", error.message)),
        Format::Json => {
            let document = json!({
                "error": { "kind": error.kind.name(), "message": error.message, "findings": error.findings }
            });
            note(&document.to_string());
        }
    }
    ExitCode::from(error.kind.exit_status())
}

/// What clap says of the command line: help on standard output, errors on standard error.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Kind::Usage.exit_status() } else { 0 })
}
