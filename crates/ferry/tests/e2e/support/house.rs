//! A folder of its own for the processes of one test: they see no other test's guests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::process::{Deaths, Done, Process};
use super::{journal, wait_until};

/// Flags of a guest that is quick to move.
pub(crate) const CHURN: &[&str] = &["--memory=16M", "--payload=churn", "--rate=8M", "--working-set=2M"];

/// The same that only waits.
pub(crate) const IDLE: &[&str] = &["--memory=16M", "--payload=idle"];

/// How often a move is tried whose waits are short.
const TRIES: u32 = 5;

/// A place for processes.
#[derive(Debug)]
pub(crate) struct House {
    folder: TempDir,
    backend: &'static str,
    /// How long every wait of a migration lasts.
    wait_limit: Option<Duration>,
    deaths: Deaths,
}

impl House {
    pub(crate) fn new(backend: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        Self { folder, backend, wait_limit: None, deaths: Deaths::default() }
    }

    /// The same with short waits.
    pub(crate) fn hasty(backend: &'static str, wait_limit: Duration) -> Self {
        Self { wait_limit: Some(wait_limit), ..Self::new(backend) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of control sockets.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.path("run/ferry")
    }

    /// The folder of journals.
    pub(crate) fn journals(&self) -> PathBuf {
        self.path("run/state")
    }

    /// The program with these words, in this house.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferry"));
        command.args(words);
        self.at_home(command)
    }

    /// Where sockets and journals of this house are.
    fn at_home(&self, mut command: Command) -> Command {
        command.env("XDG_RUNTIME_DIR", self.path("run")).env("FERRY_STATE_DIR", self.journals());
        command.env_remove("RUST_LOG");
        command
    }

    pub(crate) fn start(&self, command: Command) -> Process {
        Process::start(command, self.deaths.clone())
    }

    /// Runs the program to its end.
    pub(crate) fn ferry(&self, words: &[&str]) -> Done {
        self.start(self.command(words)).end()
    }

    /// The same with `--output json`.
    pub(crate) fn json(&self, words: &[&str]) -> Done {
        self.ferry(&[words, &["--output", "json"]].concat())
    }

    /// The program with these words and one more descriptor, as a shell opens it: `0<FILE`.
    pub(crate) fn redirected(&self, words: &[&str], redirection: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" {redirection}"), env!("CARGO_BIN_EXE_ferry")]);
        command.args(words);
        self.at_home(command)
    }

    fn with_hooks(&self, words: &[&str], journal: bool) -> Process {
        self.hooked(self.command(words), journal)
    }

    fn hooked(&self, mut command: Command, journal: bool) -> Process {
        command.args(["--output=json", "--die-with-parent", "--backend", self.backend]);
        if journal {
            command.arg("--run-log").arg(self.path("runs"));
        }
        if let Some(limit) = self.wait_limit {
            command.arg(format!("--wait-limit={}", limit.as_millis()));
        }
        self.start(command)
    }

    /// A guest that works.
    pub(crate) fn guest(&self, id: &str, flags: &[&str]) -> Process {
        self.born(id, flags, true)
    }

    /// The same for a second guest: the journal is of one alone.
    pub(crate) fn guest_without_journal(&self, id: &str, flags: &[&str]) -> Process {
        self.born(id, flags, false)
    }

    /// A guest that works, as soon as no other process of this machine has one of its name: who waited for it
    /// may still be writing down that it does not come.
    pub(crate) fn guest_again(&self, id: &str, flags: &[&str]) -> Process {
        let words = [&["run", "--id", id], flags].concat();
        let mut born = None;
        wait_until("its name is free", || {
            let process = self.with_hooks(&words, true);
            let document = process.first_word();
            born = document.map(|document| process.found_by("running", &document));
            born.is_some()
        });
        let guest = born.unwrap();
        guest.await_work();
        guest
    }

    /// A guest with a kernel, which does not say of itself whether it works.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn booted(&self, id: &str, flags: &[&str]) -> Process {
        self.with_hooks(&[&["run", "--id", id], flags].concat(), true).ready("running")
    }

    fn born(&self, id: &str, flags: &[&str], journal: bool) -> Process {
        let guest = self.with_hooks(&[&["run", "--id", id], flags].concat(), journal).ready("running");
        guest.await_work();
        guest
    }

    /// A process that waits for a guest on a free port.
    pub(crate) fn receiver(&self, flags: &[&str]) -> Process {
        self.receiver_at("127.0.0.1:0", flags)
    }

    pub(crate) fn receiver_at(&self, address: &str, flags: &[&str]) -> Process {
        self.with_hooks(&[&["receive", "--listen", address], flags].concat(), true).ready("waiting")
    }

    /// A process that takes its guest from a file.
    pub(crate) fn reading(&self, place: &str, flags: &[&str], journal: bool) -> Process {
        self.begins_to_read(place, flags, journal).ready("arrived")
    }

    /// The same, which may not come to have it.
    pub(crate) fn begins_to_read(&self, place: &str, flags: &[&str], journal: bool) -> Process {
        self.with_hooks(&[&["receive", "--from", place], flags].concat(), journal)
    }

    /// A pipe with a name.
    pub(crate) fn pipe(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path
    }

    /// A process that waits for a guest from a pipe, and once it is there says that it has arrived.
    pub(crate) fn reading_a_pipe(&self, pipe: &Path, flags: &[&str]) -> Process {
        let words = [&["receive", "--from", "fd:0"], flags].concat();
        self.hooked(self.redirected(&words, &format!("0<'{}'", pipe.display())), true)
    }

    /// `ferry migrate --wait` into a pipe, under way.
    pub(crate) fn migrating_into_a_pipe(&self, id: &str, pipe: &Path, flags: &[&str]) -> Process {
        let words = [&["migrate", id, "--to", "fd:7", "--wait", "--output=json"], flags].concat();
        self.start(self.redirected(&words, &format!("7>'{}'", pipe.display())))
    }

    /// `ferry migrate --wait`, under way.
    pub(crate) fn migrating(&self, id: &str, to: &Process) -> Process {
        self.migrating_to(id, &to.listen, &[])
    }

    /// The same to any place.
    pub(crate) fn migrating_to(&self, id: &str, place: &str, flags: &[&str]) -> Process {
        let words = [&["migrate", id, "--to", place, "--wait", "--output=json"], flags].concat();
        self.start(self.command(&words))
    }

    /// `ferry migrate --wait` to its end.
    pub(crate) fn migrate(&self, id: &str, to: &str) -> Done {
        self.json(&["migrate", id, "--to", to, "--wait"])
    }

    /// Moves the guest from one process to another and holds everything against what it should be.
    pub(crate) fn moves(&self, id: &str, from: Process, to: &Process) -> Value {
        let epoch = from.status()["epoch"].as_u64().unwrap();
        let report = self.moves_in_time(id, to);
        assert_eq!((&report["outcome"], &report["custody"]), (&"moved".into(), &"target".into()));
        assert_eq!(report["verified"], true, "{report}");
        assert!(report["epoch"].as_u64().unwrap() > epoch, "{report}");
        let socket = from.socket.clone();
        let done = from.end();
        assert_eq!(done.status, 0, "{done:?}");
        assert!(!socket.exists(), "{} is left", socket.display());
        let status = to.status();
        assert_eq!((&status["state"], &status["custody"]), (&"running".into(), &true.into()), "{status}");
        assert_eq!((&status["id"], &status["epoch"]), (&id.into(), &report["epoch"]));
        assert!(to.check() > 0);
        report
    }

    /// Where waits are short, a machine that others keep busy may be too slow for them: then the next try counts.
    fn moves_in_time(&self, id: &str, to: &Process) -> Value {
        for _ in 1..TRIES {
            let done = self.migrate(id, &to.listen);
            if self.wait_limit.is_none() || !done.output.contains("timed out") {
                return done.document();
            }
            to.await_state("waiting");
        }
        self.migrate(id, &to.listen).document()
    }

    /// The processes that ran the guest so far, in order; never two at once.
    pub(crate) fn runners(&self) -> Vec<u32> {
        // The lock is not held while something may fail: processes that are dropped then take it, too.
        let deaths = self.deaths.lock().unwrap().clone();
        journal::check(&self.path("runs"), &deaths)
    }
}
