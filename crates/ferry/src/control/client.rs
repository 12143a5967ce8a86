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

/// How long a guest that is between two processes of this machine is looked for.
const HANDOVER: Duration = Duration::from_millis(500);

/// How long to wait before looking again.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A connection to one process.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(ANSWER))?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self { stream: BufReader::new(stream), path: path.into() })
    }

    /// Waits as long as it takes for replies from now on.
    pub(crate) fn be_patient(&self) -> Result<(), CliError> {
        self.stream.get_ref().set_read_timeout(None).map_err(|error| self.broken(&error.to_string()))
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
        let mut line = String::new();
        let read = self.stream.by_ref().take(MAX_LINE_BYTES).read_line(&mut line);
        match read {
            Ok(0) => Err(self.broken("it closed the connection")),
            Ok(_) => serde_json::from_str(&line).map_err(|error| self.broken(&error.to_string())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(self.broken(&format!("nothing came for {} s; is it stopped?", ANSWER.as_secs())))
            }
            Err(error) => Err(self.broken(&error.to_string())),
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
