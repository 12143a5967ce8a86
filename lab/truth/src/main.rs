//! `ferry-truth [--answer SECONDS] FILE…`: for each guest that `ferry migrate --to file:FILE` wrote, what this host's verdict is,
//! and what really becomes of the guest here.
//!
//! A tool of the lab, no part of the product: it runs copies only and leaves the files as they are. The verdict is
//! that of a `ferry receive --from file:FILE --clone`, its checks at the offer and at the restore included. The truth takes
//! nothing from it: the guest is built and restored by force ([`ferry_kvm::Deviation`]), runs on with what
//! KVM made of it, and is asked what it sees. On standard output stands one JSON document a file.

#![forbid(unsafe_code)]

mod forced;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ferry_contract::{Finding, FindingKind, Verdict};
use ferry_migrate::journal::Volatile;
use ferry_migrate::oneway::{FileCopy, Origin, TakeError, TakeOptions, survey, take};
use ferry_migrate::{Arrived, Builder};
use ferry_protocol::{Epoch, InstanceId, Timeouts};
use ferry_vmm::{Guest, GuestReport, KvmBuilder, KvmGuest, fresh_seed};
use serde::Serialize;

use crate::forced::{ForcedBuilder, Found};

/// How long a guest runs before it is asked; being asked it looks at everything once more.
const RUN: Duration = Duration::from_millis(50);

/// How long its answer may take in an emulated host, unless `--answer` says so.
const ANSWER: Duration = Duration::from_secs(60);

/// What came of one file.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    file: &'a Path,
    verdict: Judged,
    truth: Truth,
}

/// What this host says of the guest.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
enum Judged {
    /// It runs; with what it says then.
    Accepted { guest: Seen },
    /// It is refused at the offer.
    Refused { findings: Vec<Finding> },
    /// It is refused later, before it runs.
    Late { why: String },
}

/// What really becomes of it.
#[derive(Debug, Serialize)]
struct Truth {
    /// Settings that this host's KVM refuses or keeps otherwise.
    deviations: Vec<String>,
    /// What the guest saw; none if it could not be started, and why.
    guest: Result<Seen, String>,
}

/// What a guest says of itself.
#[derive(Debug, Serialize)]
struct Seen {
    /// What it looked at; none if it did not answer.
    checked: Option<u64>,
    faults: u64,
    first_fault: Option<String>,
    /// Why it ended by itself, or does not answer.
    stopped: Option<String>,
}

/// What was refused so far, by contract.
type Refusals = BTreeMap<Vec<u8>, Vec<Finding>>;

/// Anything that keeps the tool from its work.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    if let Err(failure) = tell() {
        let _ = writeln!(std::io::stderr(), "ferry-truth: {failure}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn tell() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let mut answer = ANSWER;
    if arguments.next_if(|argument| argument == "--answer").is_some() {
        let seconds = arguments.next().and_then(|seconds| seconds.to_str()?.parse().ok());
        answer = Duration::from_secs(seconds.ok_or("--answer wants a number of seconds")?);
    }
    let files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    if files.is_empty() {
        return Err("name the files of guests".into());
    }
    let mut refused = Refusals::new();
    for file in &files {
        let verdict = judged(file, &mut refused, answer)?;
        let outcome = Outcome { file, verdict, truth: truth(file, answer)? };
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
    }
    Ok(())
}

/// As `ferry receive` takes a copy. What is refused at the offer is refused for its description alone, so guests
/// of one contract are asked about once.
fn judged(file: &Path, refused: &mut Refusals, answer: Duration) -> Result<Judged, Failure> {
    let contract = survey(file)?.offer.map(|offer| offer.machine.contract).unwrap_or_default();
    if let Some(findings) = refused.get(&contract) {
        return Ok(Judged::Refused { findings: findings.clone() });
    }
    match copy(file, &mut KvmBuilder::new()?) {
        Ok(arrived) => Ok(Judged::Accepted { guest: seen(&arrived.machine, answer) }),
        Err(TakeError::Refused(_, Verdict { findings })) => {
            let refusals = findings.into_iter().filter(|finding| finding.kind == FindingKind::Refusal);
            let findings = refused.entry(contract).or_insert(refusals.collect()).clone();
            Ok(Judged::Refused { findings })
        }
        Err(TakeError::NotTaken(why) | TakeError::Lost(why)) => Ok(Judged::Late { why }),
        Err(error) => Err(error.into()),
    }
}

/// Past all checks.
fn truth(file: &Path, answer: Duration) -> Result<Truth, Failure> {
    let found = Found::default();
    let taken = copy(file, &mut ForcedBuilder { builder: KvmBuilder::new()?, found: Arc::clone(&found) });
    let guest = match taken {
        Ok(arrived) => Ok(seen(&arrived.machine.guest, answer)),
        Err(TakeError::NotTaken(why) | TakeError::Lost(why)) => Err(why),
        Err(error) => return Err(error.into()),
    };
    let found = found.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Truth { deviations: found.iter().map(ToString::to_string).collect(), guest })
}

fn copy<B: Builder>(file: &Path, builder: &mut B) -> Result<Arrived<B::Machine>, TakeError> {
    let options = TakeOptions {
        journal: Arc::new(Volatile::new(InstanceId(fresh_seed()))),
        expected: None,
        copy: "copy".parse().ok().map(|guest| FileCopy { guest, epoch: Epoch::BIRTH }),
        timeouts: Timeouts::default(),
    };
    take(Origin::File(file.to_owned()), options, builder, &())
}

/// Lets it run, and asks it.
fn seen(guest: &KvmGuest, within: Duration) -> Seen {
    std::thread::park_timeout(RUN);
    let answer = guest.verify(within);
    let GuestReport { faults, first_fault, stopped, .. } = guest.report();
    let (checked, silent) = match answer {
        Ok(check) => (Some(check.pages), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Seen { checked, faults, first_fault, stopped: stopped.or(silent) }
}
