//! The matrix: every host's guests on every other host of its vendor, the verdict beside the truth.
//!
//! Each host boots twice: once its guests are born there and saved into files, once it takes all files of all
//! hosts. So boots grow with the hosts, and only cheap steps with the pairs. The truth comes from
//! `ferry-truth` (`lab/truth`), which asks no verdict.

mod births;
mod known;
mod report;
mod truth;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use ferry_lab::{Error, Host, Job, Machine, Vendor};

use self::report::Report;
use crate::{Ready, STEP_MAX, all};

/// Names some hosts of the matrix, apart by blanks, if not all are to be in it.
const HOSTS: &str = "FERRY_LAB_HOSTS";

/// How many hosts run at once; each takes a core.
const WORKERS: usize = 2;

#[test]
fn every_verdict_between_amd_hosts_is_what_really_happens() {
    hold_verdicts_against_the_truth(Vendor::Amd);
}

#[test]
fn every_verdict_between_intel_hosts_is_what_really_happens() {
    hold_verdicts_against_the_truth(Vendor::Intel);
}

#[test]
fn every_verdict_between_arm64_hosts_is_what_really_happens() {
    hold_verdicts_against_the_truth(Vendor::Arm64);
}

fn hold_verdicts_against_the_truth(vendor: Vendor) {
    let Some(lab) = hosts_of(vendor) else { return };
    let folder = tempfile::tempdir().unwrap();
    let born = births::everywhere(&lab, folder.path());
    let told = truth::everywhere(&lab, &born);
    let report = Report::new(&lab.hosts, &told, &births::checked(&born));
    let text = report.to_string();
    println!("{text}");
    if let Some(file) = std::env::var_os(crate::REPORT) {
        append(Path::new(&file), &text);
    }
    if !is_narrowed() {
        births::check_common(&lab.hosts, &born);
    }
    let findings = report.findings(!is_narrowed());
    assert!(findings.is_empty(), "{} of {} pairs:\n{}", findings.len(), report.pairs(), findings.join("\n"));
}

/// All hosts of a vendor between which verdicts are tested, if all of the lab's tests are to run.
pub(crate) fn hosts_of(vendor: Vendor) -> Option<Ready> {
    let hosts = Host::tested().into_iter().filter(|host| host.vendor == vendor);
    let mut names: Vec<String> = hosts.map(|host| host.to_string()).collect();
    if let Ok(few) = std::env::var(HOSTS) {
        names.retain(|name| few.split_whitespace().any(|chosen| chosen == name));
    }
    all(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn is_narrowed() -> bool {
    std::env::var_os(HOSTS).is_some()
}

fn append(file: &Path, text: &str) {
    use std::io::Write;
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
    opened.and_then(|mut file| writeln!(file, "{text}")).unwrap();
}

/// A guest's file, as it came from the host where the guest was born.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Saved {
    /// The place of that host in the list.
    source: usize,
    contract: String,
    payload: String,
    /// Where it lies here, packed.
    file: PathBuf,
}

/// Does the same with every host, some at a time; answers in the order of the hosts.
pub(crate) fn with_each<T: Send>(lab: &Ready, what: &str, work: impl Fn(usize, &Host) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let worker = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(host) = lab.hosts.get(index) else { return };
                let begun = Instant::now();
                let result = work(index, host);
                println!("matrix: {host} {what} in {} s", begun.elapsed().as_secs());
                done.lock().unwrap().push((index, result));
            }
        };
        (0..WORKERS).for_each(|_| drop(scope.spawn(worker)));
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Starts a host; anew, if it does not come up, or took its TSC for one that no processor has: under load an
/// emulated host may measure nonsense, and its guests could go nowhere.
fn boot(lab: &Ready, host: &Host, job: &Job) -> Result<Machine, Error> {
    const DETECTED: &str = "dmesg | sed -n 's/.*tsc: Detected \\([0-9]*\\).*/\\1/p'";
    let mut tries = 3;
    loop {
        tries -= 1;
        let why = match lab.lab.boot(host, job) {
            Ok(mut machine) => {
                let mhz = machine.expect(DETECTED, STEP_MAX)?;
                // Bochs counts one tick for each instruction: tens of millions a second.
                let is_sane = mhz.trim().parse::<u32>().is_ok_and(|mhz| mhz > 500);
                if tries == 0 || is_sane || host.vendor != Vendor::Amd {
                    return Ok(machine);
                }
                format!("measured a TSC of {} MHz", mhz.trim())
            }
            Err(error) if tries == 0 => return Err(error),
            Err(error) => error.to_string(),
        };
        println!("matrix: {host} starts again: {why}");
    }
}

/// How much longer everything takes under Bochs.
fn slowness(host: &Host) -> u32 {
    match host.vendor {
        Vendor::Amd | Vendor::Arm64 => 1,
        Vendor::Intel => 20,
    }
}
