//! One QEMU process, and the protocol by which it is told what to do.
//!
//! QMP is newline-delimited JSON (QEMU's docs/interop/qmp-spec): a greeting, then an answer to each command, with
//! events in between. It is spoken over a socket pair whose far end is the process's standard input.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// How long QEMU may be silent: providing a large guest's memory takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// The processor time in `/proc/PID/stat` is in these on x86 and ARM (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// The longest part of what QEMU said on its standard error that is passed on.
const WORDS_MAX: u64 = 4096;

/// A QEMU process; it is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    qmp: Qmp,
}

/// The near end of the conversation.
#[derive(Debug)]
struct Qmp {
    lines: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qemu {
    /// Starts it with these words and greets it. An error is a sentence.
    pub(super) fn start(program: &Path, words: &[String]) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{} cannot be started: {error}", program.display());
        let (near, far) = UnixStream::pair().map_err(failed)?;
        near.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let child = Command::new(program)
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"])
            .args(words)
            .stdin(OwnedFd::from(far))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut qemu = Self { child, qmp: Qmp { lines: BufReader::new(near), events: Vec::new() } };
        let greeted = qemu.qmp.greeted();
        greeted.map_err(|error| qemu.last_words(&error))?;
        Ok(qemu)
    }

    /// Gives a command and returns the answer.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let answer = self.qmp.ask(command, arguments);
        answer.map_err(|error| self.last_words(&error))
    }

    /// Waits until the migration is over.
    pub(super) fn await_migration(&mut self) -> Result<(), String> {
        let ended = self.qmp.await_migration();
        ended.map_err(|error| self.last_words(&error))
    }

    /// The processor time that it has used.
    pub(super) fn cpu_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        ticks(&stat)?
            .checked_mul(u32::try_from(TICK.as_millis()).ok()?)
            .map(|ms| Duration::from_millis(ms.into()))
    }

    /// What it wrote before it ended, if it ended; else the error itself.
    fn last_words(&mut self, error: &str) -> String {
        let _ = self.child.kill();
        let mut said = String::new();
        if let Some(pipe) = self.child.stderr.take() {
            let _ = pipe.take(WORDS_MAX).read_to_string(&mut said);
        }
        let said = said.lines().next().unwrap_or_default().trim();
        if said.is_empty() { error.to_owned() } else { format!("{error}; it said: {said}") }
    }
}

/// User and system time of `proc_pid_stat(5)`, behind a name that may hold anything.
fn ticks(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut number = || fields.next()?.parse::<u32>().ok();
    number()?.checked_add(number()?)
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qmp {
    fn greeted(&mut self) -> Result<(), String> {
        let greeting = self.hear()?;
        if !greeting["QMP"].is_object() {
            return Err("what was started does not speak QMP".to_owned());
        }
        self.ask("qmp_capabilities", &json!({})).map(drop)
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let failed = |error: std::io::Error| format!("QEMU cannot be told `{command}`: {error}");
        self.lines.get_mut().write_all(line.as_bytes()).map_err(failed)?;
        loop {
            let mut heard = self.hear()?;
            if heard["event"].is_string() {
                self.events.push(heard);
            } else if heard["error"].is_object() {
                let why = heard["error"]["desc"].as_str().unwrap_or("no reason given");
                return Err(format!("QEMU refused `{command}`: {why}"));
            } else {
                return Ok(heard["return"].take());
            }
        }
    }

    /// Needs the migration capability `events`.
    fn await_migration(&mut self) -> Result<(), String> {
        loop {
            let event = if self.events.is_empty() { self.hear()? } else { self.events.remove(0) };
            let status = event["data"]["status"].as_str().filter(|_| event["event"] == "MIGRATION");
            match status {
                Some("completed") => return Ok(()),
                Some(bad @ ("failed" | "cancelled")) => return Err(format!("QEMU's migration {bad}")),
                _ => {}
            }
        }
    }

    fn hear(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err("QEMU ended".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|_| "QEMU does not speak QMP".to_owned()),
            Err(error) => Err(format!("QEMU says nothing: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(far_says: &str) -> Qmp {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(far_says.as_bytes()).unwrap();
        // The far end may be written to as long as the near one lives, and says nothing more.
        far.shutdown(std::net::Shutdown::Write).unwrap();
        std::mem::forget(far);
        Qmp { lines: BufReader::new(near), events: Vec::new() }
    }

    #[test]
    fn events_between_answers_are_kept_until_they_are_awaited() {
        let mut qmp = conversation(concat!(
            "{\"QMP\":{}}\n{\"return\":{}}\n",
            "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"setup\"}}\n",
            "{\"event\":\"STOP\"}\n{\"return\":{\"status\":\"running\"}}\n",
            "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n"
        ));
        qmp.greeted().unwrap();
        assert_eq!(qmp.ask("query-status", &json!({})).unwrap()["status"], "running");
        assert_eq!(qmp.events.len(), 2);
        qmp.await_migration().unwrap();
        assert_eq!(qmp.await_migration().unwrap_err(), "QEMU ended");
    }

    #[test]
    fn refusals_failures_and_strangers_are_sentences() {
        let mut qmp = conversation("{\"error\":{\"desc\":\"no such thing\"}}\n");
        assert_eq!(qmp.ask("fly", &json!({})).unwrap_err(), "QEMU refused `fly`: no such thing");
        let mut qmp = conversation("{\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}\n");
        assert_eq!(qmp.await_migration().unwrap_err(), "QEMU's migration failed");
        assert_eq!(conversation("hello\n").greeted().unwrap_err(), "QEMU does not speak QMP");
        assert_eq!(conversation("{}\n").greeted().unwrap_err(), "what was started does not speak QMP");
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 99 1 1";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a"), None);
    }
}
