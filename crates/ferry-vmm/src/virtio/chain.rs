//! One request of a driver: a chain of descriptors, held against its bounds before anything of it is used.
//!
//! Facts: virtio 1.2, 2.7.4 to 2.7.5. A driver puts what the device reads before what it writes, and a
//! chain has no more descriptors than its queue. virtio-queue ends a chain silently where a descriptor
//! makes no sense; that the last one which it gave says that another follows is how this is seen here.

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::memory::{DeviceMemory, Outside};

/// What a driver did that no device can answer. The device stops, until its driver resets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A queue that cannot be.
    #[error("a queue of {size} entries was made ready, this one takes a power of two up to {max}")]
    Size {
        /// Its size.
        size: u32,
        /// The largest.
        max: u16,
    },
    /// A ring that begins where none does.
    #[error("the {ring} at {address:#x} is not aligned")]
    Alignment {
        /// Which part of the queue.
        ring: &'static str,
        /// Where.
        address: u64,
    },
    /// Rings or buffers that are not in guest memory.
    #[error("{what}: {source}")]
    Outside {
        /// What lies there.
        what: &'static str,
        /// Where.
        source: Outside,
    },
    /// An index that is further from the last than the queue is long, or a ring that cannot be read.
    #[error("the available ring makes no sense: {0}")]
    Available(String),
    /// A chain that is none.
    #[error("the chain of descriptor {head} {problem}")]
    Chain {
        /// Its first descriptor.
        head: u16,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The used ring cannot be written.
    #[error("the used ring cannot be written: {0}")]
    Used(String),
    /// A device was started with features that it did not accept.
    #[error("the driver started the device before its features were accepted")]
    Features,
}

/// Bytes of guest memory.
#[derive(Debug, Clone, Copy)]
struct Piece {
    address: u64,
    length: u64,
}

/// A request: what the device reads, and what it writes.
#[derive(Debug)]
pub(super) struct Chain {
    head: u16,
    readable: Vec<Piece>,
    writable: Vec<Piece>,
}

impl Chain {
    /// Takes a chain of a queue with so many entries; every byte of it lies in guest memory then.
    pub(super) fn parse(
        memory: &DeviceMemory,
        mut chain: DescriptorChain<&GuestMemoryMmap>,
        entries: u16,
    ) -> Result<Self, Malformed> {
        let head = chain.head_index();
        let wrong = |problem| Malformed::Chain { head, problem };
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut is_whole = false;
        let mut count = 0;
        for descriptor in &mut chain {
            count += 1;
            if count > entries {
                return Err(wrong("has more descriptors than its queue"));
            }
            is_whole = !descriptor.has_next();
            let piece = Piece { address: descriptor.addr().0, length: descriptor.len().into() };
            memory
                .check(piece.address, piece.length)
                .map_err(|source| Malformed::Outside { what: "a buffer", source })?;
            match (descriptor.is_write_only(), writable.is_empty()) {
                (true, _) => writable.push(piece),
                (false, true) => readable.push(piece),
                (false, false) => return Err(wrong("has something to read behind something to write")),
            }
        }
        if is_whole { Ok(Self { head, readable, writable }) } else { Err(wrong("breaks off, or is a loop")) }
    }

    /// Its first descriptor.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes for the device to read.
    pub(super) fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|piece| piece.length).sum()
    }

    /// Bytes for the device to write.
    pub(super) fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|piece| piece.length).sum()
    }

    /// Reads what is to be read, from this offset on; how many bytes there were.
    pub(super) fn read(
        &self,
        memory: &DeviceMemory,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize, Malformed> {
        let mut done = 0;
        for piece in cut(&self.readable, offset, into.len() as u64) {
            let end = done + usize::try_from(piece.length).unwrap_or(usize::MAX);
            let Some(part) = into.get_mut(done..end) else { break };
            memory.read(piece.address, part).map_err(outside)?;
            done = end;
        }
        Ok(done)
    }

    /// Writes what is to be written, from this offset on; how many bytes there was room for.
    pub(super) fn write(&self, memory: &DeviceMemory, offset: u64, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut done = 0;
        for piece in cut(&self.writable, offset, bytes.len() as u64) {
            let end = done + usize::try_from(piece.length).unwrap_or(usize::MAX);
            let Some(part) = bytes.get(done..end) else { break };
            memory.write(piece.address, part).map_err(outside)?;
            done = end;
        }
        Ok(done)
    }
}

fn outside(source: Outside) -> Malformed {
    Malformed::Outside { what: "a buffer", source }
}

/// The parts of the pieces that are the bytes from `offset` on, `length` at most.
fn cut(pieces: &[Piece], offset: u64, length: u64) -> impl Iterator<Item = Piece> {
    let mut skip = offset;
    let mut left = length;
    pieces.iter().filter_map(move |piece| {
        let skipped = skip.min(piece.length);
        skip -= skipped;
        let length = (piece.length - skipped).min(left);
        left -= length;
        (length > 0).then_some(Piece { address: piece.address + skipped, length })
    })
}
