//! `ferry probe`: this host's profile.

use std::path::Path;

use ferry_contract::{CpuidEntry, Profile, Register, X86Profile};

use crate::cli::{Format, ProbeArgs};
use crate::error::CliError;
use crate::output;

mod arm64;

pub(crate) fn probe(args: &ProbeArgs, format: Format) -> Result<u8, CliError> {
    let kvm = ferry_kvm::open().map_err(|error| CliError::of(&error))?;
    let profile = ferry_kvm::probe::probe(&kvm).map_err(|error| CliError::of(&error))?;
    tell(&profile, args.file.as_deref(), format)
}

/// Writes a profile down where it was asked for, and says it.
pub(crate) fn tell(profile: &Profile, into: Option<&Path>, format: Format) -> Result<u8, CliError> {
    if let Some(path) = into {
        write(path, &profile.to_json())?;
    }
    match format {
        Format::Json => output::line(profile.to_json().trim_end()),
        Format::Text => summary(profile).iter().for_each(|line| output::line(line)),
    }
    Ok(0)
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text)
        .map_err(|error| CliError::plain(format!("the file {} cannot be written: {error}", path.display())))
}

/// A profile for people: a line a subject.
pub(crate) fn summary(profile: &Profile) -> Vec<String> {
    let rows = match profile {
        Profile::X86(profile) => x86(profile),
        Profile::Arm64(profile) => arm64::rows(profile),
    };
    rows.into_iter().map(|(name, value)| format!("{name:<13}{value}")).collect()
}

/// Subjects and what is to be said of each.
type Rows = Vec<(&'static str, String)>;

fn x86(profile: &X86Profile) -> Rows {
    let processor = &profile.processor;
    let (tsc, limits, xsave) = (&profile.tsc, &profile.limits, &profile.xsave);
    let there = profile.capabilities.iter().filter(|capability| capability.vm > 0).count();
    let modules: Vec<&str> = profile.modules.iter().map(|module| module.name.as_str()).collect();
    vec![
        ("kernel", format!("{} {}", profile.kernel.release, profile.kernel.version)),
        (
            "processor",
            format!(
                "{}, {} family {} model {} stepping {}, microcode {:#x}",
                processor.brand,
                processor.vendor,
                processor.family,
                processor.model,
                processor.stepping,
                processor.microcode
            ),
        ),
        ("modules", modules.join(", ")),
        (
            "KVM",
            format!(
                "API {}, {there} of {} capabilities, quirks {:#x}, VM types {:#x}",
                profile.kvm_api_version,
                profile.capabilities.len(),
                profile.quirks,
                profile.vm_types
            ),
        ),
        (
            "CPUID",
            format!(
                "{} entries supported, {} emulated, {} of Hyper-V",
                profile.cpuid.supported.len(),
                profile.cpuid.emulated.len(),
                profile.cpuid.hyperv.len()
            ),
        ),
        (
            "MSRs",
            format!("{} listed, {} feature MSRs", profile.msrs.listed.len(), profile.msrs.features.len()),
        ),
        ("XSAVE", format!("XCR0 {:#x}, XSS {:#x}, {} bytes a vCPU", xsave.xcr0, xsave.xss, xsave.area_bytes)),
        (
            "TSC",
            format!(
                "{} kHz, {}, tolerance {} ppm",
                tsc.frequency_khz,
                if tsc.scales { "scales" } else { "does not scale" },
                tsc.tolerance_ppm
            ),
        ),
        ("addresses", format!("{} bits physical", profile.physical_address_bits())),
        (
            "vCPUs",
            format!(
                "{} recommended, {} at most, ids below {}, APIC ids up to {:#x}",
                limits.vcpus_recommended, limits.vcpus_max, limits.vcpu_id_end, limits.apic_id_max
            ),
        ),
        (
            "nesting",
            match profile.nested_state_bytes {
                0 => "none".to_owned(),
                bytes => format!("nested state of up to {bytes} bytes"),
            },
        ),
        ("probe guest", probe_guest(profile)),
    ]
}

fn probe_guest(profile: &X86Profile) -> String {
    let guest = &profile.probe_guest;
    let cpuid = if guest.cpuid_settings_reach {
        "CPUID settings reach a guest".to_owned()
    } else {
        format!("CPUID settings do not reach a guest ({} registers differ)", differing(profile))
    };
    let tsc = if guest.tsc_settings_reach { "TSC settings reach it" } else { "TSC settings do not" };
    format!("{cpuid}; {tsc}")
}

/// Registers that the guest read otherwise than KVM was told.
fn differing(profile: &X86Profile) -> usize {
    let registers = |entry: &CpuidEntry| Register::ALL.map(|register| entry.register(register));
    let seen = &profile.probe_guest.cpuid;
    let differ = profile.cpuid.supported.iter().map(|told| {
        let seen = seen.iter().find(|seen| seen.key() == told.key()).map_or([0; 4], registers);
        registers(told).iter().zip(seen).filter(|(told, seen)| **told != *seen).count()
    });
    differ.sum()
}
