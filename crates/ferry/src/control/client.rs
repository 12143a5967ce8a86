//! Talking to the processes of this machine that have a guest.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::passing::send_with;
use super::{MAX_LINE_BYTES, Reply, Request};
use crate::error::CliError;
use crate::folder;
use crate::form::{State, Status};

/// How long a process may take to answer a question that needs no work.
const ANSWER: Duration = Duration::from_secs(5);

/// How long nothing may come of work that takes its time, before it is looked whether the process still
/// answers at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a guest that is between two processes of this machine is looked for.
const HANDOVER: Duration = Duration::from_millis(500);

/// How long to wait before looking again.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A connection to one process.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    /// Replies are waited for as long as the process answers others.
    patient: bool,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(ANSWER))?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self { stream: BufReader::new(stream), path: path.into(), patient: false })
    }

    /// Waits from now on for replies that take their time, as long as the process answers others.
    pub(crate) fn be_patient(&mut self) -> Result<(), CliError> {
        self.be_patient_for(PATIENCE)
    }

    fn be_patient_for(&mut self, at_once: Duration) -> Result<(), CliError> {
        self.patient = true;
        let set = self.stream.get_ref().set_read_timeout(Some(at_once));
        set.map_err(|error| self.broken(&error.to_string()))
    }

    pub(crate) fn send(&mut self, request: &Request) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(request).map_err(|error| self.broken(&error.to_string()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| self.broken(&error.to_string()))
    }

    /// Sends a request with a descriptor beside it, and reads the first reply. The descriptor is closed
    /// here, so that whoever reads its other end sees the end.
    pub(crate) fn ask_with(&mut self, request: &Request, fd: OwnedFd) -> Result<Reply, CliError> {
        let mut line = serde_json::to_vec(request).map_err(|error| self.broken(&error.to_string()))?;
        line.push(b'\n');
        send_with(self.stream.get_ref(), &line, fd.as_fd())
            .map_err(|error| self.broken(&error.to_string()))?;
        drop(fd);
        self.next()
    }

    /// Sends a request and reads the first reply.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, CliError> {
        self.send(request)?;
        self.next()
    }

    /// The next reply.
    pub(crate) fn next(&mut self) -> Result<Reply, CliError> {
        let mut line = Vec::new();
        loop {
            let left = MAX_LINE_BYTES.saturating_sub(line.len() as u64);
            match self.stream.by_ref().take(left).read_until(b'\n', &mut line) {
                Ok(0) => return Err(self.broken("it closed the connection")),
                Ok(_) => {
                    return serde_json::from_slice(&line).map_err(|error| self.broken(&error.to_string()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && self.patient => {
                    // What it does may take long; that it does not even say so is another matter.
                    let other = Client::connect(&self.path);
                    other.map_err(|error| self.broken(&error.to_string()))?.ask(&Request::Status {})?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(self.broken(&format!(
                        "nothing came for {} s; is it stopped? Let it go on (kill -CONT), or end it",
                        ANSWER.as_secs()
                    )));
                }
                Err(error) => return Err(self.broken(&error.to_string())),
            }
        }
    }

    pub(crate) fn status(&mut self) -> Result<Status, CliError> {
        match self.ask(&Request::Status {})? {
            Reply::Status(status) => Ok(*status),
            other => Err(other.into_error()),
        }
    }

    fn broken(&self, what: &str) -> CliError {
        CliError::plain(format!("the guest's process at {} does not answer: {what}", self.path.display()))
    }
}

/// Every process of this user that has a guest or waits for one. Sockets whose process is gone are
/// removed; one that does not answer is left out and named on standard error.
pub(crate) fn all() -> Result<Vec<(Client, Status)>, CliError> {
    look().map(|(found, _)| found)
}

/// The same, and whether a process ended while it was looked for.
fn look() -> Result<(Vec<(Client, Status)>, bool), CliError> {
    let folder = folder::open()?;
    let entries = std::fs::read_dir(&folder).map_err(|error| {
        CliError::plain(format!("the folder {} cannot be read: {error}", folder.display()))
    })?;
    let (mut found, mut ended) = (Vec::new(), false);
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "sock") {
            continue;
        }
        let error = match Client::connect(&path).map(|mut client| client.status().map(|of| (client, of))) {
            Ok(Ok(one)) => {
                found.push(one);
                continue;
            }
            Ok(Err(error)) => error,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                let _ = std::fs::remove_file(&path);
                continue;
            }
            Err(error) => CliError::plain(format!("{}: {error}", path.display())),
        };
        if path.exists() {
            crate::output::note(&format!("ferry: {error}"));
        } else {
            ended = true;
        }
    }
    found.sort_by(|(_, a), (_, b)| (&a.id, a.pid).cmp(&(&b.id, b.pid)));
    Ok((found, ended))
}

/// The process that has the guest of this name. During a move on one machine two processes know the
/// name: the one with custody is meant.
pub(crate) fn find(id: &str) -> Result<(Client, Status), CliError> {
    let begun = Instant::now();
    loop {
        let (all, ended) = look()?;
        // A guest that arrives is not known by its name yet.
        let arrives = all.iter().any(|(_, status)| status.state == State::Receiving);
        let named = all.into_iter().filter(|(_, status)| status.id.as_deref() == Some(id));
        if let Some(best) = named.min_by_key(|(_, status)| rank(status)) {
            return Ok(best);
        }
        if !(ended || arrives) || begun.elapsed() > HANDOVER {
            return Err(CliError::plain(format!(
                "no guest `{id}` is on this machine: `ferry status` lists the guests that are"
            )));
        }
        std::thread::park_timeout(BETWEEN_LOOKS);
    }
}

fn rank(status: &Status) -> u8 {
    match status.state {
        _ if status.custody => 0,
        State::Ambiguous => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A process that answers its first client late, or never, and others at once, or never.
    fn wait_for(answers: bool) -> Result<Reply, CliError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path).unwrap();
        let (mut first, _) = listener.accept().unwrap();
        let serving = std::thread::spawn(move || {
            // That nothing came yet is told by the next connection.
            first.write_all(b"\"stop").unwrap();
            let (mut next, _) = listener.accept().unwrap();
            if answers {
                next.write_all(b"\"cancelling\"\n").unwrap();
                first.write_all(b"ped\"\n").unwrap();
            }
            drop(next);
        });
        client.be_patient_for(Duration::from_millis(20)).unwrap();
        let reply = client.ask(&Request::Watch {});
        serving.join().unwrap();
        reply
    }

    #[test]
    fn a_process_that_answers_nobody_is_not_waited_for() {
        assert!(wait_for(false).unwrap_err().message.contains("does not answer"));
        assert_eq!(wait_for(true).unwrap(), Reply::Stopped);
    }
}
