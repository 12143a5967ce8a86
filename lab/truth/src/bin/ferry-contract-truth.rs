//! `ferry-contract-truth FILE…`: for each contract of a guest on arm64, what this host's verdict is, and what
//! becomes of a fresh vCPU that is given it by force.
//!
//! A tool of the lab, no part of the product. The verdict is that of a target: [`judge_contract`] over a profile
//! that is taken now, then [`apply_contract`]. The truth takes nothing from it: all that the contract says is
//! written, whatever fails, and read back ([`Deviation`](ferry_kvm::Deviation)). On standard output stands one JSON
//! document a file.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ferry_contract::{Contract, Finding, FindingKind, Profile};
use ferry_kvm::{apply_contract, force_contract, judge_contract};
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 as VGIC_V3};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};
use serde::Serialize;

/// What came of one file.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    file: &'a Path,
    /// What the offer is refused for.
    refused: Vec<Finding>,
    /// Why it is refused later, when it is applied.
    late: Option<String>,
    /// What is refused, changed or absent by force.
    deviations: Vec<String>,
}

/// Anything that keeps the tool from its work.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let told = if files.is_empty() { Err("name the files of contracts".into()) } else { tell(&files) };
    if let Err(failure) = told {
        let _ = writeln!(std::io::stderr(), "ferry-contract-truth: {failure}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn tell(files: &[PathBuf]) -> Result<(), Failure> {
    let kvm = ferry_kvm::open()?;
    let profile = ferry_kvm::probe::probe(&kvm)?;
    for file in files {
        let contract = Contract::from_json(&std::fs::read(file)?)?;
        let mut outcome = judged(&kvm, &contract, &profile)?;
        outcome.file = file;
        let fresh = Fresh::new(&kvm, &contract)?;
        let found = force_contract(&fresh.vm, &fresh.vcpu, 0, &contract);
        outcome.deviations = found.iter().map(ToString::to_string).collect();
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
    }
    Ok(())
}

/// As a target judges an offer.
fn judged<'a>(kvm: &Kvm, contract: &Contract, profile: &Profile) -> Result<Outcome<'a>, Failure> {
    let mut outcome =
        Outcome { file: Path::new(""), refused: Vec::new(), late: None, deviations: Vec::new() };
    match judge_contract(&contract.to_bytes(), contract.vcpus(), profile) {
        Ok((contract, _)) => {
            let fresh = Fresh::new(kvm, &contract)?;
            let applied = apply_contract(&fresh.vm, &fresh.vcpu, 0, &contract, profile);
            outcome.late = applied.err().map(|error| error.to_string());
        }
        Err(findings) => {
            let refusals = findings.into_iter().filter(|finding| finding.kind == FindingKind::Refusal);
            outcome.refused = refusals.collect();
        }
    }
    Ok(outcome)
}

/// A vCPU of which nothing is set, in a VM as the contract wants it.
struct Fresh {
    vm: VmFd,
    vcpu: VcpuFd,
    _gic: Option<DeviceFd>,
}

impl Fresh {
    fn new(kvm: &Kvm, contract: &Contract) -> Result<Self, Failure> {
        let Contract::Arm64(contract) = contract else {
            return Err("this tool looks at contracts of guests on arm64".into());
        };
        let vm = kvm.create_vm()?;
        let vcpu = vm.create_vcpu(0)?;
        let mut gic = kvm_create_device { type_: VGIC_V3, fd: 0, flags: 0 };
        let gic = contract.gic_version.map(|_| vm.create_device(&mut gic)).transpose()?;
        Ok(Self { vm, vcpu, _gic: gic })
    }
}
