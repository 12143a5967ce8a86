//! The host beside KVM: kernel, processor, modules.
//!
//! Facts from `uname(2)`, `proc_cpuinfo(5)` and the kernel's Documentation/ABI/stable/sysfs-module.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ferry_contract::{Extra, KernelFacts, Module, Processor};

use super::ProbeError;

/// Modules, and the parameters of each that a guest or a migration can notice. A parameter that this
/// kernel lacks is left out.
const MODULES: [(&str, &[&str]); 4] = [
    (
        "kvm",
        &[
            "eager_page_split",
            "enable_pmu",
            "enable_vmware_backdoor",
            "ignore_msrs",
            "kvmclock_periodic_sync",
            "lapic_timer_advance",
            "mitigate_smt_rsb",
            "tdp_mmu",
            "tsc_tolerance_ppm",
        ],
    ),
    (
        "kvm_amd",
        &[
            "avic",
            "lbrv",
            "nested",
            "npt",
            "nrips",
            "pause_filter_count",
            "sev",
            "sev_es",
            "sev_snp",
            "tsc_scaling",
            "vgif",
            "vls",
            "vnmi",
        ],
    ),
    (
        "kvm_intel",
        &[
            "allow_smaller_maxphyaddr",
            "emulate_invalid_guest_state",
            "enable_apicv",
            "enable_shadow_vmcs",
            "ept",
            "eptad",
            "fasteoi",
            "flexpriority",
            "nested",
            "nested_early_check",
            "pml",
            "preemption_timer",
            "pt_mode",
            "sgx",
            "tdx",
            "unrestricted_guest",
            "vnmi",
            "vpid",
        ],
    ),
    ("kvm_pvm", &["hb_mask", "no_x2apic", "pvf_deny", "pvm_native"]),
];

/// The most bytes of one parameter that are kept.
const MAX_PARAMETER_BYTES: usize = 256;

pub(super) fn kernel() -> KernelFacts {
    let name = rustix::system::uname();
    KernelFacts {
        release: name.release().to_string_lossy().into_owned(),
        version: name.version().to_string_lossy().into_owned(),
        extra: Extra::new(),
    }
}

/// Those of KVM's modules that are there, in the order of their names.
pub(super) fn modules() -> Result<Vec<Module>, ProbeError> {
    let mut found = Vec::new();
    for (name, parameters) in MODULES {
        let folder = Path::new("/sys/module").join(name);
        if folder.exists() {
            let values = parameters.iter().filter_map(|parameter| {
                value(&folder.join("parameters").join(parameter))
                    .transpose()
                    .map(|value| Ok((*parameter, value?)))
            });
            let parameters: Result<BTreeMap<_, _>, ProbeError> =
                values.map(|pair| pair.map(|(name, value)| (name.to_owned(), value))).collect();
            found.push(Module { name: name.to_owned(), parameters: parameters?, extra: Extra::new() });
        }
    }
    Ok(found)
}

/// A module's parameter as a number.
pub(super) fn parameter<T: FromStr>(modules: &[Module], module: &str, name: &str) -> Option<T> {
    modules.iter().find(|known| known.name == module)?.parameters.get(name)?.parse().ok()
}

/// A parameter's value; none if this kernel has none of that name, or shows it to nobody.
fn value(path: &PathBuf) -> Result<Option<String>, ProbeError> {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().chars().take(MAX_PARAMETER_BYTES).collect())),
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => Ok(None),
        Err(source) => Err(ProbeError::File { path: path.clone(), source }),
    }
}

pub(super) fn processor() -> Result<Processor, ProbeError> {
    let path = PathBuf::from("/proc/cpuinfo");
    let text = fs::read_to_string(&path).map_err(|source| ProbeError::File { path, source })?;
    Ok(identity(&text))
}

/// The first processor of `proc_cpuinfo(5)`; what it does not say is empty or 0.
fn identity(cpuinfo: &str) -> Processor {
    let of = |name: &str| {
        let pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        pairs
            .map(|(name, value)| (name.trim(), value.trim()))
            .find(|(known, _)| *known == name)
            .map_or("", |pair| pair.1)
    };
    let number = |name: &str| of(name).parse().unwrap_or(0);
    Processor {
        vendor: of("vendor_id").to_owned(),
        family: number("cpu family"),
        model: number("model"),
        stepping: number("stepping"),
        brand: of("model name").to_owned(),
        microcode: of("microcode")
            .strip_prefix("0x")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .unwrap_or(0),
        extra: Extra::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processor_is_read() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: A: B\nstepping\t: 8\nmicrocode\t: 0x2b000603\n\nprocessor\t: 1\nmodel\t\t: 1\n";
        let processor = identity(text);
        assert_eq!((processor.family, processor.model, processor.stepping), (6, 143, 8));
        assert_eq!((processor.vendor.as_str(), processor.brand.as_str()), ("GenuineIntel", "A: B"));
        assert_eq!(processor.microcode, 0x2b00_0603);
        assert_eq!(identity(""), Processor::default());
    }

    #[test]
    fn modules_are_sorted_as_a_profile_wants_them() {
        assert!(MODULES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
