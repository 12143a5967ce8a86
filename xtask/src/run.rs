//! Starts other programs, cargo above all, and says what went wrong with them.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

use crate::say;
use crate::tree::Tree;

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A program could not be started.
    #[error("cannot start `{command}`")]
    Start {
        /// The command line.
        command: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A program ended badly; it has said why itself.
    #[error("`{command}` failed ({status})")]
    Ended {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A program printed something else than the JSON that was asked of it.
    #[error("`{command}` printed something that is not the expected JSON")]
    Json {
        /// The command line.
        command: String,
        /// Where it stops being so.
        source: serde_json::Error,
    },
    /// A measurement over a loopback socket failed.
    #[error("cannot measure over the loopback interface")]
    Loopback(#[source] io::Error),
    /// The lab could not do what it was asked for.
    #[error(transparent)]
    Lab(#[from] ferry_lab::Error),
    /// Findings were printed one by one; this closes the list.
    #[error("{0}")]
    Found(String),
    /// A task was asked for something that is not there.
    #[error("{0}")]
    Unknown(String),
}

impl Failure {
    /// A closure for `map_err` that names the file and what was tried on it.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// The cargo that runs xtask, started in the project's root.
pub(crate) fn cargo(tree: &Tree, arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(&tree.root).args(arguments);
    command
}

/// Runs a command whose output goes straight to the reader.
pub(crate) fn pass(command: &mut Command) -> Result<(), Failure> {
    let shown = shown(command);
    say::step(&shown);
    let status = command.status().map_err(|source| Failure::Start { command: shown.clone(), source })?;
    if status.success() { Ok(()) } else { Err(Failure::Ended { command: shown, status }) }
}

/// Runs a command for what it prints on standard output; its standard error goes to the reader.
pub(crate) fn capture(command: &mut Command) -> Result<Vec<u8>, Failure> {
    let shown = shown(command);
    let Output { status, stdout, .. } = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Failure::Start { command: shown.clone(), source })?;
    if status.success() { Ok(stdout) } else { Err(Failure::Ended { command: shown, status }) }
}

/// A command as one would type it: the program's name without its folder, then the arguments.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut line = name.to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
