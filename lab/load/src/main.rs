//! `ferry-load`: the load of a Linux guest that moves, and the other end of its connection.
//!
//! A tool of the lab, no part of the product. In the guest, `ferry-load guest` does work whose results are known, several
//! kinds at once, and counts what was not as it must be: files on a disk, memory, vector registers, clocks, and a TCP connection.
//! `ferry-load peer` is the connection's other end, on a host. Both take orders on a TCP port (see [`control`]); `ferry-load ask`
//! gives one. Every answer to `report` is a line of JSON for each kind of work:
//! `{"check":"files","done":812,"faults":0,"first_fault":null,"figures":{…}}`.

#![forbid(unsafe_code)]

mod clocks;
mod control;
mod files;
mod flags;
mod memory;
mod stream;
mod tally;
mod vectors;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::flags::Flags;
use crate::tally::{Board, Stop, Tally};

const USAGE: &str = "ferry-load guest [--control ADDR]
ferry-load peer --listen ADDR [--control ADDR]
ferry-load ask ADDR [--within SECONDS] report|stop|sh COMMAND
ferry-load ask ADDR start [--files FOLDER] [--files-mib N] [--memory-mib N] [--rate-kib N] [--threads N] [--clock-ms N]
                          [--step-limit-ms N] [--peer ADDR] [--messages N]";

/// What a command line asks for did not work, in one sentence.
type Failure = String;

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let verb = if words.is_empty() { String::new() } else { words.remove(0) };
    let done = match verb.as_str() {
        "guest" => Flags::parse(&words).and_then(|flags| guest(&flags)),
        "peer" => Flags::parse(&words).and_then(|flags| peer(&flags)),
        "ask" => control::ask(&words),
        _ => Err(format!("usage: {USAGE}")),
    };
    done.unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "ferry-load: {failure}");
        ExitCode::from(2)
    })
}

/// Obeys orders in a guest.
fn guest(flags: &Flags) -> Result<ExitCode, Failure> {
    flags.only(&["control"])?;
    control::serve(flags.text("control").unwrap_or("127.0.0.1:7700"), Work::default())
}

/// Starts the work that the flags name.
pub(crate) fn begin(work: &mut Work, flags: &Flags) -> Result<(), Failure> {
    flags.only(&[
        "files",
        "files-mib",
        "memory-mib",
        "rate-kib",
        "threads",
        "clock-ms",
        "step-limit-ms",
        "peer",
        "messages",
    ])?;
    if let Some(folder) = flags.text("files") {
        let files = files::Files::new(folder.into(), flags.number("files-mib", 16)? << 20);
        work.start("files", move |stop, tally| files.run(stop, tally))?;
    }
    let memory_bytes = flags.number("memory-mib", 0)? << 20;
    if memory_bytes > 0 {
        let memory = memory::Memory::new(memory_bytes, flags.number("rate-kib", 1024)? << 10);
        work.start("memory", move |stop, tally| memory.run(stop, tally))?;
    }
    for thread in 0..flags.number("threads", 0)? {
        work.start("vectors", move |stop, tally| vectors::run(thread, stop, tally))?;
    }
    let period_ms = flags.number("clock-ms", 0)?;
    if period_ms > 0 {
        let seen = Arc::new(clocks::Seen::new(flags.number("step-limit-ms", 0)?));
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let seen = Arc::clone(&seen);
            let period = Duration::from_millis(period_ms);
            work.start("clocks", move |stop, tally| clocks::run(&seen, period, stop, tally))?;
        }
    }
    if let Some(address) = flags.text("peer") {
        let (address, rate) = (address.to_owned(), flags.number("messages", 50)?);
        work.start("stream", move |stop, tally| stream::connect(&address, rate, stop, tally))?;
    }
    Ok(())
}

/// The other end of a guest's connection.
fn peer(flags: &Flags) -> Result<ExitCode, Failure> {
    flags.only(&["listen", "control"])?;
    let address = flags.text("listen").ok_or("peer needs --listen ADDR")?.to_owned();
    let listener = stream::listen(&address)?;
    let mut work = Work::default();
    work.start("peer", move |stop, tally| stream::echo(&listener, stop, tally))?;
    control::serve(flags.text("control").unwrap_or("127.0.0.1:7701"), work)
}

/// The threads that work, and what they count.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) stop: Arc<Stop>,
    pub(crate) board: Board,
    threads: Vec<JoinHandle<()>>,
}

impl Work {
    /// Starts a thread; those of one kind of work count together.
    fn start(
        &mut self,
        name: &'static str,
        body: impl FnOnce(&Stop, &Tally) + Send + 'static,
    ) -> Result<(), Failure> {
        let (stop, tally) = (Arc::clone(&self.stop), self.board.tally(name));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            body(&stop, &tally);
            if !stop.is_set() {
                tally.fault("the work ended by itself");
            }
        });
        self.threads.push(thread.map_err(|error| format!("no thread for {name}: {error}"))?);
        Ok(())
    }

    /// Tells all threads to stop and waits until they have.
    pub(crate) fn end(&mut self) {
        self.stop.set();
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                self.board.fault(&name, "its thread panicked");
            }
        }
    }
}
