//! Probing the real KVM of an arm64 host; skipped with a notice where there is none.

use ferry_contract::arm64::{RegisterId, SystemRegister};
use ferry_contract::{BirthRequest, Contract, Features, Profile, VcpuFeature};

use crate::probe::{probe, probe_for};

#[test]
fn what_every_kvm_has_is_found_and_found_again() {
    let kvm = match crate::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let first = probe(&kvm).unwrap();
    assert_eq!(probe(&kvm).unwrap().to_json(), first.to_json());
    assert_eq!(Profile::from_json(first.to_json().as_bytes()).unwrap(), first);
    let Profile::Arm64(profile) = first else { panic!("{first:?}") };
    assert_eq!(profile.kvm_api_version, 12);
    assert_eq!(profile.feature_sets[0].features, [VcpuFeature::Psci02]);
    assert!(profile.ipa_bits >= 32 && profile.vcpus_max > 0 && !profile.granules_bytes.is_empty());
    assert!(profile.counter_frequency_hz > Some(0));
    let midr = profile.feature_sets[0]
        .register(RegisterId::system(SystemRegister::MIDR_EL1))
        .unwrap()
        .value
        .as_ref()
        .unwrap();
    assert!(profile.processors.iter().any(|processor| Some(processor.midr) == midr.number()));
}

#[test]
fn a_guests_own_vcpus_are_probed_even_if_they_are_none_of_the_usual() {
    let kvm = match crate::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let sets = |contract: Option<&Contract>| -> Vec<Vec<VcpuFeature>> {
        let Profile::Arm64(profile) = probe_for(&kvm, contract).unwrap() else { panic!("another kind") };
        profile.feature_sets.into_iter().map(|set| set.features).collect()
    };
    let request = BirthRequest { vcpus: 1, features: Features::Offered(Vec::new()) };
    let with = |features: &[VcpuFeature]| {
        let born = Contract::birth(&probe_for(&kvm, None).unwrap(), &request).unwrap();
        let Contract::Arm64(mut contract) = born else { panic!("another kind") };
        contract.features = features.to_vec();
        sets(Some(&Contract::Arm64(contract)))
    };
    // Without PSCI.
    assert_eq!(with(&[]), [[]]);
    // KVM gives both keys or none.
    let refused = [VcpuFeature::PtrauthAddress];
    let all = with(&refused);
    assert!(all.contains(&vec![VcpuFeature::Psci02]) && !all.contains(&refused.to_vec()), "{all:?}");
}
