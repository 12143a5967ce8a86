//! Bodies of profiles and contracts.

use crate::seeds::{ARM64, PROFILE};
use ferry_contract::{BirthRequest, Contract, Features, Profile, Wish, compare, import};

/// A profile's file: what is read is written back in one form, and everything that is made of it ends
/// well.
pub fn profile(bytes: &[u8]) {
    let Ok(profile) = Profile::from_json(bytes) else { return };
    let text = profile.to_json();
    let again = Profile::from_json(text.as_bytes());
    assert_eq!(again.as_ref(), Ok(&profile), "a profile changed on the way");
    assert!(again.is_ok_and(|again| again.to_json() == text), "a profile has one form");
    for wishes in [vec![], vec![Wish::Hyperv], vec![Wish::Pmu], vec![Wish::Sve], vec![Wish::Pmu, Wish::Sve]] {
        let request = BirthRequest { vcpus: 2, features: Features::Offered(wishes) };
        if let Ok(contract) = Contract::birth(&profile, &request) {
            assert_eq!(contract.check(), Ok(()), "a guest is born with a contract that makes sense");
            assert!(!compare(&contract, &profile).is_refusal(), "a host takes its own guest");
        }
    }
}

/// A dump of an arm64 host's registers: what becomes a profile is one.
pub fn import_kvm_registers(bytes: &[u8]) {
    if let Ok(imported) = import::kvm_registers(bytes) {
        let imported = Profile::from(imported);
        let again = Profile::from_json(imported.to_json().as_bytes());
        assert_eq!(again.as_ref(), Ok(&imported), "an imported profile changed on the way");
    }
}

/// A contract on the wire: it has one form.
pub fn wire(bytes: &[u8]) {
    if let Ok(contract) = Contract::from_bytes(bytes) {
        assert_eq!(contract.to_bytes(), bytes, "a contract has one form");
        judged(&contract);
    }
}

/// A contract's file.
pub fn json(bytes: &[u8]) {
    if let Ok(contract) = Contract::from_json(bytes) {
        let again = Contract::from_json(contract.to_json().as_bytes());
        assert_eq!(again.as_ref(), Ok(&contract), "a contract changed on the way");
        judged(&contract);
    }
}

/// Whatever a contract says, a verdict on it is bounded, and its vCPUs have as many entries as it.
fn judged(contract: &Contract) {
    for profile in [PROFILE, ARM64] {
        let profile = Profile::from_json(profile);
        assert!(profile.is_ok_and(|profile| compare(contract, &profile).is_bounded()));
    }
    match contract {
        Contract::X86(x86) => assert_eq!(x86.cpuid_of_vcpu(u32::MAX, true).len(), x86.cpuid.len()),
        Contract::Arm64(arm64) => assert!(arm64.registers.keys().all(|id| arm64.says(*id).is_some())),
    }
}
