//! `probe`, `check` and `inspect`, and guests under a contract.

#[path = "../../../ferry-contract/tests/contract/schema.rs"]
mod schema;

use serde_json::{Value, json};

use crate::support::house::{House, IDLE};
use crate::support::{kvm_is_here, skipped};

fn document(house: &House, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(house.path(name)).unwrap()).unwrap()
}

fn write(house: &House, name: &str, document: &Value) -> String {
    let path = house.path(name);
    std::fs::write(&path, document.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_host_is_probed_and_guests_are_held_against_it() {
    if !kvm_is_here() {
        return skipped("probe");
    }
    let house = House::new("kvm");
    let file = house.path("host.json").to_str().unwrap().to_owned();
    let text = house.ferry(&["probe", "-o", &file]);
    assert!(text.status == 0 && text.output.contains("probe guest"), "{text:?}");
    let printed: Value = serde_json::from_str(&house.json(&["probe"]).output).unwrap();
    assert_eq!(printed, document(&house, "host.json"), "file and JSON are one profile");
    let rules: Value = serde_json::from_str(include_str!("../../../../docs/profile.schema.json")).unwrap();
    schema::check(&rules, &printed).unwrap();

    let same = house.json(&["check", &file, &file]).document();
    assert!(same["verdict"].as_str().unwrap().starts_with("accept"), "{same}");

    // A host that lacks FXSAVE, which every processor with KVM has.
    let mut lacking = printed;
    for list in ["/cpuid/supported", "/probe_guest/cpuid"] {
        let entries = lacking.pointer_mut(list).unwrap().as_array_mut().unwrap();
        let leaf = entries.iter_mut().find(|entry| entry["leaf"] == "0x00000001").unwrap();
        let edx = u32::from_str_radix(&leaf["edx"].as_str().unwrap()[2..], 16).unwrap();
        leaf["edx"] = json!(format!("{:#010x}", edx & !(1 << 24)));
    }
    let lacking = write(&house, "lacking.json", &lacking);
    let done = house.json(&["check", &file, &lacking]);
    assert_eq!(done.status, 3, "{done:?}");
    let verdict: Value = serde_json::from_str(&done.output).unwrap();
    assert_eq!(verdict["verdict"], "refuse");
    assert_eq!(verdict["findings"][0]["subject"], "CPUID.1.0:EDX[24]");
    let text = house.ferry(&["check", &file, &lacking]);
    assert!(text.status == 3 && text.output.contains("CPUID.1.0:EDX[24]"), "{text:?}");
}

#[test]
fn a_running_guests_contract_can_be_had_and_given_to_another() {
    if !kvm_is_here() {
        return skipped("contracts");
    }
    let house = House::new("kvm");
    let host = house.path("host.json").to_str().unwrap().to_owned();
    assert_eq!(house.ferry(&["probe", "-o", &host]).status, 0);
    let guest = house.guest("one", IDLE);
    assert_eq!(house.json(&["check", "one", &host]).status, 0);
    let socket = std::fs::read_dir(house.sockets()).unwrap().next().unwrap().unwrap().path();
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    std::io::Write::write_all(&mut stream, b"{\"command\":\"contract\"}\n").unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(&stream), &mut line).unwrap();
    let reply: Value = serde_json::from_str(&line).unwrap();
    drop(guest);

    let contract = write(&house, "contract.json", &reply["contract"]);
    let shown = house.ferry(&["inspect", &contract]);
    assert!(shown.status == 0 && shown.output.starts_with("a contract\n"), "{shown:?}");
    assert_eq!(house.json(&["check", &contract, &host]).status, 0);
    let flag = format!("--contract={contract}");
    drop(house.guest("two", &[IDLE, &[flag.as_str()]].concat()));

    // A guest that is promised more by an MSR than this host has is not started.
    let mut promised = reply["contract"].clone();
    promised["feature_msrs"] = json!([{ "index": "0x00000345", "value": "0xffffffffffffffff" }]);
    let flag = format!("--contract={}", write(&house, "promised.json", &promised));
    let refused = house.json(&[&["run", "--backend=kvm", "--memory=16M"][..], &[flag.as_str()]].concat());
    let error = refused.failed(3, &["MSR 0x345"]);
    assert!(error["findings"][0]["subject"].as_str().unwrap().starts_with("MSR 0x345"), "{error}");
}

#[test]
fn hosts_of_the_catalogue_are_compared_by_name_and_a_file_goes_first() {
    let house = House::new("sim");
    let names = house.json(&["check", "--list"]).document();
    let names: Vec<&str> =
        names["catalog"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(names.contains(&"amd/5.10/EPYC") && names.contains(&"intel/6.12/corei7_skylake_x"), "{names:?}");
    let same = house.json(&["check", "amd/6.12/EPYC", "amd/6.12/EPYC"]).document();
    assert_eq!((&same["verdict"], &same["findings"]), (&json!("accept"), &json!([])));
    assert_eq!(same["target"], json!({ "name": "amd/6.12/EPYC", "from": "catalog" }));
    let text = house.ferry(&["check", "amd/6.12/max", "amd/6.12/EPYC"]);
    assert!(text.status == 3 && text.output.contains("target   amd/6.12/EPYC of the catalogue"), "{text:?}");
    assert!(house.ferry(&["inspect", "amd/6.12/phenom"]).output.contains("AMD Phenom"));

    // What is in neither place has its nearest.
    let told = ["amd/6.12/EPYC-Milano", "cannot be read", "the nearest are amd/6.12/EPYC-Milan,"];
    house.json(&["check", "amd/6.12/EPYC", told[0]]).failed(1, &told);
    house.json(&["check", told[0], "amd/6.12/EPYC"]).failed(1, &told);
    house.json(&["inspect", told[0]]).failed(1, &told);

    // A file of that name is the file.
    std::fs::create_dir_all(house.path("amd/6.12")).unwrap();
    let profile = house.json(&["inspect", "amd/6.12/max"]).output;
    std::fs::write(house.path("amd/6.12/EPYC"), profile).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ferry"));
    command.args(["check", "amd/6.12/max", "amd/6.12/EPYC"]).current_dir(house.path(""));
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("target   the file amd/6.12/EPYC\n"), "{text}");
}

#[test]
fn bad_files_are_said_in_a_sentence() {
    let house = House::new("sim");
    let toast = write(&house, "toast.json", &json!({ "format": "toast" }));
    let half = write(&house, "half.json", &json!({ "format": "ferry.profile", "architecture": "x86_64" }));
    let missing = house.path("missing.json").to_str().unwrap().to_owned();
    for (file, told) in [
        (&toast, vec!["toast.json", "neither a profile"]),
        (&half, vec!["half.json", "no profile", "missing field"]),
        (&missing, vec!["missing.json", "cannot be read"]),
    ] {
        house.json(&["inspect", file]).failed(1, &told);
        house.json(&["check", file, file]).failed(1, &told);
    }
}

#[test]
fn a_dump_of_an_arm64_host_becomes_a_profile_that_can_be_looked_at_and_checked_against() {
    let house = House::new("sim");
    let dump = include_str!("../../../ferry-contract/tests/data/kvm-registers.json");
    let (file, profile) = (house.path("dump.json"), house.path("arm64.json"));
    std::fs::write(&file, dump).unwrap();
    let [file, profile] = [&file, &profile].map(|path| path.to_str().unwrap().to_owned());
    let done = house.ferry(&["import", "--from", "kvm-registers", &file, "-o", &profile]);
    assert!(done.status == 0 && done.output.contains("psci_0_2 pmu_v3: 2 registers"), "{done:?}");
    let inspected = house.ferry(&["inspect", &profile]);
    assert!(inspected.status == 0 && inspected.output.contains("MIDR 0x414fd0b1"), "{inspected:?}");

    // A guest of x86-64 cannot go there, whatever it counts on.
    let born = house.path("born.json");
    std::fs::write(&born, include_str!("../../../ferry-contract/tests/data/kvm_pvm.profile.json")).unwrap();
    let done = house.json(&["check", born.to_str().unwrap(), &profile]);
    assert_eq!(done.status, 3, "{done:?}");
    let verdict: Value = serde_json::from_str(&done.output).unwrap();
    assert_eq!(verdict["findings"][0]["subject"], "kind of machine", "{verdict}");
    // One that is born there may go where it comes from; what the dump does not say is noted.
    let done = house.json(&["check", &profile, &profile]);
    let verdict: Value = serde_json::from_str(&done.output).unwrap();
    assert_eq!((done.status, &verdict["verdict"]), (0, &json!("accept_with_notices")), "{verdict}");

    // What KVM cannot have said is refused with the register.
    std::fs::write(&file, dump.replacen("0x60200000001000d5", "0x20200000001000d5", 1)).unwrap();
    let done = house.ferry(&["import", "--from", "kvm-registers", &file]);
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.errors.contains("base[1]: 0x20200000001000d5 is no id of an arm64 register"), "{done:?}");
}
