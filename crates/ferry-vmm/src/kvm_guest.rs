//! A guest on KVM: VM, memory, vCPUs, devices, payload.
//!
//! [`create`] makes one that is born here; [`KvmBuilder`] makes the machine on the target of a
//! migration. Either way it is a [`KvmGuest`] whose vCPUs are stopped: it runs once
//! [`resume`](ferry_migrate::Machine::resume) gets its custody.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use ferry_contract::{Contract, Finding, FindingKind, Layer, Verdict};
use ferry_kvm::{
    Deviation, DirtyRing, HostLimits, HugePages, KvmMachine, MemoryError, MemorySlots, OpenError, Pages,
};
use ferry_migrate::{Builder, DiskImage, DiskImageError, DiskPlaces, Machine, MachineError, RunWatch};
use ferry_protocol::MachineDescription;
use ferry_state::GuestTime;
use kvm_ioctls::{Kvm, VcpuFd};

use crate::backend::{Birth, DirtyKind};
use crate::debug_port::DebugPort;
use crate::devices::KvmDevices;
use crate::linux::{self, Surroundings};
use crate::places;
use crate::power::{Power, Wish};
use crate::serial::SerialPort;
use crate::shell::{Controller, Shell, take_controller};
use crate::vcpu_threads::VcpuThreads;
use crate::virtio::ConsolePort;
use crate::{
    Board, CheckReport, ConfigError, Guest, GuestConfig, GuestReport, MachineConfig, Payload, Places,
    VmmError, boot, virtio,
};

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
        // Nobody would answer, and whoever waits for it keeps the guest from its restart.
        if self.devices().power().is_some() {
            return Err(VmmError::NoVerifying);
        }
        self.devices().port().verify(timeout)
    }

    fn set_guest_time(&mut self, time: GuestTime) {
        KvmMachine::set_guest_time(self, time);
    }

    fn dirty_kind(&self) -> Option<DirtyKind> {
        Some(if self.has_dirty_ring() { DirtyKind::Ring } else { DirtyKind::Log })
    }

    fn serial(&self) -> Option<&SerialPort> {
        Some(self.devices().serial())
    }

    fn consoles(&self) -> &[ConsolePort] {
        self.devices().virtio().consoles()
    }

    fn asked(&self) -> Option<Wish> {
        self.devices().power().and_then(Power::asked)
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
    let Birth { seed, contract, image, board, huge_pages, dirty } = birth;
    let machine = MachineConfig { guest: *config, board: board.cloned().unwrap_or_default() };
    if let Some(image) = image {
        image.check_fits(config.memory_bytes.min(config.low_end()))?;
    }
    machine.validate()?;
    if let Some(kernel) = &machine.board.linux {
        linux::look_at(kernel)?;
    }
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
    let images = virtio::open_images(&machine.board).map_err(no_disk)?;
    let mut guest = Parts::build(shell, config, huge_pages)?.assemble(&kvm, &machine, images, watch)?;
    if machine.board.linux.is_some() {
        start_kernel(&mut guest, &machine)?;
        return Ok(guest);
    }
    boot::load(&guest.ram(), config, image)?;
    for cpu in 0..config.cpus {
        guest.with_vcpu(cpu, &mut |vcpu| {
            boot::start_at(vcpu, cpu, config, seed, image).map_err(|error| {
                MachineError::with_source("the guest's first registers cannot be set", error)
            })
        })?;
    }
    let mut counter_khz = 0;
    guest.with_vcpu(0, &mut |vcpu| {
        counter_khz = boot::counter_khz(vcpu);
        Ok(())
    })?;
    guest.devices().port().born_with(counter_khz);
    Ok(guest)
}

/// Puts the kernel of a new machine into its memory, and its vCPUs where it begins.
fn start_kernel(guest: &mut KvmGuest, machine: &MachineConfig) -> Result<(), VmmError> {
    let Some(kernel) = &machine.board.linux else { return Ok(()) };
    let mut cpus = Vec::new();
    for cpu in 0..machine.guest.cpus {
        guest.with_vcpu(cpu, &mut |vcpu| {
            cpus.push(linux::name_of(vcpu, cpu)?);
            Ok(())
        })?;
    }
    let devices = u32::try_from(machine.board.devices.len()).unwrap_or(u32::MAX);
    let around = Surroundings { memory: guest.memory(), devices, cpus: &cpus };
    let entry = linux::load(kernel, &around)?;
    for cpu in 0..machine.guest.cpus {
        guest.with_vcpu(cpu, &mut |vcpu| {
            linux::start_at(vcpu, cpu, &entry).map_err(|error| {
                MachineError::with_source("the guest's first registers cannot be set", error)
            })
        })?;
    }
    Ok(())
}

/// Makes guests on the target of a migration.
pub struct KvmBuilder {
    kvm: Kvm,
    watch: Option<Arc<dyn RunWatch>>,
    /// What was built while the last offer was judged, and for which offer.
    prepared: Option<Box<(MachineDescription, Shell)>>,
    serial: Vec<Arc<File>>,
    huge_pages: HugePages,
    dirty: DirtyKind,
    places: Places,
    guest_time: Option<GuestTime>,
    overwrites: bool,
}

impl KvmBuilder {
    /// Opens KVM.
    pub fn new() -> Result<Self, OpenError> {
        let (huge_pages, dirty, places) = (HugePages::default(), DirtyKind::default(), Places::default());
        Ok(Self {
            kvm: ferry_kvm::open()?,
            watch: None,
            prepared: None,
            serial: Vec::new(),
            huge_pages,
            dirty,
            places,
            guest_time: None,
            overwrites: false,
        })
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

    /// The same for guests whose devices' images and taps, and whose kernels, are there. Without a word about it a guest
    /// with disks or network cards is refused, and one with a kernel does not restart.
    #[must_use]
    pub fn with_places(mut self, places: Places) -> Self {
        self.places = places;
        self
    }

    /// The same, and what lies where the images of a guest's disks are to be made may be overwritten.
    #[must_use]
    pub fn overwriting_disks(mut self, overwrites: bool) -> Self {
        self.overwrites = overwrites;
        self
    }

    /// The same with files for what guests write to their serial port.
    #[must_use]
    pub fn with_serial_output(mut self, files: Vec<Arc<File>>) -> Self {
        self.serial = files;
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

    /// The same with guests whose clocks do so about the pause, whatever was asked for where they come from.
    #[must_use]
    pub fn with_guest_time(mut self, time: Option<GuestTime>) -> Self {
        self.guest_time = time;
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

    /// Builds a machine in which a guest's kernel begins: one like it had when it asked for a restart.
    pub fn anew(&mut self, machine: &MachineDescription) -> Result<KvmGuest, VmmError> {
        let config = MachineConfig::from_bytes(&machine.config)?;
        if let Some(kernel) = &config.board.linux {
            linux::look_at(kernel)?;
        }
        // Its description is this host's own.
        let places = std::mem::replace(&mut self.places, Places::same());
        let built = self.build(machine);
        self.places = places;
        let mut guest = built?;
        start_kernel(&mut guest, &config)?;
        Ok(guest)
    }

    /// A machine in a VM that was made for it.
    fn assemble(&self, shell: Shell, machine: &MachineDescription) -> Result<KvmGuest, MachineError> {
        let built = self.config_of(machine).map_err(VmmError::from).and_then(|(config, findings)| {
            if let Some(refusal) = findings.iter().find(|finding| is_refusal(finding)) {
                return Err(MachineError::new(refusal.to_string()).into());
            }
            let parts = Parts::build(shell, &config.guest, self.huge_pages)?;
            let images = if machine.disks.is_empty() {
                virtio::open_images(&config.board)
            } else {
                self.disk_places(&config.board).make(&machine.disks)
            };
            parts.assemble(&self.kvm, &config, images.map_err(no_disk)?, self.watch.clone())
        });
        let mut guest =
            built.map_err(|error| MachineError::with_source("the guest's machine cannot be built", error))?;
        if let Some(time) = self.guest_time {
            guest.set_guest_time(time);
        }
        guest.write_to(&self.serial);
        Ok(guest)
    }

    /// What an offered machine is on this host, and what is to be said about that.
    fn config_of(&self, machine: &MachineDescription) -> Result<(MachineConfig, Vec<Finding>), ConfigError> {
        Ok(self.places.settle(MachineConfig::from_bytes(&machine.config)?))
    }

    /// Where the images of disks that come with a guest are made.
    fn disk_places(&self, board: &Board) -> DiskPlaces {
        DiskPlaces::new(virtio::disks(board)).overwriting(self.overwrites)
    }

    /// What the devices of a guest need and this host has not.
    fn judge_devices(&self, machine: &MachineDescription, board: &Board) -> Vec<Finding> {
        let finding = |(device, problem)| Finding {
            kind: FindingKind::Refusal,
            subject: device,
            layer: Layer::Vmm,
            guest: "it has one".to_owned(),
            target: problem,
            effect: "the guest would lose the device".to_owned(),
            remedy:
                "bring what is missing to the target, or name another with `--disk N=PATH` or `--net N=TAP`"
                    .to_owned(),
        };
        let with_images = !machine.disks.is_empty();
        let mut findings: Vec<_> = virtio::missing(board, with_images).into_iter().map(finding).collect();
        if with_images {
            findings.extend(self.disk_places(board).judge(&machine.disks));
            let (brought, wanted) = (machine.disks.len(), virtio::disks(board).count());
            if brought != wanted {
                findings.push(not_its_machine(format!("{brought} images"), format!("would need {wanted}")));
            }
        } else if self.places.runs_elsewhere {
            let unlocked = virtio::unlocked(board).into_iter();
            findings.extend(unlocked.map(|(disk, path)| places::another_image(disk, &path)));
        }
        let files = board.linux.iter().flat_map(linux::unusable);
        findings.extend(files.map(|(what, problem)| places::restart_with(what, &problem.to_string())));
        findings
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

    fn takes_disks(&self) -> bool {
        true
    }

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        self.prepared = None;
        let mut findings = self.judge_host(machine);
        if machine.kind == ferry_kvm::KIND {
            match self.config_of(machine) {
                Ok((config, found)) => {
                    // Nothing is opened before it is known that all of it is this host's own.
                    let is_placed = !found.iter().any(is_refusal);
                    findings.extend(judge_config(machine, &config.guest).into_iter().chain(found));
                    if is_placed {
                        findings.extend(self.judge_devices(machine, &config.board));
                    }
                }
                Err(error) => findings
                    .push(not_its_machine("one of its own".to_owned(), format!("cannot use it: {error}"))),
            }
        }
        // Nothing is built for a guest that cannot come: its numbers are its own word.
        if !findings.iter().any(is_refusal) {
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
        let refusal = verdict.findings.iter().find(|finding| is_refusal(finding));
        let (None, Some(prepared)) = (refusal, self.prepared.take()) else {
            let why = refusal.map_or_else(String::new, |finding| format!(": {finding}"));
            return Err(MachineError::new(format!("this machine cannot be built here{why}")));
        };
        self.assemble(prepared.1, machine)
    }
}

fn is_refusal(finding: &Finding) -> bool {
    finding.kind == FindingKind::Refusal
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

/// The configuration of an offered machine, held against the rest of the description.
fn judge_config(machine: &MachineDescription, config: &GuestConfig) -> Option<Finding> {
    if config.cpus == machine.vcpus && config.regions() == machine.regions {
        return None;
    }
    Some(not_its_machine(
        format!("{} vCPUs and {} bytes", machine.vcpus, machine.memory_bytes()),
        format!("would build {} vCPUs and {} bytes", config.cpus, config.memory_bytes),
    ))
}

fn not_its_machine(guest: String, target: String) -> Finding {
    Finding {
        kind: FindingKind::Refusal,
        subject: "guest configuration".to_owned(),
        layer: Layer::Vmm,
        guest,
        target,
        effect: "the machine would not be the guest's".to_owned(),
        remedy: "run the same version of ferry on both hosts".to_owned(),
    }
}

/// A guest without one of its disks is none.
fn no_disk(error: DiskImageError) -> MachineError {
    MachineError::with_source("a disk of the guest cannot be had", error)
}

/// A VM with its memory and vCPUs, before it is a machine.
struct Parts {
    memory: MemorySlots,
    pages: Pages,
    vcpus: Vec<VcpuFd>,
    contract: Contract,
    controller: Controller,
    ring: Option<DirtyRing>,
}

impl Parts {
    fn build(shell: Shell, config: &GuestConfig, huge_pages: HugePages) -> Result<Self, VmmError> {
        let Shell { vm, vcpus, contract, controller, ring } = shell;
        let (memory, pages) = ferry_kvm::allocate_in(&config.regions(), huge_pages)?;
        let mut memory = MemorySlots::register(vm, memory)?;
        if let Some(ring) = &ring {
            memory.use_dirty_ring(ring)?;
        }
        Ok(Self { memory, pages, vcpus, contract, controller, ring })
    }

    fn assemble(
        self,
        kvm: &Kvm,
        config: &MachineConfig,
        images: Vec<Arc<DiskImage>>,
        watch: Option<Arc<dyn RunWatch>>,
    ) -> Result<KvmGuest, VmmError> {
        let port = Arc::new(DebugPort::new(&config.guest));
        let devices = KvmDevices::new(port, config, &images, &self.memory, self.pages)?;
        let vcpus = VcpuThreads::start(self.vcpus, devices.ports(), self.ring)?;
        let machine = KvmMachine::new(kvm, self.memory, vcpus, devices)?
            .with_images(images)
            .with_config(config.to_bytes())
            .with_contract(&self.contract);
        let machine = take_controller(machine, self.controller)?;
        Ok(match watch {
            Some(watch) => machine.with_watch(watch),
            None => machine,
        })
    }
}

pub(crate) fn step(step: &'static str, source: vmm_sys_util::errno::Error) -> VmmError {
    VmmError::Kvm { step, source }
}
