//! A guest with a disk that it writes all the time: a simulated machine, an image, and a thread that is the disk's
//! device.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ferry_contract::Verdict;
use ferry_memory::{GuestRam, PageSet};
use ferry_migrate::{
    Builder, Custody, DiskImage, DiskPlace, DiskPlaces, Harvest, Machine, MachineError, ResourceSet,
    ResumeError,
};
use ferry_protocol::{GuestId, MachineDescription};
use ferry_sim::{SimBuilder, SimConfig, SimFaults, SimMachine, SimOptions};
use ferry_state::{MachineState, Resources};

use super::until;

/// What the guest believes to be on its disk.
pub(crate) type Model = Arc<Mutex<Vec<u8>>>;

pub(crate) struct Disky {
    pub(crate) sim: SimMachine,
    pub(crate) image: Arc<DiskImage>,
    pub(crate) model: Model,
    pub(crate) announced: Arc<AtomicBool>,
    resources: ResourceSet,
    writer: Option<Writer>,
}

/// The device's thread.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Disky {
    fn new(sim: SimMachine, image: Arc<DiskImage>, model: Model) -> Self {
        let resources = ResourceSet::new().with_images(&[Arc::clone(&image)]);
        Self { sim, image, model, announced: Arc::default(), resources, writer: None }
    }

    /// A guest that runs, on an image with something in it, in a machine that may fail.
    pub(crate) fn running(config: SimConfig, faults: SimFaults, path: &Path, bytes: usize) -> Self {
        let mut model = vec![0; bytes];
        for (at, byte) in model.iter_mut().enumerate().skip(bytes / 2).take(bytes / 4) {
            *byte = (at % 251 + 1).to_le_bytes()[0];
        }
        std::fs::write(path, &model).unwrap();
        let image = DiskImage::open(0, path, false).unwrap();
        let sim = SimMachine::born(config, SimOptions { faults, ..SimOptions::default() }).unwrap();
        let mut guest = Self::new(sim, Arc::clone(&image), Arc::new(Mutex::new(model)));
        let name: GuestId = "guest".parse().unwrap();
        guest.take_resources(&name, &Resources { released: vec![image.resource()] }).unwrap();
        guest.resume(Custody::born(name)).unwrap();
        guest
    }

    /// The disk holds what the guest wrote, and it goes on writing.
    pub(crate) fn is_well(&mut self) {
        let before = self.written();
        until("a write to the disk", || self.written() > before);
        super::is_well(&self.sim);
        let custody = self.pause().unwrap();
        self.holds_its_own();
        self.resume(custody).unwrap();
    }

    /// Of a paused guest: every byte of its disk.
    pub(crate) fn holds_its_own(&self) {
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = vec![0; model.len()];
        self.image.file().read_exact_at(&mut found, 0).unwrap();
        let first = found.iter().zip(model.iter()).position(|(found, wanted)| found != wanted);
        assert_eq!(first, None, "the disk differs from this byte on");
    }

    fn written(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.written.load(Ordering::Relaxed))
    }

    fn start_writing(&mut self) {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (image, model) = (Arc::clone(&self.image), Arc::clone(&self.model));
        let (stops, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            let mut state = 0x1234_5678_9abc_def1_u64;
            let sectors = image.bytes() / 512;
            while !stops.load(Ordering::Relaxed) {
                for step in [13, 7, 17] {
                    state ^= if step == 7 { state >> step } else { state << step };
                }
                // Half of the disk is never written, and some writes are of zeros.
                let sector = state % (sectors / 2);
                let length = ((state >> 40) % 24 + 1).min(sectors - sector) * 512;
                let bytes = vec![((state >> 32) % 4).to_le_bytes()[0]; usize::try_from(length).unwrap()];
                image.file().write_all_at(&bytes, sector * 512).unwrap();
                image.wrote(sector * 512, length);
                let at = usize::try_from(sector * 512).unwrap();
                model.lock().unwrap_or_else(PoisonError::into_inner)[at..at + bytes.len()]
                    .copy_from_slice(&bytes);
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(std::time::Duration::from_micros(300));
            }
        });
        self.writer = Some(Writer { stop, written, thread });
    }

    fn stop_writing(&mut self) {
        if let Some(Writer { stop, thread, .. }) = self.writer.take() {
            stop.store(true, Ordering::Relaxed);
            thread.join().unwrap();
        }
    }
}

impl Drop for Disky {
    fn drop(&mut self) {
        self.stop_writing();
    }
}

impl Machine for Disky {
    fn description(&self) -> MachineDescription {
        self.sim.description()
    }

    fn ram(&self) -> GuestRam {
        self.sim.ram()
    }

    fn start_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.sim.start_dirty_tracking()
    }

    fn harvest_dirty(&mut self, when: Harvest, into: &mut PageSet) -> Result<(), MachineError> {
        self.sim.harvest_dirty(when, into)
    }

    fn stop_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.sim.stop_dirty_tracking()
    }

    fn pause(&mut self) -> Result<Custody, MachineError> {
        let custody = self.sim.pause()?;
        self.stop_writing();
        Ok(custody)
    }

    fn resume(&mut self, custody: Custody) -> Result<(), ResumeError> {
        if let Err(source) = self.resources.missing() {
            return Err(ResumeError { custody, source });
        }
        self.sim.resume(custody)?;
        self.start_writing();
        Ok(())
    }

    fn capture(&mut self) -> Result<MachineState, MachineError> {
        self.sim.capture()
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.sim.restore(state)
    }

    fn capture_devices(&mut self) -> Result<MachineState, MachineError> {
        self.sim.capture_devices()
    }

    fn restore_devices(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.sim.restore_devices(state)
    }

    fn release_resources(&mut self) -> Result<Resources, MachineError> {
        self.resources.release()
    }

    fn take_resources(&mut self, guest: &GuestId, resources: &Resources) -> Result<(), MachineError> {
        self.resources.take(guest, resources)
    }

    fn announce(&mut self) {
        self.announced.store(true, Ordering::SeqCst);
    }

    fn disk_images(&self) -> Vec<Arc<DiskImage>> {
        vec![Arc::clone(&self.image)]
    }
}

/// Makes such guests on a target.
#[derive(Clone)]
pub(crate) struct DiskyBuilder {
    /// Where the image is, or is to lie.
    pub(crate) path: PathBuf,
    pub(crate) overwrites: bool,
    pub(crate) takes_disks: bool,
    pub(crate) model: Model,
    /// Whether the network was told of the guest.
    pub(crate) announced: Arc<AtomicBool>,
}

impl DiskyBuilder {
    pub(crate) fn new(path: PathBuf, model: &Model) -> Self {
        let (model, announced) = (Arc::clone(model), Arc::default());
        Self { path, overwrites: false, takes_disks: true, model, announced }
    }

    fn sim() -> SimBuilder {
        SimBuilder::new(SimOptions::default()).with_memory_limit(1 << 30)
    }

    fn places(&self) -> DiskPlaces {
        let place = DiskPlace { path: self.path.clone(), read_only: false };
        DiskPlaces::new([(0, place)]).overwriting(self.overwrites)
    }
}

impl Builder for DiskyBuilder {
    type Machine = Disky;

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        let mut verdict = Self::sim().judge(machine);
        if self.takes_disks {
            verdict.findings.extend(self.places().judge(&machine.disks));
        }
        verdict
    }

    fn takes_disks(&self) -> bool {
        self.takes_disks
    }

    fn build(&mut self, machine: &MachineDescription) -> Result<Disky, MachineError> {
        let made = self.places().make(&machine.disks).and_then(|made| match made.into_iter().next() {
            Some(image) => Ok(image),
            None => DiskImage::open(0, &self.path, false),
        });
        let image = made.map_err(|error| MachineError::with_source("no disk", error))?;
        let mut guest = Disky::new(Self::sim().build(machine)?, image, Arc::clone(&self.model));
        guest.announced = Arc::clone(&self.announced);
        Ok(guest)
    }
}
