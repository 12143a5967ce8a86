//! A guest on KVM: VM, memory, vCPUs, devices, payload.
//!
//! [`create`] makes one that is born here; [`KvmBuilder`] makes the machine on the target of a
//! migration. Either way it is a [`KvmGuest`] whose vCPUs are stopped: it runs once
//! [`resume`](ferry_migrate::Machine::resume) gets its custody.
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst: 4.24 `KVM_CREATE_IRQCHIP`, 4.37
//! `KVM_SET_TSS_ADDR` and 4.41 `KVM_SET_IDENTITY_MAP_ADDR` (both needed on Intel; unused guest-physical
//! pages below 4 GiB), 4.20 `KVM_SET_CPUID2`, 4.39 `KVM_SET_MP_STATE`, 4.71 `KVM_CREATE_PIT2`.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use ferry_contract::{Contract, Finding, FindingKind, Layer, Verdict};
use ferry_kvm::{
    Deviation, DirtyRing, HostLimits, HugePages, KvmMachine, MemoryError, MemorySlots, OpenError, Pages,
};
use ferry_migrate::{Builder, Machine, MachineError, RunWatch};
use ferry_protocol::MachineDescription;
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, KVM_PIT_SPEAKER_DUMMY, kvm_mp_state, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::backend::{Birth, DirtyKind};
use crate::debug_port::DebugPort;
use crate::devices::KvmDevices;
use crate::serial::SerialPort;
use crate::shell::Shell;
use crate::vcpu_threads::VcpuThreads;
use crate::{CheckReport, Guest, GuestConfig, GuestReport, Image, Payload, VmmError, boot};

/// Three pages for a TSS that Intel's KVM needs, in the hole below 4 GiB.
const TSS_ADDRESS: u64 = 0xfffb_d000;

/// One page for an identity map that Intel's KVM needs, before the TSS.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Bits 17 and 18 of XCR0: AMX's components, for which a process must ask its kernel first.
const XCR0_AMX: u64 = 0x6_0000;

/// A guest on KVM.
pub type KvmGuest = KvmMachine<VcpuThreads, KvmDevices>;

impl Guest for KvmGuest {
    fn report(&self) -> GuestReport {
        let pages = self.devices().pages();
        let reason = match pages {
            Pages::Ordinary { reason } => reason.clone(),
            Pages::Transparent | Pages::Reserved(_) => None,
        };
        let report = self.devices().port().report();
        GuestReport { memory_pages: Some(pages.to_string()), memory_pages_reason: reason, ..report }
    }

    fn verify(&self, timeout: Duration) -> Result<CheckReport, VmmError> {
        self.devices().port().verify(timeout)
    }

    fn dirty_kind(&self) -> Option<DirtyKind> {
        Some(if self.has_dirty_ring() { DirtyKind::Ring } else { DirtyKind::Log })
    }

    fn serial(&self) -> Option<&SerialPort> {
        Some(self.devices().serial())
    }
}

/// Whether guests on KVM can be had here.
pub(crate) fn is_possible() -> Result<(), VmmError> {
    ferry_kvm::open().map(drop).map_err(VmmError::from)
}

/// Makes a guest that is born here, with its payload loaded and its vCPUs stopped.
pub fn create(
    config: &GuestConfig,
    birth: Birth<'_>,
    watch: Option<Arc<dyn RunWatch>>,
) -> Result<KvmGuest, VmmError> {
    let Birth { seed, contract, image, huge_pages, dirty } = birth;
    if let Some(image) = image {
        image.check_fits(config.memory_bytes.min(config.low_end()))?;
    }
    config.validate()?;
    if matches!(config.payload, Payload::Image { .. }) != image.is_some() {
        return Err(VmmError::ImageMismatch { payload: config.payload.name() });
    }
    let kvm = ferry_kvm::open()?;
    let limits = HostLimits::probe(&kvm);
    if u64::from(config.cpus) > limits.vcpus_max {
        return Err(VmmError::TooManyVcpus { cpus: config.cpus, max: limits.vcpus_max });
    }
    if let Some(available) = limits.memory_available_bytes
        && huge_pages.reserved(&config.regions())?.is_none()
        && config.memory_bytes > available
    {
        return Err(VmmError::MemoryUnavailable { bytes: config.memory_bytes, available });
    }
    let shell = Shell::born(&kvm, config.cpus, contract, dirty)?;
    let mut guest = Parts::build(shell, config, huge_pages)?.assemble(&kvm, config, watch)?;
    boot::load(&guest.ram(), config, image)?;
    for cpu in 0..config.cpus {
        guest.with_vcpu(cpu, &mut |vcpu| {
            start_at(vcpu, cpu, config, seed, image).map_err(|error| {
                MachineError::with_source("the guest's first registers cannot be set", error)
            })
        })?;
    }
    let mut tsc_khz = 0;
    guest.with_vcpu(0, &mut |vcpu| {
        tsc_khz = vcpu.get_tsc_khz().unwrap_or(0);
        Ok(())
    })?;
    guest.devices().port().born_with(tsc_khz);
    Ok(guest)
}

/// Makes a vCPU begin with the program.
fn start_at(
    vcpu: &VcpuFd,
    cpu: u32,
    config: &GuestConfig,
    seed: u64,
    image: Option<&Image>,
) -> Result<(), VmmError> {
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| step("say which CPUID a vCPU has", source))?;
    let leaf = |function, index| {
        cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index)).copied()
    };
    let extensions = boot::Extensions {
        fsgsbase: leaf(7, 0).is_some_and(|entry| entry.ebx & 1 != 0),
        xsave: leaf(1, 0).is_some_and(|entry| entry.ecx >> 26 & 1 != 0),
    };
    let level = config.payload.level();
    let sregs = vcpu.get_sregs().map_err(|source| step("read special registers", source))?;
    vcpu.set_sregs(&boot::special_registers(sregs, cpu, level, extensions))
        .map_err(|source| step("set special registers", source))?;
    if let Some(components) = leaf(0xd, 0).filter(|_| extensions.xsave) {
        open_components(vcpu, u64::from(components.eax) | u64::from(components.edx) << 32)?;
    }
    let parameters = config.parameters(seed, cpu, vcpu.get_tsc_khz().unwrap_or(0));
    vcpu.set_regs(&boot::registers(&parameters, level, image.map(Image::entry)))
        .map_err(|source| step("set registers", source))?;
    // vCPUs beyond the first wait for a start-up IPI else, which nobody sends.
    let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(runnable).map_err(|source| step("make a vCPU runnable", source))
}

/// Opens the extended state components that the vCPU's CPUID has (leaf 0xd), but AMX's.
fn open_components(vcpu: &VcpuFd, offered: u64) -> Result<(), VmmError> {
    let mut xcrs = vcpu.get_xcrs().map_err(|source| step("read XCR0", source))?;
    if let Some(xcr0) = xcrs.xcrs.first_mut() {
        xcr0.value = offered & !XCR0_AMX;
    }
    vcpu.set_xcrs(&xcrs).map_err(|source| step("set XCR0", source))
}

/// Makes guests on the target of a migration.
pub struct KvmBuilder {
    kvm: Kvm,
    watch: Option<Arc<dyn RunWatch>>,
    /// What was built while the last offer was judged, and for which offer.
    prepared: Option<Box<(MachineDescription, Shell)>>,
    serial: Option<Arc<File>>,
    huge_pages: HugePages,
    dirty: DirtyKind,
}

impl KvmBuilder {
    /// Opens KVM.
    pub fn new() -> Result<Self, OpenError> {
        let (huge_pages, dirty) = (HugePages::default(), DirtyKind::default());
        Ok(Self { kvm: ferry_kvm::open()?, watch: None, prepared: None, serial: None, huge_pages, dirty })
    }

    /// The same with someone who is told when a guest starts and stops to run.
    #[must_use]
    pub fn with_watch(mut self, watch: Option<Arc<dyn RunWatch>>) -> Self {
        self.watch = watch;
        self
    }

    /// The same for guests whose written pages are noted there.
    pub fn with_dirty(mut self, dirty: DirtyKind) -> Result<Self, VmmError> {
        if dirty == DirtyKind::Ring {
            DirtyRing::is_offered(&self.kvm)?;
        }
        self.dirty = dirty;
        Ok(self)
    }

    /// The same with a file for what guests write to their serial port.
    #[must_use]
    pub fn with_serial_output(mut self, file: Option<Arc<File>>) -> Self {
        self.serial = file;
        self
    }
}

impl KvmBuilder {
    /// The same with guests whose memory lies in such pages, whatever it lay in on the source.
    #[must_use]
    pub fn with_huge_pages(mut self, wish: HugePages) -> Self {
        self.huge_pages = wish;
        self
    }

    /// Builds a machine without asking whether this host suits it, and says what of its contract KVM did not
    /// take: see [`Deviation`]. Its state is to be restored by [`KvmMachine::force`].
    pub fn build_by_force(
        &mut self,
        machine: &MachineDescription,
    ) -> Result<(KvmGuest, Vec<Deviation>), MachineError> {
        let (shell, found) = Shell::by_force(&self.kvm, machine)?;
        Ok((self.assemble(shell, machine)?, found))
    }

    /// A machine in a VM that was made for it.
    fn assemble(&self, shell: Shell, machine: &MachineDescription) -> Result<KvmGuest, MachineError> {
        let built = GuestConfig::from_bytes(&machine.config).map_err(VmmError::from).and_then(|config| {
            Parts::build(shell, &config, self.huge_pages)?.assemble(&self.kvm, &config, self.watch.clone())
        });
        let guest =
            built.map_err(|error| MachineError::with_source("the guest's machine cannot be built", error))?;
        if let Some(file) = &self.serial {
            guest.devices().serial().write_to(Arc::clone(file));
        }
        Ok(guest)
    }

    /// What of the machine this host cannot hold. Reserved pages are not what it has available otherwise.
    fn judge_host(&self, machine: &MachineDescription) -> Vec<Finding> {
        let mut limits = HostLimits::probe(&self.kvm);
        let reserved = self.huge_pages.reserved(&machine.regions);
        if !matches!(reserved, Ok(None)) {
            limits.memory_available_bytes = None;
        }
        let mut findings = ferry_kvm::judge(&limits, machine);
        findings.extend(reserved.err().map(|error| no_pages(machine, &error)));
        findings
    }
}

impl std::fmt::Debug for KvmBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmBuilder").field("kvm", &self.kvm).finish_non_exhaustive()
    }
}

impl Builder for KvmBuilder {
    type Machine = KvmGuest;

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        self.prepared = None;
        let mut findings = self.judge_host(machine);
        if machine.kind == ferry_kvm::KIND {
            findings.extend(judge_config(machine));
        }
        // Nothing is built for a guest that cannot come: its numbers are its own word.
        if findings.iter().all(|finding| finding.kind == FindingKind::Notice) {
            match Shell::offered(&self.kvm, machine, self.dirty) {
                Ok((shell, notices)) => {
                    self.prepared = Some(Box::new((machine.clone(), shell)));
                    findings.extend(notices);
                }
                Err(refusals) => findings.extend(refusals),
            }
        }
        Verdict { findings }
    }

    fn build(&mut self, machine: &MachineDescription) -> Result<KvmGuest, MachineError> {
        let judged = self.prepared.as_ref().is_some_and(|prepared| prepared.0 == *machine);
        let verdict = if judged { Verdict::accept() } else { self.judge(machine) };
        let refusal = verdict.findings.iter().find(|finding| finding.kind == FindingKind::Refusal);
        let (None, Some(prepared)) = (refusal, self.prepared.take()) else {
            let why = refusal.map_or_else(String::new, |finding| format!(": {finding}"));
            return Err(MachineError::new(format!("this machine cannot be built here{why}")));
        };
        self.assemble(prepared.1, machine)
    }
}

/// The pages in which guests' memory is to lie here cannot be had for this one.
fn no_pages(machine: &MachineDescription, error: &MemoryError) -> Finding {
    Finding {
        kind: FindingKind::Refusal,
        subject: "huge pages".to_owned(),
        layer: Layer::Machine,
        guest: format!("{} bytes of memory", machine.memory_bytes()),
        target: format!("cannot place them as it was told to: {error}"),
        effect: "the guest would have no memory".to_owned(),
        remedy: "do what the reason says, or receive the guest without a wish for huge pages".to_owned(),
    }
}

/// What is wrong with the configuration of an offered machine, by itself or against the rest of the
/// description.
fn judge_config(machine: &MachineDescription) -> Option<Finding> {
    let refusal = |guest: String, target: String| Finding {
        kind: FindingKind::Refusal,
        subject: "guest configuration".to_owned(),
        layer: Layer::Vmm,
        guest,
        target,
        effect: "the machine would not be the guest's".to_owned(),
        remedy: "run the same version of ferry on both hosts".to_owned(),
    };
    match GuestConfig::from_bytes(&machine.config) {
        Err(error) => Some(refusal("one of its own".to_owned(), format!("cannot use it: {error}"))),
        Ok(config) if config.cpus != machine.vcpus || config.regions() != machine.regions => Some(refusal(
            format!("{} vCPUs and {} bytes", machine.vcpus, machine.memory_bytes()),
            format!("would build {} vCPUs and {} bytes", config.cpus, config.memory_bytes),
        )),
        Ok(_) => None,
    }
}

/// A VM with its memory and vCPUs, before it is a machine.
struct Parts {
    memory: MemorySlots,
    pages: Pages,
    vcpus: Vec<VcpuFd>,
    contract: Contract,
    ring: Option<DirtyRing>,
}

impl Parts {
    fn build(shell: Shell, config: &GuestConfig, huge_pages: HugePages) -> Result<Self, VmmError> {
        let Shell { vm, vcpus, contract, ring } = shell;
        let (memory, pages) = ferry_kvm::allocate_in(&config.regions(), huge_pages)?;
        let mut memory = MemorySlots::register(vm, memory)?;
        if let Some(ring) = &ring {
            memory.use_dirty_ring(ring)?;
        }
        Ok(Self { memory, pages, vcpus, contract, ring })
    }

    fn assemble(
        self,
        kvm: &Kvm,
        config: &GuestConfig,
        watch: Option<Arc<dyn RunWatch>>,
    ) -> Result<KvmGuest, VmmError> {
        let serial = SerialPort::new(Arc::clone(self.memory.vm()));
        let devices = KvmDevices::new(Arc::new(DebugPort::new(config)), config.cpus, serial, self.pages)?;
        let vcpus = VcpuThreads::start(self.vcpus, devices.ports(), self.ring)?;
        let machine = KvmMachine::new(kvm, self.memory, vcpus, devices)?
            .with_config(config.to_bytes())
            .with_contract(&self.contract);
        Ok(match watch {
            Some(watch) => machine.with_watch(watch),
            None => machine,
        })
    }
}

pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, VmmError> {
    let vm = kvm.create_vm().map_err(|source| step("create a VM", source))?;
    if vm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(|source| step("place the identity map", source))?;
    }
    if vm.check_extension(Cap::SetTssAddr) {
        let address = usize::try_from(TSS_ADDRESS).unwrap_or(usize::MAX);
        vm.set_tss_address(address).map_err(|source| step("place the TSS", source))?;
    }
    vm.create_irq_chip().map_err(|source| step("create the interrupt controllers", source))?;
    // After the controllers, whose line 0 it drives. With the speaker's port answered in the kernel.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(|source| step("create the interval timer", source))?;
    Ok(vm)
}

fn step(step: &'static str, source: vmm_sys_util::errno::Error) -> VmmError {
    VmmError::Kvm { step, source }
}
