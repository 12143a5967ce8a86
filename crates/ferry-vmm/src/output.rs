//! Where a guest's consoles write to: files, pipes, terminals. Nobody who does not read there holds the guest up.
//!
//! What can be written at once is, before the guest's instruction or request is done; so nothing is under way when the
//! guest pauses. Where a pipe is full or a terminal stopped, a thread waits for its reader, and what the guest goes on
//! writing waits with it, [`BUFFER_BYTES`] at most: of more the oldest is lost, which the log says once there is a reader again
//! (earlier it might have the same one).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The most that waits for a reader.
const BUFFER_BYTES: usize = 1 << 20;

/// Bytes that are written at once. A pipe or a terminal that says that it takes some takes so many (`PIPE_BUF` in
/// pipe(7) is more; `WAKEUP_CHARS` in the kernel's `drivers/tty/n_tty.c` is this).
const CHUNK_BYTES: usize = 256;

/// How long the end of a guest waits for a reader of its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where output goes; nowhere, if there are no files. All clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output(Vec<Arc<Sink>>);

/// One file.
#[derive(Debug)]
struct Sink {
    file: Arc<File>,
    /// It has a reader, for which a write may wait.
    has_reader: bool,
    /// It was said that it fails.
    has_failed: AtomicBool,
    queue: Mutex<Queue>,
    emptied: Condvar,
}

/// What waits for a reader.
#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Bytes that had no place.
    lost: u64,
    /// A thread writes; it ends when nothing waits.
    is_drained: bool,
}

impl Output {
    /// All of these.
    pub(crate) fn new(files: Vec<Arc<File>>) -> Self {
        Self(files.into_iter().map(|file| Arc::new(Sink::new(file))).collect())
    }

    /// Waits until what was written is with its readers, but not for long. For the end of a guest.
    pub(crate) fn finish(&self) {
        for sink in &self.0 {
            let waits = |queue: &mut Queue| queue.is_drained;
            drop(sink.emptied.wait_timeout_while(sink.lock(), LAST_WORDS, waits));
        }
    }
}

impl Write for Output {
    /// Never fails: a port that is told of an error does not tell its driver that there is room again, and that would wait
    /// for ever.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for sink in &self.0 {
            // One that fails keeps nothing from the others.
            if let Err(error) = sink.write(bytes)
                && !sink.has_failed.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(%error, "output of the guest is lost");
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // what has no reader stays where it is
    }
}

impl Sink {
    fn new(file: Arc<File>) -> Self {
        let has_reader = !file.metadata().is_ok_and(|meta| meta.is_file());
        let (has_failed, queue, emptied) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        Self { file, has_reader, has_failed, queue, emptied }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(self: &Arc<Self>, bytes: &[u8]) -> io::Result<()> {
        if !self.has_reader {
            return (&*self.file).write_all(bytes);
        }
        let mut queue = self.lock();
        let rest = if queue.is_drained { bytes } else { self.write_now(bytes)? };
        if rest.is_empty() {
            return Ok(());
        }
        queue.push(rest);
        if !queue.is_drained {
            let its = Arc::clone(self);
            let thread = std::thread::Builder::new().name("output".into());
            thread.spawn(move || its.drain())?;
            queue.is_drained = true;
        }
        Ok(())
    }

    /// Writes what nobody must be waited for; what is left.
    fn write_now<'a>(&self, mut bytes: &'a [u8]) -> io::Result<&'a [u8]> {
        while let [_, ..] = bytes
            && self.is_ready(Some(&Timespec::default()))
        {
            let part = bytes.get(..CHUNK_BYTES).unwrap_or(bytes);
            match (&*self.file).write(part) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// Whether a write is answered at once, be it by an error.
    fn is_ready(&self, timeout: Option<&Timespec>) -> bool {
        let mut polled = [PollFd::new(&*self.file, PollFlags::OUT)];
        matches!(poll(&mut polled, timeout), Ok(1..))
    }

    /// The thread: writes until nothing waits.
    fn drain(&self) {
        let mut failure = None;
        loop {
            let mut queue = self.lock();
            if failure.is_some() {
                queue.bytes.clear();
            }
            if queue.bytes.is_empty() {
                queue.is_drained = false;
                self.emptied.notify_all();
                let lost = std::mem::take(&mut queue.lost);
                drop(queue);
                say(lost, failure);
                return;
            }
            let length = queue.bytes.len().min(CHUNK_BYTES);
            let part: Vec<u8> = queue.bytes.drain(..length).collect();
            drop(queue);
            failure = self.write_out(&part).err();
        }
    }

    /// Writes all of it, for which it waits.
    fn write_out(&self, mut part: &[u8]) -> io::Result<()> {
        while let [_, ..] = part {
            // For ever, or interrupted: then the write says so.
            let _ready = self.is_ready(None);
            part = self.write_now(part)?;
        }
        Ok(())
    }
}

impl Queue {
    /// The newest stay.
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(BUFFER_BYTES);
        self.bytes.drain(..excess);
        self.lost += excess as u64;
    }
}

/// Only from the thread: the log may have the same reader as the guest.
fn say(lost: u64, failure: Option<io::Error>) {
    if lost > 0 {
        tracing::warn!(bytes = lost, "output of the guest is lost: nobody read what it wrote in time");
    }
    if let Some(error) = failure {
        tracing::warn!(%error, "output of the guest is lost");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use super::*;

    fn pipe() -> (File, Output) {
        let (reads, writes) = io::pipe().unwrap();
        (OwnedFd::from(reads).into(), Output::new(vec![Arc::new(OwnedFd::from(writes).into())]))
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251).to_le_bytes()[0]).collect()
    }

    fn first(reads: &mut File, length: usize) -> Vec<u8> {
        let mut found = vec![0; length];
        reads.read_exact(&mut found).unwrap();
        found
    }

    #[test]
    fn what_has_a_reader_is_there_at_once() {
        let (mut reads, mut output) = pipe();
        output.write_all(b"hello").unwrap();
        assert!(!output.0[0].lock().is_drained, "no thread was needed");
        assert_eq!(first(&mut reads, 5), b"hello");
        drop(reads);
        assert_eq!(output.0[0].write(b"gone").unwrap_err().kind(), ErrorKind::BrokenPipe);
        output.write_all(b"gone").unwrap();
        output.finish();
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up_and_loses_nothing_that_has_a_place() {
        let (mut reads, mut output) = pipe();
        let (text, began) = (text(500_000), Instant::now());
        text.chunks(999).for_each(|part| output.write_all(part).unwrap());
        output.finish();
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(output.0[0].lock().is_drained, "it waits for a reader");
        assert!(first(&mut reads, text.len()) == text);
        output.finish();
        output.write_all(b"more").unwrap();
        assert_eq!(first(&mut reads, 4), b"more");
    }

    #[test]
    fn of_too_much_the_oldest_is_lost_and_the_buffer_has_a_bound() {
        let (mut reads, mut output) = pipe();
        let text = text(3 * BUFFER_BYTES);
        output.write_all(&text).unwrap();
        let (waits, lost) = {
            let queue = output.0[0].lock();
            (queue.bytes.len(), usize::try_from(queue.lost).unwrap())
        };
        assert!(waits <= BUFFER_BYTES && lost > BUFFER_BYTES);
        let found = first(&mut reads, text.len() - lost);
        assert!(found.ends_with(&text[2 * BUFFER_BYTES..]), "the newest is there");
        assert!(text.starts_with(&found[..4096]), "and what was in the pipe already");
    }

    #[test]
    fn a_reader_that_leaves_ends_the_wait() {
        let (reads, mut output) = pipe();
        output.write_all(&text(200_000)).unwrap();
        drop(reads);
        output.finish();
        assert!(!output.0[0].lock().is_drained);
        assert_eq!(output.0[0].write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
