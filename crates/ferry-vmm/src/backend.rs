//! One guest over two kinds of machine: KVM where it can be had, the simulated machine elsewhere.
//!
//! [`Backend::choose`] opens KVM and decides; [`create`] makes a guest of the chosen kind, and
//! [`AnyBuilder`] takes one on a target.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ferry_contract::{Contract, Verdict};
use ferry_kvm::HugePages;
use ferry_memory::{GuestRam, PageSet};
use ferry_migrate::{Builder, Custody, DiskImage, Harvest, Machine, MachineError, ResumeError, RunWatch};
use ferry_protocol::{GuestId, MachineDescription};
use ferry_sim::{SimBuilder, SimOptions};
use ferry_state::{GuestTime, MachineState, Resources};

use crate::kvm_guest::{self, KvmBuilder};
use crate::virtio::ConsolePort;
use crate::{Board, CheckReport, Guest, GuestConfig, GuestReport, Image, Places, SerialPort, VmmError, Wish};

/// What a guest is to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// KVM if it can be used, else the simulated machine.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// The simulated machine.
    Sim,
}

/// Where a guest's machine on KVM learns which pages the guest wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyKind {
    /// KVM's dirty log, a bitmap: every KVM has it, and it loses nothing however fast a guest writes.
    #[default]
    Log,
    /// KVM's dirty rings, one a vCPU.
    Ring,
}

impl DirtyKind {
    /// Its name: `log` or `ring`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Ring => "ring",
        }
    }
}

/// A text that names no dirty source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no such dirty source: use `log` or `ring`")]
pub struct DirtyKindError;

impl FromStr for DirtyKind {
    type Err = DirtyKindError;

    fn from_str(text: &str) -> Result<Self, DirtyKindError> {
        match text {
            "log" => Ok(Self::Log),
            "ring" => Ok(Self::Ring),
            _ => Err(DirtyKindError),
        }
    }
}

/// A text that names no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no such backend: use `auto`, `kvm` or `sim`")]
pub struct BackendError;

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "sim" => Ok(Self::Sim),
            _ => Err(BackendError),
        }
    }
}

/// What guests run on, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// KVM.
    Kvm,
    /// The simulated machine; with the sentence that says why KVM cannot be used, unless it was
    /// asked for.
    Sim {
        /// Why not KVM.
        reason: Option<String>,
    },
}

impl Backend {
    /// Decides; fails only if KVM was asked for and cannot be used.
    pub fn choose(self) -> Result<Chosen, VmmError> {
        match self {
            Self::Sim => Ok(Chosen::Sim { reason: None }),
            Self::Kvm => kvm_guest::is_possible().map(|()| Chosen::Kvm),
            Self::Auto => Ok(match kvm_guest::is_possible() {
                Ok(()) => Chosen::Kvm,
                Err(error) => Chosen::Sim { reason: Some(error.to_string()) },
            }),
        }
    }
}

impl Chosen {
    /// Its name: `kvm` or `sim`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Sim { .. } => "sim",
        }
    }
}

/// A seed that no other guest has.
pub fn fresh_seed() -> u64 {
    // The standard library keys each of these from the operating system's random numbers.
    RandomState::new().build_hasher().finish()
}

/// What a guest is born with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Birth<'a> {
    /// Makes the guest's pages its own.
    pub seed: u64,
    /// What it may see of its processors; without one all that the host offers. Only KVM keeps one.
    pub contract: Option<&'a Contract>,
    /// What a payload [`Image`](crate::Payload::Image) runs. Only KVM runs one.
    pub image: Option<&'a Image>,
    /// The kernel that it boots, and its devices. Only KVM has some.
    pub board: Option<&'a Board>,
    /// In which pages of the host its memory is to lie. Only on KVM in others than ordinary ones.
    pub huge_pages: HugePages,
    /// How its written pages are noted. Only KVM has a choice.
    pub dirty: DirtyKind,
}

impl Birth<'_> {
    /// With all that the host offers, and a built-in payload.
    pub fn plain(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }
}

/// Makes a guest that is born here, with its payload loaded and its vCPUs stopped: it runs once
/// [`resume`](Machine::resume) gets its custody.
pub fn create(
    chosen: &Chosen,
    config: &GuestConfig,
    birth: Birth<'_>,
    watch: Option<Arc<dyn RunWatch>>,
) -> Result<AnyGuest, VmmError> {
    match chosen {
        Chosen::Kvm => kvm_guest::create(config, birth, watch).map(AnyGuest::new),
        Chosen::Sim { .. } if birth.board.is_some_and(|board| !board.is_empty()) => Err(VmmError::NoBoard),
        Chosen::Sim { .. } if birth.contract.is_some() => Err(VmmError::NoContract),
        Chosen::Sim { .. } if !simulated(birth.huge_pages) => Err(VmmError::NoHugePages),
        Chosen::Sim { .. } if birth.dirty == DirtyKind::Ring => Err(VmmError::NoDirtyRing),
        Chosen::Sim { .. } => crate::sim_guest::create(config, birth.seed, watch).map(AnyGuest::new),
    }
}

/// Whether the simulated machine can have its memory in such pages.
fn simulated(huge_pages: HugePages) -> bool {
    matches!(huge_pages, HugePages::Auto | HugePages::Off)
}

/// A guest of either kind.
pub struct AnyGuest(Box<dyn Guest>);

impl AnyGuest {
    /// Takes a guest of any kind.
    pub fn new(guest: impl Guest + 'static) -> Self {
        Self(Box::new(guest))
    }
}

impl fmt::Debug for AnyGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnyGuest").field(&self.description().kind).finish()
    }
}

impl Guest for AnyGuest {
    fn report(&self) -> GuestReport {
        self.0.report()
    }

    fn verify(&self, timeout: Duration) -> Result<CheckReport, VmmError> {
        self.0.verify(timeout)
    }

    fn set_guest_time(&mut self, time: GuestTime) {
        self.0.set_guest_time(time);
    }

    fn dirty_kind(&self) -> Option<DirtyKind> {
        self.0.dirty_kind()
    }

    fn serial(&self) -> Option<&SerialPort> {
        self.0.serial()
    }

    fn consoles(&self) -> &[ConsolePort] {
        self.0.consoles()
    }

    fn asked(&self) -> Option<Wish> {
        self.0.asked()
    }
}

impl Machine for AnyGuest {
    fn description(&self) -> MachineDescription {
        self.0.description()
    }

    fn ram(&self) -> GuestRam {
        self.0.ram()
    }

    fn start_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.0.start_dirty_tracking()
    }

    fn harvest_dirty(&mut self, when: Harvest, into: &mut PageSet) -> Result<(), MachineError> {
        self.0.harvest_dirty(when, into)
    }

    fn stop_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.0.stop_dirty_tracking()
    }

    fn pause(&mut self) -> Result<Custody, MachineError> {
        self.0.pause()
    }

    fn resume(&mut self, custody: Custody) -> Result<(), ResumeError> {
        self.0.resume(custody)
    }

    fn capture(&mut self) -> Result<MachineState, MachineError> {
        self.0.capture()
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.0.restore(state)
    }

    fn capture_devices(&mut self) -> Result<MachineState, MachineError> {
        self.0.capture_devices()
    }

    fn restore_devices(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.0.restore_devices(state)
    }

    fn release_resources(&mut self) -> Result<Resources, MachineError> {
        self.0.release_resources()
    }

    fn take_resources(&mut self, guest: &GuestId, resources: &Resources) -> Result<(), MachineError> {
        self.0.take_resources(guest, resources)
    }

    fn disk_images(&self) -> Vec<Arc<DiskImage>> {
        self.0.disk_images()
    }

    fn announce(&mut self) {
        self.0.announce();
    }
}

/// Makes guests of the chosen kind on the target of a migration.
#[derive(Debug)]
pub enum AnyBuilder {
    /// On KVM.
    Kvm(KvmBuilder),
    /// In the simulated machine.
    Sim(SimBuilder),
}

impl AnyBuilder {
    /// A builder of guests of this kind, whose watch is told when they start and stop to run.
    pub fn new(chosen: &Chosen, watch: Option<Arc<dyn RunWatch>>) -> Result<Self, VmmError> {
        Ok(match chosen {
            Chosen::Kvm => Self::Kvm(KvmBuilder::new()?.with_watch(watch)),
            Chosen::Sim { .. } => Self::Sim(SimBuilder::new(SimOptions { watch, ..SimOptions::default() })),
        })
    }

    /// The same with guests whose memory lies in such pages, whatever it lay in on the source; those in the
    /// simulated machine can only have ordinary ones.
    pub fn with_huge_pages(self, wish: HugePages) -> Result<Self, VmmError> {
        match self {
            Self::Kvm(builder) => Ok(Self::Kvm(builder.with_huge_pages(wish))),
            Self::Sim(_) if !simulated(wish) => Err(VmmError::NoHugePages),
            sim @ Self::Sim(_) => Ok(sim),
        }
    }

    /// The same for guests whose written pages are noted there; the simulated machine has no choice.
    pub fn with_dirty(self, dirty: DirtyKind) -> Result<Self, VmmError> {
        match self {
            Self::Kvm(builder) => builder.with_dirty(dirty).map(Self::Kvm),
            Self::Sim(_) if dirty == DirtyKind::Ring => Err(VmmError::NoDirtyRing),
            sim @ Self::Sim(_) => Ok(sim),
        }
    }

    /// The same with guests whose clocks do so about the pause, whatever was asked for where they come from; those in
    /// the simulated machine have none.
    #[must_use]
    pub fn with_guest_time(self, time: Option<GuestTime>) -> Self {
        match self {
            Self::Kvm(builder) => Self::Kvm(builder.with_guest_time(time)),
            sim @ Self::Sim(_) => sim,
        }
    }

    /// The same for guests whose devices' images and taps, and whose kernels, are there; those in the simulated machine
    /// have none.
    pub fn with_places(self, places: Places) -> Result<Self, VmmError> {
        match self {
            Self::Kvm(builder) => Ok(Self::Kvm(builder.with_places(places))),
            Self::Sim(_) if !places.is_empty() => Err(VmmError::NoBoard),
            sim @ Self::Sim(_) => Ok(sim),
        }
    }

    /// The same, and what lies where the images of a guest's disks are to be made may be overwritten.
    #[must_use]
    pub fn overwriting_disks(self, overwrites: bool) -> Self {
        match self {
            Self::Kvm(builder) => Self::Kvm(builder.overwriting_disks(overwrites)),
            sim @ Self::Sim(_) => sim,
        }
    }

    /// Builds a machine in which a guest's kernel begins: one like it had when it asked for a restart
    /// ([`Guest::asked`]).
    pub fn anew(&mut self, machine: &MachineDescription) -> Result<AnyGuest, VmmError> {
        match self {
            Self::Kvm(builder) => builder.anew(machine).map(AnyGuest::new),
            Self::Sim(_) => Err(VmmError::NoBoard),
        }
    }

    /// The same with files for what guests write to their serial port; those in the simulated machine
    /// have none.
    #[must_use]
    pub fn with_serial_output(self, files: Vec<Arc<File>>) -> Self {
        match self {
            Self::Kvm(builder) => Self::Kvm(builder.with_serial_output(files)),
            sim @ Self::Sim(_) => sim,
        }
    }
}

impl Builder for AnyBuilder {
    type Machine = AnyGuest;

    fn takes_disks(&self) -> bool {
        match self {
            Self::Kvm(builder) => builder.takes_disks(),
            Self::Sim(builder) => builder.takes_disks(),
        }
    }

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        match self {
            Self::Kvm(builder) => builder.judge(machine),
            Self::Sim(builder) => builder.judge(machine),
        }
    }

    fn build(&mut self, machine: &MachineDescription) -> Result<AnyGuest, MachineError> {
        match self {
            Self::Kvm(builder) => builder.build(machine).map(AnyGuest::new),
            Self::Sim(builder) => builder.build(machine).map(AnyGuest::new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulated_machine_needs_no_reason_when_asked_for() {
        assert_eq!(Backend::Sim.choose().unwrap(), Chosen::Sim { reason: None });
        assert_eq!("sim".parse(), Ok(Backend::Sim));
        assert_eq!("xen".parse::<Backend>(), Err(BackendError));
        for dirty in [DirtyKind::Log, DirtyKind::Ring] {
            assert_eq!(dirty.name().parse(), Ok(dirty));
        }
        assert_eq!("bitmap".parse::<DirtyKind>(), Err(DirtyKindError));
    }

    #[test]
    fn auto_says_why_it_is_not_kvm() {
        match (Backend::Auto.choose().unwrap(), ferry_kvm::open()) {
            (Chosen::Kvm, Ok(_)) => {}
            (Chosen::Sim { reason: Some(reason) }, Err(error)) => assert_eq!(reason, error.to_string()),
            (chosen, _) => panic!("{chosen:?}"),
        }
    }

    #[test]
    fn a_guest_of_either_kind_runs_and_its_builder_accepts_it() {
        let config =
            GuestConfig { memory_bytes: 4 << 20, cpus: 1, payload: crate::Payload::Idle, low_bytes: None };
        let mut kinds = vec![Chosen::Sim { reason: None }];
        match ferry_kvm::open() {
            Ok(_) => kinds.push(Chosen::Kvm),
            Err(error) => println!("skipped on KVM: {error}"),
        }
        for chosen in kinds {
            let mut guest = create(&chosen, &config, Birth::plain(fresh_seed()), None).unwrap();
            guest.resume(Custody::born("guest".parse().unwrap())).unwrap();
            let check = guest.verify(Duration::from_secs(20)).unwrap();
            assert_eq!((check.pages, check.faults), (512, 0), "{chosen:?}");
            let report = guest.report();
            assert_eq!((report.payload.as_str(), report.stopped), ("idle", None));
            drop(guest.pause().unwrap());
            let mut builder = AnyBuilder::new(&chosen, None).unwrap();
            assert!(!builder.judge(&guest.description()).is_refusal());
            let built = builder.build(&guest.description()).unwrap();
            assert_eq!(built.description(), guest.description());
        }
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
