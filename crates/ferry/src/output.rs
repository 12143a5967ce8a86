//! The one place that writes to standard output and standard error.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use serde::Serialize;
use serde_json::json;

use crate::cli::Format;
use crate::error::{CliError, Kind};

/// One line for people, on standard output. Whether anybody hears it is nothing that ends a guest.
pub(crate) fn line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // A reader at the other end of a pipe waits for whole lines.
    if let Err(error) = writeln!(stdout, "{text}").and_then(|()| stdout.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        note(&format!("ferry: standard output cannot be written: {error}"));
    }
}

/// Lines for people, on standard output.
pub(crate) fn lines(lines: &[String]) {
    for text in lines {
        line(text);
    }
}

/// One line for people beside the result, on standard error.
pub(crate) fn note(text: &str) {
    // Who does not hear it cannot be told otherwise, either.
    let _ = writeln!(std::io::stderr(), "{text}");
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

/// What clap says of the command line: help as it is, errors as ours.
pub(crate) fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { Kind::Usage.exit_status() } else { 0 });
    }
    self::error(&CliError::usage(sentence(&error.to_string())), wanted_format(arguments))
}

/// clap's first paragraph and its tips as one line; the rest is in the help.
fn sentence(text: &str) -> String {
    let first = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let tips = text.lines().map(str::trim).filter_map(|line| line.strip_prefix("tip: "));
    let said: Vec<_> = first.collect::<Vec<_>>().join(" ").split_whitespace().map(str::to_owned).collect();
    let said = said.join(" ");
    let said = said.strip_prefix("error: ").unwrap_or(&said).to_owned();
    let parts: Vec<_> = std::iter::once(said).chain(tips.map(str::to_owned)).collect();
    format!("{}; see `ferry --help`", parts.join("; "))
}

/// The format that a command line asks for which cannot be read as a whole.
fn wanted_format(arguments: &[OsString]) -> Format {
    let follows = arguments.windows(2).any(|pair| pair == ["--output", "json"]);
    if follows || arguments.iter().any(|argument| argument == "--output=json") {
        Format::Json
    } else {
        Format::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_says_becomes_one_line() {
        let clap =
            "error: unrecognized subcommand 'flyy'\n\n  tip: a similar one exists: 'fly'\n\nUsage: x\n";
        let line = "unrecognized subcommand 'flyy'; a similar one exists: 'fly'; see `ferry --help`";
        assert_eq!(sentence(clap), line);
        let missing = "error: the following were not provided:\n  --to <ADDR>\n\nUsage: x\n";
        assert_eq!(sentence(missing), "the following were not provided: --to <ADDR>; see `ferry --help`");
    }

    #[test]
    fn the_format_is_found_in_a_broken_command_line() {
        let format = |words: &[&str]| wanted_format(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(format(&["ferry", "flyy", "--output", "json"]), Format::Json);
        assert_eq!(format(&["ferry", "--output=json", "flyy"]), Format::Json);
        assert_eq!(format(&["ferry", "flyy", "--output", "text"]), Format::Text);
    }
}
