//! Programs that must not outlive this process.
//!
//! `setpriv` (util-linux) asks the kernel to kill the program when the thread that started it ends,
//! whatever ends it (`PR_SET_PDEATHSIG`); asking here would take unsafe code. Without `setpriv` a
//! program still ends when its value is dropped. So whoever starts a host keeps the thread alive.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::time::Duration;

/// Starts the program if its parent is still the process that it is given first. It may have died before
/// `setpriv` asked the kernel, and nobody would be told of its end.
const IF_PARENT_LIVES: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;

/// A command that dies with the thread that starts it.
pub(crate) fn tied(program: &OsStr) -> Command {
    tied_to(std::process::id(), program)
}

fn tied_to(parent: u32, program: &OsStr) -> Command {
    // A program that is not there is told by its own name.
    let (Some(setpriv), Some(_)) = (in_path("setpriv"), in_path(program)) else {
        return Command::new(program);
    };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--", "/bin/sh", "-c", IF_PARENT_LIVES]);
    command.arg(parent.to_string()).arg(program);
    command
}

/// How many words of a command line tie the program behind them; none in one that is not tied.
pub(crate) fn tie_length(words: &[&OsStr]) -> usize {
    words.iter().position(|word| *word == IF_PARENT_LIVES).map_or(0, |at| at + 2)
}

/// The file of a program in the folders of `PATH`, or where its own path says.
pub(crate) fn in_path(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(&program)).find(|file| file.is_file())
}

/// A started program, killed when dropped.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// How a program ended whose streams have ended already; none if it runs on all the same.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        // The streams end a moment before the status can be had.
        let (_held, moment) = mpsc::channel::<()>();
        for _ in 0..100 {
            if let Some(status) = self.0.try_wait().ok()? {
                return Some(status);
            }
            let _ = moment.recv_timeout(Duration::from_millis(10));
        }
        None
    }

    /// Ends the program, if it has not ended already.
    pub(crate) fn end(&mut self) {
        // An error says that it has.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Stdio;
    use std::thread;

    use super::*;

    #[test]
    fn a_program_ends_with_the_thread_that_started_it_and_with_its_value() {
        let start = || {
            let mut command = tied(OsStr::new("sh"));
            command.args(["-c", "echo; exec sleep 600"]).stdout(Stdio::piped());
            let mut running = Running(command.spawn().unwrap());
            // It says a line once `setpriv` has asked the kernel.
            let mut output = running.0.stdout.take().unwrap();
            assert_eq!(output.read(&mut [0]).unwrap(), 1);
            (running, output)
        };
        // The pipe ends when nobody has it any more.
        let (dropped, mut output) = start();
        drop(dropped);
        assert_eq!(output.read(&mut [0]).unwrap(), 0);
        if in_path("setpriv").is_none() {
            println!("skipped the rest: this machine has no setpriv");
            return;
        }
        let (_left, mut output) = thread::spawn(start).join().unwrap();
        assert_eq!(output.read(&mut [0]).unwrap(), 0);
        // Of a process that was gone before the kernel was asked, nothing starts.
        let orphan = tied_to(u32::MAX, OsStr::new("echo")).output().unwrap();
        assert!(!orphan.status.success() && orphan.stdout.is_empty(), "{orphan:?}");
    }
}
