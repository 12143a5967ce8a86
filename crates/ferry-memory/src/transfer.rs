//! Pages out to a descriptor and in from one, without a copy in between.
//!
//! `sendmsg` and `writev` take the bytes straight from guest memory, `readv` puts them straight into
//! it (sendmsg(2), readv(2)). Both move as much as they like at a time; [`drive`] goes on where they
//! stopped. They take at most 1024 pieces (`UIO_MAXIOV`, include/uapi/linux/uio.h).
//!
//! How long to wait is the descriptor's affair: with `SO_SNDTIMEO` and `SO_RCVTIMEO` (socket(7)) a
//! call that moved nothing for that long ends as [`IoError::TimedOut`]. A descriptor that does not
//! block (`O_NONBLOCK`, for example a pipe's) is waited for as long as the caller says. After any error the place in the stream is known to neither side: the
//! connection is of no more use.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::patience::wait;
use crate::{GuestRam, PageRange, RamError};

/// The kernel's bound on the pieces of one call.
const IOVECS_MAX: usize = 1024;

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
    let mut pieces = Pieces::with_room(runs.len() + 2);
    pieces.bytes(head);
    pieces.pages(ram, runs)?;
    pieces.bytes(tail);
    drive(&mut pieces, &mut Sender { fd, is_socket: true, patience })
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
    let mut pieces = Pieces::with_room(runs.len());
    pieces.pages(ram, runs)?;
    drive(&mut pieces, &mut Receiver { fd, patience })
}

/// What is still to be moved: memory that lives as long as `'a`, in order.
struct Pieces<'a> {
    iovecs: Vec<libc::iovec>,
    /// Index of the first piece that has not moved as a whole.
    next: usize,
    moved: u64,
    expected: u64,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Pieces<'a> {
    fn with_room(pieces: usize) -> Self {
        Self { iovecs: Vec::with_capacity(pieces), next: 0, moved: 0, expected: 0, memory: PhantomData }
    }

    /// Bytes to be sent. The kernel only reads them: pieces with such bytes go to a [`Sender`] alone.
    fn bytes(&mut self, bytes: &'a [u8]) {
        if !bytes.is_empty() {
            self.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        }
    }

    fn pages(&mut self, ram: &'a GuestRam, runs: &[PageRange]) -> Result<(), RamError> {
        for &run in runs {
            self.push(ram.pages(run)?.iovec());
        }
        Ok(())
    }

    fn push(&mut self, iovec: libc::iovec) {
        self.expected = self.expected.saturating_add(iovec.iov_len as u64);
        self.iovecs.push(iovec);
    }

    /// As many pieces as one call takes; empty when all have moved.
    fn pending(&self) -> &[libc::iovec] {
        let pending = self.iovecs.get(self.next..).unwrap_or_default();
        pending.get(..IOVECS_MAX).unwrap_or(pending)
    }

    /// Takes the first `count` bytes of what is pending for moved.
    fn advance(&mut self, count: usize) {
        self.moved += count as u64;
        let mut left = count;
        while let Some(piece) = self.iovecs.get_mut(self.next) {
            if left < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(left);
                piece.iov_len -= left;
                return;
            }
            left -= piece.iov_len;
            self.next += 1;
        }
    }
}

/// One call that moves some bytes.
trait Step {
    /// Moves bytes of these pieces, which are at least one and none empty, from the first on, and
    /// says how many. None means that there will be no more.
    fn step(&mut self, pieces: &[libc::iovec]) -> io::Result<usize>;

    /// The last step would have blocked: waits until another may move something.
    fn wait(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::TimedOut.into())
    }
}

struct Sender<'a> {
    fd: BorrowedFd<'a>,
    /// Until the kernel says otherwise.
    is_socket: bool,
    patience: Duration,
}

impl Step for Sender<'_> {
    fn step(&mut self, pieces: &[libc::iovec]) -> io::Result<usize> {
        if self.is_socket {
            match send_message(self.fd, pieces) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => self.is_socket = false,
                other => return other.and_then(not_nothing),
            }
        }
        // SAFETY: `pieces` are valid iovecs over memory that outlives the call; the kernel reads it.
        let moved = unsafe { libc::writev(self.fd.as_raw_fd(), pieces.as_ptr(), piece_count(pieces)) };
        count(moved).and_then(not_nothing)
    }

    fn wait(&mut self) -> io::Result<()> {
        wait(self.fd, libc::POLLOUT, self.patience)
    }
}

struct Receiver<'a> {
    fd: BorrowedFd<'a>,
    patience: Duration,
}

impl Step for Receiver<'_> {
    fn step(&mut self, pieces: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: `pieces` are valid iovecs over guest memory that outlives the call. The kernel
        // writes it; no reference to it exists.
        count(unsafe { libc::readv(self.fd.as_raw_fd(), pieces.as_ptr(), piece_count(pieces)) })
    }

    fn wait(&mut self) -> io::Result<()> {
        wait(self.fd, libc::POLLIN, self.patience)
    }
}

/// Moves all pieces, however many steps it takes.
fn drive(pieces: &mut Pieces<'_>, kernel: &mut impl Step) -> Result<(), IoError> {
    while !pieces.pending().is_empty() {
        let (moved, expected) = (pieces.moved, pieces.expected);
        match kernel.step(pieces.pending()) {
            Ok(0) => return Err(IoError::Ended { moved, expected }),
            Ok(count) => pieces.advance(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match kernel.wait() {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(IoError::TimedOut { moved, expected });
                }
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(IoError::Os { moved, expected, source: error });
                }
                _ => {}
            },
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                return Err(IoError::Inaccessible { moved, expected });
            }
            Err(source) => return Err(IoError::Os { moved, expected, source }),
        }
    }
    Ok(())
}

fn send_message(fd: BorrowedFd<'_>, pieces: &[libc::iovec]) -> io::Result<usize> {
    // SAFETY: all fields are integers and pointers that may be null; zero means: no address, no
    // control data. (Some C libraries have private fields here, so it cannot be written out.)
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut();
    #[cfg_attr(
        target_env = "musl",
        expect(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "musl has an int here, as POSIX has; there are at most IOV_MAX pieces"
        )
    )]
    let count_of_pieces = pieces.len() as _;
    message.msg_iovlen = count_of_pieces;
    // SAFETY: `message` holds valid iovecs over memory that outlives the call; the kernel reads it.
    count(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
}

/// At most [`IOVECS_MAX`], so it always fits.
fn piece_count(pieces: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX)
}

/// The result of a system call that gives -1 or a number of bytes.
fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_negative| io::Error::last_os_error())
}

/// A write of no bytes is no end of a stream but a descriptor that takes none.
fn not_nothing(count: usize) -> io::Result<usize> {
    if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(count) }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::{Layout, Span};

    /// What a scripted kernel does on one call.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Interrupt,
        /// Moves up to so many bytes.
        Move(usize),
        Fail(i32),
    }

    /// Stands for the kernel: moves bytes between the pieces and `stream` as the script says, and
    /// without bound when the script is over.
    struct Scripted {
        script: VecDeque<Act>,
        stream: Vec<u8>,
        /// For reading: the bytes of `stream` already given out. `None` when writing.
        read: Option<usize>,
        most_pieces: usize,
    }

    impl Scripted {
        fn writes(script: &[Act]) -> Self {
            Self { script: script.iter().copied().collect(), stream: Vec::new(), read: None, most_pieces: 0 }
        }

        fn reads(script: &[Act], stream: Vec<u8>) -> Self {
            Self { stream, read: Some(0), ..Self::writes(script) }
        }

        fn byte(&mut self, at: *mut u8) -> bool {
            match &mut self.read {
                None => {
                    // SAFETY: `at` lies in a piece that the test owns, and nobody writes to it.
                    self.stream.push(unsafe { at.read_volatile() });
                    true
                }
                Some(read) => {
                    let Some(&byte) = self.stream.get(*read) else { return false };
                    // SAFETY: `at` lies in a piece of the test's own guest memory.
                    unsafe { at.write_volatile(byte) };
                    *read += 1;
                    true
                }
            }
        }
    }

    impl Step for Scripted {
        fn step(&mut self, pieces: &[libc::iovec]) -> io::Result<usize> {
            assert!(pieces.iter().all(|piece| piece.iov_len > 0) && !pieces.is_empty());
            self.most_pieces = self.most_pieces.max(pieces.len());
            let most = match self.script.pop_front().unwrap_or(Act::Move(usize::MAX)) {
                Act::Interrupt => return Err(io::ErrorKind::Interrupted.into()),
                Act::Fail(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Act::Move(most) => most,
            };
            let mut moved = 0;
            for piece in pieces {
                for offset in 0..piece.iov_len {
                    if moved == most || !self.byte(piece.iov_base.cast::<u8>().wrapping_add(offset)) {
                        return Ok(moved);
                    }
                    moved += 1;
                }
            }
            Ok(moved)
        }
    }

    const PAGES: u64 = 16;

    fn ram() -> GuestRam {
        let layout = Layout::new(vec![Span { start: 0, length: PAGES << 12 }]).unwrap();
        GuestRam::anonymous(&layout).unwrap()
    }

    /// Every page different, and no two bytes in a row alike.
    fn patterned() -> GuestRam {
        let ram = ram();
        for page in 0..PAGES {
            let bytes: Vec<u8> =
                (0..4096u64).map(|at| (at * 7 + page * 31 + at / 256).to_le_bytes()[0]).collect();
            ram.write(page << 12, &bytes).unwrap();
        }
        ram
    }

    fn bytes(ram: &GuestRam, runs: &[PageRange]) -> Vec<u8> {
        let page = |page: u64| {
            let mut bytes = vec![0; 4096];
            ram.read(page << 12, &mut bytes).unwrap();
            bytes
        };
        runs.iter().flat_map(|run| (run.first..run.first + run.count).flat_map(page)).collect()
    }

    fn script() -> impl Strategy<Value = Vec<Act>> {
        let act =
            prop_oneof![Just(Act::Interrupt), (1usize..9000).prop_map(Act::Move), Just(Act::Move(4096))];
        prop::collection::vec(act, 0..12)
    }

    fn runs() -> impl Strategy<Value = Vec<PageRange>> {
        let run = (0..PAGES, 1..4u64)
            .prop_map(|(first, count)| PageRange { first, count: count.min(PAGES - first) });
        prop::collection::vec(run, 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn writes_that_stop_anywhere_go_on_there(
            script in script(),
            runs in runs(),
            head in prop::collection::vec(any::<u8>(), 0..40),
            tail in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let ram = patterned();
            let mut pieces = Pieces::with_room(0);
            pieces.bytes(&head);
            pieces.pages(&ram, &runs).unwrap();
            pieces.bytes(&tail);
            let mut kernel = Scripted::writes(&script);
            drive(&mut pieces, &mut kernel).unwrap();
            prop_assert!(kernel.stream == [&head[..], &bytes(&ram, &runs), &tail].concat());
            prop_assert_eq!(pieces.moved, kernel.stream.len() as u64);
        }

        #[test]
        fn reads_that_stop_anywhere_go_on_there_and_a_cut_says_how_far(
            script in script(),
            runs in runs(),
            cut in prop::option::of(0usize..70_000),
        ) {
            let source = patterned();
            let mut stream = bytes(&source, &runs);
            let whole = stream.len();
            stream.truncate(cut.unwrap_or(whole));
            let target = ram();
            let mut pieces = Pieces::with_room(0);
            pieces.pages(&target, &runs).unwrap();
            let arrives = stream.len();
            let result = drive(&mut pieces, &mut Scripted::reads(&script, stream));
            if arrives == whole {
                result.unwrap();
                prop_assert!(bytes(&target, &runs) == bytes(&source, &runs));
            } else {
                let is_cut = matches!(
                    result,
                    Err(IoError::Ended { moved, expected }) if (moved, expected) == (arrives as u64, whole as u64)
                );
                prop_assert!(is_cut, "{:?}", result);
            }
        }
    }

    #[test]
    fn no_call_gets_more_pieces_than_the_kernel_takes() {
        let ram = patterned();
        let runs: Vec<_> = (0..2500).map(|at| PageRange { first: at % PAGES, count: 1 }).collect();
        let mut pieces = Pieces::with_room(runs.len());
        pieces.pages(&ram, &runs).unwrap();
        let mut kernel = Scripted::writes(&[]);
        drive(&mut pieces, &mut kernel).unwrap();
        assert_eq!(kernel.most_pieces, IOVECS_MAX);
        assert!(kernel.stream == bytes(&ram, &runs));
    }

    #[test]
    fn each_failure_is_its_own_kind_with_the_bytes_that_moved() {
        let fails = |errno| {
            let ram = ram();
            let mut pieces = Pieces::with_room(1);
            pieces.pages(&ram, &[PageRange { first: 0, count: 2 }]).unwrap();
            drive(&mut pieces, &mut Scripted::writes(&[Act::Move(5000), Act::Fail(errno)])).unwrap_err()
        };
        assert!(matches!(fails(libc::EAGAIN), IoError::TimedOut { moved: 5000, expected: 8192 }));
        assert!(matches!(fails(libc::EFAULT), IoError::Inaccessible { moved: 5000, expected: 8192 }));
        let broken = fails(libc::ECONNRESET);
        let IoError::Os { moved: 5000, expected: 8192, source } = broken else { panic!("{broken:?}") };
        assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(not_nothing(0).unwrap_err().kind(), io::ErrorKind::WriteZero);
    }
}
