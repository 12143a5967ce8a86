//! This terminal as a guest's serial console: what is typed goes to the guest as it is, Ctrl-C included.
//!
//! Ctrl-A begins a word to the program itself: `x` ends the guest, Ctrl-A types Ctrl-A. Input that is no terminal is
//! passed on byte for byte until it ends. What is typed while the guest does not read waits, up to a bound, so that the
//! program's own words are always heard.
//!
//! However the process ends, but by SIGKILL, the terminal is as it was; also while the process is stopped. A terminal that goes away
//! is no end: the guest runs on, and is reached by its control socket. In the background it runs on as well: what is typed is somebody else's then,
//! and the terminal is left as it is found.
//!
//! Facts: termios(3), `cfmakeraw`; signal(7); tcgetpgrp(3); `__tty_check_change` in `drivers/tty/tty_jobctrl.c`.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGXCPU,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use vmm_sys_util::signal::{Error as SignalError, block_signal};

use crate::control::Reply;
use crate::control::host::{Job, Shared};
use crate::error::CliError;
use crate::output;

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// What ends the guest after it.
const END: u8 = b'x';

/// How long input waits before the guest is asked again whether it takes more.
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// How long the guest's end is waited for before that is said.
const END_SOON: Duration = Duration::from_secs(1);

/// How long the background lasts before the terminal is looked at again: a shell that brings a running job to the front need not say so.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Bytes that are read at once, and how many such pieces wait for the guest.
const PIECE_BYTES: usize = 256;
const PIECES_MAX: usize = 64;

/// Standard input in raw mode, while it is this process's; dropping it puts the terminal back as it was.
#[derive(Debug)]
pub(crate) struct Raw {
    /// None until the terminal is this process's for the first time: in the background it is as somebody else needs it.
    before: Option<Termios>,
}

impl Raw {
    /// Changes standard input, if it is a terminal.
    pub(crate) fn enter() -> Result<Option<Self>, CliError> {
        if !rustix::termios::isatty(std::io::stdin()) {
            return Ok(None);
        }
        let mut raw = Self { before: None };
        if !is_behind() {
            raw.set().map_err(|error| {
                CliError::plain(format!("this terminal cannot be made a console: {error}"))
            })?;
        }
        Ok(Some(raw))
    }

    fn set(&mut self) -> rustix::io::Result<()> {
        let mut raw = if let Some(before) = &self.before {
            before.clone()
        } else {
            let before = tcgetattr(std::io::stdin())?;
            restore_after_panic(before.clone());
            self.before.insert(before).clone()
        };
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
    }

    fn restore(&self) {
        let restored = self.before.as_ref().map_or(Ok(()), restore);
        if let Err(error) = restored {
            tracing::warn!(%error, "the terminal stays in raw mode: `reset` puts it back");
        }
    }
}

/// Puts the terminal back, unless it is somebody else's, who has made it what they need.
fn restore(before: &Termios) -> rustix::io::Result<()> {
    if is_behind() { Ok(()) } else { tcsetattr(std::io::stdin(), OptionalActions::Now, before) }
}

/// The main thread's panic ends the process while other threads still hold the terminal.
fn restore_after_panic(before: Termios) {
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() == Some("main") {
            let _ = restore(&before);
        }
        said(panic);
    }));
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.restore();
    }
}

/// What the process holds of the outside while the guest's console is there.
#[derive(Debug, Default)]
pub(crate) struct Console {
    held: Mutex<Option<Raw>>,
}

impl Console {
    /// Keeps the terminal until the end, which puts it back.
    pub(crate) fn begin(&self, raw: Option<Raw>) {
        *self.held() = raw;
    }

    /// The terminal is as it was.
    pub(crate) fn end(&self) {
        let mut held = self.held();
        // Before the lock: whoever is told to stop waits until it is put back.
        drop(held.take());
    }

    /// Makes the terminal the console again and says whether it is: in the background it is somebody else's.
    fn take_up(&self) -> bool {
        let mut held = self.held();
        if !is_in_front() {
            return false;
        }
        if let Some(Err(error)) = held.as_mut().map(Raw::set) {
            tracing::warn!(%error, "the terminal cannot be the console again");
        }
        true
    }

    /// Waits in the background until this process is in front; false when the terminal is gone.
    fn await_front(&self) -> bool {
        loop {
            std::thread::park_timeout(BETWEEN_LOOKS);
            if self.take_up() {
                return true;
            }
            if tcgetattr(std::io::stdin()).is_err() {
                return false;
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Raw>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what is asked of the process from outside; the rest is done where SIGTERM is.
    fn follow(&self, signal: i32) {
        match signal {
            SIGHUP => tracing::info!("the terminal went away; the guest runs on"),
            SIGCONT => {
                self.take_up();
            }
            signal => {
                // Held meanwhile: nobody makes it raw before the process stops.
                let held = self.held();
                if let Some(raw) = &*held {
                    raw.restore();
                }
                if let Err(error) = emulate_default_handler(signal) {
                    tracing::warn!(%error, signal, "a signal has no effect");
                }
            }
        }
    }
}

/// Whether the terminal is this process's.
fn is_in_front() -> bool {
    tcgetpgrp(std::io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// Whether it is another's of the same session. Neither is so of a terminal of no session or another.
fn is_behind() -> bool {
    tcgetpgrp(std::io::stdin()).is_ok_and(|group| group != rustix::process::getpgrp())
}

/// Lets a process in the background, and its guest, run on: reading the terminal there, changing it and (with `stty tostop`) writing to
/// it would stop all its threads. Where the signals for that are blocked, the kernel sends none: a read fails, the others pass. Threads
/// inherit it, so this comes before them.
pub(crate) fn outlive_background() {
    for signal in [SIGTTIN, SIGTTOU] {
        match block_signal(signal) {
            Ok(()) | Err(SignalError::SignalAlreadyBlocked(_)) => {}
            Err(error) => tracing::warn!(%error, signal, "the background stops this process"),
        }
    }
}

/// Passes standard input on to the guest that runs here, in threads of their own.
pub(crate) fn pass_on(shared: &Arc<Shared>, is_terminal: bool) -> Result<(), CliError> {
    let failed = |error| CliError::plain(format!("no thread for the console: {error}"));
    if is_terminal {
        let all = [SIGALRM, SIGCONT, SIGHUP, SIGQUIT, SIGTSTP, SIGUSR1, SIGUSR2, SIGXCPU];
        let mut signals = Signals::new(all).map_err(failed)?;
        let shared = Arc::clone(shared);
        spawn("ferry-terminal", move || signals.forever().for_each(|signal| shared.console.follow(signal)))
            .map_err(failed)?;
    }
    let (typed, waiting) = bounded(PIECES_MAX);
    let guests = Arc::clone(shared);
    spawn("ferry-typing", move || type_in(&guests, &waiting)).map_err(failed)?;
    let shared = Arc::clone(shared);
    spawn("ferry-console", move || read(&shared, is_terminal, &typed)).map_err(failed)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

/// Reads until the input ends or the guest has ended because somebody here wanted it.
fn read(shared: &Shared, is_terminal: bool, typed: &Sender<Vec<u8>>) {
    let mut escape = Escape { is_heard: is_terminal, is_open: false };
    let mut buffer = [0; PIECE_BYTES];
    let mut end = None;
    loop {
        let length = match std::io::stdin().read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // So fails a read in the background.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) && shared.console.await_front() => {
                continue;
            }
            Ok(length @ 1..) => length,
            Ok(0) | Err(_) => return,
        };
        let (piece, is_over) = escape.filter(buffer.get(..length).unwrap_or_default());
        if is_over && ends(shared, &mut end) {
            return;
        }
        if end.is_none() {
            keep(typed, piece, is_terminal);
        }
    }
}

/// Asks for the guest's end, once, and says where it is waited for; true when it came.
fn ends(shared: &Shared, asked: &mut Option<Receiver<Reply>>) -> bool {
    let answers = asked.get_or_insert_with(|| {
        let (replies, answers) = bounded(1);
        let (_hears, heard) = bounded(0);
        let _ = shared.jobs.send(Job::Stop { replies, heard });
        answers
    });
    if answers.recv_timeout(END_SOON) != Err(RecvTimeoutError::Timeout) {
        return true;
    }
    // The terminal is raw: it returns no carriage by itself.
    output::note(
        "\r\nferry: the end of the guest is waited for: while it is being moved it ends only if it stays here; `ferry status` \
         shows how that is\r",
    );
    false
}

/// Who types is heard on however much waits already, and what is more than that is lost; a file or a pipe can wait itself.
fn keep(typed: &Sender<Vec<u8>>, piece: Vec<u8>, is_terminal: bool) {
    if !is_terminal {
        let _ = typed.send(piece);
    } else if typed.try_send(piece).is_err() {
        tracing::warn!("the guest does not read: what is typed is lost");
    }
}

/// Gives the guest what was typed.
fn type_in(shared: &Shared, waiting: &Receiver<Vec<u8>>) {
    for piece in waiting {
        send(shared, &piece);
    }
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
        let (typed, waiting) = bounded(1);
        keep(&typed, vec![1], true);
        keep(&typed, vec![2], true);
        assert_eq!(waiting.try_iter().collect::<Vec<_>>(), [[1]], "who types does not wait");
        let mut piped = Escape { is_heard: false, is_open: false };
        assert_eq!(piped.filter(b"\x01x"), (b"\x01x".to_vec(), false));
    }
}
