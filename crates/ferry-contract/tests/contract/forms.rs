//! Files and wire forms: they come back as they were, and what is wrong is refused with its place.

use std::path::PathBuf;

use ferry_contract::{Contract, ContractError, MAX_CONTRACT_BYTES, Profile, X86Contract};
use serde_json::{Value, json};

use super::{PVM, born, is_golden, pvm, reaching, schema};

pub(crate) fn schema_file(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn refusal(text: &str) -> String {
    Profile::from_json(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_profile_comes_back_byte_for_byte() {
    assert_eq!(Profile::from(pvm()).to_json(), PVM);
    schema::check(&schema_file("profile.schema.json"), &serde_json::from_str(PVM).unwrap()).unwrap();
}

#[test]
fn newer_fields_survive_at_every_level_that_may_grow() {
    let mut value: Value = serde_json::from_str(PVM).unwrap();
    for place in [
        "",
        "/kernel",
        "/processor",
        "/modules/0",
        "/capabilities/3",
        "/cpuid",
        "/msrs",
        "/xsave",
        "/xsave/components/0",
        "/tsc",
        "/limits",
        "/probe_guest",
    ] {
        value.pointer_mut(place).unwrap()["a_newer_field"] = json!({"of": [1, "later", {"build": null}]});
    }
    schema::check(&schema_file("profile.schema.json"), &value).unwrap();
    let text = format!("{}\n", serde_json::to_string_pretty(&value).unwrap());
    assert_eq!(Profile::from_json(text.as_bytes()).unwrap().to_json(), text);
}

#[test]
fn the_schema_and_the_reader_refuse_the_same() {
    let schema = schema_file("profile.schema.json");
    let good: Value = serde_json::from_str(PVM).unwrap();
    for (place, bad) in [
        ("/format", json!("ferry.contract")),
        ("/architecture", json!("riscv64")),
        ("/quirks", json!(5)),
        ("/quirks", json!("0x5")),
        ("/kernel", json!([])),
        ("/kernel/release", json!(7)),
        ("/tsc/scales", json!("yes")),
        ("/tsc/frequency_khz", json!(-1)),
        ("/tsc/frequency_khz", json!(1_u64 << 32)),
        ("/limits/vcpus_max", Value::Null),
        ("/cpuid/supported/3/eax", json!("0x1")),
        ("/cpuid/supported/3", json!({"leaf": "0x00000003"})),
        ("/msrs/features/0/value", json!("0x00000001")),
        ("/capabilities/0/vm", json!(true)),
        ("/modules/0/parameters/tdp_mmu", json!(1)),
    ] {
        let mut value = good.clone();
        *value.pointer_mut(place).unwrap() = bad;
        assert!(schema::check(&schema, &value).is_err(), "the schema takes {place}");
        assert!(Profile::from_json(value.to_string().as_bytes()).is_err(), "the reader takes {place}");
    }
    for name in good.as_object().unwrap().keys() {
        let mut value = good.clone();
        value.as_object_mut().unwrap().remove(name);
        assert!(schema::check(&schema, &value).is_err(), "the schema misses no {name}");
        assert!(refusal(&value.to_string()).contains(&format!("missing field `{name}`")));
    }
}

#[test]
fn what_is_wrong_in_a_profile_has_its_path_and_place() {
    let place = refusal(&PVM.replacen("\"0x000806f8\"", "\"0x806f8\"", 1));
    assert!(place.starts_with("at $.cpuid.supported[1].eax, line "), "{place}");
    let twice = PVM.replacen("\"scales\"", "\"frequency_khz\"", 1);
    assert!(refusal(&twice).contains("at $.tsc.frequency_khz, line "), "{}", refusal(&twice));
    let mut value: Value = serde_json::from_str(PVM).unwrap();
    let list = value["cpuid"]["supported"].as_array_mut().unwrap();
    list.swap(4, 5);
    assert!(refusal(&value.to_string()).starts_with("at $.cpuid.supported[5]: "));
    value["cpuid"]["supported"].as_array_mut().unwrap().swap(4, 5);
    value["cpuid"]["supported"][1]["ebx"] = json!("0x03020800");
    assert!(refusal(&value.to_string()).starts_with("at $.cpuid.supported[1]: bits that belong to one vCPU"));
    value["quirks"] = json!(0.5);
    assert!(refusal(&value.to_string()).starts_with("at $.quirks, line 1, "));
}

#[test]
fn contracts_come_back_in_both_forms() {
    for contract in [born(&pvm()), born(&reaching())].map(Contract::from) {
        let bytes = contract.to_bytes();
        assert_eq!(Contract::from_bytes(&bytes).unwrap(), contract);
        let text = contract.to_json();
        let back = Contract::from_json(text.as_bytes()).unwrap();
        assert_eq!((back.to_json(), &back), (text.clone(), &contract));
        for cut in 0..bytes.len() {
            assert!(Contract::from_bytes(&bytes[..cut]).is_err());
        }
        let mut unknown: Value = serde_json::from_str(&text).unwrap();
        unknown["a_newer_field"] = json!(1);
        assert!(Contract::from_json(unknown.to_string().as_bytes()).is_err(), "what is not known is needed");
    }
    let long = vec![0; MAX_CONTRACT_BYTES + 1];
    assert!(matches!(Contract::from_bytes(&long), Err(ContractError::TooLong { .. })));
}

#[test]
fn a_contract_that_contradicts_itself_is_refused() {
    let good = born(&reaching());
    let refused = |change: &dyn Fn(&mut X86Contract)| {
        let mut contract = good.clone();
        change(&mut contract);
        let bytes = Contract::from_bytes(&Contract::from(contract).to_bytes());
        assert!(matches!(bytes, Err(ContractError::Sense(_))), "{bytes:?}");
    };
    refused(&|contract| contract.vcpus = 0);
    refused(&|contract| contract.kind = "sim".into());
    refused(&|contract| contract.xcr0 |= 1 << 17);
    refused(&|contract| contract.cpuid.swap(0, 1));
    refused(&|contract| contract.cpuid[1].ebx |= 1 << 24);
    refused(&|contract| contract.feature_msrs.insert(0, contract.feature_msrs[0]));
}

/// Today's wire form, byte for byte. `FERRY_BLESS=1` writes the file anew.
#[test]
fn todays_wire_form_is_that_of_the_golden_file() {
    let mut contract = born(&pvm());
    contract.cpuid.truncate(3);
    contract.kvm_cpuid.as_mut().unwrap().retain(|entry| matches!(entry.leaf, 1 | 0xd));
    let bytes = Contract::from(contract).to_bytes();
    Contract::from_bytes(&bytes).unwrap();
    is_golden(&bytes, "contract.hex");
}
