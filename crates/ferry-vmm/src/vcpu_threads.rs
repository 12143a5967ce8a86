//! The vCPUs' threads: each owns one vCPU while it runs, handles its exits, and stops when asked.
//!
//! A thread is in one of two places: waiting for the order to run, with its vCPU free for the
//! engine's ioctls, or inside [`run_until_stopped`]. Orders change under one lock, together with the
//! [`Kick`]s that carry them to the vCPUs; so no order is lost, wherever a thread is.
//!
//! If one vCPU ends (the guest crashed, or did what nothing here answers, or switched itself off), all end: the guest
//! has ended, and the debug port says why. A guest that asked for a restart has stopped, too, but lives: none of its
//! vCPUs runs any more in this machine, which whoever has it replaces.

#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64 as arch;
#[cfg(target_arch = "x86_64")]
use x86 as arch;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferry_kvm::{DirtyRing, Kick, UseVcpu, Vcpus};
use ferry_migrate::MachineError;
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::io::Errno;

use crate::VmmError;
use crate::devices::PortDevices;
use crate::power::{Power, Wish};

/// How long a vCPU may take to stop. It takes a fraction of a millisecond; only a host that hangs
/// takes longer.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The threads of one guest's vCPUs.
#[derive(Debug)]
pub struct VcpuThreads {
    shared: Arc<Shared>,
    vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    control: Mutex<Control>,
    changed: Condvar,
    kicks: Vec<Kick>,
    ports: PortDevices,
    ring: Option<DirtyRing>,
}

#[derive(Debug)]
struct Control {
    order: Order,
    /// Threads that are between the order to run and their stop.
    running: usize,
    /// Why the guest ended by itself.
    ended: Option<String>,
}

/// Why a vCPU stopped that was not ordered to.
#[derive(Debug)]
enum Stopped {
    /// The guest asked for it.
    Asked(Wish),
    /// It cannot go on.
    Broken(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Stop,
    Run,
    Leave,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU; none runs its vCPU yet. Those with a dirty ring empty it when it is
    /// full.
    pub(crate) fn start(
        vcpus: Vec<VcpuFd>,
        ports: PortDevices,
        ring: Option<DirtyRing>,
    ) -> Result<Self, VmmError> {
        let kicks = vcpus.iter().map(Kick::new).collect::<Result<Vec<_>, _>>()?;
        let control = Mutex::new(Control { order: Order::Stop, running: 0, ended: None });
        let shared = Arc::new(Shared { control, changed: Condvar::new(), kicks, ports, ring });
        let mut all = Self { shared, vcpus: Vec::new(), threads: Vec::new() };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let vcpu = Arc::new(Mutex::new(vcpu));
            all.vcpus.push(Arc::clone(&vcpu));
            let shared = Arc::clone(&all.shared);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu-{index}"))
                .spawn(move || thread_main(index, &shared, &vcpu))
                .map_err(VmmError::Thread)?;
            all.threads.push(thread);
        }
        Ok(all)
    }
}

impl Vcpus for VcpuThreads {
    fn count(&self) -> u32 {
        u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX)
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.shared.stop_within(PAUSE_TIMEOUT)
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.shared.let_run(&mut self.shared.lock())
    }

    fn with_vcpu(&mut self, index: u32, use_vcpu: &mut UseVcpu<'_>) -> Result<(), MachineError> {
        let vcpu = usize::try_from(index).ok().and_then(|index| self.vcpus.get(index));
        let vcpu = vcpu.ok_or_else(|| MachineError::new(format!("there is no vCPU {index}")))?;
        match vcpu.try_lock() {
            Ok(vcpu) => use_vcpu(&vcpu),
            Err(TryLockError::Poisoned(vcpu)) => use_vcpu(&vcpu.into_inner()),
            Err(TryLockError::WouldBlock) => Err(MachineError::new(format!("vCPU {index} runs"))),
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.shared.order_stop(&mut self.shared.lock(), Order::Leave);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU's thread panicked");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders every thread to stop, wherever it is. The lock keeps a thread from clearing its kick
    /// after this.
    fn order_stop(&self, control: &mut Control, order: Order) {
        control.order = order;
        self.kicks.iter().for_each(Kick::kick);
        self.ports.interrupt();
        self.changed.notify_all();
    }

    /// Stops every vCPU. If one does not stop in time the guest goes on.
    fn stop_within(&self, at_most: Duration) -> Result<(), MachineError> {
        let mut control = self.lock();
        self.order_stop(&mut control, Order::Stop);
        let deadline = Instant::now() + at_most;
        while control.running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.let_run(&mut control)?;
                return Err(MachineError::new(format!("a vCPU did not stop within {at_most:?}")));
            }
            let waited = self.changed.wait_timeout(control, left);
            control = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        control.check_alive()
    }

    /// Lets the guest go on, unless it has ended or waits for a new machine: it must not run past its own request.
    fn let_run(&self, control: &mut Control) -> Result<(), MachineError> {
        control.check_alive()?;
        if !self.is_to_restart() {
            self.order_run(control);
        }
        Ok(())
    }

    /// Whether the guest waits for a new machine.
    fn is_to_restart(&self) -> bool {
        self.ports.power().and_then(Power::asked) == Some(Wish::Restart)
    }

    /// Orders every thread to run.
    fn order_run(&self, control: &mut Control) {
        self.ports.allow();
        control.order = Order::Run;
        self.changed.notify_all();
    }

    /// Waits until a vCPU is to run. False if its thread is to leave.
    fn wait_for_order(&self, kick: &Kick) -> bool {
        let mut control = self.lock();
        loop {
            match control.order {
                Order::Leave => return false,
                Order::Run => break,
                Order::Stop => {
                    control = self.changed.wait(control).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        kick.clear();
        control.running += 1;
        true
    }

    /// Whether a vCPU that was interrupted is to run on.
    fn may_run(&self, kick: &Kick) -> bool {
        let control = self.lock();
        if control.order == Order::Run {
            kick.clear();
        }
        control.order == Order::Run
    }

    /// Empties the full ring of a vCPU.
    fn make_room(&self, vcpu: usize) -> Result<(), String> {
        let vcpu = u32::try_from(vcpu).unwrap_or(u32::MAX);
        match self.ring.as_ref().map(|ring| ring.make_room(vcpu)) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(format!("its dirty ring cannot be emptied: {error}")),
            None => Err("it has no dirty ring, and KVM says that it is full".to_owned()),
        }
    }

    /// Says that a vCPU has stopped, by order or by itself.
    fn stopped(&self, outcome: Result<(), Stopped>) {
        let mut control = self.lock();
        control.running -= 1;
        if let Err(why) = outcome {
            self.note(&mut control, why);
            if control.order == Order::Run {
                self.order_stop(&mut control, Order::Stop);
            }
        }
        self.changed.notify_all();
    }

    /// Writes down why a vCPU stopped by itself.
    fn note(&self, control: &mut Control, why: Stopped) {
        let reason = match why {
            Stopped::Asked(wish) => {
                if let Some(power) = self.ports.power() {
                    power.ask(wish);
                }
                if wish == Wish::Restart {
                    tracing::info!("the guest asks for a restart");
                    return;
                }
                tracing::info!("the guest switched itself off");
                "it switched itself off".to_owned()
            }
            Stopped::Broken(reason) => {
                tracing::warn!(%reason, "the guest has ended");
                reason
            }
        };
        self.ports.guest_ended(&reason);
        control.ended.get_or_insert(reason);
    }
}

impl Control {
    fn check_alive(&self) -> Result<(), MachineError> {
        match &self.ended {
            None => Ok(()),
            Some(reason) => Err(MachineError::new(format!("the guest has ended: {reason}"))),
        }
    }
}

/// The life of one vCPU's thread.
fn thread_main(index: usize, shared: &Shared, vcpu: &Mutex<VcpuFd>) {
    let Some(kick) = shared.kicks.get(index) else { return };
    let _reachable = kick.enter();
    while shared.wait_for_order(kick) {
        let outcome = {
            let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            run_until_stopped(index, &mut vcpu, kick, shared)
        };
        shared.stopped(outcome);
    }
}

/// Runs the vCPU until it is ordered to stop, with no exit left half done; or says why the guest
/// ended.
fn run_until_stopped(index: usize, vcpu: &mut VcpuFd, kick: &Kick, shared: &Shared) -> Result<(), Stopped> {
    loop {
        let ended = match vcpu.run() {
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => match shared.make_room(index) {
                Ok(()) => continue,
                Err(reason) => reason,
            },
            // A signal, or the kick: the exit before it was completed first. Or the vCPU waited for another to start
            // it, and was woken (`KVM_MP_STATE_UNINITIALIZED` in kvm_arch_vcpu_ioctl_run of arch/x86/kvm/x86.c).
            Err(error) if [Errno::INTR, Errno::AGAIN].map(Errno::raw_os_error).contains(&error.errno()) => {
                if shared.may_run(kick) {
                    continue;
                }
                return Ok(());
            }
            Err(error) => format!("its vCPU cannot run: {error}"),
            Ok(exit) => match arch::answer(&shared.ports, index, exit) {
                Ok(()) => continue,
                Err(Stopped::Broken(reason)) => reason,
                Err(asked) => return Err(asked),
            },
        };
        return Err(Stopped::Broken(ended + &arch::place(vcpu)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads of a guest that asked for this, of which one does not stop; none where there is no KVM.
    fn with_one_that_hangs(power: &Power) -> Option<Shared> {
        let vm = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm());
        let vm = vm.inspect_err(|error| println!("skipped: no VM can be had of KVM: {error}")).ok()?;
        let control = Mutex::new(Control { order: Order::Run, running: 1, ended: None });
        let ports = PortDevices::bare(Arc::new(vm), power.clone());
        Some(Shared { control, changed: Condvar::new(), kicks: Vec::new(), ports, ring: None })
    }

    #[test]
    fn a_pause_that_fails_does_not_run_a_guest_past_its_request_or_its_end() {
        let (power, brief) = (Power::default(), Duration::from_millis(20));
        let Some(shared) = with_one_that_hangs(&power) else { return };
        let pause = || (shared.stop_within(brief).unwrap_err().to_string(), shared.lock().order);
        let hangs = "a vCPU did not stop within 20ms".to_owned();
        assert_eq!(pause(), (hangs.clone(), Order::Run));
        power.ask(Wish::Restart);
        assert_eq!(pause(), (hangs, Order::Stop));
        shared.note(&mut shared.lock(), Stopped::Broken("it crashed".to_owned()));
        assert_eq!(pause(), ("the guest has ended: it crashed".to_owned(), Order::Stop));
    }
}
