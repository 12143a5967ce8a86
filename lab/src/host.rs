//! What a host of the lab is called, and which there are.
//!
//! A name is `VENDOR/KERNEL/MODEL`. Kernels are Debian's, so each belongs to a suite; models are the
//! emulator's own names. A name that is none gets the nearest known ones as an answer.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// Whose virtualisation the processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vendor {
    /// SVM, emulated by QEMU.
    Amd,
    /// VMX, emulated by Bochs.
    Intel,
    /// EL2 of arm64, emulated by QEMU.
    Arm64,
}

impl Vendor {
    /// All.
    pub const ALL: &[Self] = &[Self::Amd, Self::Intel, Self::Arm64];

    /// As it is written in a host's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Intel => "intel",
            Self::Arm64 => "arm64",
        }
    }

    /// The architecture of its processors.
    pub const fn architecture(self) -> Architecture {
        match self {
            Self::Amd | Self::Intel => Architecture::X86_64,
            Self::Arm64 => Architecture::Arm64,
        }
    }

    /// The modules that a host of this vendor loads, what they need aside: its devices, and KVM where that
    /// is not built in.
    pub const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Amd => &["virtio_pci", "virtio_console", "virtio_net", "kvm_amd"],
            Self::Intel => &["ata_piix", "sd_mod", "kvm_intel"],
            Self::Arm64 => &["virtio_pci", "virtio_console", "virtio_net"],
        }
    }

    /// The kernels that boot under this vendor's emulator, oldest first; `newest` stands for the
    /// highest version that the suites have.
    pub const fn kernels(self) -> &'static [&'static str] {
        match self {
            Self::Amd | Self::Arm64 => {
                &["5.10", "6.1", "6.12", "6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "newest"]
            }
            // Later ones panic on Bochs 2.7.
            Self::Intel => &["6.1", "6.12"],
        }
    }

    /// The processor models with virtualisation that works.
    pub const fn models(self) -> &'static [&'static str] {
        match self {
            Self::Amd => &["EPYC", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa", "max", "phenom", "qemu64"],
            Self::Intel => &["corei5_lynnfield_750", "corei7_haswell_4770", "corei7_skylake_x"],
            Self::Arm64 => &["cortex-a57", "cortex-a76", "neoverse-n1", "neoverse-n2", "max"],
        }
    }
}

/// What a host's programs are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// arm64.
    Arm64,
}

impl Architecture {
    /// This machine's.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::X86_64 };

    /// As Debian calls it.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As the first word of a target's name has it, and `uname -m`.
    pub const fn machine(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }
}

/// One host of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    /// Whose virtualisation it has.
    pub vendor: Vendor,
    /// Its kernel: a series as `6.12`, or `newest`.
    pub kernel: &'static str,
    /// Its processor's model.
    pub model: &'static str,
}

impl Host {
    /// Reads a name.
    ///
    /// # Errors
    /// [`Error::Name`] with the nearest known names, if there is no such host.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let mut parts = name.splitn(3, '/');
        let (vendor, kernel, model) = (parts.next(), parts.next(), parts.next());
        let vendors: Vec<&str> = Vendor::ALL.iter().map(|vendor| vendor.name()).collect();
        let vendor = known(name, "vendor", vendor, &vendors)?;
        let vendor = Vendor::ALL.iter().copied().find(|known| known.name() == vendor).unwrap_or(Vendor::Amd);
        let kernel = known(name, "kernel", kernel, vendor.kernels())?;
        let model = known(name, "processor model", model, vendor.models())?;
        Ok(Self { vendor, kernel, model })
    }

    /// Every host there is, by vendor, kernel and model.
    pub fn all() -> Vec<Self> {
        let mut hosts = Vec::new();
        for &vendor in Vendor::ALL {
            for &kernel in vendor.kernels() {
                hosts.extend(vendor.models().iter().map(|&model| Self { vendor, kernel, model }));
            }
        }
        hosts
    }

    /// The hosts that quick tests use, two of each architecture, with unlike kernels; what they need serves
    /// every processor model.
    pub fn smoke() -> Vec<Self> {
        let host = |vendor, kernel, model| Self { vendor, kernel, model };
        vec![
            host(Vendor::Amd, "5.10", "EPYC"),
            host(Vendor::Amd, "6.12", "EPYC"),
            host(Vendor::Arm64, "5.10", "cortex-a57"),
            host(Vendor::Arm64, "6.12", "cortex-a76"),
        ]
    }

    /// Hosts of arm64 whose guests may have SVE: vectors of one length, and of several.
    #[must_use]
    pub fn with_vectors() -> Vec<Self> {
        ["neoverse-n2", "max"].map(|model| Self { vendor: Vendor::Arm64, kernel: "6.12", model }).into()
    }

    /// The hosts between which Linux guests move, an older kernel and a newer one of each architecture.
    pub fn with_linux() -> Vec<Self> {
        let host = |vendor, kernel, model| Self { vendor, kernel, model };
        vec![
            host(Vendor::Amd, "6.1", "EPYC"),
            host(Vendor::Amd, "newest", "EPYC"),
            host(Vendor::Arm64, "6.12", "cortex-a76"),
            host(Vendor::Arm64, "6.18", "cortex-a76"),
        ]
    }

    /// The hosts between which all verdicts are tested; the smoke's are among them, but for those of arm64.
    pub fn tested() -> Vec<Self> {
        let mut hosts = Vec::new();
        for &(vendor, kernel, models) in TESTED {
            hosts.extend(models.iter().map(|&model| Self { vendor, kernel, model }));
        }
        hosts
    }
}

/// The hosts of the matrix, by vendor and kernel. Of Intel's few, because each takes minutes to start.
const TESTED: &[(Vendor, &str, &[&str])] = &[
    (Vendor::Amd, "5.10", &["EPYC", "EPYC-Rome", "EPYC-Milan", "max"]),
    (Vendor::Amd, "6.1", &["EPYC", "EPYC-Rome", "EPYC-Milan", "max"]),
    (Vendor::Amd, "6.12", &["EPYC", "EPYC-Rome", "EPYC-Milan", "max"]),
    (Vendor::Amd, "newest", &["EPYC", "EPYC-Rome", "EPYC-Milan", "max"]),
    (Vendor::Arm64, "5.10", &["cortex-a76", "max"]),
    (Vendor::Arm64, "6.1", &["cortex-a76", "neoverse-n1"]),
    (Vendor::Arm64, "6.12", &["cortex-a76", "neoverse-n1", "max"]),
    (Vendor::Arm64, "6.16", &["cortex-a76"]),
    (Vendor::Arm64, "6.18", &["cortex-a76", "neoverse-n2", "max"]),
    (Vendor::Arm64, "7.1", &["cortex-a76"]),
    // With nesting each VM on `max` takes seconds there.
    (Vendor::Arm64, "newest", &["cortex-a76"]),
    (Vendor::Intel, "6.1", &["corei7_haswell_4770"]),
    (Vendor::Intel, "6.12", &["corei5_lynnfield_750", "corei7_haswell_4770"]),
];

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.vendor.name(), self.kernel, self.model)
    }
}

impl FromStr for Host {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::parse(name)
    }
}

/// The known name that was given, or an error with those that are nearest to it.
fn known<'a>(
    name: &str,
    what: &'static str,
    given: Option<&str>,
    known: &[&'a str],
) -> Result<&'a str, Error> {
    let given = given.unwrap_or_default();
    if let Some(found) = known.iter().find(|known| **known == given) {
        return Ok(found);
    }
    if given.is_empty() {
        let known = known.iter().map(|&known| known.to_owned()).collect();
        return Err(Error::NamePart { name: name.to_owned(), what, known });
    }
    Err(Error::Name { name: name.to_owned(), what, given: given.to_owned(), nearest: nearest(given, known) })
}

/// The three names that take the fewest changes to come to; kernels by version where both are one.
pub fn nearest(given: &str, known: &[&str]) -> Vec<String> {
    let mut ranked: Vec<(u64, &str)> = known.iter().map(|name| (apart(given, name), *name)).collect();
    ranked.sort_by_key(|(distance, _)| *distance);
    ranked.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

fn apart(given: &str, name: &str) -> u64 {
    match (version(given), version(name)) {
        (Some(given), Some(name)) => given.abs_diff(name),
        // What is no version is further away than any version.
        (Some(_), None) => u64::MAX,
        (None, _) => edits(&given.to_lowercase(), &name.to_lowercase()),
    }
}

/// A kernel's series as a number: 6.12 lies above 6.9.
fn version(text: &str) -> Option<u64> {
    let mut parts = text.split('.');
    let major: u32 = parts.next()?.parse().ok()?;
    let minor: u32 = parts.next()?.parse().ok()?;
    Some(u64::from(major) * 1000 + u64::from(minor))
}

/// How many letters to change, add or leave out (Levenshtein); a name that begins so counts as near.
fn edits(from: &str, to: &str) -> u64 {
    if !from.is_empty() && (to.contains(from) || from.contains(to)) {
        return 1;
    }
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<u64> = (0..=to.len() as u64).collect();
    for letter in from.chars() {
        let mut corner = row[0];
        row[0] += 1;
        for (at, other) in to.iter().enumerate() {
            let replaced = corner + u64::from(letter != *other);
            corner = row[at + 1];
            row[at + 1] = replaced.min(corner + 1).min(row[at] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_has_a_name_that_reads_back() {
        for host in Host::all() {
            assert_eq!(Host::parse(&host.to_string()).unwrap(), host);
        }
        assert!(Host::all().len() > 80);
        assert!(Host::tested().iter().all(|host| Host::all().contains(host)));
        let is_judged = |host: &Host| host.vendor == Vendor::Arm64 || Host::tested().contains(host);
        assert!(Host::smoke().iter().all(is_judged));
    }

    #[test]
    fn an_unknown_part_is_answered_with_the_nearest() {
        let said = |name: &str| Host::parse(name).unwrap_err().to_string();
        let kernel = said("amd/6.11/EPYC");
        assert!(kernel.contains("kernel `6.11`") && kernel.contains("6.12, 6.16, 6.17"), "{kernel}");
        assert!(said("amd/5.15/EPYC").contains("5.10"));
        let model = said("amd/6.12/EPYC-Rom");
        assert!(model.contains("EPYC-Rome"), "{model}");
        assert!(said("intel/6.12/haswell").contains("corei7_haswell_4770"));
        assert!(said("arm64/6.12/neoverse").contains("neoverse-n1"));
        assert!(said("ibm/6.12/EPYC").contains("amd"));
        assert!(said("amd/6.12").contains("says no processor model") && said("amd/6.12").contains("phenom"));
        assert!(said("").contains("says no vendor"));
        assert!(said("intel/7.2/corei7_skylake_x").contains("6.12"));
    }
}
