//! What becomes of every file on every host, as `ferry-truth` tells it.

use ferry_lab::{Error, Host, Vendor};
use serde::Deserialize;

use super::births::Born;
use super::{Saved, boot, slowness, with_each};
use crate::{Ready, STEP_MAX};

/// What came of one file on one host.
#[derive(Debug, Deserialize)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    truth: Truth,
}

/// The verdict of that host.
#[derive(Debug, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub(super) enum Verdict {
    Accepted { guest: Seen },
    Refused { findings: Vec<Finding> },
    Late { why: String },
}

/// A reason of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Finding {
    pub(super) subject: String,
}

#[derive(Debug, Deserialize)]
struct Truth {
    deviations: Vec<String>,
    guest: Result<Seen, String>,
}

/// What the guest said.
#[derive(Debug, Deserialize)]
pub(super) struct Seen {
    checked: Option<u64>,
    faults: u64,
    first_fault: Option<String>,
    stopped: Option<String>,
}

impl Seen {
    /// What it saw that is not as it was; nothing if it verified itself.
    pub(super) fn wrong(&self) -> Option<String> {
        if let Some(stopped) = &self.stopped {
            return Some(format!("the guest ended: {stopped}"));
        }
        match (&self.first_fault, self.faults, self.checked) {
            (Some(fault), ..) => Some(format!("in the guest: {fault}")),
            (None, 0, Some(1..)) => None,
            (None, faults, checked) => Some(format!("in the guest: {faults} faults of {checked:?}")),
        }
    }
}

impl Outcome {
    /// What shows that the guest is not as it was.
    pub(super) fn shown(&self) -> Vec<String> {
        let Truth { deviations, guest } = &self.truth;
        let seen = match guest {
            Ok(seen) => seen.wrong(),
            Err(why) => Some(format!("it does not run: {why}")),
        };
        deviations.iter().cloned().chain(seen).collect()
    }
}

/// A file on a host, and what came of it.
pub(super) struct Told {
    pub(super) saved: Saved,
    /// The place of the host in the list.
    pub(super) target: usize,
    pub(super) outcome: Outcome,
}

/// Takes all files to every host.
pub(super) fn everywhere(lab: &Ready, born: &[Born]) -> Vec<Told> {
    let files: Vec<Saved> = born.iter().flat_map(|born| born.saved.clone()).collect();
    let told = with_each(lab, "took all guests", |index, host| {
        on(lab, host, &files)
            .unwrap_or_else(|error| panic!("{host}: {error}"))
            .into_iter()
            .zip(&files)
            .map(move |(outcome, saved)| Told { saved: saved.clone(), target: index, outcome })
            .collect::<Vec<_>>()
    });
    told.into_iter().flatten().collect()
}

/// How long a guest may take to answer. A second of a host under Bochs is some of ours, and of no other load.
fn patience(host: &Host) -> &'static str {
    match host.vendor {
        Vendor::Amd | Vendor::Arm64 => "",
        Vendor::Intel => "--answer 5",
    }
}

fn on(lab: &Ready, host: &Host, files: &[Saved]) -> Result<Vec<Outcome>, Error> {
    let mut job = lab.job.clone();
    for (number, saved) in files.iter().enumerate() {
        job = job.file(&format!("files/{number:05}.ferry.gz"), &saved.file);
    }
    let mut machine = boot(lab, host, &job)?;
    let within = STEP_MAX * slowness(host) * 10;
    let text = machine.expect(&format!("gunzip *.gz && ferry-truth {} *.ferry", patience(host)), within)?;
    let outcomes: Vec<Outcome> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(outcomes.len(), files.len(), "{host}");
    Ok(outcomes)
}
