//! What the steps of a migration cost on this host's KVM, for a guest of 512 MiB: medians, best and
//! worst of some rounds. Run with `cargo bench -p ferry-vmm`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::error::Error;
use std::time::{Duration, Instant};

use ferry_memory::PageSet;
use ferry_migrate::{Builder, Custody, Harvest, Machine};
use ferry_vmm::{Guest, GuestConfig, KvmBuilder, KvmGuest, Payload};

const ROUNDS: u32 = 50;
const MEMORY_BYTES: u64 = 512 << 20;

/// Times of one step.
struct Times {
    step: &'static str,
    times: Vec<Duration>,
}

impl Times {
    fn of(step: &'static str) -> Self {
        Self { step, times: Vec::new() }
    }

    fn take<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        self.times.push(began.elapsed());
        result
    }

    fn print(mut self) {
        self.times.sort_unstable();
        if let (Some(best), Some(median), Some(worst)) =
            (self.times.first(), self.times.get(self.times.len() / 2), self.times.last())
        {
            println!("{:<28} median {median:>10.1?}  best {best:>10.1?}  worst {worst:>10.1?}", self.step);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Err(error) = ferry_kvm::open() {
        println!("skipped: {error}");
        return Ok(());
    }
    let churn = Payload::Churn { rate_bytes_per_second: 100 << 20, working_set_bytes: 64 << 20 };
    for (payload, cpus) in
        [(Payload::Idle, 1), (churn, 1), (Payload::Idle, 4), (churn, 4), (Payload::Ticks, 4)]
    {
        println!("{}, {} MiB, vCPUs: {cpus}", payload.name(), MEMORY_BYTES >> 20);
        measure(&GuestConfig { memory_bytes: MEMORY_BYTES, cpus, payload, low_bytes: None })?;
    }
    Ok(())
}

fn measure(config: &GuestConfig) -> Result<(), Box<dyn Error>> {
    let mut guest = ferry_vmm::create_on_kvm(config, ferry_vmm::Birth::plain(ferry_vmm::fresh_seed()), None)?;
    guest.resume(Custody::born("bench".parse()?))?;
    guest.verify(Duration::from_secs(60))?;
    measure_log(&mut guest)?;
    measure_pause(&mut guest)?;
    let (mut building, mut restoring) = (Times::of("build the target's machine"), Times::of("restore"));
    let custody = guest.pause()?;
    let (state, devices) = (guest.capture()?, guest.capture_devices()?);
    for _ in 0..ROUNDS {
        let mut target = building
            .take(|| KvmBuilder::new()?.build(&guest.description()).map_err(Box::<dyn Error>::from))?;
        restoring.take(|| target.restore(&state).and_then(|()| target.restore_devices(&devices)))?;
    }
    drop(custody);
    building.print();
    restoring.print();
    Ok(())
}

fn measure_log(guest: &mut KvmGuest) -> Result<(), Box<dyn Error>> {
    let mut pages = PageSet::empty(guest.ram().layout());
    let (mut starting, mut live, mut stopping) =
        (Times::of("start the dirty log"), Times::of("harvest, live"), Times::of("stop the dirty log"));
    let mut found = 0;
    for _ in 0..ROUNDS {
        starting.take(|| guest.start_dirty_tracking())?;
        std::thread::park_timeout(Duration::from_millis(20));
        pages.clear();
        live.take(|| guest.harvest_dirty(Harvest::Live, &mut pages))?;
        found += pages.count();
        stopping.take(|| guest.stop_dirty_tracking())?;
    }
    starting.print();
    live.print();
    println!("{:<28} {} a harvest after 20 ms", "pages found", found / u64::from(ROUNDS));
    stopping.print();
    Ok(())
}

fn measure_pause(guest: &mut KvmGuest) -> Result<(), Box<dyn Error>> {
    let mut pages = PageSet::empty(guest.ram().layout());
    let (mut pausing, mut last, mut capturing, mut resuming) = (
        Times::of("pause"),
        Times::of("harvest, paused"),
        Times::of("capture, devices included"),
        Times::of("resume"),
    );
    guest.start_dirty_tracking()?;
    for _ in 0..ROUNDS {
        std::thread::park_timeout(Duration::from_millis(3));
        let custody = pausing.take(|| guest.pause())?;
        last.take(|| guest.harvest_dirty(Harvest::Paused, &mut pages))?;
        capturing.take(|| guest.capture().and_then(|_| guest.capture_devices()))?;
        resuming.take(|| guest.resume(custody))?;
    }
    guest.stop_dirty_tracking()?;
    for times in [pausing, last, capturing, resuming] {
        times.print();
    }
    Ok(())
}
