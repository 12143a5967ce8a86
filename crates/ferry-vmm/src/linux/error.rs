//! Why a kernel cannot be booted, in sentences.

use std::io;

use vm_memory::GuestMemoryError;

/// The names of the two files.
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRAMFS: &str = "initramfs";

/// A kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinuxError {
    /// A file that cannot be opened or read.
    #[error("the {what} {path} cannot be read: {source}")]
    Open {
        /// Which file: `kernel` or `initramfs`.
        what: &'static str,
        /// Its path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A guest came here and nobody said where the file is.
    #[error(
        "this host was not told where it has the guest's {what}: receive such a guest with `--{what} PATH`, or with \
         `--same-paths` if its source's path holds here"
    )]
    NotNamed {
        /// Which file.
        what: &'static str,
    },
    /// A folder, a device, an empty file.
    #[error("the {what} {path} is no file with something in it: give an ordinary file")]
    NoFile {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: String,
    },
    /// A file that is no kernel.
    #[error("{path} is no Linux kernel: give {wanted}")]
    NoKernel {
        /// Its path.
        path: String,
        /// What is booted here.
        wanted: &'static str,
    },
    /// A kernel of another architecture.
    #[error(
        "{path} is a kernel for {theirs}, and guests of this host are {}: give one for these",
        std::env::consts::ARCH
    )]
    Architecture {
        /// Its path.
        path: String,
        /// What it is for.
        theirs: &'static str,
    },
    /// A kernel that something would have to decompress first.
    #[error("{path} is compressed ({how}), and no firmware is here that decompresses it: {remedy}")]
    Compressed {
        /// Its path.
        path: String,
        /// By what.
        how: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A kernel without the entry by which it would be started.
    #[error("{path} has no {entry}: give a kernel built with {option}")]
    NoEntry {
        /// Its path.
        path: String,
        /// The entry.
        entry: &'static str,
        /// The kernel's option that makes one.
        option: &'static str,
    },
    /// A file that is not what it was when it was opened.
    #[error("the {what} {path} changed while it was read: give a file that nobody writes to")]
    Changed {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: String,
    },
    /// A kernel that wants to lie where it cannot.
    #[error("the kernel {path} wants {bytes} bytes at {address:#x}, {problem}")]
    Place {
        /// Its path.
        path: String,
        /// Bytes of a segment.
        bytes: u64,
        /// Where it wants to lie.
        address: u64,
        /// Why it cannot, and what to do.
        problem: &'static str,
    },
    /// A kernel in more pieces than are taken, or in none.
    #[error("the kernel {path} has {count} program headers, and 1 to {max} are taken: is the file whole?")]
    Headers {
        /// Its path.
        path: String,
        /// How many it says.
        count: u16,
        /// The most.
        max: u16,
    },
    /// A kernel whose parts do not make sense.
    #[error(
        "the kernel {path} cannot be loaded: {source}; is the file whole, and does the guest have memory enough?"
    )]
    Load {
        /// Its path.
        path: String,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
    /// Too little memory.
    #[error(
        "the kernel and the initramfs need {needed} bytes of memory in one piece, and the guest has {available}: give it more"
    )]
    TooLarge {
        /// Bytes needed.
        needed: u64,
        /// Bytes of the guest's first piece of memory.
        available: u64,
    },
    /// An initramfs that does not fit below where the kernel wants its end.
    #[error(
        "the initramfs of {bytes} bytes does not fit behind the kernel and below {end:#x}, where this kernel takes one: {needed} bytes would be needed; make it smaller"
    )]
    TooHigh {
        /// Bytes of the initramfs.
        bytes: u64,
        /// Bytes that it and the kernel need.
        needed: u64,
        /// Where it must end.
        end: u64,
    },
    /// A command line that the kernel would cut.
    #[error(
        "a command line of {bytes} bytes cannot be given to this kernel: it takes {max}; give a shorter one"
    )]
    CommandLine {
        /// Its length.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// Something was out of place in guest memory.
    #[error("what the kernel is told cannot be written to guest memory: {0}")]
    Memory(#[source] GuestMemoryError),
    /// The tables could not be made.
    #[error("the tables of the guest's machine cannot be made: {0}")]
    Tables(String),
}
