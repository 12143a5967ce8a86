//! One process of the program: what it says, how it ends, what its control socket answers.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::journal::now_ns;
use super::{PATIENCE, wait_until};

/// When processes were killed, by their numbers.
pub(crate) type Deaths = Arc<Mutex<BTreeMap<u32, Vec<u64>>>>;

/// A process; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    words: String,
    output: Receiver<String>,
    errors: Receiver<String>,
    said: RefCell<String>,
    status: Cell<Option<i32>>,
    deaths: Deaths,
    killed: Cell<bool>,
    /// Its control socket, once it is ready.
    pub(crate) socket: PathBuf,
    /// Where it waits for a guest.
    pub(crate) listen: String,
}

/// How a process ended and what it said.
#[derive(Debug)]
pub(crate) struct Done {
    /// The exit status; 128 and more for a signal, as shells count.
    pub(crate) status: i32,
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Process {
    pub(crate) fn start(mut command: Command, deaths: Deaths) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let mut child = command.spawn().unwrap();
        let output = lines(child.stdout.take().unwrap());
        let errors = lines(child.stderr.take().unwrap());
        Self {
            child,
            words: words.join(" "),
            output,
            errors,
            said: RefCell::default(),
            status: Cell::default(),
            deaths,
            killed: Cell::default(),
            socket: PathBuf::new(),
            listen: String::new(),
        }
    }

    /// Reads the document with which it says that it is ready.
    pub(crate) fn ready(self, word: &str) -> Self {
        let document = self.document();
        self.found_by(word, &document)
    }

    /// Takes from that document where it is to be found.
    pub(crate) fn found_by(mut self, word: &str, document: &Value) -> Self {
        let facts = document.get(word).unwrap_or_else(|| panic!("{self:?} said {document}"));
        self.socket = facts["control_socket"].as_str().unwrap().into();
        self.listen = facts["listen"].as_str().unwrap_or_default().into();
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next document on standard output.
    pub(crate) fn document(&self) -> Value {
        match self.output.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line).unwrap(),
            Err(error) => panic!("`{}` says nothing: {error}; {}", self.words, self.errors()),
        }
    }

    /// The first document on standard output; none if it ends without one.
    pub(crate) fn first_word(&self) -> Option<Value> {
        match self.output.recv_timeout(PATIENCE) {
            Ok(line) => Some(serde_json::from_str(&line).unwrap()),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(error) => panic!("`{}` says nothing: {error}", self.words),
        }
    }

    /// What it said on standard error so far.
    pub(crate) fn errors(&self) -> String {
        self.said.borrow_mut().extend(self.errors.try_iter());
        self.said.borrow().clone()
    }

    /// Waits until it says this on standard error.
    pub(crate) fn await_error(&self, text: &str) {
        wait_until(&format!("`{}` says `{text}`", self.words), || self.errors().contains(text));
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        // A process that ended is a zombie until it is waited for.
        self.kernels_state().is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }

    /// Waits until it ends.
    pub(crate) fn end(mut self) -> Done {
        let mut output = String::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => output.push_str(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("`{}` did not end within {PATIENCE:?}: {}", self.words, self.errors())
                }
            }
        }
        let status = self.reap();
        while let Ok(line) = self.errors.recv_timeout(PATIENCE) {
            self.said.borrow_mut().push_str(&line);
        }
        Done { status, output, errors: self.errors() }
    }

    fn reap(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let ended = self.child.wait().unwrap();
        let status = ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap());
        self.status.set(Some(status));
        status
    }

    /// Kills it without a word, also while it is stopped.
    pub(crate) fn kill(mut self) {
        self.note_death();
        self.child.kill().unwrap();
        assert_eq!(self.reap(), 128 + 9);
    }

    /// Once; later is too late.
    fn note_death(&self) {
        if !self.killed.replace(true) {
            self.deaths.lock().unwrap().entry(self.pid()).or_default().push(now_ns());
        }
    }

    /// The same while others still ask for it.
    pub(crate) fn kill_now(&self) {
        self.note_death();
        self.signal(Signal::KILL);
        wait_until("it is dead", || !self.is_alive());
    }

    /// Its memory that is in use, in KiB (proc(5)).
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until it stopped itself.
    pub(crate) fn await_stop(&self) {
        wait_until(&format!("`{}` stops", self.words), || self.is_stopped());
    }

    /// Whether it stopped itself, or was stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.kernels_state().is_some_and(|state| state == 'T')
    }

    /// Its state as the kernel names it, which follows the name in brackets (`proc_pid_stat(5)`).
    fn kernels_state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }

    /// Descriptors and threads that it has.
    pub(crate) fn holdings(&self) -> (usize, usize) {
        let count = |of: &str| std::fs::read_dir(format!("/proc/{}/{of}", self.pid())).unwrap().count();
        (count("fd"), count("task"))
    }

    /// One request to its control socket, and the answer.
    pub(crate) fn ask(&self, request: &Value) -> Value {
        Client::connect(&self.socket).ask(&request.to_string())
    }

    pub(crate) fn status(&self) -> Value {
        self.ask(&json!({"command": "status"}))["status"].take()
    }

    /// Waits until its status has this state.
    pub(crate) fn await_state(&self, state: &str) {
        wait_until(&format!("`{}` is {state}", self.words), || self.status()["state"] == state);
    }

    /// The guest verifies itself: it has written pages, and all are as it left them.
    pub(crate) fn check(&self) -> u64 {
        let answer = self.ask(&json!({"command": "check"}));
        let checked = &answer["checked"];
        assert_eq!(checked["faults"], 0, "`{}`: {answer}; {}", self.words, self.status());
        checked["pages"].as_u64().unwrap()
    }

    /// Waits until the guest has written its pages and works on them.
    pub(crate) fn await_work(&self) {
        wait_until("the guest works", || self.check() > 0 && self.status()["progress"] != 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.get().is_none() {
            self.note_death();
            let _ = self.child.kill();
            let _ = self.child.wait();
            // All that it said comes before the end of its stream.
            while let Ok(line) = self.errors.recv_timeout(PATIENCE) {
                self.said.borrow_mut().push_str(&line);
            }
        }
        let said = self.errors();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "`{}` ({}) said: {said}", self.words, self.pid());
        } else {
            assert!(!said.contains("panicked"), "`{}` panicked: {said}", self.words);
        }
    }
}

impl Done {
    /// The error document, which is the last line on standard error.
    pub(crate) fn error(&self) -> Value {
        let line = self.errors.lines().last().unwrap_or_default();
        let mut document: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let error = document["error"].take();
        assert!(error["kind"].is_string() && error["findings"].is_array(), "{self:?}");
        assert!(!error["message"].as_str().unwrap().contains('\n'), "one sentence: {self:?}");
        error
    }

    /// Ended with this status and an error document whose sentence has these words.
    pub(crate) fn failed(&self, status: i32, words: &[&str]) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let error = self.error();
        let kinds = ["not_as_it_should", "usage", "refused", "failed", "cancelled", "ambiguous", "timed_out"];
        assert_eq!(error["kind"], kinds[usize::try_from(status).unwrap() - 1], "{self:?}");
        let message = error["message"].as_str().unwrap();
        for word in words {
            assert!(message.contains(word), "`{word}` is not in `{message}`");
        }
        error
    }

    /// The one document on standard output of a verb that went well.
    pub(crate) fn document(&self) -> Value {
        assert_eq!(self.status, 0, "{self:?}");
        assert_eq!(self.output.lines().count(), 1, "one document: {self:?}");
        serde_json::from_str(&self.output).unwrap()
    }
}

/// A connection to a control socket.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(socket: &std::path::Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// The next line of an answer; nothing at the end of the stream.
    pub(crate) fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    pub(crate) fn ask(&mut self, line: &str) -> Value {
        self.say(format!("{line}\n").as_bytes());
        self.hear().unwrap_or_else(|| panic!("no answer to {line}"))
    }
}

/// Reads lines, with their ends, in a thread of their own.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            line.clear();
        }
    });
    receiver
}
