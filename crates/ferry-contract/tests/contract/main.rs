//! Profiles, contracts and the comparison, over a profile that `ferry probe` wrote on a `kvm_pvm` host.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

mod arm64;
mod forms;
mod schema;
mod verdicts;

use ferry_contract::{BirthRequest, Contract, Features, Profile, X86Profile};

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

pub(crate) fn born(profile: &X86Profile) -> Contract {
    let request = BirthRequest { vcpus: 2, features: Features::Offered { hyperv: false } };
    Contract::birth(profile, &request).unwrap()
}
