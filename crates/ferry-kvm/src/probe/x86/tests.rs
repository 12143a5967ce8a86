//! Probing the real KVM; skipped with a notice where there is none.

use ferry_contract::{BirthRequest, Contract, Features, Profile, X86Profile, compare};

use super::probe;

fn profile() -> Option<X86Profile> {
    match crate::open() {
        Ok(kvm) => Some(probe(&kvm).unwrap()),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

#[test]
fn two_probes_are_the_same_on_any_processor() {
    let Some(first) = profile() else { return };
    let mut set = rustix::thread::CpuSet::new();
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(4) {
        set.clear();
        set.set(cpu);
        rustix::thread::sched_setaffinity(None, &set).unwrap();
        let again = profile().unwrap();
        assert_eq!(again, first, "on processor {cpu}");
    }
}

#[test]
fn a_profile_comes_back_from_its_file() {
    let Some(profile) = profile().map(Profile::from) else { return };
    let text = profile.to_json();
    let back = Profile::from_json(text.as_bytes()).unwrap();
    assert_eq!(back, profile);
    assert_eq!(back.to_json(), text);
}

#[test]
fn what_every_kvm_has_is_found() {
    let Some(profile) = profile() else { return };
    assert_eq!(profile.kvm_api_version, 12);
    assert_eq!(profile.capability(kvm_bindings::KVM_CAP_USER_MEMORY), 1);
    assert!(!profile.msrs.listed.is_empty() && !profile.cpuid.supported.is_empty());
    assert!(profile.tsc.frequency_khz > 0 && profile.limits.vcpus_max > 0);
    assert!(profile.physical_address_bits() >= 32);
    let seen = &profile.probe_guest.cpuid;
    for leaf in [0, 1, 7, 0x8000_0001] {
        assert!(seen.iter().any(|entry| entry.key() == (leaf, 0) && entry.eax | entry.edx != 0), "{leaf:#x}");
    }
}

#[test]
fn a_guest_is_born_with_what_it_will_see() {
    let Some(profile) = profile() else { return };
    let request = BirthRequest { vcpus: 1, features: Features::Offered(Vec::new()) };
    let host = Profile::from(profile.clone());
    let contract = Contract::birth(&host, &request).unwrap();
    assert!(!compare(&contract, &host).is_refusal());
    assert_eq!(Contract::from_bytes(&contract.to_bytes()).unwrap(), contract);
    assert_eq!(Contract::from_json(contract.to_json().as_bytes()).unwrap(), contract);
    let Contract::X86(contract) = contract else { panic!("another") };
    if profile.probe_guest.cpuid_settings_reach {
        // Beside what is supported: that there is a hypervisor, and the deadline timer that a capability promises.
        let deadline = u32::from(profile.capability(kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER) > 0) << 24;
        let mut expected = profile.cpuid.supported;
        for entry in expected.iter_mut().filter(|entry| entry.key() == (1, 0)) {
            entry.ecx |= 1 << 31 | deadline;
        }
        assert_eq!(contract.cpuid, expected);
    } else {
        assert_eq!(contract.cpuid, profile.probe_guest.cpuid);
        let mut other = contract.clone();
        other.cpuid[0].eax ^= 1;
        let request = BirthRequest { vcpus: 1, features: Features::Contract(Box::new(Contract::X86(other))) };
        let error = Contract::birth(&host, &request).unwrap_err();
        assert_eq!(error.findings()[0].subject, "CPUID.0.0:EAX");
        assert!(error.to_string().contains("settings do not reach"), "{error}");
    }
}
