//! A guest that is moved again and again while processes are killed and stopped and links are cut at
//! random: at every moment at most one process runs it, what is open is settled, and nothing is left
//! behind.
//!
//! `FERRY_MOVES` says how many moves are tried (60 by default), `FERRY_SEED` which.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::house::House;
use crate::support::links::{Proxy, Way};
use crate::support::process::Process;
use crate::support::{let_pass, wait_until};

on_both! { moves_to_and_fro_with_random_faults }

/// How long every wait lasts.
const WAIT: Duration = Duration::from_millis(400);

const GUEST: &[&str] = &["--memory=16M", "--rate=64M", "--working-set=2M"];

/// A small generator (xorshift64*): the same faults for the same seed, as far as time allows.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn millis(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.below(below * 1000))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    None,
    KillSource,
    KillTarget,
    /// In the moment in which nobody can know whether it ran the guest.
    KillTaking,
    StopSource,
    StopTarget,
    Cut,
    Held,
}

impl Fault {
    fn cast(dice: &mut Dice) -> Self {
        match dice.below(13) {
            0 => Self::KillSource,
            1 | 2 => Self::KillTarget,
            3 => Self::StopSource,
            4 => Self::StopTarget,
            5 | 6 => Self::Cut,
            7 => Self::Held,
            8 => Self::KillTaking,
            _ => Self::None,
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn moves_to_and_fro_with_random_faults(on: &'static str) {
    let (moves, seed) = (number("FERRY_MOVES", 60), number("FERRY_SEED", 1));
    let began = Instant::now();
    let own = descriptors_of("self");
    let mut walk = Walk::new(on, seed);
    let first = walk.figures();
    for _ in 0..moves {
        walk.step();
    }
    let last = walk.figures();
    let runs = walk.house.runners().len();
    let Walk { house, at, tally, persons, births, .. } = walk;
    let journals = std::fs::read_dir(house.journals()).unwrap().count() as u64;
    let mut out = std::io::stderr();
    let _ = writeln!(
        out,
        "{on}: {moves} moves (seed {seed}) in {:.1} s: {tally:?}; a person decided {persons} times, the guest \
         was born {births} times, {runs} processes ran it in turn; descriptors, threads and KiB of a process \
         with a guest {first:?} before, {last:?} after, with {journals} journals in the folder",
        began.elapsed().as_secs_f64(),
    );
    assert_eq!((first.0, first.1), (last.0, last.1), "descriptors and threads");
    // A process that waits for a guest knows what those before it wrote.
    assert!(
        last.2 < first.2 + 4096 + 4 * journals,
        "memory in KiB: {first:?} and {last:?}, {journals} journals"
    );
    // One process is left, and one socket; no journal that was begun and not finished.
    let sockets = std::fs::read_dir(house.sockets()).unwrap().count();
    assert_eq!(sockets, 1);
    let unfinished = std::fs::read_dir(house.journals()).unwrap().flatten();
    assert!(unfinished.map(|entry| entry.path()).all(|path| path.extension().is_none_or(|end| end != "new")));
    assert_eq!(house.json(&["recover", "g"]).document()["open"], false);
    assert!(at.check() > 0);
    drop((at, house));
    wait_until("the test's own descriptors are closed", || descriptors_of("self") <= own);
}

fn descriptors_of(process: &str) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

struct Walk {
    house: House,
    dice: Dice,
    /// The process that has the guest.
    at: Process,
    /// What became of moves with each fault: moved, kept, lost.
    tally: BTreeMap<Fault, [u32; 3]>,
    persons: u32,
    births: u32,
}

impl Walk {
    fn new(on: &'static str, seed: u64) -> Self {
        let house = House::hasty(on, WAIT);
        let born = house.guest("g", GUEST);
        // Figures are those of a process that took its guest.
        let at = house.receiver(&[]);
        house.moves("g", born, &at);
        let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self { house, dice, at, tally: BTreeMap::new(), persons: 0, births: 1 }
    }

    /// Descriptors, threads and resident KiB of a process that has just taken the guest.
    fn figures(&mut self) -> (usize, usize, u64) {
        let to = self.house.receiver(&[]);
        let before = std::mem::replace(&mut self.at, to);
        self.house.moves("g", before, &self.at);
        let mut last = (0, 0, 0);
        wait_until("it is at rest", || {
            let now = (self.at.holdings().0, self.at.holdings().1, self.at.resident_kib());
            let is_calm = (last.0, last.1) == (now.0, now.1);
            last = now;
            let_pass(Duration::from_millis(50));
            is_calm
        });
        last
    }

    fn step(&mut self) {
        let fault = Fault::cast(&mut self.dice);
        let stops: &[&str] = if fault == Fault::KillTaking { &["--stop-at=running"] } else { &[] };
        let target = self.house.receiver(stops);
        let proxy = Proxy::to(&target.listen);
        let words = ["migrate", "g", "--to", &proxy.address, "--wait", "--output=json"];
        let migrating = self.house.start(self.house.command(&words));
        // A move takes about so long, with the time that the program needs to start.
        let when = self.dice.millis(60);
        let_pass(when);
        let mut killed = (false, false);
        match fault {
            Fault::None => {}
            Fault::KillSource => killed.0 = true,
            Fault::KillTarget => killed.1 = true,
            Fault::KillTaking => {
                // Unless the move fails by itself, for want of time.
                wait_until("it takes the guest", || target.is_stopped() || !migrating.is_alive());
                killed.1 = true;
            }
            Fault::StopSource => self.stop_for(&self.at, 900),
            Fault::StopTarget => self.stop_for(&target, 900),
            Fault::Cut => self.break_for(&proxy, Way::Cut),
            Fault::Held => self.break_for(&proxy, Way::Held),
        }
        if killed.0 {
            self.at.kill_now();
        }
        if killed.1 {
            target.kill_now();
        }
        let done = migrating.end();
        assert!(matches!(done.status, 0 | 1 | 4 | 6 | 7), "{fault:?}: {done:?}");
        self.settle(fault, target);
        self.house.runners();
    }

    fn stop_for(&self, process: &Process, at_most: u64) {
        process.signal(Signal::STOP);
        let_pass(Duration::from_millis(self.lasts(at_most)));
        // One that ended meanwhile is not there to be told.
        if process.is_alive() {
            process.signal(Signal::CONT);
        }
    }

    fn break_for(&self, proxy: &Proxy, way: Way) {
        proxy.set(way);
        let_pass(Duration::from_millis(self.lasts(900)));
        proxy.set(Way::Open);
    }

    /// Now shorter, now longer than any wait; from what the dice show next.
    fn lasts(&self, at_most: u64) -> u64 {
        (self.dice.0 >> 20) % at_most
    }

    /// Waits until it is clear who has the guest, decides where only a person can, and goes on there.
    fn settle(&mut self, fault: Fault, target: Process) {
        let has_moved = || target.is_alive() && target.status()["state"] == "running";
        let is_kept = || self.at.is_alive() && self.at.status()["state"] == "running";
        let is_open = || !target.is_alive() && self.at.is_alive() && self.at.status()["state"] == "ambiguous";
        let is_lost = || {
            let waits = !target.is_alive() || target.status()["state"] == "waiting";
            !self.at.is_alive() && waits
        };
        wait_until("it settles", || has_moved() || is_kept() || is_open() || is_lost());
        let tally = self.tally.entry(fault).or_default();
        if has_moved() {
            tally[0] += 1;
            self.at = target;
        } else if is_open() {
            tally[1] += 1;
            self.persons += 1;
            // It was killed here: it does not run the guest.
            let words = ["recover", "g", "--source-runs", "--reason", "the target was killed by this test"];
            let done = self.house.json(&words);
            assert_eq!(done.status, 0, "{done:?}");
            self.at.await_state("running");
        } else if is_kept() {
            tally[1] += 1;
        } else {
            tally[2] += 1;
            self.births += 1;
            let settled = self.house.json(&["recover", "g"]);
            if settled.status == 6 {
                self.persons += 1;
                let words = ["recover", "g", "--abandon", "--reason", "both were killed by this test"];
                assert_eq!(self.house.json(&words).status, 0);
            }
            self.at = self.house.guest_again("g", GUEST);
        }
        assert!(self.at.check() > 0);
    }
}
