//! A running host: takes scripts, gives back what they say.
//!
//! Two streams go into each host, one for what a script says on standard output and one for standard
//! error; the first also carries the scripts in. A host ends when its value is dropped.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::Scratch;
use crate::error::Error;
use crate::files::Way;
use crate::process::Running;
use crate::stream::Stream;

/// A host that takes none of what is written to it for so long hangs.
const WRITE_MAX: Duration = Duration::from_secs(60);

/// A host's last process is gone within this time after the one that started it.
const END_MAX: Duration = Duration::from_secs(10);

/// How many lines of the console an error shows.
const CONSOLE_LINES: usize = 30;

/// Which of a script's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// What came of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status, as the shell says it.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Where a host's stream arrives.
#[derive(Debug)]
pub(crate) enum Listener {
    /// QEMU connects to a Unix socket.
    Unix(UnixListener, PathBuf),
    /// Bochs knows TCP only.
    Tcp(TcpListener),
    /// A host that is this machine itself has the other end from its start.
    Joined(UnixStream),
}

impl Listener {
    /// What ends the waiting for a stream that never came.
    fn release(&self) -> Box<dyn FnOnce() + Send> {
        match self {
            Self::Unix(_, path) => {
                let path = path.clone();
                Box::new(move || drop(UnixStream::connect(path)))
            }
            Self::Tcp(listener) => {
                let address = listener.local_addr();
                Box::new(move || drop(address.map(TcpStream::connect)))
            }
            Self::Joined(_) => Box::new(|| ()),
        }
    }

    /// Waits for the stream; answers with its two directions.
    fn accept(self) -> io::Result<Ends> {
        match self {
            Self::Unix(listener, _) => listener.accept().and_then(|(stream, _)| unix_ends(stream)),
            Self::Joined(stream) => unix_ends(stream),
            Self::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                stream.set_write_timeout(Some(WRITE_MAX))?;
                let input = stream.try_clone()?;
                Ok((Box::new(stream) as Box<dyn Read>, Box::new(input) as Box<dyn Write + Send>))
            }),
        }
    }
}

/// The two directions of a stream.
type Ends = (Box<dyn Read>, Box<dyn Write + Send>);

fn unix_ends(stream: UnixStream) -> io::Result<Ends> {
    stream.set_write_timeout(Some(WRITE_MAX))?;
    let input = stream.try_clone()?;
    Ok((Box::new(stream), Box::new(input)))
}

/// What happens to a host.
enum Event {
    /// The host's first stream is there, and scripts can go in.
    Input(Box<dyn Write + Send>),
    Data(Side, Vec<u8>),
    Ended,
}

/// A running host.
pub struct Machine {
    name: String,
    events: Receiver<Event>,
    input: Option<Box<dyn Write + Send>>,
    streams: [Stream; 2],
    ended: u8,
    booted: Duration,
    way: Way,
    running: Running,
    scratch: Scratch,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// What starts a host.
pub(crate) struct Start {
    /// The host's name.
    pub(crate) name: String,
    /// The emulator, or what makes a host of this machine; its standard input and output are set.
    pub(crate) command: Command,
    /// Where the two streams arrive, standard output first.
    pub(crate) listeners: [Listener; 2],
    /// The word in the streams' marks.
    pub(crate) mark: String,
    /// How files get in and out.
    pub(crate) way: Way,
    /// The folder of this run; the console's log is `console` in there.
    pub(crate) scratch: Scratch,
}

impl Start {
    /// Starts the emulator; [`Machine::wait`] waits until the host is up.
    pub(crate) fn go(mut self) -> Result<Machine, Error> {
        let child = self.command.stderr(Stdio::piped()).spawn().map_err(|source| Error::Command {
            command: self.command.get_program().to_string_lossy().into_owned(),
            reason: source.to_string(),
        })?;
        let mut running = Running(child);
        let (sender, events) = mpsc::channel();
        let mut release: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for (side, listener) in [Side::Out, Side::Err].into_iter().zip(self.listeners) {
            let arrived = Arc::new(AtomicBool::new(false));
            let (waited, come) = (Arc::clone(&arrived), listener.release());
            release.push(Box::new(move || {
                // Another host may listen there by now, if this one had it.
                if !waited.load(Ordering::SeqCst) {
                    come();
                }
            }));
            let sender = sender.clone();
            thread::spawn(move || listen(listener, side, &arrived, &sender));
        }
        let words = self.scratch.path().join("emulator");
        if let Some(mut stderr) = running.0.stderr.take() {
            thread::spawn(move || {
                // The pipe ends with the emulator. Streams to which it never came are released then.
                if let Ok(mut file) = fs::File::create(words) {
                    let _ = io::copy(&mut stderr, &mut file);
                }
                for release in release {
                    release();
                }
            });
        }
        Ok(Machine {
            name: self.name,
            events,
            input: None,
            streams: [Stream::new(&self.mark), Stream::new(&self.mark)],
            ended: 0,
            booted: Duration::ZERO,
            way: self.way,
            running,
            scratch: self.scratch,
        })
    }
}

/// Takes one stream in and passes it on until it ends.
fn listen(listener: Listener, side: Side, arrived: &AtomicBool, events: &Sender<Event>) {
    let accepted = listener.accept();
    arrived.store(true, Ordering::SeqCst);
    if let Ok((mut stream, input)) = accepted {
        if side == Side::Out {
            let _ = events.send(Event::Input(input));
        }
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            if events.send(Event::Data(side, bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    }
    let _ = events.send(Event::Ended);
}

impl Machine {
    /// Waits until the host has `/dev/kvm` and takes scripts.
    ///
    /// # Errors
    /// [`Error::Gone`] if it panicked, powered off or has no KVM, [`Error::Timeout`] if it hangs.
    pub(crate) fn wait(&mut self, start: Instant, within: Duration) -> Result<(), Error> {
        let output = self.collect("its start", within)?;
        self.booted = start.elapsed();
        if output.status == 0 {
            return Ok(());
        }
        let what = format!("KVM does not work there: {}", String::from_utf8_lossy(&output.stderr).trim());
        Err(Error::Gone { host: self.name.clone(), what, console: self.console() })
    }

    /// The process that started the host, on this machine.
    pub(crate) fn process(&self) -> u32 {
        self.running.0.id()
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of this run on this machine.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// How files get in and out.
    pub(crate) const fn way(&self) -> &Way {
        &self.way
    }

    /// How long it took from the emulator's start until `/dev/kvm` was there and scripts were taken.
    pub fn booted(&self) -> Duration {
        self.booted
    }

    /// Runs a shell script (busybox) in the folder `/files`; `/lab/bin` is in its `PATH`. A program that
    /// it leaves running in the background should write to a file of its own.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::Gone`] with the console's last lines; the host is of no use then.
    /// A status other than 0 is no error.
    pub fn run(&mut self, script: &str, within: Duration) -> Result<Output, Error> {
        self.send(script, &[])?;
        self.collect(&shown(script), within)
    }

    /// As [`Machine::run`], but a status other than 0 is an error; answers with standard output.
    ///
    /// # Errors
    /// [`Error::Status`], and those of [`Machine::run`].
    pub fn expect(&mut self, script: &str, within: Duration) -> Result<String, Error> {
        let output = self.run(script, within)?;
        self.well(script, output).map(|output| output.text())
    }

    /// As [`Machine::expect`]; the script reads the bytes from its descriptor 3.
    pub(crate) fn expect_with(
        &mut self,
        script: &str,
        bytes: &[u8],
        within: Duration,
    ) -> Result<Output, Error> {
        self.send(script, bytes)?;
        let output = self.collect(&shown(script), within)?;
        self.well(script, output)
    }

    /// The output of a script that ended well.
    pub(crate) fn well(&self, script: &str, output: Output) -> Result<Output, Error> {
        if output.status == 0 {
            return Ok(output);
        }
        let said = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
        let (host, script, status) = (self.name.clone(), shown(script), output.status);
        Err(Error::Status { host, script, status, said: said.trim().to_owned() })
    }

    /// As [`Machine::run`], but what the script says goes to `sink` as it comes; answers with the status.
    ///
    /// # Errors
    /// Those of [`Machine::run`].
    pub fn run_into(
        &mut self,
        script: &str,
        within: Duration,
        sink: &mut dyn FnMut(Side, &[u8]),
    ) -> Result<i32, Error> {
        self.send(script, &[])?;
        self.pump(&shown(script), within, sink)
    }

    /// The last lines of the host's console, with what the emulator itself said if it said something.
    pub fn console(&self) -> String {
        let read = |name: &str| {
            let bytes = fs::read(self.scratch.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\r', "")
        };
        let (console, words) = (read("console"), read("emulator"));
        let plain = words.lines().filter(|line| !line.contains("TCG doesn't support"));
        let lines: Vec<&str> = plain.chain(console.lines()).filter(|line| !line.trim().is_empty()).collect();
        let from = lines.len().saturating_sub(CONSOLE_LINES);
        if lines.is_empty() {
            "    (nothing)".to_owned()
        } else {
            format!("    {}", lines[from..].join("\n    "))
        }
    }

    /// Sends a script, and what it reads from its descriptor 3.
    fn send(&mut self, script: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut line = script.bytes().fold(String::new(), |line, byte| line + &format!("{byte:02x}"));
        line.push('\n');
        let sent = match &mut self.input {
            Some(input) => input.write_all(line.as_bytes()).and_then(|()| input.write_all(bytes)).is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { Err(self.gone("it has ended")) }
    }

    fn collect(&mut self, what: &str, within: Duration) -> Result<Output, Error> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.pump(what, within, &mut |side, bytes| match side {
            Side::Out => stdout.extend_from_slice(bytes),
            Side::Err => stderr.extend_from_slice(bytes),
        })?;
        Ok(Output { status, stdout, stderr })
    }

    /// Passes on what comes until both streams carried their mark.
    fn pump(
        &mut self,
        what: &str,
        within: Duration,
        sink: &mut dyn FnMut(Side, &[u8]),
    ) -> Result<i32, Error> {
        let deadline = Instant::now() + within;
        let (mut status, mut marks) = (0, 0);
        while marks < 2 {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Input(input)) => self.input = Some(input),
                Ok(Event::Data(side, bytes)) => {
                    let (said, mark) = self.streams[side as usize].push(&bytes);
                    if !said.is_empty() {
                        sink(side, &said);
                    }
                    if let Some(mark) = mark {
                        status = mark;
                        marks += 1;
                    }
                }
                Ok(Event::Ended) => {
                    self.ended += 1;
                    if self.ended == 2 {
                        return Err(self.gone(&format!("it ended by itself during {what}")));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let (host, what, console) = (self.name.clone(), what.to_owned(), self.console());
                    return Err(Error::Timeout { host, what, after: within, console });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone("it has ended")),
            }
        }
        Ok(status)
    }

    fn gone(&mut self, what: &str) -> Error {
        let ended = self.running.ended().map(|status| format!(" (its process: {status})"));
        let what = format!("{what}{}", ended.unwrap_or_default());
        Error::Gone { host: self.name.clone(), what, console: self.console() }
    }
}

impl Drop for Machine {
    /// Waits for the end of the streams as well: a host of namespaces has more processes than the one that is killed here, and its
    /// files are cleared away next.
    fn drop(&mut self) {
        self.running.end();
        let deadline = Instant::now() + END_MAX;
        while self.ended < 2 {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Ended) => self.ended += 1,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

/// A script as an error names it: its first line, not too long.
fn shown(script: &str) -> String {
    let line = script.trim().lines().next().unwrap_or_default();
    match line.char_indices().nth(100) {
        Some((at, _)) => format!("`{}…`", &line[..at]),
        None => format!("`{line}`"),
    }
}
