//! Ferry on and between real and unlike KVM hosts.
//!
//! `cargo xtask test` runs these when the hosts are prepared (`cargo xtask lab prepare --smoke`) and says
//! when they are not: it names in `FERRY_LAB_PROGRAM` the static `ferry` that hosts run. Without that
//! variable, or without the hosts, each test says why it skips and passes.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]
#![expect(
    clippy::unwrap_used,
    reason = "this crate is nothing but tests; clippy exempts only functions marked so"
)]

mod arm64;
mod boot;
mod carried;
mod contracts;
mod linux;
mod matrix;
mod moves;
mod one;
mod units;

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_lab::{Host, Job, Lab, Machine, Vendor};

/// Names the static `ferry` for the hosts; this and the next have `_ARM64` behind them for hosts of arm64.
const PROGRAM: &str = "FERRY_LAB_PROGRAM";

/// Names `ferry-truth` for the hosts; set for all of the lab's tests, not for the smoke.
const TRUTH: &str = "FERRY_LAB_TRUTH";

/// Names the static programs of the tests of other crates, as `PACKAGE=PATH:…`.
const TESTS: &str = "FERRY_LAB_TESTS";

/// Names the file to which the matrix is written.
const REPORT: &str = "FERRY_LAB_REPORT";

/// One step in a host, on a machine that does other things, too.
const STEP_MAX: Duration = Duration::from_secs(120);

/// Emulated hosts need a core each: tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The lab, if it has these hosts, with what starts them.
struct Ready {
    lab: Lab,
    job: Job,
    hosts: Vec<Host>,
    _turn: MutexGuard<'static, ()>,
}

/// As [`ready`], for what is no part of the smoke.
fn all(names: &[&str]) -> Option<Ready> {
    let ready = ready(names)?;
    let Some(truth) = told(TRUTH, &ready.hosts) else {
        println!("skipped: `cargo xtask test --lab=all` runs this, with {TRUTH}");
        return None;
    };
    Some(Ready { job: ready.job.program("ferry-truth", Path::new(&truth)), ..ready })
}

/// The lab with these hosts of one architecture, if it has them and there is a `ferry` for them; else says why not.
fn ready(names: &[&str]) -> Option<Ready> {
    let lab = Lab::open();
    let hosts: Vec<Host> = names.iter().map(|name| Host::parse(name).unwrap()).collect();
    let Some(program) = told(PROGRAM, &hosts) else {
        println!("skipped: `cargo xtask test` runs this, with {PROGRAM}");
        return None;
    };
    if let Some(host) = hosts.iter().find(|host| !lab.is_prepared(host)) {
        println!("skipped: the lab's host {host} is not prepared (`cargo xtask lab prepare {host}`)");
        return None;
    }
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Ready { lab, job: Job::new().program("ferry", Path::new(&program)), hosts, _turn: turn })
}

/// What a variable says for hosts like these.
fn told(variable: &str, hosts: &[Host]) -> Option<OsString> {
    let is_arm64 = hosts.first().is_some_and(|host| host.vendor == Vendor::Arm64);
    std::env::var_os(format!("{variable}{}", if is_arm64 { "_ARM64" } else { "" }))
}

/// Runs a command that must end well.
fn ok(host: &mut Machine, script: &str) -> String {
    host.expect(script, STEP_MAX).unwrap_or_else(|error| panic!("{error}"))
}

/// Repeats a command in the host until it ends well.
fn until(host: &mut Machine, script: &str) -> String {
    let script = format!(
        "for try in $(seq 300); do {script} >/tmp/until 2>&1 && exec cat /tmp/until; usleep 100000; done; \
         cat /tmp/until /tmp/*.log >&2; exit 1"
    );
    ok(host, &script)
}
