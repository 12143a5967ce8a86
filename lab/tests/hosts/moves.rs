//! Moves between unlike hosts, with `ferry`'s own processes.

use std::thread;

use ferry_lab::{Machine, Pair};
use serde_json::Value;

use super::{STEP_MAX, ok, ready, until};

/// Runs a guest on the source, has the target wait for one, and orders the move; gives back the order's
/// exit status and its report.
fn migrate(pair: &mut Pair, payload: &str) -> (i32, Value) {
    let run = "ferry run --id g --memory 128M --working-set 8M --rate 4M";
    ok(&mut pair.source, &format!("{run} --payload {payload} >/tmp/run.log 2>&1 &"));
    until(&mut pair.source, "ferry status g");
    let receive = format!("ferry receive --insecure --listen {}:7000", Pair::TARGET);
    ok(&mut pair.target, &format!("{receive} >/tmp/receive.log 2>&1 &"));
    until(&mut pair.target, "grep waiting /tmp/receive.log");
    let migrate = format!("ferry migrate g --to {}:7000 --wait --output json", Pair::TARGET);
    let output = pair.source.run(&migrate, STEP_MAX).unwrap();
    (output.status, serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
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
    // The guest works on over there, and finds its pages as it left them.
    let status = |host: &mut Machine| -> Value {
        serde_json::from_str(&ok(host, "ferry status g --output json")).unwrap()
    };
    let turns = |status: &Value| status["progress"].as_u64().unwrap();
    let first = status(&mut pair.target);
    let mut last = first.clone();
    for _ in 0..100 {
        if turns(&last) > turns(&first) {
            break;
        }
        ok(&mut pair.target, "usleep 100000");
        last = status(&mut pair.target);
    }
    assert!(turns(&last) > turns(&first), "{last}");
    assert_eq!(last["faults"], 0, "{last}");
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
