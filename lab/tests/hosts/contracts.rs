//! Contracts of guests on arm64: every host's on every other, the verdict beside the truth, register by register.
//!
//! Each host boots twice: once it is probed, and its guests' contracts are made of its profile; once it is
//! given all contracts of all hosts. The truth comes from `ferry-contract-truth` (`lab/truth`), which writes all
//! that a contract says to a fresh vCPU: what KVM refuses, reads back changed or does not list.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferry_contract::arm64::{RegisterClass, RegisterValue};
use ferry_contract::{BirthError, BirthRequest, Contract, Features, Profile, Wish};
use ferry_lab::{Host, Vendor};
use serde::Deserialize;

use crate::matrix::{hosts_of, with_each};
use crate::{Ready, STEP_MAX, ok};

/// Names `ferry-contract-truth` for arm64 hosts; set for all of the lab's tests, not for the smoke.
const CONTRACT_TRUTH: &str = "FERRY_LAB_CONTRACT_TRUTH";

/// What a guest may wish for beside what a host offers by itself.
const WISHES: &[&[Wish]] = &[&[], &[Wish::Pmu], &[Wish::Sve], &[Wish::Pmu, Wish::Sve]];

/// Subjects of findings that no register says.
const NO_REGISTER: &[&str] = &["counter frequency"];

/// Disagreements that are known: how the register is called, what is said of it, and why.
const KNOWN: &[(&str, &str, &str)] = &[(
    "KVM_REG_ARM_",
    "absent, and not refused",
    "what the register would say is what every guest of that kernel has: it is not needed there",
)];

/// A contract of a guest that is born on a host.
struct Born {
    /// The place of the host in the list.
    source: usize,
    /// What the guest was asked to be.
    name: String,
    file: PathBuf,
}

/// What came of one contract on one host.
#[derive(Debug, Deserialize)]
struct Outcome {
    refused: Vec<Finding>,
    late: Option<String>,
    deviations: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    subject: String,
    guest: String,
    target: String,
}

#[test]
fn every_verdict_on_a_contract_between_arm64_hosts_is_what_their_kvm_does() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let profiles = with_each(&lab, "was probed", |_, host| profile(&lab, host));
    let born: Vec<Born> = (0..).zip(&profiles).flat_map(|(at, of)| born(at, of, folder.path())).collect();
    let told = with_each(&lab, "took all contracts", |_, host| outcomes(&lab, host, &born));
    let mut table = Table::default();
    for (target, outcomes) in told.iter().enumerate() {
        for (born, outcome) in born.iter().zip(outcomes) {
            table.add(&lab.hosts, born, target, outcome);
        }
    }
    println!("{}", table.text(&lab.hosts));
    assert!(table.unknown.is_empty(), "{}", table.unknown.join("\n"));
}

fn lab() -> Option<Ready> {
    let lab = hosts_of(Vendor::Arm64)?;
    let truth = std::env::var_os(CONTRACT_TRUTH).unwrap();
    Some(Ready { job: lab.job.program("ferry-contract-truth", Path::new(&truth)), ..lab })
}

fn profile(lab: &Ready, host: &Host) -> Profile {
    let mut machine = lab.lab.boot(host, &lab.job).unwrap();
    Profile::from_json(ok(&mut machine, "ferry probe --output json").as_bytes()).unwrap()
}

/// The contracts of guests that are born there, as files in the folder.
fn born(source: usize, profile: &Profile, folder: &Path) -> Vec<Born> {
    let mut born = Vec::new();
    for &wishes in WISHES {
        let request = BirthRequest { vcpus: 1, features: Features::Offered(wishes.to_vec()) };
        match Contract::birth(profile, &request) {
            Ok(contract) => {
                let less = lowered(&contract, profile);
                born.push((format!("{wishes:?}"), contract));
                born.push((format!("{wishes:?}, lowered"), less));
            }
            Err(BirthError::NotOffered(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!born.is_empty());
    let file = |(number, (name, contract)): (usize, (String, Contract))| {
        let file = folder.join(format!("{source}-{number}.json"));
        std::fs::write(&file, contract.to_json()).unwrap();
        Born { source, name, file }
    };
    born.into_iter().enumerate().map(file).collect()
}

/// The same with less in every field of a feature ID register of which the host was seen to take less. All at
/// once may be more than it takes; then this is no guest of it, and may be held against hosts all the same.
fn lowered(contract: &Contract, profile: &Profile) -> Contract {
    let (Contract::Arm64(contract), Profile::Arm64(profile)) = (contract, profile) else { panic!("another") };
    let mut lowered = contract.clone();
    let set = profile.feature_sets.iter().find(|set| set.features == contract.features).unwrap();
    for register in set.registers.iter().filter(|it| it.id.class() == RegisterClass::Feature) {
        let places = register.lowering.as_ref().map_or(&[][..], |tries| &tries.taken);
        // By it KVM works out the level of a workaround.
        let places =
            places.iter().filter(|place| (register.id.name().as_str(), **place) != ("ID_AA64PFR1_EL1", 4));
        let less = places.fold(0, |less, place| less | 1_u64 << place);
        let value = register.value.as_ref().and_then(RegisterValue::number).unwrap();
        lowered.registers.insert(register.id, (value - less).into());
    }
    Contract::Arm64(lowered)
}

fn outcomes(lab: &Ready, host: &Host, born: &[Born]) -> Vec<Outcome> {
    let name = |born: &Born| born.file.file_name().unwrap().to_string_lossy().into_owned();
    let job = born
        .iter()
        .fold(lab.job.clone(), |job, born| job.file(&format!("contracts/{}", name(born)), &born.file));
    let mut machine = lab.lab.boot(host, &job).unwrap();
    let files: Vec<String> = born.iter().map(|born| format!("/contracts/{}", name(born))).collect();
    let text = machine.expect(&format!("ferry-contract-truth {}", files.join(" ")), 5 * STEP_MAX).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What came of all pairs.
#[derive(Default)]
struct Table {
    /// A letter for each pair and wish.
    cells: BTreeMap<(usize, usize), String>,
    /// What is said of each, once.
    notes: BTreeMap<String, usize>,
    unknown: Vec<String>,
}

/// Whether a finding is about this register, which may be named with one of its fields or bits.
fn is_about(subject: &str, register: &str) -> bool {
    subject.strip_prefix(register).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

impl Table {
    fn add(&mut self, hosts: &[Host], born: &Born, target: usize, outcome: &Outcome) {
        let pair = format!("{} {} → {}", hosts[born.source], born.name, hosts[target]);
        // A deviation begins with the register's name and id.
        let registers: Vec<(&str, &str)> = outcome
            .deviations
            .iter()
            .map(|text| (text.split(" (").next().unwrap_or(text), text.as_str()))
            .collect();
        let (mut shown, mut disagree) = (false, false);
        for (register, text) in &registers {
            let is_refused = outcome.refused.iter().any(|finding| is_about(&finding.subject, register))
                || *register == "a vCPU of the contract's kind: refused"
                    && outcome.refused.iter().any(|finding| finding.subject == "vCPU features");
            if is_refused {
                shown = true;
                continue;
            }
            let kind = if text.contains("does not list") {
                "absent, and not refused"
            } else {
                "shows, and is not refused"
            };
            disagree |= self.note(&pair, register, kind, text);
        }
        for finding in &outcome.refused {
            let is_shown = registers.iter().any(|(register, _)| is_about(&finding.subject, register))
                || finding.subject == "vCPU features" && !registers.is_empty()
                || NO_REGISTER.contains(&finding.subject.as_str());
            shown |= is_shown;
            if !is_shown {
                let text = format!("the guest has {}, the target {}", finding.guest, finding.target);
                disagree |= self.note(&pair, &finding.subject, "refused, and nothing shows", &text);
            }
        }
        if let Some(late) = &outcome.late {
            disagree |= self.note(&pair, "contract", "refused after the offer", late);
        }
        let letter = match (disagree, shown) {
            (true, _) => '!',
            (false, true) => 'R',
            (false, false) => 'A',
        };
        self.cells.entry((born.source, target)).or_default().push(letter);
    }

    /// Notes a disagreement; whether it is one that is not known.
    fn note(&mut self, pair: &str, register: &str, kind: &str, text: &str) -> bool {
        let known = KNOWN.iter().find(|(begins, said, _)| register.starts_with(begins) && *said == kind);
        let note = known.map_or_else(
            || format!("{register}: {kind}: {text}"),
            |(_, _, why)| format!("{register}: {kind}: {why}"),
        );
        *self.notes.entry(note).or_default() += 1;
        if known.is_none() {
            self.unknown.push(format!("{pair}: {register}: {kind}: {text}"));
        }
        known.is_none()
    }

    fn text(&self, hosts: &[Host]) -> String {
        let mut lines = vec![
            "contracts, two letters for each wish (all that is offered, and less of it); A accepted, nothing shows; R refused, it shows".to_owned(),
        ];
        for (source, host) in hosts.iter().enumerate() {
            let cells =
                (0..hosts.len()).map(|target| self.cells.get(&(source, target)).cloned().unwrap_or_default());
            lines.push(format!(
                "{:<26}{}",
                host.to_string(),
                cells.map(|cell| format!("{cell:<9}")).collect::<Vec<_>>().concat()
            ));
        }
        lines.extend(self.notes.iter().map(|(note, count)| format!("{count:>4} × {note}")));
        lines.join("\n")
    }
}
