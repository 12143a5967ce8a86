//! The lab as a whole: what is prepared, and how hosts start.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::apt::Suite;
use crate::bochs;
use crate::cache::{Cache, Scratch};
use crate::error::Error;
use crate::files::{self, Way};
use crate::host::{Architecture, Host, Vendor};
use crate::initramfs::Root;
use crate::kernel;
use crate::linux::Linux;
use crate::machine::{Listener, Machine, Start};
use crate::pair::Pair;
use crate::qemu::{self, Network};

/// The suite of QEMU and busybox.
const TOOLS: &str = "trixie";

/// An AMD host is up within this time, or it hangs. A quiet machine needs 3 to 8 seconds.
const AMD_BOOT_MAX: Duration = Duration::from_secs(120);

/// The same for arm64, whose boot QEMU emulates more slowly. A quiet machine needs 3 to 10 seconds.
const ARM64_BOOT_MAX: Duration = Duration::from_secs(180);

/// The same for Intel: Bochs executes one instruction after another.
const INTEL_BOOT_MAX: Duration = Duration::from_secs(900);

/// What a host starts with.
#[derive(Debug, Clone)]
pub struct Job {
    pub(crate) files: Vec<(String, PathBuf)>,
    kvm_parameters: Vec<String>,
    strict_tsc: bool,
    memory_mib: u32,
    boot_within: Option<Duration>,
    linux: Option<Arc<Linux>>,
}

impl Default for Job {
    fn default() -> Self {
        Self::new()
    }
}

impl Job {
    /// A host of 1 GiB with nothing of its own.
    pub const fn new() -> Self {
        Self {
            files: Vec::new(),
            kvm_parameters: Vec::new(),
            strict_tsc: false,
            memory_mib: 1024,
            boot_within: None,
            linux: None,
        }
    }

    /// With a static program of this machine, which scripts call by that name.
    #[must_use]
    pub fn program(self, name: &str, path: &Path) -> Self {
        self.file(&format!("lab/bin/{name}"), path)
    }

    /// With a file of this machine at that path.
    #[must_use]
    pub fn file(mut self, at: &str, path: &Path) -> Self {
        self.files.push((at.trim_start_matches('/').to_owned(), path.to_owned()));
        self
    }

    /// With all files of that folder, and of those in it, in the folder `/files`.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read.
    pub fn files_in(mut self, folder: &Path) -> Result<Self, Error> {
        for path in files::below(folder)? {
            let at = Path::new("files").join(path.strip_prefix(folder).unwrap_or(&path));
            self = self.file(&at.to_string_lossy(), &path);
        }
        Ok(self)
    }

    /// With a Linux guest in `/lab/linux`, and a bridge with taps for guests.
    #[must_use]
    pub fn linux(mut self, linux: Linux) -> Self {
        let linux = self.linux.insert(Arc::new(linux));
        let (kernel, initramfs) = (linux.kernel.clone(), linux.initramfs());
        self.file("lab/linux/vmlinuz", &kernel).file("lab/linux/initramfs", &initramfs)
    }

    /// With a parameter of the module kvm, as `name=value`.
    #[must_use]
    pub fn kvm_parameter(mut self, parameter: &str) -> Self {
        self.kvm_parameters.push(parameter.to_owned());
        self
    }

    /// With KVM's own tolerance for a TSC frequency, 250 ppm, instead of the lab's.
    #[must_use]
    pub const fn strict_tsc(mut self) -> Self {
        self.strict_tsc = true;
        self
    }

    /// With that much memory, in MiB.
    #[must_use]
    pub const fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// With another limit on the time until `/dev/kvm` is there.
    #[must_use]
    pub const fn boot_within(mut self, limit: Duration) -> Self {
        self.boot_within = Some(limit);
        self
    }
}

/// Everything that hosts are made of, and where it lies.
#[derive(Debug, Clone)]
pub struct Lab {
    cache: Cache,
}

impl Lab {
    /// The lab of this user; see [`Cache::from_environment`].
    pub fn open() -> Self {
        Self { cache: Cache::from_environment() }
    }

    /// A lab in that cache.
    pub const fn at(cache: Cache) -> Self {
        Self { cache }
    }

    /// Where it keeps what it fetched.
    pub const fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Whether all that the host needs is there.
    pub fn is_prepared(&self, host: &Host) -> bool {
        items(host).iter().all(|item| self.cache.has(item))
    }

    /// The version of a prepared kernel.
    pub fn release(&self, host: &Host) -> Option<String> {
        fs::read_to_string(self.kernel(host).join("release")).ok()
    }

    /// A prepared host by its kernel's series: `amd/7.2/max` for `amd/newest/max`.
    ///
    /// # Errors
    /// [`Error::NotPrepared`]; [`Error::Name`] if the lab does not know that series.
    pub fn numbered(&self, host: &Host) -> Result<Host, Error> {
        let release = self.release(host).ok_or_else(|| Error::NotPrepared { host: host.to_string() })?;
        let series = kernel::series_of(&release);
        Host::parse(&format!("{}/{series}/{}", host.vendor.name(), host.model))
    }

    /// Fetches what the hosts need and is not there; `say` hears of progress.
    ///
    /// # Errors
    /// No apt, no network, no space, no such kernel at present: each says so. What was complete stays.
    pub fn prepare(&self, hosts: &[Host], say: &dyn Fn(&str)) -> Result<(), Error> {
        for host in hosts {
            let architecture = host.vendor.architecture();
            self.tool("busybox-static", architecture.debian(), say)?;
            self.tool("busybox-static", native(), say)?;
            let unpacker = self.busybox(Architecture::NATIVE);
            self.cache.make(&kernel::item(architecture, host.kernel), |into| {
                kernel::fetch(&self.cache, architecture, host.kernel, &unpacker, into, say)
            })?;
            match emulator(host.vendor) {
                Some(package) => drop(self.tool(package, native(), say)?),
                None => bochs::prepare(&self.cache, say)?,
            }
        }
        Ok(())
    }

    /// Where a host's kernel lies.
    fn kernel(&self, host: &Host) -> PathBuf {
        self.cache.item(&kernel::item(host.vendor.architecture(), host.kernel))
    }

    /// An unpacked program of Debian's with all its libraries.
    pub(crate) fn tool(
        &self,
        package: &str,
        architecture: &str,
        say: &dyn Fn(&str),
    ) -> Result<PathBuf, Error> {
        self.cache.make(&tool_item(package, architecture), |into| {
            fetch_tool(&self.cache, TOOLS, package, architecture, into, say)
        })
    }

    /// Starts a host and waits until it takes scripts. It ends with the value, and with the thread that
    /// called this.
    ///
    /// # Errors
    /// [`Error::NotPrepared`]; [`Error::Gone`] and [`Error::Timeout`] with the console's last lines.
    pub fn boot(&self, host: &Host, job: &Job) -> Result<Machine, Error> {
        let start = Instant::now();
        let mut machine = self.start(host, job, None)?;
        machine.wait(start, limit(host, job))?;
        Ok(machine)
    }

    /// Starts two hosts with a network between them, if both have one (Intel's emulator has none, nor have kernels
    /// whose modules Debian's suites lack); then
    /// the source is `10.77.0.1`, the target `10.77.0.2`. Files go from one to the other in any case.
    ///
    /// # Errors
    /// Those of [`Lab::boot`].
    pub fn pair(&self, source: (&Host, &Job), target: (&Host, &Job)) -> Result<Pair, Error> {
        let networked = [source, target].iter().all(|(host, _)| self.has_network(host));
        let wire = self.cache.scratch()?;
        let socket = wire.path().join("net");
        let end =
            |number| networked.then(|| Network { socket: socket.clone(), listens: number == 1, number });
        let start = Instant::now();
        let mut first = self.start(source.0, source.1, end(1).as_ref())?;
        let mut second = self.start(target.0, target.1, end(2).as_ref())?;
        first.wait(start, limit(source.0, source.1))?;
        second.wait(start, limit(target.0, target.1))?;
        Ok(Pair::new(first, second, networked, wire))
    }

    fn has_network(&self, host: &Host) -> bool {
        host.vendor != Vendor::Intel && self.kernel(host).join("modules/virtio_net.ko").exists()
    }

    /// A shell in a host, at this terminal.
    ///
    /// # Errors
    /// As [`Lab::boot`]; [`Error::Unable`] for Intel's hosts.
    pub fn shell(&self, host: &Host, job: &Job) -> Result<ExitStatus, Error> {
        if host.vendor == Vendor::Intel {
            return Err(Error::Unable(format!("{host} has no terminal: `lab run` works there")));
        }
        let scratch = self.root(host, job)?;
        let mut command = self.qemu(host, job, scratch.path(), None, None);
        command
            .status()
            .map_err(|source| Error::Command { command: "qemu".to_owned(), reason: source.to_string() })
    }

    /// Starts a host without waiting for it.
    fn start(&self, host: &Host, job: &Job, network: Option<&Network>) -> Result<Machine, Error> {
        let scratch = self.root(host, job)?;
        let mark = word()?;
        let (mut command, listeners, way) = match host.vendor {
            Vendor::Amd | Vendor::Arm64 => {
                let listeners = [unix(scratch.path(), "out")?, unix(scratch.path(), "err")?];
                (self.qemu(host, job, scratch.path(), Some(&mark), network), listeners, Way::Stream)
            }
            Vendor::Intel => {
                let sockets = [tcp()?, tcp()?];
                let kernel = self.kernel(host).join("vmlinuz");
                let boot = bochs::Boot {
                    cache: &self.cache,
                    model: host.model,
                    kernel: &kernel,
                    folder: scratch.path(),
                    mark: &mark,
                    memory_mib: job.memory_mib,
                };
                let disk = boot.disk()?;
                (boot.command(&sockets, &disk)?, sockets.map(Listener::Tcp), Way::Disk(disk))
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Start { name: host.to_string(), command, listeners, mark, way, scratch }.go()
    }

    /// A folder for one run with the host's initial root in it.
    fn root(&self, host: &Host, job: &Job) -> Result<Scratch, Error> {
        if !self.is_prepared(host) {
            return Err(Error::NotPrepared { host: host.to_string() });
        }
        let architecture = host.vendor.architecture();
        let scratch = self.cache.scratch()?;
        let bridges = job.linux.as_ref().map(|_| self.guest_modules(architecture, host.kernel));
        let root = Root {
            host,
            busybox: &self.busybox(architecture),
            modules: &self.kernel(host).join("modules"),
            bridges: bridges.as_deref(),
            kvm_parameters: &job.kvm_parameters,
            strict_tsc: job.strict_tsc,
            files: &job.files,
        };
        root.write(&scratch.path().join("root"))?;
        Ok(scratch)
    }

    fn qemu(
        &self,
        host: &Host,
        job: &Job,
        folder: &Path,
        mark: Option<&str>,
        network: Option<&Network>,
    ) -> std::process::Command {
        let package = emulator(host.vendor).unwrap_or_default();
        let boot = qemu::Boot {
            emulator: &self.cache.item(&tool_item(package, native())),
            architecture: host.vendor.architecture(),
            model: host.model,
            kernel: &self.kernel(host).join("vmlinuz"),
            kvm_parameters: &job.kvm_parameters,
            folder,
            mark,
            memory_mib: job.memory_mib,
            network,
        };
        boot.command()
    }
}

/// Fetches a package with all that it needs.
pub(crate) fn fetch_tool(
    cache: &Cache,
    suite: &str,
    package: &str,
    architecture: &str,
    into: &Path,
    say: &dyn Fn(&str),
) -> Result<(), Error> {
    say(&format!("{package}: reading the list of {suite}"));
    let suite = Suite::open(cache, suite, architecture)?;
    let packages = suite.closure(package)?;
    say(&format!("{package}: fetching {} packages from {}", packages.len(), suite.name()));
    suite.unpack(&packages, into)?;
    // Manuals and translations are half of it.
    for folder in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"] {
        let _ = fs::remove_dir_all(into.join(folder));
    }
    Ok(())
}

/// The items of the cache that a host needs.
fn items(host: &Host) -> Vec<String> {
    let architecture = host.vendor.architecture();
    let mut items =
        vec![kernel::item(architecture, host.kernel), tool_item("busybox-static", architecture.debian())];
    match emulator(host.vendor) {
        Some(package) => items.push(tool_item(package, native())),
        None => items.extend(bochs::items()),
    }
    items
}

/// The package of the emulator, unless it is Bochs.
const fn emulator(vendor: Vendor) -> Option<&'static str> {
    match vendor {
        Vendor::Amd => Some("qemu-system-x86"),
        Vendor::Arm64 => Some("qemu-system-arm"),
        Vendor::Intel => None,
    }
}

/// The name of a program's item in the cache.
pub(crate) fn tool_item(package: &str, architecture: &str) -> String {
    format!("{package}/{architecture}")
}

/// This machine's architecture, as Debian calls it.
pub(crate) const fn native() -> &'static str {
    Architecture::NATIVE.debian()
}

fn limit(host: &Host, job: &Job) -> Duration {
    job.boot_within.unwrap_or(match host.vendor {
        Vendor::Amd => AMD_BOOT_MAX,
        Vendor::Arm64 => ARM64_BOOT_MAX,
        Vendor::Intel => INTEL_BOOT_MAX,
    })
}

fn unix(folder: &Path, name: &str) -> Result<Listener, Error> {
    let path = folder.join(name);
    let bound = UnixListener::bind(&path).map_err(Error::file("make the socket", &path))?;
    Ok(Listener::Unix(bound, path))
}

fn tcp() -> Result<TcpListener, Error> {
    TcpListener::bind("127.0.0.1:0").map_err(Error::file("listen on", Path::new("127.0.0.1")))
}

/// A word that no other run knows.
pub(crate) fn word() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/uuid");
    let text: io::Result<String> = fs::read_to_string(path);
    Ok(text.map_err(Error::file("read", path))?.trim().to_owned())
}
