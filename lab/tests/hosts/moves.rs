//! Moves between unlike hosts, with `ferry`'s own processes.

use std::thread;

use ferry_lab::{Machine, Pair};
use serde_json::Value;

use super::{STEP_MAX, all, ok, ready, until};

/// Runs a guest; `payload` may be followed by more of the command line.
fn run(host: &mut Machine, payload: &str) {
    let run = "ferry run --id g --memory 128M --working-set 8M --rate 4M";
    ok(host, &format!("{run} --payload {payload} >/tmp/run.log 2>&1 &"));
    until(host, "ferry status g");
}

/// Waits for a guest on a host, and orders the move there; gives back the order's exit status and its report.
fn move_to(from: &mut Machine, to: &mut Machine, address: &str) -> (i32, Value) {
    ok(to, &format!("ferry receive --insecure --listen {address}:7000 >/tmp/receive.log 2>&1 &"));
    until(to, "grep waiting /tmp/receive.log");
    // Between emulated hosts no guest stands still as shortly as the usual limit wants.
    let migrate = format!("ferry migrate g --to {address}:7000 --downtime-limit 10000 --wait --output json");
    let output = from.run(&migrate, STEP_MAX).unwrap();
    (output.status, serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

/// Runs a guest on the source and orders its move to the target.
fn migrate(pair: &mut Pair, payload: &str) -> (i32, Value) {
    run(&mut pair.source, payload);
    move_to(&mut pair.source, &mut pair.target, Pair::TARGET)
}

/// The guest works on here, and finds its pages as it left them.
fn works(host: &mut Machine) {
    let status = |host: &mut Machine| -> Value {
        serde_json::from_str(&ok(host, "ferry status g --output json")).unwrap()
    };
    let turns = |status: &Value| status["progress"].as_u64().unwrap();
    let first = status(host);
    let mut last = first.clone();
    for _ in 0..100 {
        if turns(&last) > turns(&first) {
            break;
        }
        ok(host, "usleep 100000");
        last = status(host);
    }
    assert!(turns(&last) > turns(&first), "{last}");
    assert_eq!(last["faults"], 0, "{last}");
}

/// Orders a move that must be refused for this, with the guest left where it was.
fn refused(source: &str, target: &str, subject: &str) {
    let Some(lab) = all(&[source, target]) else { return };
    let mut pair = lab.lab.pair((&lab.hosts[0], &lab.job), (&lab.hosts[1], &lab.job)).unwrap();
    let (status, report) = migrate(&mut pair, "churn");
    assert_eq!(status, 3, "{report}");
    let findings = report["findings"].as_array().unwrap();
    let subjects: Vec<&str> = findings.iter().filter_map(|finding| finding["subject"].as_str()).collect();
    assert!(subjects.contains(&subject), "{subjects:?}");
    assert!(!has_guest(&mut pair.target));
    works(&mut pair.source);
}

fn has_guest(host: &mut Machine) -> bool {
    host.run("ferry status g", STEP_MAX).unwrap().status == 0
}

#[test]
fn a_guest_moves_from_an_old_kernel_to_a_new_one_and_verifies_itself() {
    let Some(lab) = ready(&["amd/5.10/EPYC", "amd/6.12/EPYC"]) else { return };
    let mut pair = lab.lab.pair((&lab.hosts[0], &lab.job), (&lab.hosts[1], &lab.job)).unwrap();
    let (status, report) = migrate(&mut pair, "churn");
    assert_eq!(status, 0, "{report}");
    assert_eq!(report["outcome"], "moved", "{report}");
    assert_eq!(report["custody"], "target", "{report}");
    assert_eq!(report["backend"], "kvm", "{report}");
    assert!(!has_guest(&mut pair.source) && has_guest(&mut pair.target));
    works(&mut pair.target);
}

#[test]
fn a_guest_that_counts_on_what_the_target_lacks_is_refused_and_stays() {
    // KVM gives VIRT_SSBD to guests where the processor has one of the means for it: EPYC does, by its
    // family; the emulated EPYC-Milan does not.
    let Some(lab) = ready(&["amd/5.10/EPYC", "amd/6.12/EPYC-Milan"]) else { return };
    let mut pair = lab.lab.pair((&lab.hosts[0], &lab.job), (&lab.hosts[1], &lab.job)).unwrap();
    let (status, report) = migrate(&mut pair, "idle");
    assert_eq!(status, 3, "{report}");
    assert_eq!(report["findings"][0]["subject"], "CPUID.0x80000008.0:EBX[25]", "{report}");
    assert!(has_guest(&mut pair.source) && !has_guest(&mut pair.target));
}

/// Moves a guest there, and back where it came from.
fn goes_and_comes_back(source: &str, target: &str, payload: &str) {
    let Some(lab) = all(&[source, target]) else { return };
    let mut pair = lab.lab.pair((&lab.hosts[0], &lab.job), (&lab.hosts[1], &lab.job)).unwrap();
    let (status, report) = migrate(&mut pair, payload);
    assert_eq!((status, &report["outcome"]), (0, &"moved".into()), "{report}");
    assert!(!has_guest(&mut pair.source));
    works(&mut pair.target);
    let (status, report) = move_to(&mut pair.target, &mut pair.source, Pair::SOURCE);
    assert_eq!((status, &report["outcome"]), (0, &"moved".into()), "{report}");
    assert!(!has_guest(&mut pair.target));
    works(&mut pair.source);
}

#[test]
fn a_guest_goes_to_the_newest_kernel_and_comes_back_to_its_own() {
    goes_and_comes_back("amd/6.1/EPYC", "amd/newest/EPYC", "churn");
}

#[test]
fn a_guest_of_arm64_goes_to_a_newer_kernel_and_comes_back_to_its_own() {
    goes_and_comes_back("arm64/6.12/cortex-a76", "arm64/6.18/cortex-a76", "churn");
}

#[test]
fn interrupts_of_arm64_go_on_there_and_back() {
    goes_and_comes_back("arm64/6.12/cortex-a76", "arm64/6.18/cortex-a76", "ticks --cpus 2");
}

#[test]
fn a_guest_of_arm64_goes_from_the_stable_kernel_before_the_last_and_comes_back() {
    goes_and_comes_back("arm64/6.1/cortex-a76", "arm64/6.12/cortex-a76", "churn");
}

#[test]
fn a_guest_of_epyc_milan_stays_where_its_features_are() {
    refused("amd/6.12/EPYC-Milan", "amd/6.12/EPYC", "CPUID.7.0:EBX[9,24]");
}

#[test]
fn a_guest_of_epyc_stays_where_its_features_are() {
    refused("amd/6.12/EPYC", "amd/6.12/EPYC-Milan", "CPUID.0x80000008.0:EBX[25]");
}

#[test]
fn a_guest_with_protection_keys_does_not_come_where_there_are_none() {
    refused("amd/6.12/max", "amd/6.12/EPYC", "CPUID.0xd.0:EAX[9]");
}

#[test]
fn a_guest_of_arm64_with_all_of_a_newer_kernel_does_not_go_back() {
    refused("arm64/6.18/cortex-a76", "arm64/6.12/cortex-a76", "KVM_REG_ARM_PSCI_VERSION");
}

#[test]
fn a_guest_of_the_oldest_kernel_stays_where_its_debug_registers_are() {
    refused("arm64/5.10/cortex-a76", "arm64/6.1/cortex-a76", "ID_AA64DFR0_EL1.DebugVer");
}

#[test]
fn a_guest_of_arm64_born_with_what_an_older_kernel_offers_goes_back_to_it() {
    let Some(lab) = all(&["arm64/6.18/cortex-a76", "arm64/6.12/cortex-a76"]) else { return };
    let mut pair = lab.lab.pair((&lab.hosts[0], &lab.job), (&lab.hosts[1], &lab.job)).unwrap();
    let profile = ok(&mut pair.target, "ferry probe --output json");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("older.json"), profile).unwrap();
    pair.source.put(folder.path(), "/tmp/contracts", STEP_MAX).unwrap();
    let (status, report) = migrate(&mut pair, "churn --contract /tmp/contracts/older.json");
    assert_eq!((status, &report["outcome"]), (0, &"moved".into()), "{report}");
    works(&mut pair.target);
}

#[test]
fn two_threads_may_work_on_the_two_hosts_of_a_pair() {
    let Some(lab) = ready(&["amd/5.10/EPYC", "amd/6.12/EPYC"]) else { return };
    let mut pair = lab.lab.pair((&lab.hosts[0], &lab.job), (&lab.hosts[1], &lab.job)).unwrap();
    let Pair { source, target, .. } = &mut pair;
    let text = thread::scope(|scope| {
        let server = scope.spawn(|| ok(target, "nc -l -p 7001"));
        until(source, &format!("echo hello | nc {} 7001", Pair::TARGET));
        server.join().unwrap()
    });
    assert_eq!(text, "hello\n");
}
