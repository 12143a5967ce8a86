//! Profiles, contracts and the comparison, over a profile that `ferry probe` wrote on a `kvm_pvm` host.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

mod arm64;
mod arm64_contracts;
mod forms;
mod schema;
mod verdicts;

use std::fmt::Write;
use std::path::PathBuf;

use ferry_contract::{BirthRequest, Contract, Features, Profile, X86Contract, X86Profile};

/// The profile of a host where settings do not reach a guest.
pub(crate) const PVM: &str = include_str!("../data/kvm_pvm.profile.json");

pub(crate) fn pvm() -> X86Profile {
    let Profile::X86(profile) = Profile::from_json(PVM.as_bytes()).unwrap() else { panic!("another one") };
    *profile
}

/// The same host, were it one where settings reach.
pub(crate) fn reaching() -> X86Profile {
    let mut profile = pvm();
    profile.probe_guest.cpuid_settings_reach = true;
    profile.probe_guest.tsc_settings_reach = true;
    profile.probe_guest.cpuid = profile.cpuid.supported.clone();
    profile
}

pub(crate) fn born(profile: &X86Profile) -> X86Contract {
    let request = BirthRequest { vcpus: 2, features: Features::Offered(Vec::new()) };
    let contract = Contract::birth(&profile.clone().into(), &request).unwrap();
    let Contract::X86(contract) = contract else { panic!("another one") };
    *contract
}

/// Holds a wire form against its golden file, byte for byte. `FERRY_BLESS=1` writes the file anew.
pub(crate) fn is_golden(bytes: &[u8], name: &str) {
    let hex = bytes.chunks(32).fold(String::new(), |mut text, line| {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
        text
    });
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("FERRY_BLESS").is_some() {
        std::fs::write(&path, &hex).unwrap();
    }
    assert_eq!(hex, std::fs::read_to_string(path).unwrap_or_default());
}
