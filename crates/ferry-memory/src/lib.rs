//! Guest memory for live migration: where it lies, which pages matter, and how they leave and arrive.
//!
//! - [`Layout`] says where a guest's memory lies; [`PageRange`] names a run of its pages.
//! - [`PageSet`] holds pages: those that are dirty, those still to be sent.
//! - [`GuestRam`] is the handle on the memory itself, made from what a VMM already holds as a
//!   `vm-memory` backend, or [anonymous](GuestRam::anonymous) for tests and simulated machines. It
//!   [tells zero pages from data](GuestRam::classify), and hashes and checks what it holds; it
//!   [provides pages](GuestRam::populate) before they are needed, and knows
//!   [which were ever written](GuestRam::resident).
//! - [`send_pages`] and [`receive_pages`] move pages between the memory and a descriptor without a
//!   copy in between.
//! - A [`FileRegion`] is a file that [lies beside the memory](GuestRam::with_files), as a disk's image does: all of the
//!   above is done with it, too, by reading and writing it.
//!
//! The guest writes to its memory while all this reads it. Therefore no slice is ever made over
//! guest memory: it is reached by raw pointers, relaxed atomic accesses and iovecs, all inside this
//! crate. What is read while the guest runs may be older or newer than another byte of the same
//! page; a page that the guest wrote in the meantime is dirty again and is sent again.
//!
//! # Example
//!
//! Every page that is not zero crosses a socket, in front of it a word of the caller's:
//!
//! ```
//! use std::io::Read;
//! use std::os::fd::AsFd;
//! use std::os::unix::net::UnixStream;
//!
//! use ferry_memory::{Classified, GuestRam, Layout, PageSet, Span, receive_pages, send_pages};
//!
//! let layout = Layout::new(vec![
//!     Span { start: 0, length: 0x8_0000 },
//!     Span { start: 0x10_0000, length: 0x8_0000 },
//! ])?;
//! let source = GuestRam::anonymous(&layout)?;
//! let target = GuestRam::anonymous(&layout)?;
//! source.write(0x10_2000, b"a running guest")?;
//!
//! let mut found = Classified::new();
//! for range in PageSet::full(&layout).ranges() {
//!     source.classify(range, &mut found)?;
//! }
//! assert_eq!((found.data_pages(), found.zero_pages()), (1, 255));
//!
//! let (near, mut far) = UnixStream::pair()?;
//! send_pages(&source, near.as_fd(), b"PAGE", found.data_runs(), b"")?;
//! let mut word = [0; 4];
//! far.read_exact(&mut word)?;
//! receive_pages(&target, far.as_fd(), found.data_runs())?;
//!
//! assert_eq!(&word, b"PAGE");
//! assert_eq!(source.hash()?, target.hash()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![allow(
    unsafe_code,
    reason = "guest memory is reached by raw pointers, atomics and iovecs: it changes under the reader"
)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("ferry-memory is for 64-bit Linux: a guest's memory is mapped as a whole");

mod classify;
mod digest;
mod file;
mod host;
mod layout;
mod page_set;
mod patience;
mod populate;
mod ram;
mod resident;
mod transfer;

pub use classify::Classified;
pub use file::FileRegion;
pub use layout::{Layout, LayoutError, PAGE_SIZE, PageRange, Span};
pub use page_set::{PageSet, Ranges};
pub use ram::{GuestRam, RamError};
pub use transfer::{IoError, receive_pages, receive_pages_within, send_pages, send_pages_within};

/// [`PAGE_SIZE`] as a length in this process.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A length of mapped memory, which always fits: the crate builds for 64-bit targets only.
#[expect(
    clippy::cast_possible_truncation,
    reason = "usize has 64 bits on every target this crate builds for"
)]
pub(crate) const fn size(length: u64) -> usize {
    length as usize
}
