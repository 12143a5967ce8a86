//! A device that writes guest memory by itself, on a machine of its own kind around the simulated
//! one: it moves with the guest, and none of its pages is lost.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use engine_support::{CHURN, Transport, Watching, fresh_address, journal, options, quick, until};
use ferry_contract::Verdict;
use ferry_memory::{GuestRam, PAGE_SIZE, PageSet};
use ferry_migrate::{
    Builder, Custody, Device, DevicePages, DeviceSet, Harvest, Listener, Machine, MachineError, Migration,
    ReceiveOptions, Reception, ResumeError, Saved,
};
use ferry_protocol::{GuestId, MachineDescription, SourceOutcome, SourcePhase};
use ferry_sim::{SimBuilder, SimMachine, SimOptions};
use ferry_state::{Fields, MachineState, Part, Resources, Section};

/// The device's own pages; the guest has others.
const FIRST: u64 = 32;
const PAGES: u64 = 16;

/// How many numbers the device has written.
#[derive(Debug, Clone, Default, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Count {
    #[n(0)]
    written: u64,
}

impl Part for Count {
    const NAME: &'static str = "device/scribe";
    const FIELDS: Fields = Fields::These(&[0]);
}

/// A device with a thread that writes number after number, round and round its pages.
struct Scribe {
    ram: GuestRam,
    count: Arc<Mutex<Count>>,
    pages: Arc<DevicePages>,
    is_careless: bool,
    thread: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    /// Wrong pages when it first went on with what it restored.
    arrived_wrong: Option<usize>,
}

impl Scribe {
    fn new(ram: &GuestRam, is_careless: bool) -> Self {
        let pages = Arc::new(DevicePages::new(ram.layout()));
        Self {
            ram: ram.clone(),
            count: Arc::default(),
            pages,
            is_careless,
            thread: None,
            arrived_wrong: None,
        }
    }

    fn written(&self) -> u64 {
        self.count.lock().unwrap().written
    }

    /// Its pages that do not hold the last number written there.
    fn faults(&self) -> usize {
        let written = self.written();
        let is_wrong = |place: &u64| {
            let expected = (0..written).rev().take(16).find(|number| number % PAGES == *place).unwrap();
            let mut found = [0; 8];
            self.ram.read((FIRST + place) * PAGE_SIZE, &mut found).unwrap();
            u64::from_le_bytes(found) != expected
        };
        (0..PAGES).filter(is_wrong).count()
    }
}

impl Device for Scribe {
    fn name(&self) -> String {
        "scribe".to_owned()
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        assert!(self.thread.is_none(), "saved while it writes");
        Saved::part(&*self.count.lock().unwrap(), Some(&Count::default()))
    }

    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        *self.count.lock().unwrap() = section.read().unwrap();
        Ok(())
    }

    fn harvest_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.pages.harvest(into)
    }

    fn quiesce(&mut self) -> Result<(), MachineError> {
        let (ends, thread) = self.thread.take().unwrap();
        ends.store(true, Ordering::Release);
        thread.join().unwrap();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        if self.arrived_wrong.is_none() && self.written() > 0 {
            self.arrived_wrong = Some(self.faults());
        }
        let ends = Arc::new(AtomicBool::new(false));
        let (ended, ram, count) = (Arc::clone(&ends), self.ram.clone(), Arc::clone(&self.count));
        let (pages, is_careless) = (Arc::clone(&self.pages), self.is_careless);
        let work = move || {
            while !ended.load(Ordering::Acquire) {
                let mut count = count.lock().unwrap();
                let address = (FIRST + count.written % PAGES) * PAGE_SIZE;
                ram.write(address, &count.written.to_le_bytes()).unwrap();
                assert!(is_careless || pages.wrote(address, 8));
                count.written += 1;
                drop(count);
                std::thread::yield_now();
            }
        };
        self.thread = Some((ends, std::thread::spawn(work)));
        Ok(())
    }
}

/// The simulated machine with one more device.
struct WithScribe {
    sim: SimMachine,
    devices: DeviceSet,
    scribe: Arc<Mutex<Scribe>>,
}

impl WithScribe {
    fn around(sim: SimMachine, is_careless: bool) -> Self {
        let scribe = Arc::new(Mutex::new(Scribe::new(&sim.ram(), is_careless)));
        let mut devices = DeviceSet::new();
        devices.add(Arc::clone(&scribe)).unwrap();
        Self { sim, devices, scribe }
    }
}

impl Machine for WithScribe {
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
        self.sim.harvest_dirty(when, into)?;
        self.devices.harvest_dirty(into)
    }

    fn stop_dirty_tracking(&mut self) -> Result<(), MachineError> {
        self.sim.stop_dirty_tracking()
    }

    fn pause(&mut self) -> Result<Custody, MachineError> {
        let custody = self.sim.pause()?;
        self.devices.quiesce()?;
        Ok(custody)
    }

    fn resume(&mut self, custody: Custody) -> Result<(), ResumeError> {
        self.devices.resume().unwrap();
        self.sim.resume(custody)
    }

    fn capture(&mut self) -> Result<MachineState, MachineError> {
        self.sim.capture()
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.sim.restore(state)
    }

    fn capture_devices(&mut self) -> Result<MachineState, MachineError> {
        let mut state = self.sim.capture_devices()?;
        state.sections.extend(self.devices.capture()?.sections);
        Ok(state)
    }

    fn restore_devices(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let (scribes, others) =
            state.sections.iter().cloned().partition(|section: &Section| section.name == Count::NAME);
        self.sim.restore_devices(&MachineState { sections: others })?;
        self.devices.restore(&MachineState { sections: scribes })
    }

    fn release_resources(&mut self) -> Result<Resources, MachineError> {
        self.sim.release_resources()
    }

    fn take_resources(&mut self, guest: &GuestId, resources: &Resources) -> Result<(), MachineError> {
        self.sim.take_resources(guest, resources)
    }
}

struct ScribeBuilder(SimBuilder);

impl Builder for ScribeBuilder {
    type Machine = WithScribe;

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        self.0.judge(machine)
    }

    fn build(&mut self, machine: &MachineDescription) -> Result<WithScribe, MachineError> {
        Ok(WithScribe::around(self.0.build(machine)?, false))
    }
}

/// Moves a guest whose device writes all the time. Gives how many of the device's pages arrived wrong,
/// and the machine, paused.
fn moved(is_careless: bool) -> (usize, WithScribe) {
    let folder = tempfile::tempdir().unwrap();
    let mut source = WithScribe::around(SimMachine::born(CHURN, SimOptions::default()).unwrap(), is_careless);
    source.resume(Custody::born("guest".parse().unwrap())).unwrap();
    let scribe = Arc::clone(&source.scribe);
    until("a thousand numbers", || scribe.lock().unwrap().written() > 1000);
    let at = fresh_address(Transport::Unix, folder.path());
    let listener = Listener::bind(&at, false).unwrap();
    let receive = ReceiveOptions { timeouts: quick(), ..ReceiveOptions::new(journal()) };
    let target = std::thread::spawn(move || {
        let mut builder = ScribeBuilder(SimBuilder::new(SimOptions::default()));
        Reception::new(listener, receive).unwrap().wait(&mut builder, &()).unwrap().machine
    });
    // It writes all of its pages once more when the last live round was sent.
    let count = Arc::clone(&scribe.lock().unwrap().count);
    let seen = Watching::source(move |phase| {
        if phase == SourcePhase::Pause {
            let before = count.lock().unwrap().written;
            until("more numbers", || count.lock().unwrap().written > before + 2 * PAGES);
        }
    });
    let (report, _) = Migration::new(options(&source.sim, &at, 2)).run(&mut source, &seen);
    assert!(matches!(report.outcome, SourceOutcome::Moved { .. }), "{report:?}");
    let sent = scribe.lock().unwrap().written();
    let mut target = target.join().unwrap();
    drop(target.pause().unwrap());
    assert!(target.scribe.lock().unwrap().written() >= sent, "it goes on where it was");
    let wrong = target.scribe.lock().unwrap().arrived_wrong.unwrap();
    (wrong, target)
}

#[test]
fn pages_that_a_device_wrote_cross_with_the_guest() {
    let (wrong, mut target) = moved(false);
    assert_eq!(wrong, 0);
    assert_eq!(target.sim.verify(engine_support::PATIENCE).unwrap().faults, 0);
    // And it goes on.
    let before = target.scribe.lock().unwrap().written();
    target.devices.resume().unwrap();
    until("a number", || target.scribe.lock().unwrap().written() > before + 100);
    target.devices.quiesce().unwrap();
    assert_eq!(target.scribe.lock().unwrap().faults(), 0);
}

#[test]
fn a_device_that_does_not_say_what_it_wrote_is_found_out() {
    let (wrong, _) = moved(true);
    assert_eq!(wrong, 16, "the test above cannot fail");
}
