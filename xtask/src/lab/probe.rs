//! `cargo xtask lab probe`: the catalogue, which holds the profiles that `ferry probe` takes on lab hosts.
//!
//! The profile of `amd/6.12/EPYC` lies in `catalog/amd/6.12/EPYC.json`, as `ferry probe` writes it, with one
//! more field: `taken_with`, the command that takes it again. One value of a host differs from one boot and
//! from one machine to the next: under QEMU the TSC counts as the emulating machine's does. There the
//! catalogue says the same for all, so that verdicts between its hosts are about what they offer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_lab::{Host, Job, Lab, Vendor};
use serde_json::Value;

use crate::lab::changes::changes;
use crate::lab::{prepare, progress, with_ferry};
use crate::run::Failure;
use crate::say;
use crate::tree::Tree;

/// The field with the command that takes a profile again.
const TAKEN_WITH: &str = "taken_with";

/// The TSC's frequency of each host that QEMU emulates, in the catalogue.
const FREQUENCY_KHZ: u32 = 2_000_000;

/// A probe starts a few small guests; Bochs takes its time for that.
const PROBE_MAX: Duration = Duration::from_secs(600);

/// What became of one host.
enum Told {
    Same,
    Changed,
}

/// Takes the profiles of these hosts, of all that the catalogue has if none is named. With `check` the
/// files stay as they are, and a difference is a failure.
pub(super) fn run(tree: &Tree, lab: &Lab, names: &[String], check: bool) -> Result<(), Failure> {
    let catalog = tree.root.join("catalog");
    let hosts = if names.is_empty() { all(&catalog)? } else { super::parse_all(names)? };
    let (mut changed, mut failed) = (0, 0);
    for host in &hosts {
        match one(tree, &catalog, lab, host, check) {
            Ok(Told::Same) => {}
            Ok(Told::Changed) => changed += 1,
            // The other hosts can be looked at all the same.
            Err(failure) => {
                say::line(&format!("{host}: failed"));
                say::error(&failure);
                failed += 1;
            }
        }
    }
    let count = hosts.len();
    if failed > 0 {
        return Err(Failure::Found(format!("{failed} of {count} hosts gave no profile")));
    }
    if check && changed > 0 {
        return Err(Failure::Found(format!(
            "{changed} of {count} profiles differ: `cargo xtask lab probe` writes them anew"
        )));
    }
    Ok(())
}

/// Takes one profile, and holds it against the file that is there.
fn one(tree: &Tree, catalog: &Path, lab: &Lab, host: &Host, check: bool) -> Result<Told, Failure> {
    let host = prepared(lab, host)?;
    let named = lab.numbered(&host)?;
    let job = with_ferry(tree, &host, Job::new())?;
    let new = take(lab, &host, &job, &named)?;
    let path = catalog.join(format!("{named}.json"));
    let old = read(&path)?;
    let lines = old.as_ref().map(|old| changes(old, &new));
    match &lines {
        Some(lines) if lines.is_empty() => {
            say::line(&format!("{named}: nothing changed"));
            return Ok(Told::Same);
        }
        Some(lines) => {
            say::line(&format!("{named}: {} changes", lines.len()));
            for line in lines {
                say::line(&format!("  {line}"));
            }
        }
        None => say::line(&format!("{named}: new")),
    }
    if !check {
        write(&path, &new)?;
    }
    Ok(Told::Changed)
}

/// The host, prepared. A series of which `newest` is the newest needs no kernel of its own.
fn prepared(lab: &Lab, host: &Host) -> Result<Host, Failure> {
    let newest = Host { kernel: "newest", ..host.clone() };
    if !lab.is_prepared(host) && lab.is_prepared(&newest) && lab.numbered(&newest)? == *host {
        return Ok(newest);
    }
    prepare(lab, std::slice::from_ref(host))?;
    Ok(host.clone())
}

fn take(lab: &Lab, host: &Host, job: &Job, named: &Host) -> Result<Value, Failure> {
    let mut machine = lab.boot(host, job)?;
    progress(&format!("{host} was up after {:.1} s", machine.booted().as_secs_f64()));
    let text = machine.expect("ferry probe --output json", PROBE_MAX)?;
    let mut profile: Value = serde_json::from_str(&text)
        .map_err(|source| Failure::Json { command: format!("ferry probe on {host}"), source })?;
    if host.vendor == Vendor::Amd {
        profile["tsc"]["frequency_khz"] = FREQUENCY_KHZ.into();
    }
    profile[TAKEN_WITH] = format!("cargo xtask lab probe {named}").into();
    Ok(profile)
}

fn read(path: &Path) -> Result<Option<Value>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(path).map_err(Failure::file("read", path))?;
    let command = format!("reading {}", path.display());
    serde_json::from_slice(&text).map(Some).map_err(|source| Failure::Json { command, source })
}

fn write(path: &Path, profile: &Value) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Failure::file("create", folder))?;
    }
    // The form of `ferry probe`: keys sorted, two spaces, a line's end.
    fs::write(path, format!("{profile:#}\n")).map_err(Failure::file("write", path))
}

/// The hosts whose profiles the catalogue has.
fn all(catalog: &Path) -> Result<Vec<Host>, Failure> {
    let mut names = Vec::new();
    for vendor in folder(catalog)? {
        for kernel in folder(&vendor)? {
            for model in folder(&kernel)? {
                let name = model.strip_prefix(catalog).unwrap_or(&model).with_extension("");
                names.push(name.to_string_lossy().into_owned());
            }
        }
    }
    super::parse_all(&names)
}

fn folder(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = fs::read_dir(path).map_err(Failure::file("read", path))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}
