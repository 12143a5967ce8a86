//! A foreign VMM whose guest moves: `embed receive --listen ADDR` waits for it in one process,
//! `embed run --to ADDR` runs it in another and moves it there while it counts.
//!
//! [`vmm`] is the VMM, [`movable`] all that Ferry needs of it. docs/embedding.md walks through both.

#![allow(unsafe_code, reason = "kvm-ioctls has one unsafe function that every VMM calls: the memory's")]

mod movable;
mod vmm;

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ferry_migrate::{Custody, Listener, Machine};
use ferry_protocol::SourceOutcome;

use movable::Movable;
use vmm::{Counts, Failure, STEP, Vmm};

const USAGE: &str = "usage: embed run --to ADDR | embed receive --listen ADDR";

/// Numbers that a vCPU reports before the guest is moved, and again where it arrived: it comes
/// around its memory more than twice.
const REPORTS: u32 = 160;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["run", "--to", address] => run(address),
        ["receive", "--listen", address] => receive(address),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("embed: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a guest, and moves it while it runs.
fn run(address: &str) -> Result<(), Failure> {
    let vmm = Vmm::new()?;
    vmm.load()?;
    let mut machine = movable::movable(vmm)?;
    let guest: ferry_protocol::GuestId = "counter".parse()?;
    machine.resume(Custody::born(guest.clone())).map_err(|refused| refused.source)?;
    let counts = wait_for_reports(&machine)?;
    say(&format!("running: {:?}", counts.last));
    let report = movable::send(&mut machine, guest, address.parse()?);
    let counts = machine.devices().0.counts();
    match report.outcome {
        SourceOutcome::Moved { epoch } => {
            say(&format!("moved: {:?} under epoch {epoch} in {} rounds", counts.last, report.rounds));
            Ok(())
        }
        SourceOutcome::Kept { cause } | SourceOutcome::Held { cause, .. } => Err(cause.to_string().into()),
        // Only a migration into a file or pipe ends so.
        SourceOutcome::Doubtful { known, .. } => Err(known.into()),
        // A person's choice, for which this program has no way.
        SourceOutcome::Abandoned { .. } => Err("the guest was abandoned".into()),
    }
}

/// Takes a guest, and watches it go on.
fn receive(address: &str) -> Result<(), Failure> {
    let listener = Listener::bind(&address.parse()?, false)?;
    say(&format!("listening: {}", listener.address()));
    let mut arrived = movable::receive(listener)?;
    say(&format!("arrived: {} under epoch {}", arrived.guest, arrived.epoch));
    let counts = wait_for_reports(&arrived.machine)?;
    let _custody = arrived.machine.pause()?;
    say(&format!("went on: {:?}, {} faults", counts.last, counts.faults));
    Ok(())
}

/// Waits until every vCPU has gone on by so many reports; fails if one was not what it should be.
fn wait_for_reports(machine: &Movable) -> Result<Counts, Failure> {
    let (began, before) = (Instant::now(), machine.devices().0.counts());
    // Nobody sends: a wait for this is a rest.
    let (_open, rest) = mpsc::channel::<()>();
    loop {
        let counts = machine.devices().0.counts();
        if counts.faults > 0 {
            return Err(format!("the guest is not whole: {counts:?}").into());
        }
        let gone = counts.last.iter().zip(before.last).map(|(now, then)| now.wrapping_sub(then) / STEP);
        if gone.min() >= Some(REPORTS) {
            return Ok(counts);
        }
        if began.elapsed() > Duration::from_secs(60) {
            return Err(format!("the guest does not go on: {before:?}, then {counts:?}").into());
        }
        let _timeout = rest.recv_timeout(Duration::from_millis(1));
    }
}

#[expect(clippy::print_stdout, reason = "what the program says is its output")]
fn say(text: &str) {
    println!("{text}");
}
