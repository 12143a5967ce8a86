//! What `ferry` finds on arm64 hosts.

use ferry_lab::Machine;
use serde_json::Value;

use super::{ok, ready};

/// The profile of a host, probed twice: the same both times.
fn profile(host: &mut Machine) -> Value {
    let text = ok(
        host,
        "ferry probe -o /tmp/a >/dev/null && ferry probe -o /tmp/b >/dev/null && cmp /tmp/a /tmp/b && cat /tmp/a",
    );
    serde_json::from_str(&text).unwrap()
}

/// Boots the host and looks at its profile, if it is prepared and there is a program for it.
fn with_profile(name: &str, look: impl FnOnce(&mut Machine, &Value)) {
    let Some(lab) = ready(&[name]) else { return };
    let mut machine = lab.lab.boot(&lab.hosts[0], &lab.job).unwrap();
    let profile = profile(&mut machine);
    look(&mut machine, &profile);
}

/// A register of the vCPU with PSCI alone.
fn register<'a>(profile: &'a Value, id: &str) -> &'a Value {
    let set = &profile["feature_sets"][0];
    assert_eq!(set["features"], serde_json::json!(["psci_0_2"]));
    let list = set["registers"].as_array().unwrap();
    list.iter().find(|register| register["id"] == id).unwrap_or_else(|| panic!("no {id}"))
}

const MIDR_EL1: &str = "0x603000000013c000";
const ID_MMFR4_EL1: &str = "0x603000000013c016";
const ID_AA64PFR0_EL1: &str = "0x603000000013c020";
const PSCI_VERSION: &str = "0x6030000000140000";
const TIMER_CNT: &str = "0x603000000013df1a";

#[test]
fn a_host_with_masks_is_probed_with_them_and_with_what_they_are_worth() {
    with_profile("arm64/6.12/cortex-a76", |host, profile| {
        assert_eq!(profile["architecture"], "aarch64");
        assert_eq!(profile["mask_ranges"], serde_json::json!([0]));
        assert_eq!(profile["gic_versions"], serde_json::json!([3]));
        assert!(profile["kernel"]["release"].as_str().unwrap().starts_with("6.12"));
        assert_eq!(profile["processors"][0]["midr"], register(profile, MIDR_EL1)["value"]);
        let mmfr4 = register(profile, ID_MMFR4_EL1);
        assert_eq!(mmfr4["writable_mask"], "0x00000000ffffffff");
        assert!(!mmfr4["lowering"]["taken"].as_array().unwrap().is_empty(), "{mmfr4}");
        assert_eq!(register(profile, PSCI_VERSION)["value"], "0x0000000000010001");
        assert!(register(profile, TIMER_CNT).get("value").is_none(), "it counts");
        let sets = profile["feature_sets"].as_array().unwrap();
        assert_eq!(sets.len(), 2, "it has a PMU, and neither SVE nor pointer authentication nor EL2");
        assert!(ok(host, "ferry inspect /tmp/a").contains("implementer 0x41, part 0xd0b"));
        let refused = ok(host, "! ferry run --backend kvm --payload msrs 2>&1");
        assert!(refused.contains("guests of aarch64 have no payload `msrs`"), "{refused}");
    });
}

#[test]
fn guests_go_from_one_process_to_another() {
    let Some(lab) = ready(&["arm64/6.12/cortex-a76", "arm64/5.10/cortex-a57"]) else {
        return;
    };
    for name in &lab.hosts {
        let mut host = lab.lab.boot(name, &lab.job).unwrap();
        for payload in ["churn", "clock", "features", "ticks"] {
            // Interrupts take emulated time: `ticks` never comes below the default limit on a fast machine.
            let demo = format!(
                "ferry demo --backend kvm --payload {payload} --cpus 2 --memory 32M --rate 4M \
                 --downtime-limit 10000 2>&1"
            );
            let said = ok(&mut host, &demo);
            assert!(said.contains("nothing lost: 0 faults"), "{name}, {payload}: {said}");
        }
    }
}

#[test]
fn before_there_were_masks_trying_finds_what_can_be_lowered() {
    with_profile("arm64/5.10/cortex-a57", |_, profile| {
        assert_eq!(profile["mask_ranges"], serde_json::json!([]));
        let pfr0 = register(profile, ID_AA64PFR0_EL1);
        assert!(pfr0.get("writable_mask").is_none(), "{pfr0}");
        assert!(!pfr0["lowering"]["refused"].as_array().unwrap().is_empty(), "{pfr0}");
        let psci = register(profile, PSCI_VERSION);
        assert_eq!(psci["value"], "0x0000000000010000", "{psci}");
        let taken = psci["lowering"]["values_taken"].as_array().unwrap();
        assert!(taken.contains(&"0x0000000000000002".into()), "{psci}");
        assert!(!taken.contains(&"0x0000000000010001".into()), "{psci}");
    });
}
