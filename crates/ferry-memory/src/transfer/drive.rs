//! The system calls of a transfer: pieces of memory that move in as many steps as the kernel takes.
//!
//! `sendmsg` and `writev` take the bytes straight from guest memory, `readv` puts them straight into
//! it (sendmsg(2), readv(2)). Both move as much as they like at a time; [`drive`] goes on where they
//! stopped. They take at most 1024 pieces (`UIO_MAXIOV`, include/uapi/linux/uio.h).

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use super::IoError;
use crate::patience::wait;
use crate::{GuestRam, PageRange, RamError};

/// The kernel's bound on the pieces of one call.
const IOVECS_MAX: usize = 1024;

/// What is still to be moved: memory that lives as long as `'a`, in order.
pub(super) struct Pieces<'a> {
    iovecs: Vec<libc::iovec>,
    /// Index of the first piece that has not moved as a whole.
    next: usize,
    moved: u64,
    expected: u64,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Pieces<'a> {
    /// None yet, of a transfer of so many bytes of which so many have moved.
    pub(super) fn new(moved: u64, expected: u64) -> Self {
        Self { iovecs: Vec::new(), next: 0, moved, expected, memory: PhantomData }
    }

    /// Bytes to be sent. The kernel only reads them: pieces with such bytes go to a [`Sender`] alone.
    pub(super) fn bytes(&mut self, bytes: &'a [u8]) {
        if !bytes.is_empty() {
            self.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        }
    }

    /// Where received bytes are to go.
    pub(super) fn room(&mut self, bytes: &'a mut [u8]) {
        self.push(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
    }

    /// Runs of memory.
    pub(super) fn pages(&mut self, ram: &'a GuestRam, runs: &[PageRange]) -> Result<(), RamError> {
        self.iovecs.reserve(runs.len());
        for &run in runs {
            self.push(ram.pages(run)?.iovec());
        }
        Ok(())
    }

    fn push(&mut self, iovec: libc::iovec) {
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
pub(super) trait Step {
    /// Moves bytes of these pieces, which are at least one and none empty, from the first on, and
    /// says how many. None means that there will be no more.
    fn step(&mut self, pieces: &[libc::iovec]) -> io::Result<usize>;

    /// The last step would have blocked: waits until another may move something.
    fn wait(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Writes to a descriptor.
pub(super) struct Sender<'a> {
    fd: BorrowedFd<'a>,
    /// Until the kernel says otherwise.
    is_socket: bool,
    patience: Duration,
}

impl<'a> Sender<'a> {
    pub(super) fn new(fd: BorrowedFd<'a>, patience: Duration) -> Self {
        Self { fd, is_socket: true, patience }
    }
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

/// Reads from a descriptor.
pub(super) struct Receiver<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) patience: Duration,
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

/// Moves all pieces, however many steps it takes; how many bytes of the transfer have moved then.
pub(super) fn drive(pieces: &mut Pieces<'_>, kernel: &mut impl Step) -> Result<u64, IoError> {
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
    Ok(pieces.moved)
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
            let mut pieces = Pieces::new(0, 0);
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
            let mut pieces = Pieces::new(0, whole as u64);
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
        let mut pieces = Pieces::new(0, 0);
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
            let mut pieces = Pieces::new(0, 8192);
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
