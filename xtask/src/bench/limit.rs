//! What the machine at hand can do at best: a round trip over loopback TCP, and a thread's wake-up.
//!
//! A move's downtime holds at least two round trips (the last round and the state until the target
//! is ready; custody until the target says that the guest runs) and the wake-up of one vCPU's
//! thread. Two threads stand for the two processes: the kernel does the same work for both.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Rounds of each measurement.
pub(super) const ROUNDS: u32 = 1000;

/// Rounds before the first one that counts.
const WARM_UP: u32 = 100;

/// Round trips that no move can do without.
pub(super) const ROUND_TRIPS: u32 = 2;

/// The size of a small message, in bytes.
const MESSAGE_BYTES: usize = 64;

/// Medians of this machine, at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    /// One round trip of a small message over loopback TCP.
    pub(super) round_trip: Duration,
    /// From one thread's word until another, which slept, hears it.
    pub(super) wake_up: Duration,
}

impl Limit {
    /// Measures both.
    pub(super) fn measure() -> io::Result<Self> {
        Ok(Self { round_trip: round_trip()?, wake_up: wake_up()? })
    }

    /// The least that a downtime can be.
    pub(super) fn downtime(&self) -> Duration {
        self.round_trip * ROUND_TRIPS + self.wake_up
    }
}

fn round_trip() -> io::Result<Duration> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let echo = thread::spawn(move || {
        let (mut peer, _) = listener.accept()?;
        peer.set_nodelay(true)?;
        let mut message = [0; MESSAGE_BYTES];
        for _ in 0..WARM_UP + ROUNDS {
            peer.read_exact(&mut message)?;
            peer.write_all(&message)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE_BYTES];
    let median = median_of(|| {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)
    })?;
    joined(echo)?;
    Ok(median)
}

fn wake_up() -> io::Result<Duration> {
    let (to_sleeper, words) = mpsc::channel::<()>();
    let (to_waker, answers) = mpsc::channel();
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let sleeper = thread::spawn(move || {
        words.iter().try_for_each(|word| to_waker.send(word)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    });
    // There and back are two wake-ups, alike.
    let both = median_of(|| {
        to_sleeper.send(()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        answers.recv().map_err(gone)
    })?;
    drop(to_sleeper);
    joined(sleeper)?;
    Ok(both / 2)
}

fn joined(thread: thread::JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the measuring thread panicked")))
}

fn median_of(mut once: impl FnMut() -> io::Result<()>) -> io::Result<Duration> {
    for _ in 0..WARM_UP {
        once()?;
    }
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        once()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_made_of_its_parts() {
        let limit = Limit::measure().unwrap();
        assert!(limit.round_trip > Duration::ZERO && limit.wake_up > Duration::ZERO);
        assert_eq!(limit.downtime(), limit.round_trip + limit.round_trip + limit.wake_up);
    }
}
