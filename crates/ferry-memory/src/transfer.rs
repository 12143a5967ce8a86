//! Pages out to a descriptor and in from one, without a copy in between.
//!
//! Memory is reached by the system calls themselves ([`drive`](drive::drive)). Pages of file regions alone go through a
//! buffer of at most [`FILE_BUFFER`] bytes: what fails is then known to be the file or the descriptor.
//!
//! How long to wait is the descriptor's affair: with `SO_SNDTIMEO` and `SO_RCVTIMEO` (socket(7)) a
//! call that moved nothing for that long ends as [`IoError::TimedOut`]. A descriptor that does not
//! block (`O_NONBLOCK`, for example a pipe's) is waited for as long as the caller says. After any error the place in the stream is known to neither side: the
//! connection is of no more use.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::file::FilePart;
use crate::ram::Part;
use crate::{GuestRam, PAGE_SIZE, PageRange, RamError};

mod drive;

use drive::{Pieces, Receiver, Sender, drive};

/// The most bytes of file regions that are in this process at once.
const FILE_BUFFER: usize = 256 * 1024;

/// Why pages did not all move. `moved` counts the bytes that did, those of a head included.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// A range is not inside guest memory. Nothing moved.
    #[error(transparent)]
    Outside(#[from] RamError),
    /// The other side closed before all bytes had arrived.
    #[error("the stream ended after {moved} of {expected} bytes")]
    Ended {
        /// Bytes that arrived.
        moved: u64,
        /// Bytes that were asked for.
        expected: u64,
    },
    /// Nothing moved for as long as the descriptor waits.
    #[error("nothing moved for the time allowed, after {moved} of {expected} bytes")]
    TimedOut {
        /// Bytes that moved before.
        moved: u64,
        /// Bytes of the whole transfer.
        expected: u64,
    },
    /// The kernel could not reach a page of guest memory (`EFAULT`): its backing file is too short,
    /// or its mapping forbids the access.
    #[error("guest memory could not be accessed, after {moved} of {expected} bytes")]
    Inaccessible {
        /// Bytes that moved before.
        moved: u64,
        /// Bytes of the whole transfer.
        expected: u64,
    },
    /// A file region could not be read or written; the descriptor did its part.
    #[error("the transfer failed after {moved} of {expected} bytes")]
    File {
        /// Bytes that moved before.
        moved: u64,
        /// Bytes of the whole transfer.
        expected: u64,
        /// Which file, where, and why.
        source: RamError,
    },
    /// Anything else, a broken connection among it.
    #[error("the transfer failed after {moved} of {expected} bytes")]
    Os {
        /// Bytes that moved before.
        moved: u64,
        /// Bytes of the whole transfer.
        expected: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Writes `head`, then every page of `runs` in order, then `tail`.
///
/// The pages leave straight from guest memory: what the guest writes meanwhile may or may not be in
/// them. On a socket a closed connection is an error (`EPIPE` in [`IoError::Os`]) and no signal; on a
/// pipe it is also a `SIGPIPE`, which Rust programs ignore unless they say otherwise.
pub fn send_pages(
    ram: &GuestRam,
    fd: BorrowedFd<'_>,
    head: &[u8],
    runs: &[PageRange],
    tail: &[u8],
) -> Result<(), IoError> {
    send_pages_within(ram, fd, head, runs, tail, Duration::ZERO)
}

/// The same; a descriptor that does not block may take nothing for as long as `patience`.
pub fn send_pages_within(
    ram: &GuestRam,
    fd: BorrowedFd<'_>,
    head: &[u8],
    runs: &[PageRange],
    tail: &[u8],
    patience: Duration,
) -> Result<(), IoError> {
    let (batches, expected) = batches(ram, runs)?;
    let expected = expected.saturating_add((head.len() + tail.len()) as u64);
    let mut sender = Sender::new(fd, patience);
    let (mut head, mut moved, mut buffer) = (head, 0, Vec::new());
    for batch in &batches {
        let mut pieces = Pieces::new(moved, expected);
        // Beside the first pages, so that one call takes both.
        pieces.bytes(std::mem::take(&mut head));
        match batch {
            Batch::Memory(runs) => pieces.pages(ram, runs)?,
            Batch::Files { parts, bytes } => {
                buffer.resize(*bytes, 0);
                let read = each(parts, &mut buffer, FilePart::read);
                read.map_err(|source| IoError::File { moved, expected, source })?;
                pieces.bytes(&buffer);
            }
        }
        moved = drive(&mut pieces, &mut sender)?;
    }
    let mut pieces = Pieces::new(moved, expected);
    pieces.bytes(head);
    pieces.bytes(tail);
    drive(&mut pieces, &mut sender).map(drop)
}

/// Reads every page of `runs`, in order, straight into guest memory.
///
/// After an error the pages hold what arrived until then, the last of it possibly a part of a page.
pub fn receive_pages(ram: &GuestRam, fd: BorrowedFd<'_>, runs: &[PageRange]) -> Result<(), IoError> {
    receive_pages_within(ram, fd, runs, Duration::ZERO)
}

/// The same; a descriptor that does not block may bring nothing for as long as `patience`.
pub fn receive_pages_within(
    ram: &GuestRam,
    fd: BorrowedFd<'_>,
    runs: &[PageRange],
    patience: Duration,
) -> Result<(), IoError> {
    let (batches, expected) = batches(ram, runs)?;
    let mut receiver = Receiver { fd, patience };
    let (mut moved, mut buffer) = (0, Vec::new());
    for batch in &batches {
        let mut pieces = Pieces::new(moved, expected);
        match batch {
            Batch::Memory(runs) => {
                pieces.pages(ram, runs)?;
                moved = drive(&mut pieces, &mut receiver)?;
            }
            Batch::Files { parts, bytes } => {
                buffer.resize(*bytes, 0);
                pieces.room(&mut buffer);
                moved = drive(&mut pieces, &mut receiver)?;
                let written = each(parts, &mut buffer, |part, bytes| part.write(bytes));
                written.map_err(|source| IoError::File { moved, expected, source })?;
            }
        }
    }
    Ok(())
}

/// Runs that move together.
enum Batch<'a> {
    /// Straight from memory, or into it.
    Memory(&'a [PageRange]),
    /// Through a buffer of so many bytes, at most [`FILE_BUFFER`].
    Files { parts: Vec<FilePart<'a>>, bytes: usize },
}

/// The runs in batches, and the bytes of all.
fn batches<'a>(ram: &'a GuestRam, runs: &'a [PageRange]) -> Result<(Vec<Batch<'a>>, u64), RamError> {
    let mut expected = 0_u64;
    let mut is_file = Vec::with_capacity(runs.len());
    for &run in runs {
        is_file.push(matches!(ram.part(run)?, Part::File(_)));
        expected = expected.saturating_add(run.count * PAGE_SIZE);
    }
    let mut batches = Vec::new();
    let mut rest = runs;
    for same in is_file.chunk_by(|one, next| one == next) {
        let (here, behind) = rest.split_at(same.len());
        rest = behind;
        match same.first() {
            Some(true) => add_files(&mut batches, ram, here)?,
            _ => batches.push(Batch::Memory(here)),
        }
    }
    Ok((batches, expected))
}

/// Small runs share a batch, large ones are cut.
fn add_files<'a>(
    batches: &mut Vec<Batch<'a>>,
    ram: &'a GuestRam,
    runs: &[PageRange],
) -> Result<(), RamError> {
    let (mut parts, mut bytes) = (Vec::new(), 0);
    for &run in runs {
        let Part::File(whole) = ram.part(run)? else { continue };
        for part in whole.pieces(FILE_BUFFER) {
            if bytes + part.length() > FILE_BUFFER {
                batches.push(Batch::Files { parts: std::mem::take(&mut parts), bytes });
                bytes = 0;
            }
            bytes += part.length();
            parts.push(part);
        }
    }
    batches.push(Batch::Files { parts, bytes });
    Ok(())
}

/// Does `act` with each part and its bytes in the buffer, where they lie one after the other.
fn each<'a>(
    parts: &[FilePart<'a>],
    buffer: &mut [u8],
    mut act: impl FnMut(FilePart<'a>, &mut [u8]) -> Result<(), RamError>,
) -> Result<(), RamError> {
    let mut rest = buffer;
    for &part in parts {
        let (here, behind) = rest.split_at_mut(part.length());
        rest = behind;
        act(part, here)?;
    }
    Ok(())
}
