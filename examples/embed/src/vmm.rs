//! A mini-VMM as somebody would write it who has never heard of Ferry: kvm-ioctls and vm-memory,
//! one thread a vCPU, one device, a guest of 39 bytes. It can stop its guest and let it go on, as
//! every VMM with a monitor can; it can move nothing.
//!
//! The guest, one program on every vCPU, counts in a register. It writes each number into its own
//! 64 KiB of memory, round and round, but looks first whether the number of one round ago is still
//! there. Every 256th number it tells the device, which expects exactly the next one. So a page, a
//! register or an exit that got lost or came twice is found by the guest or by the device.

use std::error::Error;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// vCPUs of every guest.
pub(crate) const CPUS: usize = 2;

/// Bytes of every guest's memory.
pub(crate) const MEMORY_BYTES: u64 = 16 << 20;

/// Numbers that lie between two reports of a vCPU.
pub(crate) const STEP: u32 = 256;

/// Where the program lies.
const CODE: u64 = 0x1000;

/// 32-bit words of a vCPU's memory; vCPU *i* has the 64 KiB from `(i + 1) << 16` on.
const WORDS: u32 = 0x4000;

/// Ports: the next number, and a word that was not as it was left.
const REPORT: u16 = 0x10;
const FAULT: u16 = 0x14;

/// The program, in real mode, with the vCPU's memory as its data segment.
const PROGRAM: [u8; 39] = [
    0x66, 0x41, // next: inc ecx
    0x66, 0x8b, 0x07, // mov eax, [bx]
    0x66, 0x05, 0x00, 0x40, 0x00, 0x00, // add eax, WORDS
    0x66, 0x39, 0xc8, // cmp eax, ecx
    0x75, 0x12, // jne fault
    0x66, 0x89, 0x07, // mov [bx], eax
    0x83, 0xc3, 0x04, // add bx, 4
    0x84, 0xc9, // test cl, cl
    0x75, 0xe6, // jnz next
    0x66, 0x89, 0xc8, // mov eax, ecx
    0x66, 0xe7, 0x10, // out REPORT, eax
    0xeb, 0xde, // jmp next
    0x66, 0xe7, 0x14, // fault: out FAULT, eax
    0xeb, 0xfb, // for ever
];

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// A guest that stands still until [`Crew::go_on`].
pub(crate) struct Vmm {
    pub(crate) kvm: Kvm,
    pub(crate) vm: VmFd,
    pub(crate) crew: Crew,
    pub(crate) port: Arc<CounterPort>,
    pub(crate) memory: GuestMemoryMmap,
}

impl Vmm {
    /// A machine without a program.
    pub(crate) fn new() -> Result<Self, Failure> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(MEMORY_BYTES)?)])?;
        for (region, slot) in memory.iter().zip(0..) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping belongs to `memory`; whoever takes this value apart lets the threads
            // and the VM go before it.
            unsafe { vm.set_user_memory_region(region)? };
        }
        let vcpus = (0..CPUS).map(|index| create_vcpu(&kvm, &vm, index)).collect::<Result<_, _>>()?;
        let port = Arc::new(CounterPort::default());
        let crew = Crew::start(vcpus, &port)?;
        Ok(Self { kvm, vm, crew, port, memory })
    }

    /// Loads the program and its memory; every vCPU will begin with it.
    pub(crate) fn load(&self) -> Result<(), Failure> {
        self.memory.write_slice(&PROGRAM, GuestAddress(CODE))?;
        for index in 0..CPUS {
            let data = (index as u64 + 1) << 16;
            for word in 0..WORDS {
                let round_before = (word + 1).wrapping_sub(WORDS);
                self.memory.write_obj(round_before, GuestAddress(data + u64::from(word) * 4))?;
            }
            let vcpu = self.crew.vcpu(index).ok_or("no such vCPU")?;
            let mut sregs = vcpu.get_sregs()?;
            (sregs.cs.base, sregs.cs.selector) = (0, 0);
            (sregs.ds.base, sregs.ds.selector) = (data, u16::try_from(data >> 4)?);
            vcpu.set_sregs(&sregs)?;
            vcpu.set_regs(&kvm_regs { rip: CODE, rflags: 2, ..Default::default() })?;
            vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?;
        }
        Ok(())
    }
}

fn create_vcpu(kvm: &Kvm, vm: &VmFd, index: usize) -> Result<VcpuFd, Failure> {
    let vcpu = vm.create_vcpu(index as u64)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    Ok(vcpu)
}

/// The device: two ports that each vCPU has for itself.
#[derive(Default)]
pub(crate) struct CounterPort(Mutex<Counts>);

/// What the device knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// The last number that each vCPU reported.
    pub(crate) last: [u32; CPUS],
    /// Numbers that were not the next, and words that were not as the guest had left them.
    pub(crate) faults: u32,
}

impl CounterPort {
    /// What it knows now.
    pub(crate) fn counts(&self) -> Counts {
        *self.lock()
    }

    /// Makes it know this.
    pub(crate) fn set(&self, counts: Counts) {
        *self.lock() = counts;
    }

    fn write(&self, vcpu: usize, port: u16, value: u32) {
        let mut counts = self.lock();
        let expected = counts.last.get(vcpu).map(|last| last.wrapping_add(STEP));
        counts.faults += u32::from(port == FAULT || expected != Some(value));
        if let (REPORT, Some(last)) = (port, counts.last.get_mut(vcpu)) {
            *last = value;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads that run the vCPUs.
pub(crate) struct Crew {
    orders: Arc<Orders>,
    vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    order: Order,
    /// Threads that were let go and do not stand still again yet.
    running: usize,
    /// Why the guest ended, if it did.
    ended: Option<String>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Order {
    #[default]
    StandStill,
    Run,
    Leave,
}

impl Crew {
    fn start(vcpus: Vec<VcpuFd>, port: &Arc<CounterPort>) -> Result<Self, Failure> {
        extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), nothing)?;
        let vcpus = vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect();
        let mut crew = Self { orders: Arc::default(), vcpus, threads: Vec::new() };
        for (index, vcpu) in crew.vcpus.iter().enumerate() {
            let (orders, vcpu, port) = (Arc::clone(&crew.orders), Arc::clone(vcpu), Arc::clone(port));
            crew.threads.push(std::thread::Builder::new().spawn(move || {
                while orders.wait_to_run() {
                    let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                    let ended = run(index, &mut vcpu, &port, &orders);
                    drop(vcpu);
                    orders.stands_still(ended);
                }
            })?);
        }
        Ok(crew)
    }

    /// A vCPU that stands still.
    pub(crate) fn vcpu(&self, index: usize) -> Option<MutexGuard<'_, VcpuFd>> {
        self.vcpus.get(index)?.try_lock().ok()
    }

    /// Makes every vCPU stand still, or says why the guest has ended.
    pub(crate) fn stand_still(&self) -> Result<(), String> {
        let began = Instant::now();
        let mut state = self.orders.lock();
        state.order = Order::StandStill;
        while state.running > 0 {
            // A signal that comes before KVM_RUN has no effect: it is sent until all have obeyed.
            let _ended = self.threads.iter().map(|thread| thread.kill(SIGRTMIN())).all(|sent| sent.is_ok());
            let waited = self.orders.changed.wait_timeout(state, Duration::from_micros(200));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if began.elapsed() > Duration::from_secs(10) {
                state.order = Order::Run;
                self.orders.changed.notify_all();
                return Err("a vCPU does not stand still".to_owned());
            }
        }
        state.ended.clone().map_or(Ok(()), Err)
    }

    /// Lets every vCPU go on, or says why the guest has ended.
    pub(crate) fn go_on(&self) -> Result<(), String> {
        let mut state = self.orders.lock();
        if let Some(reason) = &state.ended {
            return Err(reason.clone());
        }
        state.order = Order::Run;
        self.orders.changed.notify_all();
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let _ended = self.stand_still();
        self.orders.lock().order = Order::Leave;
        self.orders.changed.notify_all();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if the thread is to leave.
    fn wait_to_run(&self) -> bool {
        let stands = |state: &mut State| state.order == Order::StandStill;
        let state = self.changed.wait_while(self.lock(), stands);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let runs = state.order == Order::Run;
        state.running += usize::from(runs);
        runs
    }

    fn stands_still(&self, ended: Option<String>) {
        let mut state = self.lock();
        state.running -= 1;
        if ended.is_some() {
            state.ended = ended;
            state.order = Order::StandStill;
        }
        self.changed.notify_all();
    }
}

/// Runs a vCPU until it is to stand still (none), or until the guest ends, and why.
fn run(index: usize, vcpu: &mut VcpuFd, port: &CounterPort, orders: &Orders) -> Option<String> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(number, &[a, b, c, d])) => {
                port.write(index, number, u32::from_le_bytes([a, b, c, d]));
            }
            // Only here may a vCPU stop: KVM_RUN has completed the exit before.
            Err(error) if error.errno() == libc::EINTR => {
                if orders.lock().order != Order::Run {
                    return None;
                }
            }
            exit => return Some(format!("vCPU {index} came out of KVM_RUN with {exit:?}")),
        }
    }
}
