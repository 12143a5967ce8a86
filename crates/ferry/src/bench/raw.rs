//! The limit: what a plain loop moves from memory to memory over TCP on this machine.
//!
//! Source memory is random and of the guest's size, so it is in no cache; target memory is of that size
//! and its pages are there already. As many streams as lanes share it; both ends are threads of this
//! process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ferry_migrate::cpu_time;

use crate::noise;

/// What is written and read at once: small enough to stay in a cache between the two ends, which is faster
/// here than megabytes at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Source and target memory, kept from loop to loop.
#[derive(Debug)]
pub(crate) struct Memory {
    source: Vec<u8>,
    target: Vec<u8>,
}

/// One loop's figures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) bytes_per_second: u64,
    /// Processor time of both ends.
    pub(crate) cpu: Duration,
}

impl Memory {
    /// Memory of this many bytes twice, random and touched.
    pub(crate) fn new(bytes: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut source = vec![0; bytes];
        noise::fill(&mut source, &mut state);
        Self { source, target: vec![0xff; bytes] }
    }

    /// Copies source to target in this process.
    pub(crate) fn memcpy(&mut self) -> u64 {
        let began = Instant::now();
        self.target.copy_from_slice(&self.source);
        per_second(self.source.len(), began.elapsed())
    }

    /// Moves everything over so many streams.
    pub(crate) fn moved(&mut self, streams: usize) -> std::io::Result<Figures> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let mut pairs = Vec::new();
        for _ in 0..streams.max(1) {
            let sender = TcpStream::connect(address)?;
            sender.set_nodelay(true)?;
            pairs.push((sender, listener.accept()?.0));
        }
        let share = self.source.len().div_ceil(pairs.len()).max(1);
        let parts = self.source.chunks(share).zip(self.target.chunks_mut(share));
        let (began, cpu) = (Instant::now(), cpu_time());
        let results: Vec<std::io::Result<()>> = std::thread::scope(|scope| {
            let ends: Vec<_> = pairs
                .into_iter()
                .zip(parts)
                .flat_map(|((sender, receiver), (from, to))| {
                    [scope.spawn(move || send(sender, from)), scope.spawn(move || receive(receiver, to))]
                })
                .collect();
            ends.into_iter().map(|end| end.join().unwrap_or(Err(std::io::ErrorKind::Other.into()))).collect()
        });
        let figures = Figures {
            bytes_per_second: per_second(self.source.len(), began.elapsed()),
            cpu: cpu_time().saturating_sub(cpu),
        };
        results.into_iter().collect::<std::io::Result<()>>().map(|()| figures)
    }
}

fn send(mut stream: TcpStream, from: &[u8]) -> std::io::Result<()> {
    from.chunks(CHUNK_BYTES).try_for_each(|chunk| stream.write_all(chunk))
}

fn receive(mut stream: TcpStream, to: &mut [u8]) -> std::io::Result<()> {
    to.chunks_mut(CHUNK_BYTES).try_for_each(|chunk| stream.read_exact(chunk))
}

fn per_second(bytes: usize, during: Duration) -> u64 {
    let micros = during.as_micros().max(1);
    u64::try_from(bytes as u128 * 1_000_000 / micros).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_raw_loop_moves_every_byte() {
        for streams in [1, 3] {
            let mut memory = Memory::new(3 * CHUNK_BYTES + 4096);
            assert!(memory.source != memory.target);
            let figures = memory.moved(streams).unwrap();
            assert!(memory.source == memory.target);
            assert!(figures.bytes_per_second > 0);
        }
    }
}
