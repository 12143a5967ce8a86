//! Guest output for whoever may be slow to take it: a terminal, the reader of a pipe.
//!
//! The guest writes to a pipe of this process, which never makes it wait, and a thread passes on what is in there. What
//! comes while the pipe is full is lost, and once nobody takes anything any more (the terminal went away) all of it. Ordinary files
//! take everything at once and need none of that.
//!
//! Facts: pipe(7), "Pipe capacity"; poll(2).

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread};

/// Bytes that wait at the most; a user may have as many by default (`/proc/sys/fs/pipe-max-size`).
const CAPACITY: usize = 1 << 20;

/// How long between two looks whether all is out.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Output that is under way.
#[derive(Debug)]
pub(crate) struct Outlet {
    pipe: Arc<File>,
    /// Held while something that has left the pipe is not written yet.
    passing: Arc<Mutex<()>>,
}

/// What the guest may write to in the place of this file; with the outlet, if it needs one.
pub(crate) fn take(file: File) -> io::Result<(Arc<File>, Option<Outlet>)> {
    if file.metadata()?.is_file() {
        return Ok((Arc::new(file), None));
    }
    let (from, into) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    ioctl_fionbio(&into, true)?;
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(&into, CAPACITY) {
        tracing::debug!(%error, "less output can wait than usual");
    }
    let outlet = Outlet { pipe: Arc::new(File::from(from)), passing: Arc::default() };
    let (pipe, passing) = (Arc::clone(&outlet.pipe), Arc::clone(&outlet.passing));
    let run = move || pass_on(&pipe, file, &passing);
    std::thread::Builder::new().name("ferry-output".into()).spawn(run)?;
    Ok((Arc::new(File::from(into)), Some(outlet)))
}

impl Outlet {
    /// Waits until all that was written so far is out, but not for ever.
    pub(crate) fn drain(&self, until: Instant) {
        while !self.is_empty() && Instant::now() < until {
            std::thread::park_timeout(BETWEEN_LOOKS);
        }
    }

    fn is_empty(&self) -> bool {
        let _passed = match self.passing.try_lock() {
            Err(TryLockError::WouldBlock) => return false,
            passed => passed,
        };
        ioctl_fionread(&*self.pipe).map_or(true, |waiting| waiting == 0)
    }
}

/// Passes on what is in the pipe, until nobody can write to it any more.
fn pass_on(mut pipe: &File, file: File, passing: &Mutex<()>) {
    let mut buffer = [0; 4096];
    let mut file = Some(file);
    loop {
        wait(pipe, PollFlags::IN);
        let _passing = passing.lock().unwrap_or_else(PoisonError::into_inner);
        let length = match pipe.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(length @ 1..) => length,
            Ok(0) | Err(_) => return,
        };
        // What nobody takes is lost; the guest goes on.
        file = file.take().filter(|file| match write(file, buffer.get(..length).unwrap_or_default()) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "nobody takes the guest's output any more");
                false
            }
        });
    }
}

/// Writes all of it, however slowly it is taken.
fn write(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever gave us the file made it so.
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(file, PollFlags::OUT),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(file: &File, wanted: PollFlags) {
    while poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), wanted)], None) == Err(Errno::INTR) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piped() -> (File, Arc<File>, Outlet) {
        let (from, into) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (guests, outlet) = take(File::from(into)).unwrap();
        (File::from(from), guests, outlet.unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn an_ordinary_file_is_written_to_directly() {
        let (_, outlet) = take(tempfile::tempfile().unwrap()).unwrap();
        assert!(outlet.is_none());
    }

    #[test]
    fn what_is_taken_arrives_in_order_and_is_out_after_a_drain() {
        let (mut reader, guests, outlet) = piped();
        let sent: Vec<u8> = (0..30_000_u32).flat_map(u32::to_le_bytes).collect();
        let length = sent.len();
        let reading = std::thread::spawn(move || {
            let mut got = vec![0; length];
            reader.read_exact(&mut got).unwrap();
            got
        });
        for byte in &sent {
            (&*guests).write_all(&[*byte]).unwrap();
        }
        outlet.drain(soon());
        assert!(outlet.is_empty());
        assert_eq!(reading.join().unwrap(), sent);
    }

    #[test]
    fn who_does_not_read_holds_nobody_up() {
        let (mut reader, guests, outlet) = piped();
        let (mut lost, begun) = (0, Instant::now());
        for turn in 0..4096_u32 {
            lost += u32::from((&*guests).write_all(&[turn.to_le_bytes()[0]; 1024]).is_err());
        }
        assert!(lost > 0 && begun.elapsed() < Duration::from_secs(10), "{lost} {:?}", begun.elapsed());
        outlet.drain(Instant::now() + Duration::from_millis(20));
        assert!(!outlet.is_empty());
        // Who reads late gets what waited, and then what is new.
        let mut got = vec![0; 64 << 10];
        reader.read_exact(&mut got).unwrap();
        drop(guests);
        reader.read_to_end(&mut got).unwrap();
        assert!(got.len() >= 128 << 10);
    }

    #[test]
    fn who_goes_away_leaves_the_guest_writing() {
        let (reader, guests, outlet) = piped();
        drop(reader);
        for _ in 0..64 {
            outlet.drain(soon());
            (&*guests).write_all(&vec![b'x'; 65536]).unwrap();
        }
        outlet.drain(soon());
        assert!(outlet.is_empty());
    }
}
