//! The control socket's server: a thread that accepts, and one for each client.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::host::{Job, Listener, Move, Shared};
use super::passing::PassingReader;
use super::{MAX_LINE_BYTES, Reply, Request};
use crate::error::CliError;
use crate::folder;

/// Clients that are served at once.
const MAX_CLIENTS: usize = 32;

/// Replies that may wait for a client.
const MAX_REPLIES: usize = 1024;

/// How long a reply may take to be written.
const WRITE: Duration = Duration::from_secs(5);

/// How long a client that is one too many may take to be told so; others wait meanwhile.
const REFUSAL: Duration = Duration::from_millis(100);

/// The socket's file; dropping it, or ending the process by a signal, removes it.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    path: PathBuf,
}

impl ControlSocket {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens the socket `NAME.PID.sock` and serves it in threads of its own. SIGINT and SIGTERM end the
/// process and remove the socket.
pub(crate) fn serve(shared: &Arc<Shared>, name: &str) -> Result<ControlSocket, CliError> {
    let path = folder::open()?.join(format!("{name}.{}.sock", std::process::id()));
    let failed = |error: std::io::Error| {
        CliError::plain(format!("the control socket {} cannot be made: {error}", path.display()))
    };
    let listener = bind(&path).map_err(failed)?;
    let socket = ControlSocket { path: path.clone() };
    end_on_signals(path.clone(), Arc::clone(shared)).map_err(failed)?;
    let shared = Arc::clone(shared);
    let accept = move || {
        let clients = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming().flatten() {
            serve_in_thread(stream, &shared, &clients);
        }
    };
    std::thread::Builder::new().name("ferry-control".into()).spawn(accept).map_err(failed)?;
    Ok(socket)
}

/// A socket that is there under its name only once it listens: whoever finds one that refuses takes its
/// process for dead, and removes it. Either name may be of a process that had this number before.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    let before = path.with_extension("new");
    let _ = std::fs::remove_file(&before);
    let listener = UnixListener::bind(&before)?;
    std::fs::rename(&before, path)?;
    Ok(listener)
}

fn end_on_signals(path: PathBuf, shared: Arc<Shared>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let wait = move || {
        if signals.forever().next().is_some() {
            let _ = std::fs::remove_file(&path);
            if let Some(waits_at) = shared.unix_listener() {
                let _ = std::fs::remove_file(waits_at);
            }
            // The guest ends with its process; whoever sends the signal wants that.
            shared.note_end();
            shared.console.end();
            std::process::exit(0);
        }
    };
    std::thread::Builder::new().name("ferry-signals".into()).spawn(wait).map(drop)
}

fn serve_in_thread(stream: UnixStream, shared: &Arc<Shared>, clients: &Arc<AtomicUsize>) {
    if clients.fetch_add(1, Ordering::AcqRel) >= MAX_CLIENTS {
        clients.fetch_sub(1, Ordering::AcqRel);
        let text = format!("{MAX_CLIENTS} clients are connected already: end one of them");
        let _ = stream.set_write_timeout(Some(REFUSAL));
        let _ = write(&stream, &Reply::error(&CliError::plain(text)));
        return;
    }
    let (shared, mine) = (Arc::clone(shared), Arc::clone(clients));
    let spawned = std::thread::Builder::new().name("ferry-client".into()).spawn(move || {
        if let Err(error) = converse(&stream, &shared) {
            tracing::debug!(%error, "a client of the control socket");
        }
        mine.fetch_sub(1, Ordering::AcqRel);
    });
    if spawned.is_err() {
        clients.fetch_sub(1, Ordering::AcqRel);
    }
}

fn converse(stream: &UnixStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_write_timeout(Some(WRITE))?;
    let passed = RefCell::new(None);
    let mut reader = BufReader::new(PassingReader::new(stream, &passed));
    loop {
        let mut line = Vec::new();
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice(&line) {
            Ok(request) if whole => answer(stream, shared, &request, passed.take())?,
            Ok(_) => return Ok(()),
            Err(error) => {
                let text = format!("that is no request: {error}; docs/control-socket.md lists them");
                write(stream, &Reply::error(&CliError::usage(text)))?;
                if !whole {
                    return Ok(()); // the rest of an endless line is nobody's request
                }
            }
        }
    }
}

fn answer(
    stream: &UnixStream,
    shared: &Shared,
    request: &Request,
    passed: Option<OwnedFd>,
) -> std::io::Result<()> {
    match request {
        Request::Status {} => write(stream, &Reply::Status(Box::new(shared.status()))),
        Request::Check {} => write(
            stream,
            &match shared.check() {
                Ok(check) => Reply::Checked { pages: check.pages, faults: check.faults },
                Err(error) => Reply::error(&error),
            },
        ),
        Request::Contract {} => write(
            stream,
            &match shared.contract() {
                Ok(contract) => Reply::Contract(Box::new(contract)),
                Err(error) => Reply::error(&error),
            },
        ),
        Request::Stop {} => {
            let (replies, answers) = bounded(1);
            // Dropped when the reply is written.
            let (_hears, heard) = bounded(0);
            let _ = shared.jobs.send(Job::Stop { replies, heard });
            answers.recv().map_or(Ok(()), |reply| write(stream, &reply))
        }
        Request::Decide { choice, reason } => {
            let (replies, answers) = bounded(MAX_REPLIES);
            let (_hears, heard) = bounded(0);
            shared.decide(choice.map(Into::into), reason.as_deref(), Listener { replies, heard });
            pass_on(stream, &answers, true)
        }
        Request::Cancel {} => {
            let heard = shared.cancel();
            write(stream, &heard.map_or_else(|error| Reply::error(&error), |()| Reply::Cancelling))
        }
        Request::Watch {} => {
            let (replies, answers) = bounded(MAX_REPLIES);
            let (_hears, heard) = bounded(0);
            shared.watch(Listener { replies, heard });
            pass_on(stream, &answers, true)
        }
        Request::Migrate { wait, .. } => match shared.plan(request, passed) {
            Ok(planned) => {
                let (replies, answers) = bounded(MAX_REPLIES);
                let (_hears, heard) = bounded(0);
                let client = Listener { replies, heard };
                let _ = shared.jobs.send(Job::Migrate(Box::new(Move { planned, client })));
                pass_on(stream, &answers, *wait)
            }
            Err(error) => write(stream, &Reply::error(&error)),
        },
    }
}

/// Passes replies on until the last one.
fn pass_on(stream: &UnixStream, replies: &Receiver<Reply>, wait: bool) -> std::io::Result<()> {
    for reply in replies {
        let is_last = match reply {
            Reply::Started { .. } => !wait,
            Reply::Progress(_) => false,
            _ => true,
        };
        write(stream, &reply)?;
        if is_last {
            break;
        }
    }
    Ok(())
}

fn write(mut stream: &UnixStream, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
