//! Getting a vCPU's thread out of `KVM_RUN`, without a race and without unsafe code at the caller.
//!
//! A thread that runs a vCPU makes one [`Kick`] for it and calls [`Kick::enter`] once; any thread
//! may then call [`Kick::kick`], and [`VcpuFd::run`](kvm_ioctls::VcpuFd::run) returns `EINTR`:
//!
//! - if the thread is inside `KVM_RUN`, because of the signal;
//! - if it is anywhere before, because `KVM_RUN` sees `immediate_exit` and returns at once. It then
//!   has completed the exit that was under way (the value of an `IN` has reached its register, the
//!   instruction pointer is past the `OUT`), which is what must happen before the state is captured.
//!
//! `immediate_exit` stays set until [`Kick::clear`]. The VMM must clear it only when it knows that
//! nobody wants the vCPU to stop: under the lock under which it asks it to.
//!
//! The flag is written through a mapping of the vCPU's own, not through the one that kvm-ioctls
//! hands out: the two never alias as Rust values, and the mapping lives as long as the `Kick`,
//! whatever becomes of the `VcpuFd`.
//!
//! Facts from Documentation/virt/kvm/api.rst, 5 ("The `kvm_run` structure", `immediate_exit`).

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// A vCPU cannot be made interruptible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KickError {
    /// The vCPU's run page could not be mapped.
    #[error("the run page of a vCPU cannot be mapped: {0}")]
    Map(io::Error),
    /// The handler of the signal could not be installed.
    #[error("the signal that interrupts vCPUs cannot be installed: {0}")]
    Signal(io::Error),
}

/// The signal that interrupts `KVM_RUN`: the first real-time signal that the C library leaves free.
/// Its handler does nothing, and system calls that it interrupts elsewhere are restarted.
pub fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Interrupts one vCPU. Clones interrupt the same one.
#[derive(Debug, Clone)]
pub struct Kick {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    page: RunPage,
    /// The thread that runs the vCPU, while it says so: a signal is only ever sent to a live thread.
    thread: Mutex<Option<rustix::thread::Pid>>,
}

impl Kick {
    /// Makes a vCPU interruptible.
    pub fn new(vcpu: &VcpuFd) -> Result<Self, KickError> {
        install_handler().map_err(KickError::Signal)?;
        let page = RunPage::map(vcpu).map_err(KickError::Map)?;
        Ok(Self { shared: Arc::new(Shared { page, thread: Mutex::new(None) }) })
    }

    /// Says that the calling thread is the one that runs the vCPU, until the guard is dropped.
    pub fn enter(&self) -> Entered<'_> {
        *self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(rustix::thread::gettid());
        Entered { shared: &self.shared }
    }

    /// Makes the current or the next `KVM_RUN` return `EINTR`, and every later one until
    /// [`clear`](Self::clear).
    pub fn kick(&self) {
        self.shared.page.immediate_exit().store(1, Ordering::SeqCst);
        // Held while the signal is sent, so that the thread cannot end in between.
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread {
            signal(thread);
        }
    }

    /// Lets the next `KVM_RUN` run again.
    pub fn clear(&self) {
        self.shared.page.immediate_exit().store(0, Ordering::SeqCst);
    }
}

/// While this lives, kicks reach the thread that made it.
#[derive(Debug)]
#[must_use = "the thread is no longer reached once this is dropped"]
pub struct Entered<'a> {
    shared: &'a Shared,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Sends [`kick_signal`] to a thread of this process.
fn signal(thread: rustix::thread::Pid) {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: the call takes three integers; the signal's handler is installed and does nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread.as_raw_nonzero().get(), kick_signal()) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::error!(%error, "a vCPU's thread could not be signalled; it stops at its next exit");
    }
}

/// Installs the handler of the kick signal, once for the process.
fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    extern "C" fn nothing(_signal: i32) {}
    let failed = INSTALLED.get_or_init(|| {
        let handler: extern "C" fn(i32) = nothing;
        // SAFETY: all zero bytes are a valid `sigaction`: no flags, an empty mask, the default handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is initialised, its handler is a function that touches nothing.
        let result = unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
        (result != 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
    });
    match failed {
        None => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(*errno)),
    }
}

/// A mapping of the first page of a vCPU's `kvm_run`.
#[derive(Debug)]
struct RunPage {
    address: NonNull<u8>,
}

/// Bytes mapped; `immediate_exit` is the second byte of `kvm_run`.
const RUN_PAGE_BYTES: usize = 4096;

impl RunPage {
    fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice; it disturbs no other.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RUN_PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address.cast::<u8>()) {
            Some(mapped) if address != libc::MAP_FAILED => Ok(Self { address: mapped }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the offset lies inside the mapped page.
        let byte = unsafe { self.address.add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the byte stays mapped as long as `self`; in this mapping only atomics touch it, and
        // the kernel, which reads it once a run.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference into it outlives the value.
        unsafe { libc::munmap(self.address.as_ptr().cast(), RUN_PAGE_BYTES) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for RunPage {}
// SAFETY: it is only touched by atomic operations.
unsafe impl Sync for RunPage {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::thread::JoinHandleExt;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn the_flag_lies_where_the_header_says() {
        assert_eq!(offset_of!(kvm_run, immediate_exit), 1);
    }

    #[test]
    fn a_thread_that_left_is_not_signalled() {
        let Ok(kvm) = crate::open() else {
            println!("skipped: no /dev/kvm here");
            return;
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let kick = Kick::new(&vcpu).unwrap();
        let other = kick.clone();
        let (done, left) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            drop(other.enter());
            done.send(()).unwrap();
        });
        left.recv_timeout(Duration::from_secs(5)).unwrap();
        let _ = thread.as_pthread_t();
        thread.join().unwrap();
        kick.kick();
        assert!(kick.shared.thread.lock().unwrap().is_none());
        assert_eq!(kick.shared.page.immediate_exit().load(Ordering::SeqCst), 1);
        kick.clear();
        assert_eq!(kick.shared.page.immediate_exit().load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_flag_outlives_the_vcpu() {
        let Ok(kvm) = crate::open() else {
            println!("skipped: no /dev/kvm here");
            return;
        };
        let vm = kvm.create_vm().unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let kick = Kick::new(&vcpu).unwrap();
        kick.kick();
        assert_eq!(vcpu.get_kvm_run().immediate_exit, 1, "both mappings show the same page");
        drop((vcpu, vm, kvm));
        kick.kick();
        kick.clear();
    }
}
