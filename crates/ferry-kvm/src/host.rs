//! Opening `/dev/kvm`, and what this host can hold.
//!
//! [`open`] is the only way into KVM here: it turns each way in which the device can be out of
//! reach into a sentence with its remedy, and a program falls back to the simulated machine with
//! that sentence. [`HostLimits::probe`] reads the few numbers against which [`judge`](crate::judge())
//! holds an offered machine.
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst (`KVM_GET_API_VERSION`: refuse anything
//! but 12; `KVM_CAP_MAX_VCPUS`, `KVM_CAP_NR_MEMSLOTS`) and `proc_meminfo(5)`.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kvm_ioctls::Kvm;
use rustix::io::Errno;

/// Where KVM is found.
pub const DEVICE: &str = "/dev/kvm";

/// The one version of KVM's API that is for use (`KVM_API_VERSION`, linux/kvm.h).
pub const API_VERSION: i32 = 12;

/// How a host gets its KVM.
#[cfg(target_arch = "x86_64")]
const HOW_TO_START: &str = "load the kernel module `kvm_intel` or `kvm_amd`";
#[cfg(target_arch = "aarch64")]
const HOW_TO_START: &str = "start a kernel that has KVM built in at EL2";

/// Why KVM cannot be used on this host; each is one sentence with its remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no device, and this is no container.
    #[error(
        "{} does not exist: {HOW_TO_START}, and check that virtualization is enabled in the firmware",
        path.display()
    )]
    Absent {
        /// The device looked for.
        path: PathBuf,
    },
    /// There is no device, or the container may not open it.
    #[error(
        "{} is not there for this container: start it with the device, for example with `--device {}`",
        path.display(),
        path.display()
    )]
    Container {
        /// The device looked for.
        path: PathBuf,
    },
    /// The device exists, but this user may not open it.
    #[error(
        "no permission to open {}: add the user to the group that owns it, often `kvm`, and log in again",
        path.display()
    )]
    Permission {
        /// The device looked for.
        path: PathBuf,
    },
    /// The device node exists, but no driver stands behind it.
    #[error("{} has no driver behind it: {HOW_TO_START}", path.display())]
    NoDriver {
        /// The device looked for.
        path: PathBuf,
    },
    /// The device speaks another version of KVM's API.
    #[error(
        "{} speaks version {found} of KVM's API instead of {API_VERSION}: name the real device, or use a Linux kernel with KVM",
        path.display()
    )]
    ApiVersion {
        /// The device asked.
        path: PathBuf,
        /// Its answer; negative if it is no KVM at all.
        found: i32,
    },
    /// Anything else that opening it met.
    #[error("{} cannot be opened: {source}", path.display())]
    Other {
        /// The device looked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Opens [`DEVICE`] and checks its API version.
pub fn open() -> Result<Kvm, OpenError> {
    open_at(Path::new(DEVICE))
}

/// The same for a device elsewhere.
pub fn open_at(path: &Path) -> Result<Kvm, OpenError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| OpenError::Other { path: path.to_owned(), source: error.into() })?;
    let kvm = Kvm::new_with_path(name)
        .map_err(|error| explain(path, io::Error::from_raw_os_error(error.errno()), in_container()))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        found => Err(OpenError::ApiVersion { path: path.to_owned(), found }),
    }
}

/// The typed reason behind an errno of opening the device.
fn explain(path: &Path, error: io::Error, container: bool) -> OpenError {
    let path = path.to_owned();
    match Errno::from_io_error(&error) {
        // The device controller of cgroups answers EPERM where file permissions answer EACCES.
        Some(Errno::NOENT | Errno::PERM) if container => OpenError::Container { path },
        Some(Errno::NOENT) => OpenError::Absent { path },
        Some(Errno::PERM | Errno::ACCESS) => OpenError::Permission { path },
        Some(Errno::NODEV | Errno::NXIO) => OpenError::NoDriver { path },
        _ => OpenError::Other { path, source: error },
    }
}

/// Whether this process runs in a container, by the marks that the usual engines leave.
fn in_container() -> bool {
    Path::new("/.dockerenv").exists()
        || Path::new("/run/.containerenv").exists()
        || std::env::var_os("container").is_some()
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// What this host can hold of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLimits {
    /// Most vCPUs of one VM (`KVM_CAP_MAX_VCPUS`).
    pub vcpus_max: u64,
    /// Most memory slots of one VM (`KVM_CAP_NR_MEMSLOTS`).
    pub memslots_max: u64,
    /// Bytes of memory that can be used without swapping (`MemAvailable`); none if unknown.
    pub memory_available_bytes: Option<u64>,
}

impl HostLimits {
    /// Asks KVM and the kernel.
    pub fn probe(kvm: &Kvm) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            vcpus_max: kvm.get_max_vcpus() as u64,
            memslots_max: kvm.get_nr_memslots() as u64,
            memory_available_bytes: memory_available(&meminfo),
        }
    }
}

/// `MemAvailable` of `proc_meminfo(5)`, in bytes.
fn memory_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(errno: Errno, container: bool) -> OpenError {
        explain(Path::new(DEVICE), io::Error::from(errno), container)
    }

    #[test]
    fn each_errno_has_its_reason() {
        assert!(matches!(reason(Errno::NOENT, false), OpenError::Absent { .. }));
        assert!(matches!(reason(Errno::NOENT, true), OpenError::Container { .. }));
        assert!(matches!(reason(Errno::PERM, true), OpenError::Container { .. }));
        assert!(matches!(reason(Errno::PERM, false), OpenError::Permission { .. }));
        assert!(matches!(reason(Errno::ACCESS, true), OpenError::Permission { .. }));
        assert!(matches!(reason(Errno::NXIO, false), OpenError::NoDriver { .. }));
        assert!(matches!(reason(Errno::MFILE, false), OpenError::Other { .. }));
    }

    #[test]
    fn a_reason_is_one_sentence_that_names_the_device_and_the_remedy() {
        let text = reason(Errno::ACCESS, false).to_string();
        assert_eq!(
            text,
            "no permission to open /dev/kvm: add the user to the group that owns it, often `kvm`, and log in again"
        );
    }

    #[test]
    fn a_device_that_is_no_kvm_is_refused_by_its_version() {
        let error = open_at(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, OpenError::ApiVersion { found: -1, .. }), "{error}");
    }

    #[test]
    fn an_absent_device_is_named() {
        let error = open_at(Path::new("/dev/kvm-that-is-not")).unwrap_err();
        assert!(error.to_string().starts_with("/dev/kvm-that-is-not"), "{error}");
    }

    #[test]
    fn available_memory_is_read_in_bytes() {
        assert_eq!(memory_available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(memory_available("MemTotal: 9 kB\n"), None);
        assert_eq!(memory_available("MemAvailable: 99999999999999999999 kB\n"), None);
    }
}
