//! Contracts of guests on arm64: their forms, their birth, and what is refused with which register.

use ferry_contract::arm64::{RegisterId, RegisterValue, SystemRegister};
use ferry_contract::{
    Arm64Contract, Arm64Profile, Arm64Register, BirthError, BirthRequest, Capability, Contract,
    ContractError, Features, Finding, FindingKind, Lowering, Profile, VcpuFeature, Wish, compare,
};
use serde_json::{Value, json};

use super::arm64::MAX;
use super::is_golden;

const PSCI: u64 = 0x6030_0000_0014_0000;
const WORKAROUND_3: u64 = 0x6030_0000_0014_0003;
const STD: u64 = 0x6030_0000_0016_0000;
const STD_HYP: u64 = 0x6030_0000_0016_0001;
const VENDOR: u64 = 0x6030_0000_0016_0002;
const VENDOR_2: u64 = 0x6030_0000_0016_0003;
const PFR0: u64 = 0x6030_0000_0013_c020;
const MMFR0: u64 = 0x6030_0000_0013_c038;

fn id(raw: u64) -> RegisterId {
    RegisterId::new(raw).unwrap()
}

/// A host whose profile has a register of each kind.
fn host() -> Arm64Profile {
    let Profile::Arm64(profile) = Profile::from_json(MAX.as_bytes()).unwrap() else { panic!("another") };
    *profile
}

fn offered(profile: &Arm64Profile, wishes: &[Wish]) -> Result<Contract, BirthError> {
    let request = BirthRequest { vcpus: 2, features: Features::Offered(wishes.to_vec()) };
    Contract::birth(&profile.clone().into(), &request)
}

fn born(profile: &Arm64Profile) -> Arm64Contract {
    let Contract::Arm64(contract) = offered(profile, &[]).unwrap() else { panic!("another") };
    *contract
}

/// A guest with other values.
fn with(guest: &Arm64Contract, registers: &[(u64, u64)]) -> Arm64Contract {
    let mut guest = guest.clone();
    for (register, value) in registers {
        let value = RegisterValue::of_number(*value, id(*register).bytes()).unwrap();
        guest.registers.insert(id(*register), value);
    }
    guest
}

fn findings(guest: &Arm64Contract, profile: &Arm64Profile) -> Vec<Finding> {
    let verdict = compare(&guest.clone().into(), &profile.clone().into());
    assert!(verdict.is_bounded());
    verdict.findings
}

fn refusals(guest: &Arm64Contract, profile: &Arm64Profile) -> Vec<String> {
    let findings = findings(guest, profile).into_iter();
    findings.filter(|it| it.kind == FindingKind::Refusal).map(|finding| finding.subject).collect()
}

/// A host with a register of its smallest set of features changed, added or taken away.
fn changed(register: u64, change: impl Fn(Option<Arm64Register>) -> Option<Arm64Register>) -> Arm64Profile {
    let mut profile = host();
    let list = &mut profile.feature_sets[0].registers;
    let place = list.iter().position(|it| it.id == id(register));
    let new = change(place.map(|place| list.remove(place)));
    list.extend(new);
    list.sort_by_key(|it| it.id);
    profile.check().unwrap();
    profile
}

fn without(register: u64) -> Arm64Profile {
    changed(register, |_| None)
}

fn adding(register: u64, value: u64, lowering: Option<&Lowering>) -> Arm64Profile {
    changed(register, |_| {
        let value = RegisterValue::of_number(value, id(register).bytes());
        Some(Arm64Register { id: id(register), value, writable_mask: None, lowering: lowering.cloned() })
    })
}

fn able(mut profile: Arm64Profile, number: u32) -> Arm64Profile {
    profile.capabilities.push(Capability { number, vm: 1, ..Capability::default() });
    profile.capabilities.sort_by_key(|capability| capability.number);
    profile
}

#[test]
fn a_host_takes_its_own_guests_and_says_what_each_has() {
    let guest = born(&host());
    assert_eq!(findings(&guest, &host()), []);
    assert_eq!((guest.features.as_slice(), guest.ipa_bits), (&[VcpuFeature::Psci02][..], 40));
    assert_eq!((guest.gic_version, guest.counter_frequency_hz), (Some(3), Some(1_000_000_000)));
    assert_eq!(guest.says(id(PSCI)), Some(0x1_0003.into()));
    // Neither a general register, nor a counter, nor what a cache is like that CLIDR_EL1 does not name.
    for none in [0x6030_0000_0010_0000, 0x6030_0000_0013_df1a, 0x6020_0000_0011_0000] {
        assert!(!guest.registers.contains_key(&id(none)), "{none:#x}");
    }
    let all = offered(&host(), &[Wish::Pmu, Wish::Sve]).unwrap();
    let Contract::Arm64(all) = all else { panic!("another") };
    assert_eq!(VcpuFeature::bits(&all.features), 0x7c);
    assert!(all.registers.contains_key(&RegisterId::SVE_VECTOR_LENGTHS));
    assert_eq!(findings(&all, &host()), []);
}

#[test]
fn what_a_host_has_not_cannot_be_wished_for() {
    for wishes in [&[Wish::El2][..], &[Wish::Hyperv], &[Wish::Sve]] {
        assert_eq!(offered(&host(), wishes), Err(BirthError::NotOffered(wishes[0])), "{wishes:?}");
    }
    let mut bare = host();
    bare.feature_sets.clear();
    assert_eq!(offered(&bare, &[]), Err(BirthError::NoVcpu));
}

#[test]
fn contracts_come_back_in_both_forms() {
    for contract in [offered(&host(), &[]).unwrap(), offered(&host(), &[Wish::Pmu, Wish::Sve]).unwrap()] {
        let (bytes, text) = (contract.to_bytes(), contract.to_json());
        assert_eq!(Contract::from_bytes(&bytes).unwrap(), contract);
        let back = Contract::from_json(text.as_bytes()).unwrap();
        assert_eq!((back.to_json(), &back), (text.clone(), &contract));
        for cut in 0..bytes.len() {
            assert!(Contract::from_bytes(&bytes[..cut]).is_err());
        }
        let mut unknown: Value = serde_json::from_str(&text).unwrap();
        unknown["a_newer_field"] = json!(1);
        assert!(Contract::from_json(unknown.to_string().as_bytes()).is_err(), "what is not known is needed");
        // As the control socket gives it.
        assert_eq!(
            serde_json::from_str::<Contract>(&serde_json::to_string(&contract).unwrap()).unwrap(),
            contract
        );
    }
    // A feature of vCPUs that this build does not know.
    let contract = offered(&host(), &[]).unwrap();
    let bytes = contract.to_bytes();
    let place = bytes.windows(2).position(|two| two == [3, 4]).unwrap();
    let newer: Vec<u8> = [&bytes[..=place], &[0x19, 0x10, 0x04], &bytes[place + 2..]].concat();
    assert_eq!(Contract::from_bytes(&newer), Err(ContractError::Encoding));
}

#[test]
fn a_file_sets_registers_by_id_and_their_names_are_for_people() {
    let text = offered(&host(), &[]).unwrap().to_json();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    let key = "0x6030000000140000";
    assert_eq!(file["registers"][key]["name"], "KVM_REG_ARM_PSCI_VERSION");
    file["registers"][key] = json!({ "value": "0x0000000000010001" });
    let Contract::Arm64(read) = Contract::from_json(file.to_string().as_bytes()).unwrap() else {
        panic!("another")
    };
    assert_eq!(read.says(id(PSCI)), Some(0x1_0001.into()));
    let refusal = |change: &dyn Fn(&mut Value)| {
        let mut file: Value = serde_json::from_str(&text).unwrap();
        change(&mut file["registers"]);
        Contract::from_json(file.to_string().as_bytes()).unwrap_err().to_string()
    };
    let said = refusal(&|list| list[key]["name"] = json!("MIDR_EL1"));
    assert!(said.contains("is called KVM_REG_ARM_PSCI_VERSION, not `MIDR_EL1`"), "{said}");
    let said = refusal(&|list| list["0x4030000000100000"] = json!({ "value": "0x00" }));
    assert!(said.contains("0x4030000000100000 is no id of an arm64 register"), "{said}");
    let said = refusal(&|list| list[key]["value"] = json!("0x00010003"));
    assert!(said.starts_with("at $.registers.0x6030000000140000: KVM_REG_ARM_PSCI_VERSION"), "{said}");
    assert!(said.ends_with("has 64 bits and its value 32"), "{said}");
    let said = refusal(&|list| list["0x6030000000100000"] = json!({ "value": "0x0000000000000000" }));
    assert!(said.contains("x0 (0x6030000000100000) tells a guest nothing that lasts"), "{said}");
    let twice = text.replacen(
        &format!("\"{key}\": {{"),
        &format!("\"{key}\": {{\"value\": \"0x00\"}}, \"{key}\": {{"),
        1,
    );
    let said = Contract::from_json(twice.as_bytes()).unwrap_err().to_string();
    assert!(said.contains("the same key a second time"), "{said}");
}

#[test]
fn a_contract_that_contradicts_itself_is_refused() {
    let good = born(&host());
    let refused = |change: &dyn Fn(&mut Arm64Contract)| {
        let mut contract = good.clone();
        change(&mut contract);
        let bytes = Contract::from_bytes(&Contract::from(contract).to_bytes());
        assert!(matches!(bytes, Err(ContractError::Sense(_))), "{bytes:?}");
    };
    refused(&|contract| contract.vcpus = 0);
    refused(&|contract| contract.vcpus = 513);
    refused(&|contract| contract.format = "ferry.profile".into());
    refused(&|contract| contract.ipa_bits = 31);
    refused(&|contract| contract.gic_version = Some(4));
    refused(&|contract| contract.counter_frequency_hz = Some(0));
    refused(&|contract| contract.features.insert(0, VcpuFeature::PowerOff));
    refused(&|contract| contract.features.push(VcpuFeature::Sve));
    refused(&|contract| drop(contract.registers.insert(id(0x6030_0000_0013_c005), 0.into())));
    refused(&|contract| drop(contract.registers.insert(id(PSCI), RegisterValue::new(vec![2]).unwrap())));
    let many = |contract: &mut Arm64Contract| {
        for number in 0..513 {
            contract.registers.insert(RegisterId::from_key(0x16_0000 | number, 8).unwrap(), 0.into());
        }
    };
    refused(&many);
    refused(&|contract| {
        contract.features.push(VcpuFeature::Sve);
        let none = RegisterValue::of_number(0, 64).unwrap();
        contract.registers.insert(RegisterId::SVE_VECTOR_LENGTHS, none);
    });
    let mut other = good.clone();
    other.kind = "kvm-riscv64".into();
    assert!(Contract::from_bytes(&Contract::from(other).to_bytes()).is_err());
}

/// Today's wire form, byte for byte. `FERRY_BLESS=1` writes the file anew.
#[test]
fn todays_wire_form_is_that_of_the_golden_file() {
    let bytes = offered(&host(), &[Wish::Pmu, Wish::Sve]).unwrap().to_bytes();
    is_golden(&bytes, "contract-arm64.hex");
}

#[test]
fn a_field_is_held_by_its_kind_the_mask_and_what_was_tried() {
    let guest = born(&host());
    let own = 0x1101_0010_2111_0222;
    let lost = |register, value| refusals(&with(&guest, &[(register, value)]), &host());
    // CSV3 is written less; CSV2 more than there is; FP was tried in vain; AMU may not be written.
    assert_eq!(lost(PFR0, own - (1 << 60)), [""; 0]);
    assert_eq!(lost(PFR0, own + (1 << 56)), ["ID_AA64PFR0_EL1.CSV2"]);
    assert_eq!(lost(PFR0, own - (1 << 16)), ["ID_AA64PFR0_EL1.FP"]);
    assert_eq!(lost(PFR0, own + (1 << 44)), ["ID_AA64PFR0_EL1.AMU"]);
    // Both fields of 0xf and 0: FP is signed, and would be less.
    assert_eq!(lost(PFR0, own | 0xf << 16), ["ID_AA64PFR0_EL1.FP"]);
    let sizes = 0x2100_0323_1020_1126;
    // Granules of stage 2: none at all is taken, also where less by one was not.
    assert_eq!(lost(MMFR0, sizes - (2 << 32)), [""; 0]);
    assert_eq!(lost(MMFR0, sizes - (1 << 36)), [""; 0]);
    assert_eq!(lost(MMFR0, sizes - (2 << 36)), ["ID_AA64MMFR0_EL1.TGran64_2"]);
    assert_eq!(lost(MMFR0, sizes + (1 << 4)), ["ID_AA64MMFR0_EL1.ASIDBits"]);
    assert_eq!(lost(0x6030_0000_0013_c000, 0x411f_d0b1), ["MIDR_EL1"]);
    // A field of 64 bits can be all ones.
    assert_eq!(lost(0x6030_0000_0013_c000, u64::MAX), ["MIDR_EL1"]);
    // Two at once are two findings, each with both values and a remedy.
    let found = findings(&with(&guest, &[(PFR0, own + (1 << 56) + 1)]), &host());
    let [el0, csv2] = &found[..] else { panic!("{found:?}") };
    assert_eq!((el0.subject.as_str(), el0.guest.as_str()), ("ID_AA64PFR0_EL1.EL0", "0x3"));
    assert!(csv2.remedy.contains("with 0x1 there (0x603000000013c020)"), "{csv2:?}");
}

/// What a target has more than the guest, and does not lay down, no contract can have: the guest's own host has
/// it not.
#[test]
fn a_guest_is_not_told_to_start_with_more_than_it_has() {
    let guest = born(&host());
    let remedies = |guest: &Arm64Contract, target: &Arm64Profile| -> Vec<String> {
        findings(guest, target).into_iter().map(|finding| finding.remedy).collect()
    };
    // CSV2 is fixed at 2; the firmware at a later version; a service cannot be turned off; one is always there.
    let fixed = Lowering { refused: vec![56], ..Lowering::default() };
    let target = adding(PFR0, 0x0200_0000_0000_0000, Some(&fixed));
    let lower = with(&guest, &[(PFR0, 0x0100_0000_0000_0000)]);
    assert_eq!(remedies(&lower, &target), ["choose a target that has 0x1 there, or takes it"]);
    let only = adding(PSCI, 0x1_0003, Some(&Lowering::default()));
    assert_eq!(remedies(&with(&guest, &[(PSCI, 0x1_0001)]), &only), ["choose another target"]);
    let stuck = adding(VENDOR, 3, Some(&Lowering { refused: vec![1], ..Lowering::default() }));
    assert_eq!(remedies(&with(&guest, &[(VENDOR, 1)]), &stuck), ["choose another target"]);
    let always = able(without(STD), 198);
    assert_eq!(
        remedies(&with(&guest, &[(STD, 0), (STD_HYP, 0), (VENDOR, 3)]), &always)[0],
        "choose another target"
    );
}

#[test]
fn without_masks_what_was_tried_says_all() {
    let guest = with(&born(&host()), &[(PFR0, 0x0001)]);
    let on = |taken: &[u32], changed: &[u32], refused: &[u32]| {
        let [taken, changed, refused] = [taken, changed, refused].map(<[u32]>::to_vec);
        let lowering = Lowering { taken, changed, refused, values_taken: Vec::new() };
        findings(&guest, &adding(PFR0, 0x0002, Some(&lowering)))
    };
    assert_eq!(on(&[0], &[], &[]), []);
    assert!(on(&[], &[0], &[])[0].target.contains("does not keep it"));
    assert!(on(&[], &[], &[0])[0].target.contains("takes no other"));
    assert!(findings(&guest, &adding(PFR0, 0x0002, None))[0].target.contains("not known to take another"));
}

#[test]
fn firmware_says_a_version_that_the_target_takes() {
    let guest = born(&host());
    for version in [2, 0x1_0000, 0x1_0001, 0x1_0002] {
        assert_eq!(refusals(&with(&guest, &[(PSCI, version)]), &host()), [""; 0]);
    }
    let older = |lowering| adding(PSCI, 0x1_0001, lowering);
    let tried = Lowering { values_taken: vec![2, 0x1_0000, 0x1_0001], ..Lowering::default() };
    for target in [older(Some(&tried)), older(None)] {
        let found = findings(&guest, &target);
        assert_eq!(found[0].subject, "KVM_REG_ARM_PSCI_VERSION");
        assert!(
            found[0].remedy.starts_with("start the guest with 0x6030000000140000=0x10001 in its contract")
        );
        let with_it = with(&guest, &[(PSCI, 0x1_0001)]);
        assert_eq!((refusals(&with_it, &target), refusals(&with_it, &host())), (vec![], vec![]));
    }
}

#[test]
fn services_are_had_or_turned_off() {
    let guest = born(&host());
    assert_eq!(refusals(&with(&guest, &[(VENDOR, 1)]), &host()), [""; 0], "one bit less was tried");
    let found = findings(&with(&guest, &[(VENDOR, 7)]), &host());
    assert_eq!(found[0].subject, "KVM_REG_ARM_VENDOR_HYP_BMAP[2]");
    assert!(found[0].remedy.contains("0x6030000000160002=0x3 in its contract"), "{found:?}");
    let stuck = Lowering { refused: vec![1], ..Lowering::default() };
    let target = adding(VENDOR, 3, Some(&stuck));
    assert_eq!(refusals(&with(&guest, &[(VENDOR, 1)]), &target), ["KVM_REG_ARM_VENDOR_HYP_BMAP[1]"]);
    // One that a newer kernel has, and the guest's does not, is 0 for it.
    let newer = RegisterId::from_key(0x16_0009, 8).unwrap().raw();
    assert_eq!(refusals(&guest, &adding(newer, 5, None)), [""; 0]);
    let stuck = Lowering { refused: vec![2], ..Lowering::default() };
    assert_eq!(refusals(&guest, &adding(newer, 5, Some(&stuck))), ["KVM_REG_ARM_FW_FEAT_BMAP_REG(9)[0,2]"]);
}

/// Each way in which a register that a target does not list may not be needed: see `Arm64Profile::unlisted`.
#[test]
fn a_register_that_the_target_does_not_list_is_dropped_or_refused() {
    let guest = born(&host());
    // The second bitmap of the vendor came with its services: without it there are none.
    assert_eq!(refusals(&with(&guest, &[(VENDOR_2, 0)]), &without(VENDOR_2)), [""; 0]);
    let found = findings(&with(&guest, &[(VENDOR_2, 2)]), &without(VENDOR_2));
    assert_eq!(found[0].subject, "KVM_REG_ARM_VENDOR_HYP_BMAP_2");
    assert!(found[0].remedy.contains("0x6030000000160003=0x0 in its contract"), "{found:?}");
    // The vendor's services and the random numbers are there, to every guest, where PTP is.
    let (older, with_ptp) = (without(VENDOR), able(without(VENDOR), 198));
    for (value, target, lost) in [
        (0, &older, false),
        (3, &older, true),
        (3, &with_ptp, false),
        (1, &with_ptp, true),
        (0, &with_ptp, true),
    ] {
        let refused = refusals(&with(&guest, &[(VENDOR, value)]), target);
        assert_eq!(refused.contains(&id(VENDOR).name()), lost, "{value}");
    }
    for (register, capability) in [(STD, 198), (STD_HYP, 187)] {
        let (off, on) = (without(register), able(without(register), capability));
        for (value, target, lost) in [(0, &off, false), (1, &on, false), (1, &off, true), (0, &on, true)] {
            let refused = refusals(&with(&guest, &[(register, value)]), target);
            assert_eq!(refused.contains(&id(register).name()), lost, "{register:#x}, {value}");
        }
        // What its host has so, a guest is born with.
        assert_eq!(
            (born(&off).says(id(register)), born(&on).says(id(register))),
            (Some(0.into()), Some(1.into()))
        );
    }
    // A workaround that KVM does not know is none; an ID register that is not there reads as 0.
    for register in [WORKAROUND_3, 0x6030_0000_0013_c03d] {
        assert_eq!(refusals(&with(&guest, &[(register, 0)]), &host()), [""; 0]);
        assert_eq!(refusals(&with(&guest, &[(register, 1)]), &host()).len(), 1, "{register:#x}");
    }
    // The version of PSCI, and which processor it is, nothing stands for.
    for register in [PSCI, RegisterId::system(SystemRegister::MIDR_EL1).raw()] {
        let found = findings(&guest, &without(register));
        assert!(found.len() == 1 && found[0].target == "has no such register", "{found:?}");
    }
}

#[test]
fn a_contract_that_does_not_say_which_processor_it_was_is_refused() {
    let mut guest = born(&host());
    guest.registers.remove(&RegisterId::system(SystemRegister::MIDR_EL1));
    let found = findings(&guest, &host());
    assert_eq!((found[0].subject.as_str(), found[0].guest.as_str()), ("MIDR_EL1", "nothing in its contract"));
}

#[test]
fn a_cache_is_shown_where_kvm_lets_caches_be_set() {
    let clidr = RegisterId::system(SystemRegister::CLIDR_EL1).raw();
    let cache = 0x6020_0000_0011_0000;
    // A cache of data on the first level.
    let guest = with(&born(&host()), &[(clidr, 2), (cache, 0x701f_e01a)]);
    let fixed = adding(clidr, 0x23, None);
    assert_eq!(refusals(&guest, &fixed), ["CCSIDR_EL1[0]", "CLIDR_EL1"]);
    let settable = adding(clidr, 0x23, Some(&Lowering { taken: vec![0], ..Lowering::default() }));
    assert_eq!(refusals(&guest, &settable), [""; 0]);
}

#[test]
fn vectors_are_all_that_the_host_has_up_to_the_longest() {
    let Contract::Arm64(guest) = offered(&host(), &[Wish::Pmu, Wish::Sve]).unwrap() else {
        panic!("another")
    };
    let on = |lengths: u64| {
        let mut guest = Arm64Contract::clone(&guest);
        let value = RegisterValue::of_number(lengths, 64).unwrap();
        guest.registers.insert(RegisterId::SVE_VECTOR_LENGTHS, value);
        refusals(&guest, &host())
    };
    for shorter in [1, 3, 0x7f, 0x1ff, 0xffff] {
        assert_eq!(on(shorter), [""; 0], "{shorter:#x}");
    }
    for other in [2, 5, 0x8000, 0x1_ffff] {
        assert_eq!(on(other), ["KVM_REG_ARM64_SVE_VLS"], "{other:#x}");
    }
}

#[test]
fn each_property_of_the_machine_is_held() {
    let guest = born(&host());
    let lost = |change: &dyn Fn(&mut Arm64Profile)| {
        let mut profile = host();
        change(&mut profile);
        findings(&guest, &profile)
    };
    let subject = |found: Vec<Finding>| (found[0].kind, found[0].subject.clone());
    let refused = |name: &str| (FindingKind::Refusal, name.to_owned());
    assert_eq!(subject(lost(&|host| host.vcpus_max = 1)), refused("vCPUs"));
    assert_eq!(subject(lost(&|host| host.ipa_bits = 36)), refused("physical addresses"));
    assert_eq!(
        subject(lost(&|host| host.counter_frequency_hz = Some(62_500_000))),
        refused("counter frequency")
    );
    assert_eq!(subject(lost(&|host| host.gic_versions = Some(vec![2]))), refused("interrupt controller"));
    assert_eq!(subject(lost(&|host| drop(host.feature_sets.remove(0)))), refused("vCPU features"));
    // Of an imported profile some is not known.
    let notice = |name: &str| (FindingKind::Notice, name.to_owned());
    assert_eq!(subject(lost(&|host| host.counter_frequency_hz = None)), notice("counter frequency"));
    assert_eq!(subject(lost(&|host| host.gic_versions = None)), notice("interrupt controller"));
    let unknown = changed(PFR0, |it| it.map(|it| Arm64Register { value: None, ..it }));
    assert_eq!(subject(findings(&guest, &unknown)), notice("ID_AA64PFR0_EL1"));

    let mut asking = guest;
    asking.features.push(VcpuFeature::HasEl2);
    let found = findings(&asking, &host());
    assert_eq!((found[0].guest.as_str(), found[0].target.as_str()), ("psci_0_2, has_el2", "has no has_el2"));
}
