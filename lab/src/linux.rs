//! Linux guests of the lab's hosts: Debian's cloud kernel, and an initial root with a load.
//!
//! A host of such guests has them in `/lab/linux` (`vmlinuz`, `initramfs`), and a bridge `br0` with taps, so that a guest keeps
//! its address when it goes from one host of a pair to the other. [`Lab::linux`] makes the guest,
//! [`crate::Job::linux`] gives it to a host. What its first process does is in `linux-init.sh`: it takes words of the
//! kernel's command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Scratch;
use crate::error::Error;
use crate::host::{Architecture, Host};
use crate::initramfs;
use crate::kernel;
use crate::lab::{Lab, native, tool_item};
use crate::qemu::loader;

/// The kernel of guests: the stable one, on every host.
const KERNEL: &str = "6.12";

/// The package that makes and checks the file systems of their disks.
const FILE_SYSTEMS: &str = "e2fsprogs";

/// The first process of a guest; see there.
const INIT: &str = include_str!("linux-init.sh");

/// A guest's kernel and initial root, which lie on this machine for as long as the value lives.
#[derive(Debug)]
pub struct Linux {
    pub(crate) kernel: PathBuf,
    scratch: Scratch,
}

impl Linux {
    /// The address that a guest takes by itself; its control port is 7700.
    pub const ADDRESS: &str = "10.77.0.10";

    /// The initial root.
    pub(crate) fn initramfs(&self) -> PathBuf {
        self.scratch.path().join("initramfs")
    }
}

impl Lab {
    /// Fetches what Linux guests on those hosts need and is not there, the hosts themselves included.
    ///
    /// # Errors
    /// Those of [`Lab::prepare`]; [`Error::Unable`] if Debian has the modules of a prepared kernel no longer.
    pub fn prepare_linux(&self, hosts: &[Host], say: &dyn Fn(&str)) -> Result<(), Error> {
        self.prepare(hosts, say)?;
        self.tool(FILE_SYSTEMS, native(), say)?;
        for host in hosts {
            let guests = Host { kernel: KERNEL, ..host.clone() };
            self.prepare(std::slice::from_ref(&guests), say)?;
            for host in [host, &guests] {
                let architecture = host.vendor.architecture();
                let release =
                    self.release(host).ok_or_else(|| Error::NotPrepared { host: host.to_string() })?;
                let unpacker = self.busybox(Architecture::NATIVE);
                self.cache().make(&kernel::guests_item(architecture, host.kernel), |into| {
                    kernel::fetch_guests(self.cache(), architecture, release.trim(), &unpacker, into, say)
                })?;
            }
        }
        Ok(())
    }

    /// Whether all is there that Linux guests on that host need.
    pub fn has_linux(&self, host: &Host) -> bool {
        let guests = Host { kernel: KERNEL, ..host.clone() };
        self.cache().has(&tool_item(FILE_SYSTEMS, native()))
            && [host, &guests].iter().all(|host| {
                let item = kernel::guests_item(host.vendor.architecture(), host.kernel);
                self.is_prepared(host) && self.cache().has(&item)
            })
    }

    /// The folder of the modules that a host or a guest with that kernel has beside its own.
    pub(crate) fn guest_modules(&self, architecture: Architecture, series: &str) -> PathBuf {
        self.cache().item(&kernel::guests_item(architecture, series)).join("modules")
    }

    /// A guest for hosts of an architecture, with the program `ferry-load` (`Programs::load`).
    ///
    /// # Errors
    /// [`Error::NotPrepared`] before [`Lab::prepare_linux`]; [`Error::File`].
    pub fn linux(&self, host: &Host, load: &Path) -> Result<Linux, Error> {
        if !self.has_linux(host) {
            return Err(Error::NotPrepared { host: host.to_string() });
        }
        let architecture = host.vendor.architecture();
        let modules = self.guest_modules(architecture, KERNEL);
        let mut files = vec![
            ("bin/busybox".to_owned(), self.busybox(architecture)),
            ("bin/ferry-load".to_owned(), load.to_owned()),
        ];
        let mut order = String::new();
        for path in kernel::load_order(&modules, kernel::DEVICES)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            order.extend([&name, "\n"]);
            files.push((format!("lab/modules/{name}"), path));
        }
        let mut contents = vec![("init".to_owned(), INIT.into()), ("lab/order".to_owned(), order.into())];
        for (name, path) in files {
            contents.push((name, fs::read(&path).map_err(Error::file("read", &path))?));
        }
        let scratch = self.cache().scratch()?;
        let kernel = self.cache().item(&kernel::item(architecture, KERNEL)).join("vmlinuz");
        let linux = Linux { kernel, scratch };
        initramfs::archive(&contents, &linux.initramfs())?;
        Ok(linux)
    }

    /// A program that makes or checks the file system of a guest's disk on this machine: `mke2fs`, `e2fsck`. It is there after
    /// [`Lab::prepare_linux`].
    pub fn file_system_tool(&self, program: &str) -> Command {
        let item = self.cache().item(&tool_item(FILE_SYSTEMS, native()));
        let (libraries, loader) = loader();
        let mut command = Command::new(item.join(loader));
        command.arg("--library-path").arg(item.join(libraries)).arg(item.join("usr/sbin").join(program));
        command
    }

    /// Where the busybox of an architecture lies.
    pub(crate) fn busybox(&self, architecture: Architecture) -> PathBuf {
        self.cache().item(&tool_item("busybox-static", architecture.debian())).join("usr/bin/busybox")
    }
}

#[cfg(test)]
mod tests {
    use crate::cache::Cache;

    use super::*;

    #[test]
    fn a_guest_has_the_load_and_its_modules_in_the_order_in_which_they_load() {
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab::at(Cache::at(folder.path().to_owned()));
        let (host, load) = (Host::parse("amd/6.1/EPYC").unwrap(), folder.path().join("load"));
        fs::write(&load, "the load").unwrap();
        assert!(matches!(lab.linux(&host, &load), Err(Error::NotPrepared { .. })));
        let busybox = tool_item("busybox-static", "amd64");
        let qemu = tool_item("qemu-system-x86", native());
        let write = |item: &str, file: &str, text: &str| {
            let path = lab.cache().item(item).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for series in ["6.1", KERNEL] {
            write(&kernel::item(Architecture::X86_64, series), "vmlinuz", series);
            let modules = kernel::guests_item(Architecture::X86_64, series);
            write(&modules, "modules/virtio_blk.ko", "\0depends=virtio_ring\0");
            write(&modules, "modules/virtio_ring.ko", "\0depends=\0");
        }
        write(&busybox, "usr/bin/busybox", "its tools");
        write(&qemu, "usr/bin/qemu", "");
        assert!(!lab.has_linux(&host), "there are no tools for its disk");
        write(&tool_item(FILE_SYSTEMS, native()), "usr/sbin/mke2fs", "");
        let linux = lab.linux(&host, &load).unwrap();
        assert_eq!(fs::read(&linux.kernel).unwrap(), KERNEL.as_bytes());
        let root = String::from_utf8_lossy(&fs::read(linux.initramfs()).unwrap()).into_owned();
        for part in ["virtio_ring.ko\nvirtio_blk.ko\n", "the load", "its tools", "lab: a shell"] {
            assert!(root.contains(part), "{part}");
        }
    }
}
