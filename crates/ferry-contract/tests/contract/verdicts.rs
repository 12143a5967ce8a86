//! What is accepted, and what is refused with which register.

use ferry_contract::{
    BirthError, BirthRequest, Contract, CpuidEntry, Features, FindingKind, MsrValue, Verdict, Wish,
    X86Contract, X86Profile, compare,
};

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{born, pvm, reaching};

fn compare_x86(contract: &X86Contract, profile: &X86Profile) -> Verdict {
    compare(&contract.clone().into(), &profile.clone().into())
}

fn refusals(contract: &X86Contract, profile: &X86Profile) -> Vec<String> {
    let findings = compare_x86(contract, profile).findings;
    let refusals = findings.into_iter().filter(|finding| finding.kind == FindingKind::Refusal);
    refusals.map(|finding| finding.subject).collect()
}

/// A host with one thing changed.
fn host(change: impl Fn(&mut X86Profile)) -> X86Profile {
    let mut profile = reaching();
    change(&mut profile);
    profile
}

fn entry(list: &mut [CpuidEntry], leaf: u32, subleaf: u32) -> &mut CpuidEntry {
    list.iter_mut().find(|entry| entry.key() == (leaf, subleaf)).unwrap()
}

#[test]
fn a_host_takes_its_own_guests() {
    assert_eq!(compare_x86(&born(&reaching()), &reaching()).name(), "accept");
    assert_eq!(compare_x86(&born(&pvm()), &pvm()).name(), "accept_with_notices");
}

/// As on an AMD host of `kvm_pvm`: KVM offers `ARCH_CAPABILITIES`, and refuses its MSR, for the processor has none.
#[test]
fn a_guest_has_the_msrs_whose_bits_it_sees() {
    let has = |profile: &X86Profile| born(profile).feature_msrs.iter().any(|msr| msr.index == 0x10a);
    let mut profile = pvm();
    assert!(has(&profile));
    entry(&mut profile.probe_guest.cpuid, 7, 0).edx &= !(1 << 29);
    assert!(!has(&profile));
    // Where settings reach, what was told is what is seen.
    assert!(has(&host(|profile| entry(&mut profile.probe_guest.cpuid, 7, 0).edx &= !(1 << 29))));
}

#[test]
fn a_missing_bit_is_refused_by_its_name() {
    let guest = born(&reaching());
    let target = host(|profile| entry(&mut profile.cpuid.supported, 7, 0).ebx &= !(1 << 23));
    let verdict = compare_x86(&guest, &target);
    assert!(verdict.is_refusal() && verdict.is_bounded());
    let finding = &verdict.findings[0];
    assert_eq!(finding.subject, "CPUID.7.0:EBX[23]");
    assert_eq!((finding.guest.as_str(), finding.target.as_str()), ("0x01802042", "0x01002042"));
    // The other way nothing is missing: the richer host shows the guest what its contract says.
    assert!(refusals(&born(&target), &reaching()).is_empty());
}

#[test]
fn each_kind_of_field_is_judged_by_its_rule() {
    let guest = born(&reaching());
    let lost = |change: &dyn Fn(&mut X86Profile)| refusals(&guest, &host(change));
    let cpuid = |change: &dyn Fn(&mut CpuidEntry), leaf, subleaf| {
        refusals(&guest, &host(|profile| change(entry(&mut profile.cpuid.supported, leaf, subleaf))))
    };
    assert_eq!(cpuid(&|vendor| vendor.ebx ^= 1, 0, 0), ["CPUID.0.0:EBX"]);
    assert!(cpuid(&|model| model.eax ^= 0xff, 1, 0).is_empty(), "KVM shows the model that it is told");
    assert!(cpuid(&|topology| topology.ebx ^= 1 << 16, 1, 0).is_empty());
    assert_eq!(cpuid(&|address| address.eax -= 1, 0x8000_0008, 0), ["CPUID.0x80000008.0:EAX[7-0]"]);
    assert!(cpuid(&|address| address.eax += 1, 0x8000_0008, 0).is_empty());
    // A kernel that leaves out guest physical address bits has as many as the processor; one that says fewer has not.
    let narrow = host(|profile| entry(&mut profile.cpuid.supported, 0x8000_0008, 0).eax = 0x0020_3028);
    let wide = host(|profile| entry(&mut profile.cpuid.supported, 0x8000_0008, 0).eax = 0x0028_3028);
    let silent = host(|profile| entry(&mut profile.cpuid.supported, 0x8000_0008, 0).eax = 0x3028);
    assert!(refusals(&born(&wide), &silent).is_empty() && refusals(&born(&silent), &narrow).is_empty());
    assert_eq!(refusals(&born(&wide), &narrow), ["CPUID.0x80000008.0:EAX[23-16]"]);
    let tells = host(|profile| entry(&mut profile.cpuid.supported, 1, 0).ecx |= 1 << 31);
    let silent = host(|profile| entry(&mut profile.cpuid.supported, 1, 0).ecx &= !(1 << 31));
    assert!(refusals(&born(&tells), &silent).is_empty(), "that there is a hypervisor is the VMM's word");
    assert_eq!(cpuid(&|component| component.eax = 0, 0xd, 9), ["CPUID.0xd.9:EAX"]);
    assert_eq!(cpuid(&|xcr0| xcr0.eax &= !(1 << 9), 0xd, 0), ["CPUID.0xd.0:EAX[9]"]);
    assert_eq!(cpuid(&|kvm| kvm.eax &= !1, 0x4000_0001, 0), ["CPUID.0x40000001.0:EAX[0]"]);
    assert_eq!(lost(&|profile| profile.msrs.features.retain(|msr| msr.index != 0x10a)).len(), 1);
    assert!(lost(&|profile| profile.msrs.features[0].value = 0).is_empty(), "a microcode revision is data");
    assert_eq!(lost(&|profile| profile.xsave.area_bytes = 0), ["XSAVE area"]);
    assert_eq!(lost(&|profile| profile.limits.vcpus_max = 1), ["vCPUs"]);
    assert_eq!(lost(&|profile| profile.limits.apic_id_max = 0), ["APIC ids"]);
}

#[test]
fn a_missing_bit_that_kvm_emulates_is_a_notice() {
    let mut source = reaching();
    entry(&mut source.cpuid.supported, 1, 0).ecx |= 1 << 22 | 1 << 12;
    let verdict = compare_x86(&born(&source), &reaching());
    let [fma, movbe] = &verdict.findings[..] else { panic!("{verdict:?}") };
    assert_eq!((fma.kind, fma.subject.as_str()), (FindingKind::Refusal, "CPUID.1.0:ECX[12]"));
    assert_eq!((movbe.kind, movbe.subject.as_str()), (FindingKind::Notice, "CPUID.1.0:ECX[22]"));
}

#[test]
fn the_tsc_follows_the_kernels_rule() {
    let guest = born(&reaching());
    let at = |khz: u32, scales: bool| {
        refusals(
            &guest,
            &host(|profile| {
                profile.tsc.frequency_khz = khz;
                profile.tsc.scales = scales;
            }),
        )
    };
    // 250 parts per million of 2 GHz are 500 kHz.
    assert!(at(2_000_400, false).is_empty() && at(1_999_600, false).is_empty());
    assert_eq!(at(2_001_000, false), ["TSC frequency"]);
    assert_eq!(at(1_999_000, false), ["TSC frequency"]);
    assert!(at(3_000_000, true).is_empty());
}

#[test]
fn nesting_needs_room_for_its_state() {
    let mut source = reaching();
    entry(&mut source.cpuid.supported, 1, 0).ecx |= 1 << 5;
    source.nested_state_bytes = 4224;
    let guest = born(&source);
    assert_eq!(guest.nested_state_bytes, 4224);
    let target = X86Profile { nested_state_bytes: 128, ..source };
    assert_eq!(refusals(&guest, &target), ["nested state"]);
}

#[test]
fn where_settings_do_not_reach_the_guest_reads_what_it_read() {
    let profile = pvm();
    let guest = born(&profile);
    assert_eq!(guest.cpuid, profile.probe_guest.cpuid);
    assert_eq!(guest.told(), profile.cpuid.supported);

    // Another such host, one bit of whose processor is different.
    let mut other = profile.clone();
    entry(&mut other.probe_guest.cpuid, 7, 0).ebx ^= 1 << 30;
    assert_eq!(refusals(&guest, &other), ["CPUID.7.0:EBX"]);

    // A request for anything else fails at birth with the reason.
    let mut wanted = guest.clone();
    entry(&mut wanted.cpuid, 7, 0).ebx &= !(1 << 30);
    let request = |contract: &X86Contract, vcpus| BirthRequest {
        vcpus,
        features: Features::Contract(Box::new(contract.clone().into())),
    };
    let profile = profile.into();
    let error = Contract::birth(&profile, &request(&wanted, 2)).unwrap_err();
    assert!(error.to_string().contains("CPUID settings do not reach a guest"), "{error}");
    assert_eq!(Contract::birth(&profile, &request(&guest, 2)).unwrap(), guest.clone().into());
    assert_eq!(
        Contract::birth(&profile, &request(&guest, 4)),
        Err(BirthError::Vcpus { contract: 2, asked: 4 })
    );
    for wish in [Wish::Hyperv, Wish::Pmu] {
        let request = BirthRequest { vcpus: 1, features: Features::Offered(vec![wish]) };
        assert_eq!(Contract::birth(&profile, &request), Err(BirthError::NotOffered(wish)));
    }
}

#[test]
fn hyperv_leaves_stand_before_kvms_own() {
    let mut profile = reaching();
    let leaf = |leaf, eax, ebx, ecx, edx| CpuidEntry { leaf, subleaf: 0, indexed: false, eax, ebx, ecx, edx };
    profile.cpuid.hyperv = vec![
        leaf(0x4000_0000, 0x4000_000a, 0x756e_694c, 0x564b_2078, 0x7648_204d),
        leaf(0x4000_0001, 0x3123_7648, 0, 0, 0),
        leaf(0x4000_0003, 0x2f, 0, 0, 0),
    ];
    let request = BirthRequest { vcpus: 1, features: Features::Offered(vec![Wish::Hyperv]) };
    let Contract::X86(guest) = Contract::birth(&profile.clone().into(), &request).unwrap() else {
        panic!("another")
    };
    let at = |leaf| guest.cpuid.iter().find(|entry| entry.leaf == leaf).unwrap();
    assert_eq!((at(0x4000_0001).eax, at(0x4000_0101).eax), (0x3123_7648, 0x0100_7efb));
    assert_eq!(at(0x4000_0100).eax, 0x4000_0101);
    // KVM's list says "Linux KVM Hv"; a guest looks for "Microsoft Hv".
    assert_eq!(at(0x4000_0000).ebx.to_le_bytes(), *b"Micr");
    profile.cpuid.hyperv[2].eax &= !4;
    assert_eq!(refusals(&guest, &profile), ["CPUID.0x40000003.0:EAX[2]"]);
}

#[test]
fn vcpus_differ_in_their_ids_alone() {
    let guest = born(&reaching());
    let of = |index| guest.cpuid_of_vcpu(index, true);
    let id = |list: &[CpuidEntry], leaf| *list.iter().find(|entry| entry.leaf == leaf).unwrap();
    assert_eq!((id(&of(5), 1).ebx >> 24, id(&of(5), 0xb).edx), (5, 5));
    let common: Vec<CpuidEntry> = of(5).into_iter().map(CpuidEntry::of_vm).collect();
    assert_eq!(common, guest.cpuid);
}

/// Feature MSRs of real VMX hosts, by processor and kernel: `vmx/feature_msrs.json` of the folder that
/// `FERRY_PROFILES` names.
#[test]
fn vmx_controls_of_real_hosts_are_held_bit_by_bit() {
    let Some(folder) = std::env::var_os("FERRY_PROFILES").map(PathBuf::from) else {
        println!("skipped: FERRY_PROFILES names no folder of hosts");
        return;
    };
    let text = std::fs::read_to_string(folder.join("vmx/feature_msrs.json")).unwrap();
    let hosts: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>> =
        serde_json::from_str(&text).unwrap();
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let profile = |msrs: &BTreeMap<String, String>| {
        let mut profile = reaching();
        entry(&mut profile.cpuid.supported, 1, 0).ecx |= 1 << 5;
        profile.nested_state_bytes = 8320;
        let msr = |(index, value): (&String, &String)| MsrValue {
            index: u32::try_from(number(index)).unwrap(),
            value: number(value),
        };
        profile.msrs.features = msrs.iter().map(msr).collect();
        profile.msrs.features.sort_by_key(|msr| msr.index);
        profile
    };
    let profiles: Vec<(String, X86Profile)> = hosts
        .iter()
        .flat_map(|(cpu, kernels)| {
            kernels.iter().map(move |(kernel, msrs)| (format!("{cpu} {kernel}"), profile(msrs)))
        })
        .collect();
    assert!(profiles.len() > 2);
    let mut refused = 0;
    for (source, from) in &profiles {
        assert!(refusals(&born(from), from).is_empty(), "{source} to itself");
        for (target, to) in &profiles {
            let may = |profile: &X86Profile| profile.feature_msr(0x48b).unwrap_or(0) >> 32;
            let lacks = may(from) & !may(to) != 0;
            let said = refusals(&born(from), to).iter().any(|subject| subject.starts_with("MSR 0x48b["));
            assert_eq!(said, lacks, "{source} to {target}");
            refused += u32::from(said);
        }
    }
    assert!(refused > 0, "hosts that are all alike show nothing");
}
