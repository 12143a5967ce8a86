//! Profiles of arm64 hosts, and dumps that become profiles.

use std::path::PathBuf;

use ferry_contract::arm64::{RegisterId, RegisterValue, SystemRegister};
use ferry_contract::{Arm64Profile, FindingKind, Profile, VcpuFeature, compare, import};
use serde_json::{Value, json};

use super::forms::schema_file;
use super::{born, reaching, schema};

/// What `ferry probe` wrote on the lab's `arm64/newest/max`, with a register of each kind left.
pub(crate) const MAX: &str = include_str!("../data/arm64.profile.json");

fn max() -> Value {
    serde_json::from_str(MAX).unwrap()
}

fn refusal(value: &Value) -> String {
    Profile::from_json(value.to_string().as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_profile_comes_back_byte_for_byte() {
    let profile = Profile::from_json(MAX.as_bytes()).unwrap();
    assert_eq!(profile.to_json(), MAX);
    assert_eq!(profile.architecture(), "aarch64");
    schema::check(&schema_file("profile-arm64.schema.json"), &max()).unwrap();
    let mut newer = max();
    for place in ["", "/kernel", "/capabilities/1", "/feature_sets/0"] {
        newer.pointer_mut(place).unwrap()["a_newer_field"] = json!({"of": [1, "later"]});
    }
    schema::check(&schema_file("profile-arm64.schema.json"), &newer).unwrap();
    let text = format!("{}\n", serde_json::to_string_pretty(&newer).unwrap());
    assert_eq!(Profile::from_json(text.as_bytes()).unwrap().to_json(), text);
}

#[test]
fn what_the_registers_say_can_be_asked_for() {
    let Profile::Arm64(profile) = Profile::from_json(MAX.as_bytes()).unwrap() else { panic!("another") };
    let [base, full] = &profile.feature_sets[..] else { panic!("{profile:?}") };
    assert_eq!(base.features, [VcpuFeature::Psci02]);
    assert_eq!(VcpuFeature::bits(&full.features), 0x7c);
    let midr = base.register(RegisterId::system(SystemRegister::MIDR_EL1)).unwrap();
    assert_eq!(midr.value.as_ref().and_then(RegisterValue::number), Some(profile.processors[0].midr));
    assert!(base.register(RegisterId::SVE_VECTOR_LENGTHS).is_none());
    assert_eq!(full.sve_vector_bits.last(), Some(&2048));
    assert_eq!(profile.capability(66), i64::from(profile.vcpus_max));
    let counter = RegisterId::new(0x6030_0000_0013_df1a).unwrap();
    assert_eq!(base.register(counter).unwrap().value, None, "a counter is another at each look");
}

#[test]
fn the_schema_and_the_reader_refuse_the_same() {
    let schema = schema_file("profile-arm64.schema.json");
    for (place, bad) in [
        ("/format", json!("ferry.contract")),
        ("/architecture", json!("armv7l")),
        ("/ipa_bits", json!(-1)),
        ("/processors/0/midr", json!("0xf0510")),
        ("/gic_versions", json!(3)),
        ("/feature_sets/0/features/0", json!("psci")),
        ("/feature_sets/0/registers/0/id", json!(5)),
        ("/feature_sets/0/registers/0/value", json!(0)),
        ("/feature_sets/0/registers/0", json!({"id": "0x6030000000100000", "more": 1})),
    ] {
        let mut value = max();
        *value.pointer_mut(place).unwrap() = bad;
        assert!(schema::check(&schema, &value).is_err(), "the schema takes {place}");
        assert!(Profile::from_json(value.to_string().as_bytes()).is_err(), "the reader takes {place}");
    }
    let optional = ["page_bytes", "counter_frequency_hz", "gic_versions", "gic_its", "vcpus_recommended"];
    for name in max().as_object().unwrap().keys() {
        let mut value = max();
        value.as_object_mut().unwrap().remove(name);
        let may = optional.contains(&name.as_str());
        assert_eq!(schema::check(&schema, &value).is_ok(), may, "{name}");
        assert_eq!(Profile::from_json(value.to_string().as_bytes()).is_ok(), may, "{name}");
    }
}

#[test]
fn a_register_that_makes_no_sense_is_refused_with_its_id() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = max();
        change(&mut value["feature_sets"][0]["registers"]);
        refusal(&value)
    };
    let said = with(&|list| list[0]["id"] = json!("0x4030000000100000"));
    assert!(said.starts_with("at $.feature_sets[0].registers[0].id, line 1, "), "{said}");
    assert!(said.contains("0x4030000000100000 is no id of an arm64 register"), "{said}");
    let said = with(&|list| list[0]["id"] = json!("0x6090000000100000"));
    assert!(said.contains("0x6090000000100000 is an id with a size that KVM never had"), "{said}");
    let said = with(&|list| list[1] = list[0].clone());
    assert!(said.contains("registers[1]: fpcr (0x60200000001000d5) a second time"), "{said}");
    let said = with(&|list| list.as_array_mut().unwrap().swap(0, 1));
    assert!(said.contains("registers ascend by id"), "{said}");
    let said = with(&|list| list[2]["value"] = json!("0x00000000"));
    assert!(said.contains("x0 (0x6030000000100000) has 64 bits and its value 32"), "{said}");
    let narrow = |list: &Value| {
        let narrow = |register: &Value| register["id"].as_str().unwrap().starts_with("0x6020");
        list.as_array().unwrap().iter().position(narrow).unwrap()
    };
    let said = with(&|list| {
        let place = narrow(list);
        list[place]["writable_mask"] = json!("0x0000000100000000");
    });
    assert!(said.contains("has 32 bits, its mask 0x0000000100000000 has more"), "{said}");
    let said = with(&|list| {
        let place = narrow(list);
        list[place]["lowering"] = json!({"taken": [32]});
    });
    assert!(said.contains("places do not ascend, or lie outside of it"), "{said}");
}

#[test]
fn a_guest_of_another_architecture_is_refused() {
    let profile = Profile::from_json(MAX.as_bytes()).unwrap();
    let verdict = compare(&born(&reaching()).into(), &profile);
    let [finding] = &verdict.findings[..] else { panic!("{verdict:?}") };
    assert_eq!((finding.kind, finding.subject.as_str()), (FindingKind::Refusal, "kind of machine"));
    assert_eq!(finding.target, "is an aarch64 host");
}

/// A dump with a register of each kind that the form has.
fn dump() -> Value {
    serde_json::from_str(include_str!("../data/kvm-registers.json")).unwrap()
}

fn import(dump: &Value) -> Result<Arm64Profile, String> {
    import::kvm_registers(dump.to_string().as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn a_dump_becomes_a_profile_that_says_what_the_dump_says() {
    let profile = import(&dump()).unwrap();
    assert_eq!((profile.kernel.release.as_str(), profile.vcpus_max), ("6.12.1-arm64", 512));
    assert_eq!((profile.processors[0].midr, profile.mask_ranges.as_slice()), (0x414f_d0b1, &[0][..]));
    assert_eq!(profile.granules_bytes, [4 << 10, 16 << 10, 64 << 10]);
    assert_eq!((profile.gic_versions.as_ref(), profile.counter_frequency_hz), (None, None));
    let [base, full] = &profile.feature_sets[..] else { panic!("{profile:?}") };
    assert_eq!((base.gic_version, full.gic_version), (None, Some(3)));
    assert_eq!(full.features, [VcpuFeature::Psci02, VcpuFeature::PmuV3]);
    let of = |id| base.register(RegisterId::new(id).unwrap()).unwrap();
    assert_eq!(of(0x6020_0000_0010_00d5).value.as_ref().unwrap().bytes(), [3, 0, 0, 0]);
    assert_eq!(of(0x6040_0000_0010_0054).value, None, "the dump has the low half alone");
    assert_eq!(of(0x6030_0000_0013_df1a).value, None, "it counts");
    let mmfr0 = of(0x6030_0000_0013_c038);
    assert_eq!(mmfr0.writable_mask, Some(0xf000_000f_ff0f_ffff));
    assert_eq!(mmfr0.lowering.as_ref().unwrap().taken, [0, 4, 8]);
    let text = Profile::from(profile.clone()).to_json();
    assert_eq!(Profile::from_json(text.as_bytes()), Ok(profile.into()));
    schema::check(&schema_file("profile-arm64.schema.json"), &serde_json::from_str(&text).unwrap()).unwrap();
}

#[test]
fn what_kvm_cannot_have_said_is_refused_with_its_place() {
    let base = |change: &dyn Fn(&mut Value)| {
        let mut dump = dump();
        change(&mut dump["register_sets"]["base"]);
        import(&dump).unwrap_err()
    };
    for (said, words) in [
        (
            base(&|list| list[1]["id"] = json!("0x20300000000d5000")),
            "base[1]: 0x20300000000d5000 is no id of an arm64 register",
        ),
        (
            base(&|list| list[1]["size"] = json!(3)),
            "fpcr (0x60200000001000d5) is said to have 3 bytes: no register of KVM ever had",
        ),
        (base(&|list| list[1]["size"] = json!(512)), "is said to have 512 bytes"),
        (base(&|list| list[1]["size"] = json!(8)), "fpcr (0x60200000001000d5) has 4 bytes, the dump says 8"),
        (
            base(&|list| list[1]["id"] = json!("0x60a00000001000d5")),
            "0x60a00000001000d5 is an id with a size",
        ),
        (base(&|list| list[4] = list[2].clone()), "base[4]: MIDR_EL1 (0x603000000013c000) a second time"),
        (
            base(&|list| list[1]["writable_mask"] = json!("0x100000000")),
            "fpcr (0x60200000001000d5) has 32 bits, its mask 0x0000000100000000 has more",
        ),
        (base(&|list| list[1]["value"] = json!("0x100000000")), "its value 0x0000000100000000 has more"),
        (base(&|list| list[1]["value"] = json!("3")), "is no hexadecimal number"),
        (base(&|list| list[1]["id"] = json!("x")), "the id is no number"),
        (base(&|list| list[3]["lowerable_at_bits"] = json!(["64"])), "lie outside of it"),
        (base(&|list| list[3]["lowerable_at_bits"] = json!(["x"])), "can be lowered is no number"),
        (base(&|list| *list = json!(7)), "at $.register_sets.base, line 1"),
    ] {
        assert!(said.contains(words), "{said}");
    }
    let mut other = dump();
    other["register_sets"]["more"] = json!([]);
    assert!(import(&other).unwrap_err().contains("$.register_sets.more: no list that this build knows"));
    let mut other = dump();
    other["caps"]["SVE"] = json!("yes");
    assert!(import(&other).unwrap_err().contains("$.caps.SVE: no number"));
    other["caps"] = json!({"WARP": "1"});
    assert!(import(&other).unwrap_err().contains("$.caps.WARP: no capability"));
}

/// Dumps of real hosts: `arm64/*.json` of the folder that `FERRY_PROFILES` names.
#[test]
fn dumps_of_real_hosts_become_profiles() {
    let Some(folder) = std::env::var_os("FERRY_PROFILES").map(PathBuf::from) else {
        println!("skipped: FERRY_PROFILES names no folder of hosts");
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(folder.join("arm64")).unwrap() {
        let path = entry.unwrap().path();
        let profile = import::kvm_registers(&std::fs::read(&path).unwrap());
        let profile = profile.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(profile.feature_sets.iter().all(|set| set.registers.len() > 200), "{}", path.display());
        assert!(profile.vcpus_max > 0 && !profile.granules_bytes.is_empty());
        seen += 1;
    }
    assert!(seen > 0);
}
