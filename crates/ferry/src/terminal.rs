//! This terminal as a guest's serial console: what is typed goes to the guest as it is, Ctrl-C included.
//!
//! Ctrl-A begins a word to the program itself: `x` ends the guest, Ctrl-A types Ctrl-A. Input that is no terminal is
//! passed on byte for byte until it ends. Facts: termios(3), `cfmakeraw`.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::control::host::{Job, Shared};
use crate::error::CliError;

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// What ends the guest after it.
const END: u8 = b'x';

/// How long input waits before the guest is asked again whether it takes more.
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// Standard input in raw mode; dropping it puts the terminal back as it was.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Changes standard input, if it is a terminal.
    pub(crate) fn enter() -> Result<Option<Self>, CliError> {
        let input = std::io::stdin();
        if !rustix::termios::isatty(&input) {
            return Ok(None);
        }
        let failed = |error| CliError::plain(format!("this terminal cannot be made a console: {error}"));
        let before = tcgetattr(&input).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before) {
            tracing::warn!(%error, "the terminal stays in raw mode: `reset` puts it back");
        }
    }
}

/// Passes standard input on to the guest that runs here, in a thread of its own.
pub(crate) fn pass_on(shared: &Arc<Shared>, is_terminal: bool) -> Result<(), CliError> {
    let shared = Arc::clone(shared);
    let run = move || {
        let mut escape = Escape { is_heard: is_terminal, is_open: false };
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            let (typed, is_over) = escape.filter(buffer.get(..length).unwrap_or_default());
            send(&shared, &typed);
            if is_over {
                let (replies, _answers) = bounded(1);
                let (_hears, heard) = bounded(0);
                let _ = shared.jobs.send(Job::Stop { replies, heard });
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("ferry-console".into()).spawn(run);
    thread.map(drop).map_err(|error| CliError::plain(format!("no thread for the console: {error}")))
}

/// Waits until the guest has taken all of it.
fn send(shared: &Shared, mut typed: &[u8]) {
    while !typed.is_empty() {
        let taken = shared.type_in(typed);
        typed = typed.get(taken..).unwrap_or_default();
        if taken == 0 {
            std::thread::park_timeout(BETWEEN_TRIES);
        }
    }
}

/// Whether Ctrl-A was typed last.
#[derive(Debug)]
struct Escape {
    is_heard: bool,
    is_open: bool,
}

impl Escape {
    /// What of the input is for the guest, and whether its end is wanted.
    fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut typed = Vec::with_capacity(input.len());
        for &byte in input {
            match (std::mem::take(&mut self.is_open), byte) {
                (true, END) => return (typed, true),
                (true, ESCAPE) => typed.push(byte),
                (true, other) => typed.extend([ESCAPE, other]),
                (false, ESCAPE) if self.is_heard => self.is_open = true,
                (false, other) => typed.push(other),
            }
        }
        (typed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_is_a_word_to_the_program_and_all_else_is_the_guests() {
        let mut escape = Escape { is_heard: true, is_open: false };
        assert_eq!(escape.filter(b"ls\x03\r"), (b"ls\x03\r".to_vec(), false));
        assert_eq!(escape.filter(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(escape.filter(b"\x01b\x01c"), (b"\x01b\x01c".to_vec(), false));
        assert_eq!(escape.filter(b"q\x01xrest"), (b"q".to_vec(), true));
        let mut piped = Escape { is_heard: false, is_open: false };
        assert_eq!(piped.filter(b"\x01x"), (b"\x01x".to_vec(), false));
    }
}
