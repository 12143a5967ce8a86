//! [`KvmMachine`]: makes any guest movable that a VMM holds as a `VmFd`, `VcpuFd`s and a
//! `GuestMemory`.
//!
//! The VMM keeps its threads and its devices, and says through two small traits what only it can do:
//! [`Vcpus`] stops its vCPU threads and lets them go, [`Devices`] saves and restores its devices (a
//! [`DeviceSet`] does it as it is). Everything else (memory, dirty log, vCPU and VM state, locks,
//! custody) is done here:
//!
//! ```no_run
//! # use std::{error::Error, sync::Arc};
//! # use ferry_kvm::{Devices, KvmMachine, MemorySlots, Vcpus};
//! # use ferry_migrate::{Custody, Machine};
//! # use {kvm_ioctls::{Kvm, VmFd}, vm_memory::GuestMemoryMmap};
//! fn start<V: Vcpus, D: Devices>(
//!     kvm: &Kvm, vm: Arc<VmFd>, memory: GuestMemoryMmap, vcpus: V, devices: D,
//! ) -> Result<KvmMachine<V, D>, Box<dyn Error>> {
//!     let memory = MemorySlots::register(vm, memory)?;
//!     let mut machine = KvmMachine::new(kvm, memory, vcpus, devices)?;
//!     machine.with_vcpu(0, &mut |vcpu| {
//!         let registers = vcpu.get_regs();
//!         // … the guest's first registers …
//! #       drop(registers);
//!         Ok(())
//!     })?;
//!     machine.resume(Custody::born("guest".parse()?))?; // without custody nothing runs
//!     Ok(machine) // from here on the engine can move it
//! }
//! ```
//!
//! Which thread does what: the engine's thread calls into the machine. Exits that are under way are
//! completed by `KVM_RUN` with `immediate_exit` on the vCPU's own thread, because a `KVM_RUN` from
//! another thread makes KVM wait for a grace period (`kvm_vcpu_ioctl` in `virt/kvm/kvm_main.c`:
//! the pid changes); all other vCPU ioctls are made from the engine's thread.

use std::sync::Arc;

use ferry_contract::Contract;
use ferry_memory::{GuestRam, PageSet};
use ferry_migrate::{
    Custody, DeviceSet, DiskImage, Harvest, Machine, MachineError, ResourceSet, ResumeError, RunWatch,
};
use ferry_protocol::{GuestId, MachineDescription};
use ferry_state::{GuestTime, MachineState, Resources};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::GuestMemoryMmap;

#[cfg(target_arch = "aarch64")]
use crate::arm64::KvmState;
use crate::dirty::DirtySource;
use crate::forced::Deviation;
use crate::guest_time::{self, Time};
use crate::memory::MemorySlots;
use crate::run::Run;
#[cfg(target_arch = "x86_64")]
use crate::x86::KvmState;

/// The kind of machine in a [`MachineDescription`].
#[cfg(target_arch = "x86_64")]
pub const KIND: &str = "kvm-x86_64";
/// The kind of machine in a [`MachineDescription`].
#[cfg(target_arch = "aarch64")]
pub const KIND: &str = "kvm-aarch64";

/// A VMM's vCPU threads, as [`KvmMachine`] needs them.
///
/// They start stopped. Dropping the value stops them for good, and returns when none runs any more.
pub trait Vcpus: Send {
    /// Number of vCPUs; they have the indices below it.
    fn count(&self) -> u32;

    /// Stops every vCPU, and completes on each one's own thread the exit that was under way: with
    /// [`Kick`](crate::Kick), run until `EINTR`. When this returns no vCPU runs and no thread
    /// touches guest memory. If it fails, either all vCPUs run on, or the guest has ended by itself
    /// and none runs.
    fn pause(&mut self) -> Result<(), MachineError>;

    /// Lets every vCPU go. If it fails, none runs.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// Calls `use_vcpu` with one stopped vCPU. Fails if there is no such vCPU, or with what
    /// `use_vcpu` failed.
    fn with_vcpu(&mut self, index: u32, use_vcpu: &mut UseVcpu<'_>) -> Result<(), MachineError>;
}

/// What [`Vcpus::with_vcpu`] calls.
pub type UseVcpu<'a> = dyn FnMut(&VcpuFd) -> Result<(), MachineError> + 'a;

/// A VMM's devices, as [`KvmMachine`] needs them. [`DeviceSet`] is one; its documentation says what
/// each call means for a single device. They are quiet until the first [`resume`](Self::resume).
pub trait Devices: Send {
    /// The state of the devices of the paused machine, one section or more a device, named
    /// `device/…`; an empty state if they have none.
    fn capture(&mut self) -> Result<MachineState, MachineError>;

    /// Puts it back. The state comes from the other side: refuse what does not make sense, and what
    /// is needed and unknown.
    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError>;

    /// Adds the pages that devices wrote to guest memory from user space since the last call: KVM's
    /// dirty log does not know of them. Empty for a VMM whose devices write no guest memory.
    fn harvest_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError>;

    /// Ends what they do by themselves; called when no vCPU runs any more. If it fails they go on. The
    /// default is for devices that do nothing by themselves.
    fn quiesce(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Lets them go on; called before the first vCPU runs. If it fails they are quiet.
    fn resume(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Tells the network where the guest is now; called on the target, once the guest runs. Must not wait.
    fn announce(&mut self) {}
}

impl Devices for DeviceSet {
    fn capture(&mut self) -> Result<MachineState, MachineError> {
        DeviceSet::capture(self)
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        DeviceSet::restore(self, state)
    }

    fn harvest_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        DeviceSet::harvest_dirty(self, into)
    }

    fn quiesce(&mut self) -> Result<(), MachineError> {
        DeviceSet::quiesce(self)
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        DeviceSet::resume(self)
    }

    fn announce(&mut self) {
        DeviceSet::announce(self);
    }
}

/// A guest on KVM that can be moved.
#[derive(Debug)]
pub struct KvmMachine<V, D> {
    // The order matters when it is dropped: the vCPUs stop, the watch is told, the slots go.
    vcpus: V,
    run: Run,
    devices: D,
    resources: ResourceSet,
    images: Vec<Arc<DiskImage>>,
    dirty: DirtySource,
    state: KvmState,
    memory: MemorySlots,
    ram: GuestRam,
    config: Vec<u8>,
    /// A restore failed half-way: what is here now is no guest.
    spoilt: bool,
    contract: Vec<u8>,
    time: Time,
}

impl<V: Vcpus, D: Devices> KvmMachine<V, D> {
    /// A machine whose vCPUs are stopped. It runs once [`resume`](Machine::resume) gets its custody.
    ///
    /// Call it once the vCPUs have their CPUID, and set their first registers afterwards
    /// ([`with_vcpu`](Self::with_vcpu)): what the vCPUs hold now is what "right after creation" means
    /// for the rest of the guest's life here, and what differs from it is what a target must apply.
    pub fn new(kvm: &Kvm, memory: MemorySlots, mut vcpus: V, devices: D) -> Result<Self, MachineError> {
        let ram = GuestRam::new(Arc::new(memory.memory().clone()))
            .map_err(|error| failed("this guest memory cannot be moved", error))?;
        let dirty = DirtySource::of(&memory, &mut vcpus)?;
        let state = KvmState::at_creation(kvm, memory.vm(), &mut vcpus)?;
        Ok(Self {
            vcpus,
            run: Run::default(),
            devices,
            resources: ResourceSet::new(),
            images: Vec::new(),
            dirty,
            state,
            memory,
            ram,
            config: Vec::new(),
            spoilt: false,
            contract: Vec::new(),
            time: Time::default(),
        })
    }

    /// The same with the VM's interrupt controller, which moves with the guest, its translation services included.
    /// It must be initialised, and not have been used yet.
    #[cfg(target_arch = "aarch64")]
    pub fn with_gic(mut self, gic: crate::arm64::Gic) -> Result<Self, MachineError> {
        self.state.use_gic(gic, &mut self.vcpus)?;
        Ok(self)
    }

    /// The same with resources of kinds that the VMM brings, beside file locks.
    #[must_use]
    pub fn with_resources(mut self, resources: ResourceSet) -> Self {
        self.resources = resources;
        self
    }

    /// The same with the images of the guest's disks: their locks are among its resources, beside those that it has, and
    /// they move with it where that is asked for.
    #[must_use]
    pub fn with_images(mut self, images: Vec<Arc<DiskImage>>) -> Self {
        self.resources = self.resources.with_images(&images);
        self.images = images;
        self
    }

    /// The same with the VMM's own configuration, which the target's builder gets.
    #[must_use]
    pub fn with_config(mut self, config: Vec<u8>) -> Self {
        self.config = config;
        self
    }

    /// The same with the contract under which its vCPUs were made ([`apply_contract`](crate::apply_contract)), which the
    /// target's builder gets.
    #[must_use]
    pub fn with_contract(mut self, contract: &Contract) -> Self {
        self.contract = contract.to_bytes();
        self
    }

    /// The same with someone who is told when the guest starts and stops to run.
    #[must_use]
    pub fn with_watch(mut self, watch: Arc<dyn RunWatch>) -> Self {
        self.run.watch = Some(watch);
        self
    }

    /// What the guest's clocks do about pauses from now on, here and on the target; said before a restore, it goes
    /// before what the state says. They stand still if nothing is said.
    pub fn set_guest_time(&mut self, time: GuestTime) {
        self.time.set(time);
    }

    /// The VMM's vCPU threads.
    pub fn vcpus(&self) -> &V {
        &self.vcpus
    }

    /// The VMM's devices.
    pub fn devices(&self) -> &D {
        &self.devices
    }

    /// The guest's memory, as the VMM's devices and loaders use it.
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.memory.memory()
    }

    /// Calls `use_vcpu` with one stopped vCPU.
    pub fn with_vcpu(&mut self, index: u32, use_vcpu: &mut UseVcpu<'_>) -> Result<(), MachineError> {
        self.must_be_stopped("use its vCPU")?;
        self.vcpus.with_vcpu(index, use_vcpu)
    }

    /// As [`restore`](Machine::restore), but whatever KVM refuses or keeps otherwise is no error: it is said,
    /// and the guest would run on with it. For the lab, which finds out so what a verdict was worth.
    pub fn force(&mut self, state: &MachineState) -> Result<Vec<Deviation>, MachineError> {
        self.must_be_stopped("restore a state")?;
        self.state.force(self.memory.vm(), &mut self.vcpus, state)
    }

    /// Whether written pages are noted in dirty rings, and not in the dirty log.
    pub fn has_dirty_ring(&self) -> bool {
        self.memory.dirty_ring().is_some()
    }

    /// Whether the machine holds its custody, so that its guest runs (or has ended by itself).
    pub fn runs(&self) -> bool {
        self.run.custody.is_some()
    }

    /// Fails once a restore has failed.
    fn must_be_whole(&self) -> Result<(), MachineError> {
        if self.spoilt {
            return Err(MachineError::new("a state was restored here only in part; discard this machine"));
        }
        Ok(())
    }

    /// The devices come after the vCPUs, which give them work; if they cannot be made quiet, all runs on.
    fn quiesce(&mut self) -> Result<(), MachineError> {
        let Err(error) = self.devices.quiesce() else { return Ok(()) };
        match self.vcpus.resume() {
            Ok(()) => Err(error),
            Err(stuck) => Err(MachineError::with_source(format!("the guest is stuck ({stuck})"), error)),
        }
    }

    /// What KVM holds of guest memory's content comes last, when nothing gives it anything new; the last harvest
    /// comes after it. If it cannot be had, all runs on.
    fn write_tables(&mut self) -> Result<(), MachineError> {
        let Err(error) = self.state.write_tables() else { return Ok(()) };
        match self.let_go() {
            Ok(()) => Err(error),
            Err(stuck) => Err(MachineError::with_source(format!("the guest is stuck ({stuck})"), error)),
        }
    }

    /// The devices come before the vCPUs, which would find them deaf else; and none runs if the vCPUs
    /// do not.
    fn let_go(&mut self) -> Result<(), MachineError> {
        self.devices.resume()?;
        let resumed = self.vcpus.resume();
        if resumed.is_err()
            && let Err(error) = self.devices.quiesce()
        {
            tracing::error!(%error, "a device goes on though the guest does not run");
        }
        resumed
    }

    /// Fails while the guest runs.
    fn must_be_stopped(&self, what: &str) -> Result<(), MachineError> {
        if self.runs() {
            return Err(MachineError::new(format!("the guest runs; pause it first to {what}")));
        }
        Ok(())
    }
}

impl<V: Vcpus, D: Devices> Machine for KvmMachine<V, D> {
    fn description(&self) -> MachineDescription {
        MachineDescription {
            kind: KIND.to_owned(),
            vcpus: self.vcpus.count(),
            regions: self.memory.regions(),
            config: self.config.clone(),
            contract: self.contract.clone(),
            disks: Vec::new(),
        }
    }

    fn ram(&self) -> GuestRam {
        self.ram.clone()
    }

    fn start_dirty_tracking(&mut self) -> Result<(), MachineError> {
        // What devices wrote before is not asked for.
        self.devices.harvest_dirty(&mut PageSet::empty(self.ram.layout()))?;
        self.dirty.start(&self.memory)
    }

    fn harvest_dirty(&mut self, when: Harvest, into: &mut PageSet) -> Result<(), MachineError> {
        self.dirty.harvest(&self.memory, when, into)?;
        self.devices.harvest_dirty(into)
    }

    fn stop_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.dirty.stop(&self.memory)
    }

    fn pause(&mut self) -> Result<Custody, MachineError> {
        let Some(custody) = self.run.custody.take() else {
            return Err(MachineError::new("the guest does not run here, so it cannot be paused"));
        };
        let stopped = self.vcpus.pause().map(|()| self.time.paused(self.memory.vm(), &mut self.vcpus));
        match stopped.and_then(|()| self.quiesce()).and_then(|()| self.write_tables()) {
            Ok(()) => {
                self.run.stops(&custody);
                Ok(custody)
            }
            Err(error) => {
                self.time.runs();
                self.run.custody = Some(custody);
                Err(error)
            }
        }
    }

    fn resume(&mut self, custody: Custody) -> Result<(), ResumeError> {
        if let Err(source) = self.must_be_whole().and_then(|()| self.run.admits(&custody)) {
            return Err(ResumeError { custody, source });
        }
        let has_run = self.run.bound.is_some();
        if has_run && let Err(source) = self.state.note_pause(&mut self.vcpus) {
            return Err(ResumeError { custody, source });
        }
        if let Err(source) = self.resources.missing() {
            return Err(ResumeError { custody, source });
        }
        self.time.hold(&self.state, self.memory.vm(), &mut self.vcpus);
        self.run.starts(&custody);
        match self.let_go() {
            Ok(()) => {
                self.time.runs();
                self.run.custody = Some(custody);
                Ok(())
            }
            Err(source) => {
                self.run.stops(&custody);
                Err(ResumeError { custody, source })
            }
        }
    }

    fn capture(&mut self) -> Result<MachineState, MachineError> {
        self.must_be_stopped("capture its state")?;
        self.time.hold(&self.state, self.memory.vm(), &mut self.vcpus);
        let pause = self.time.pause();
        guest_time::noted(&pause, self.state.capture(self.memory.vm(), &mut self.vcpus)?)
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.must_be_stopped("restore a state")?;
        if self.run.bound.is_some() {
            return Err(MachineError::new("this machine has run; a state is restored into a new one"));
        }
        self.must_be_whole()?;
        let state = self.time.restored(state, self.vcpus.count())?;
        let restored = self.state.restore(self.memory.vm(), &mut self.vcpus, &state);
        self.spoilt = restored.is_err();
        restored
    }

    fn capture_devices(&mut self) -> Result<MachineState, MachineError> {
        self.must_be_stopped("capture its devices")?;
        self.devices.capture()
    }

    fn restore_devices(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.must_be_stopped("restore its devices")?;
        self.must_be_whole()?;
        let restored = self.devices.restore(state);
        self.spoilt = restored.is_err();
        restored
    }

    fn release_resources(&mut self) -> Result<Resources, MachineError> {
        self.must_be_stopped("release its resources")?;
        self.resources.release()
    }

    fn take_resources(&mut self, guest: &GuestId, resources: &Resources) -> Result<(), MachineError> {
        self.resources.take(guest, resources)
    }

    fn announce(&mut self) {
        self.devices.announce();
    }

    fn disk_images(&self) -> Vec<Arc<DiskImage>> {
        self.images.clone()
    }
}

/// What could not be done, and why.
pub(crate) fn failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> MachineError {
    MachineError::with_source(what, error)
}
