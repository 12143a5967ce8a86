//! Boots a Linux kernel: puts it, its initramfs and its tables into guest memory, and its vCPUs where it begins.
//!
//! [`load`] reads the files that a [`Linux`] names and writes all of it, [`start_at`] sets a vCPU's registers. What lies
//! where is a matter of the architecture: x86-64 has ACPI tables and the zero page or PVH's start info, arm64 a device
//! tree. Both describe the same machine: vCPUs, memory, serial port, interrupt controller, and the virtio devices at
//! the places of [`crate::Board`].
//!
//! Facts: the kernel's Documentation/arch/x86/boot.rst ("64-bit Boot Protocol"), Documentation/arch/arm64/booting.rst;
//! Xen's docs/misc/pvh.pandoc.

#[cfg(target_arch = "aarch64")]
mod arm64;
mod error;
mod format;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64 as arch;
#[cfg(target_arch = "x86_64")]
use x86 as arch;

use std::fs::File;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use arch::Entry;
pub(crate) use arch::{name_of, start_at};
pub use error::LinuxError;
use format::Format;

use crate::{Linux, boot};
use error::{INITRAMFS, KERNEL};

/// The command line of a kernel for which none is given: its console is the serial port, and a kernel that panics
/// restarts.
pub const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 panic=1";

/// What a kernel finds around it.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// All of guest memory.
    pub(crate) memory: &'a GuestMemoryMmap,
    /// How many virtio devices there are.
    pub(crate) devices: u32,
    /// The vCPUs' own names of themselves, in their order: on x86-64 APIC ids, on arm64 `MPIDR_EL1`.
    pub(crate) cpus: &'a [u64],
}

/// Where the initramfs lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Initramfs {
    start: u64,
    bytes: u64,
}

/// Loads a kernel of a valid [`Board`](crate::Board); what [`start_at`] needs to know of it.
pub(crate) fn load(linux: &Linux, around: &Surroundings<'_>) -> Result<Entry, LinuxError> {
    let kernel = Source::open(Path::new(&linux.kernel), KERNEL)?;
    let initramfs =
        linux.initramfs.as_deref().map(|path| Source::open(Path::new(path), INITRAMFS)).transpose()?;
    arch::load(kernel, initramfs, &linux.command_line, around)
}

/// Holds the file of a kernel against what this host's guests boot, before anything is made.
pub(crate) fn look_at(linux: &Linux) -> Result<(), LinuxError> {
    let mut kernel = Source::open(Path::new(&linux.kernel), KERNEL)?;
    kernel.format()?;
    let initramfs = linux.initramfs.as_deref().map(|path| Source::open(Path::new(path), INITRAMFS));
    initramfs.transpose().map(drop)
}

/// Which of the files of a guest that comes from elsewhere cannot be used here, of those that have a name.
pub(crate) fn unusable(linux: &Linux) -> Vec<(&'static str, LinuxError)> {
    let kernel =
        Source::open(Path::new(&linux.kernel), KERNEL).and_then(|mut kernel| kernel.format().map(drop));
    let initramfs = linux.initramfs.as_deref().map(|path| Source::open(Path::new(path), INITRAMFS).map(drop));
    let found = [Some((KERNEL, kernel)), initramfs.map(|opened| (INITRAMFS, opened))];
    let problems = found.into_iter().flatten().filter_map(|(what, opened)| Some((what, opened.err()?)));
    problems.filter(|(_, problem)| !matches!(problem, LinuxError::NotNamed { .. })).collect()
}

/// Loads a kernel into memory of its own, which is forgotten: whether a guest with so much memory can boot it.
pub fn try_kernel(linux: &Linux, memory_bytes: u64) -> Result<(), LinuxError> {
    let regions = boot::layout(memory_bytes, boot::LOW_BYTES_MAX);
    let memory = ferry_kvm::allocate(&regions).map_err(|error| LinuxError::Tables(error.to_string()))?;
    load(linux, &Surroundings { memory: &memory, devices: 0, cpus: &[0] }).map(drop)
}

/// A file that is put into guest memory.
#[derive(Debug)]
struct Source {
    what: &'static str,
    path: String,
    file: File,
    bytes: u64,
}

impl Source {
    /// Opens a regular file that is not empty. Who opens a FIFO would wait for its writer, were it not for the flag.
    fn open(path: &Path, what: &'static str) -> Result<Self, LinuxError> {
        let name = path.display().to_string();
        if name.is_empty() {
            return Err(LinuxError::NotNamed { what });
        }
        let failed = |source| LinuxError::Open { what, path: name.clone(), source };
        // Looked at before it is opened: to open a device may do something.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(LinuxError::NoFile { what, path: name });
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let file = File::from(file);
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() || facts.len() == 0 {
            return Err(LinuxError::NoFile { what, path: name });
        }
        Ok(Self { what, path: name, file, bytes: facts.len() })
    }

    /// What kind of kernel it is: one that guests of this architecture boot.
    fn format(&mut self) -> Result<Format, LinuxError> {
        let head = format::head(&mut self.file).map_err(|source| self.unreadable(source))?;
        Format::of(&head).map_err(|complaint| complaint.of(&self.path))
    }

    /// Writes all of it to guest memory.
    fn put(&mut self, memory: &GuestMemoryMmap, address: u64) -> Result<(), LinuxError> {
        let length = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        memory
            .read_exact_volatile_from(GuestAddress(address), &mut self.file, length)
            .map_err(|error| self.unreadable(std::io::Error::other(error)))
    }

    /// What failed, unless the file is not what it was when it was opened: then that is the reason.
    fn unreadable(&self, source: std::io::Error) -> LinuxError {
        let (what, path) = (self.what, self.path.clone());
        if self.is_changed() {
            return LinuxError::Changed { what, path };
        }
        LinuxError::Open { what, path, source }
    }

    /// The same of a loader.
    fn unloadable(&self, source: linux_loader::loader::Error) -> LinuxError {
        let (what, path) = (self.what, self.path.clone());
        if self.is_changed() { LinuxError::Changed { what, path } } else { LinuxError::Load { path, source } }
    }

    fn is_changed(&self) -> bool {
        self.file.metadata().is_ok_and(|facts| facts.len() != self.bytes)
    }
}

/// Writes something of the boot's own to guest memory.
fn write(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) -> Result<(), LinuxError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(LinuxError::Memory)
}

/// Up to the next multiple of a power of two.
fn align_up(address: u64, to: u64) -> u64 {
    address.saturating_add(to - 1) & !(to - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_none_are_told_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(at("empty"), "").unwrap();
        std::fs::write(at("script"), "#!/bin/sh\n").unwrap();
        let looked = |kernel: &str| {
            let linux = Linux { kernel: at(kernel), ..Linux::default() };
            look_at(&linux).unwrap_err().to_string()
        };
        assert!(looked("nothing").contains("/nothing cannot be read: No such file"), "{}", looked("nothing"));
        assert!(looked("empty").ends_with("/empty is no file with something in it: give an ordinary file"));
        assert!(looked(".").contains("is no file with something in it"));
        // Nobody ever writes to it.
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(looked("fifo").ends_with("/fifo is no file with something in it: give an ordinary file"));
        // To open it would fail, and for another reason: it is looked at alone.
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert!(looked("socket").ends_with("/socket is no file with something in it: give an ordinary file"));
        assert!(looked("script").contains("/script is no Linux kernel: give "));
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i");
        std::fs::write(&path, [7; 8192]).unwrap();
        let mut source = Source::open(&path, INITRAMFS).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16384)]).unwrap();
        let said = source.put(&memory, 0).unwrap_err().to_string();
        assert!(said.contains("/i changed while it was read: give a file that nobody writes to"), "{said}");
    }

    #[test]
    fn addresses_are_rounded_up() {
        assert_eq!([0, 1, 4096].map(|address| align_up(address, 4096)), [0, 4096, 4096]);
        assert_eq!(align_up(u64::MAX, 4096), !4095);
    }
}
