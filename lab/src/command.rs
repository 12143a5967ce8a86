//! Runs programs of this machine to their end, and keeps what they said.

use std::io;
use std::iter;
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::process;

/// Runs it; answers with its standard output.
pub(crate) fn capture(command: &mut Command) -> Result<Vec<u8>, Error> {
    let output = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| not_started(command, &error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Command { command: shown(command), reason: last_words(&output.stderr, &output.stdout) })
}

fn not_started(command: &Command, error: &io::Error) -> Error {
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() == io::ErrorKind::NotFound && !program.contains('/') {
        return Error::NoApt { program };
    }
    Error::Command { command: shown(command), reason: error.to_string() }
}

/// The last lines of what a program said: its reason stands there.
fn last_words(error: &[u8], output: &[u8]) -> String {
    let said = if error.is_empty() { output } else { error };
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(3);
    let mut words = lines[from..].join(" / ");
    if text.contains("No space left on device") {
        words.push_str(" (free some space, or choose another folder by FERRY_LAB_CACHE)");
    }
    if words.is_empty() { "it said nothing".to_owned() } else { words }
}

/// The program's name and its first arguments; lists of packages are too long to read, and what ties a
/// program to this one says nothing.
fn shown(command: &Command) -> String {
    let words: Vec<_> = iter::once(command.get_program()).chain(command.get_args()).collect();
    let mut words = words[process::tie_length(&words)..].iter();
    let mut plain = Vec::new();
    while let Some(word) = words.next() {
        if *word == "-o" {
            words.next();
        } else {
            plain.push(word.to_string_lossy());
        }
    }
    let more = if plain.len() > 5 { " …" } else { "" };
    plain.truncate(5);
    format!("{}{more}", plain.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_the_last_words_and_a_missing_program_is_named() {
        let failed = capture(Command::new("sh").args(["-c", "echo one >&2; echo two >&2; exit 3"]));
        assert!(failed.unwrap_err().to_string().ends_with("one / two"));
        let missing = capture(&mut Command::new("ferry-lab-no-such-program")).unwrap_err();
        assert!(matches!(missing, Error::NoApt { program } if program == "ferry-lab-no-such-program"));
        assert_eq!(capture(Command::new("echo").arg("a")).unwrap(), b"a\n");
        let mut tied = process::tied("echo".as_ref());
        assert_eq!(shown(tied.args(["a", "-o", "x", "b", "c", "d", "e"])), "echo a b c d …");
        assert_eq!(capture(&mut tied).unwrap(), b"a -o x b c d e\n");
    }
}
