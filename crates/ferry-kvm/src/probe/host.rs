//! The host beside KVM: kernel and modules.
//!
//! Facts from `uname(2)` and the kernel's Documentation/ABI/stable/sysfs-module.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ferry_contract::{Extra, KernelFacts, Module};

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

/// A parameter's value; none if this kernel has none of that name, or shows it to nobody.
fn value(path: &PathBuf) -> Result<Option<String>, ProbeError> {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().chars().take(MAX_PARAMETER_BYTES).collect())),
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => Ok(None),
        Err(source) => Err(ProbeError::File { path: path.clone(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_sorted_as_a_profile_wants_them() {
        assert!(MODULES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
