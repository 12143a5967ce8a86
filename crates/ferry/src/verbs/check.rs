//! `ferry check`, and what `ferry inspect` says of profiles and contracts.

use std::path::Path;

use ferry_contract::{Arm64Contract, Contract, FindingKind, Register, Verdict, X86Contract, compare};
use serde_json::json;

use super::probe::summary;
use crate::artefact::{Artefact, Found, Origin};
use crate::catalog;
use crate::cli::{CheckArgs, Format};
use crate::control::{Reply, Request, client};
use crate::error::{CliError, Kind};
use crate::output;

pub(crate) fn check(args: &CheckArgs, format: Format) -> Result<u8, CliError> {
    let (Some(guest), Some(target)) = (&args.guest, &args.target) else {
        list(format);
        return Ok(0);
    };
    let (target, host) = Artefact::find_profile(target)?;
    let (contract, guest) = find_guest(guest)?;
    let verdict = compare(&contract, &target);
    match format {
        Format::Json => output::json(&json!({
            "guest": guest.json(),
            "target": host.json(),
            "verdict": verdict.name(),
            "findings": verdict.findings,
        })),
        Format::Text => {
            output::line(&format!("guest    {guest}"));
            output::line(&format!("target   {host}"));
            output::lines(&lines(&verdict));
        }
    }
    Ok(if verdict.is_refusal() { Kind::Refused.exit_status() } else { 0 })
}

fn list(format: Format) {
    match format {
        Format::Json => output::json(&json!({ "catalog": catalog::names().collect::<Vec<_>>() })),
        Format::Text => catalog::names().for_each(output::line),
    }
}

/// The contract of the guest that was named: of a file, if there is one of that name, else of the
/// catalogue, else of a guest that runs here.
fn find_guest(name: &str) -> Result<(Contract, Found), CliError> {
    let path = Path::new(name);
    // The name of a guest has no slash.
    if path.exists() || name.contains('/') {
        let (artefact, found) = Artefact::find(path)?;
        return Ok((artefact.into_guest(1)?, found));
    }
    let (mut client, _) = client::find(name).map_err(|error| {
        CliError::new(error.kind, format!("{}; there is no file of that name either", error.message))
    })?;
    match client.ask(&Request::Contract {})? {
        Reply::Contract(contract) => {
            Ok((*contract, Found { name: name.to_owned(), origin: Origin::Running }))
        }
        other => Err(other.into_error()),
    }
}

fn lines(verdict: &Verdict) -> Vec<String> {
    let mut lines = vec![format!("verdict  {}", verdict.name())];
    for finding in &verdict.findings {
        let kind = match finding.kind {
            FindingKind::Refusal => "refusal",
            FindingKind::Notice => "notice",
        };
        lines.push(format!("{kind:<8} {finding}"));
    }
    lines
}

/// What `ferry inspect` says of a profile or a contract.
pub(crate) fn show(artefact: &Artefact, format: Format) {
    match (artefact, format) {
        (Artefact::Profile(profile), Format::Json) => output::line(profile.to_json().trim_end()),
        (Artefact::Contract(contract), Format::Json) => output::line(contract.to_json().trim_end()),
        (Artefact::Profile(profile), Format::Text) => {
            output::line("a profile");
            summary(profile).iter().map(String::as_str).for_each(output::line);
        }
        (Artefact::Contract(contract), Format::Text) => {
            output::line("a contract");
            describe(contract).iter().map(String::as_str).for_each(output::line);
        }
    }
}

fn describe(contract: &Contract) -> Vec<String> {
    match contract {
        Contract::X86(contract) => describe_x86(contract),
        Contract::Arm64(contract) => describe_arm64(contract),
    }
}

fn describe_arm64(contract: &Arm64Contract) -> Vec<String> {
    let features: Vec<&str> = contract.features.iter().map(|feature| feature.name()).collect();
    let gic = contract.gic_version.map_or_else(|| "none in the kernel".to_owned(), |it| format!("GICv{it}"));
    let counter =
        contract.counter_frequency_hz.map_or_else(|| "not known".to_owned(), |it| format!("{it} Hz"));
    let mut lines = vec![
        format!("{:<13}{}, {} vCPUs", "machine", contract.kind, contract.vcpus),
        format!("{:<13}{}", "features", features.join(" ")),
        format!("{:<13}{} bits physical", "addresses", contract.ipa_bits),
        format!("{:<13}{gic}", "interrupts"),
        format!("{:<13}{counter}", "counter"),
        format!("{:<13}{}", "registers", contract.registers.len()),
    ];
    lines.extend(contract.registers.iter().map(|(id, value)| format!("  {id} {value}")));
    lines
}

fn describe_x86(contract: &X86Contract) -> Vec<String> {
    let seen = match contract.kvm_cpuid {
        None => "as KVM is told",
        Some(_) => "as its host shows it, whatever KVM is told",
    };
    let mut lines = vec![
        format!("{:<13}{}, {} vCPUs", "machine", contract.kind, contract.vcpus),
        format!("{:<13}{} kHz", "TSC", contract.tsc_frequency_khz),
        format!("{:<13}{} bits physical", "addresses", contract.physical_address_bits()),
        format!(
            "{:<13}XCR0 {:#x}, XSS {:#x}, {} bytes a vCPU",
            "XSAVE", contract.xcr0, contract.xss, contract.xsave_area_bytes
        ),
        format!("{:<13}{} entries, {seen}", "CPUID", contract.cpuid.len()),
    ];
    lines.extend(contract.cpuid.iter().map(|entry| {
        let [eax, ebx, ecx, edx] = Register::ALL.map(|register| entry.register(register));
        let key = format!("{:#010x}.{:<3}", entry.leaf, entry.subleaf);
        format!("  {key} eax {eax:08x} ebx {ebx:08x} ecx {ecx:08x} edx {edx:08x}")
    }));
    let msrs = contract.feature_msrs.iter();
    lines.extend(msrs.map(|msr| format!("  MSR {:#010x} {:#018x}", msr.index, msr.value)));
    lines
}
