//! This machine's own KVM: two hosts made of namespaces, and the same moves between them.

use std::fs;
use std::time::Instant;

use ferry_lab::{Architecture, Error, Job, Machine, Pair};
use serde_json::Value;

use super::{Stage, guest, jobs, report, there_and_back};
use crate::{Ready, STEP_MAX, ok, ready};

/// The emulated host of this machine's architecture whose tools and Linux guests serve here, too: the kernel is that of the guests.
const LIKE: &str = match Architecture::NATIVE {
    Architecture::X86_64 => "amd/6.12/EPYC",
    Architecture::Arm64 => "arm64/6.12/cortex-a76",
};

/// The hosts, if this machine can be two.
fn pair(ready: &Ready, job: &Job) -> Result<Pair, String> {
    match ready.lab.pair_here(job, job) {
        Err(Error::Unable(reason)) => Err(format!("skipped: {reason}")),
        made => Ok(made.unwrap_or_else(|error| panic!("{error}"))),
    }
}

/// Why Linux guests do not move here, if they cannot. Where CPUID does not reach a guest as it was set, a guest's kernel runs without
/// privilege.
fn too_slow(host: &mut Machine) -> Option<&'static str> {
    let profile: Value = serde_json::from_str(&ok(host, "ferry probe --output json")).unwrap();
    (profile["probe_guest"]["cpuid_settings_reach"] == false).then_some(
        "skipped: this machine's KVM (kvm_pvm) emulates a kernel's instructions one by one, and not all: Linux guests move in the lab \
         alone",
    )
}

#[test]
fn linux_guests_of_this_machine_go_there_and_back_ten_times_under_load() {
    let Some((ready, jobs)) = jobs(&[LIKE]) else { return };
    let made = pair(&ready, &jobs[0]).and_then(|mut pair| match too_slow(&mut pair.source) {
        Some(why) => Err(why.to_owned()),
        None => Ok(pair),
    });
    match made {
        Ok(pair) => {
            let figures = "this machine, from one process to another\n".to_owned();
            there_and_back(Stage { pair, figures, born_on_target: false, ready });
        }
        Err(why) => {
            println!("{why}");
            report(&format!("this machine\n  {why}\n"));
        }
    }
}

#[test]
fn a_guest_moves_between_hosts_made_of_this_machine_and_nothing_of_them_stays() {
    let Some(ready) = ready(&[LIKE]) else { return };
    let mut pair = match pair(&ready, &ready.job) {
        Ok(pair) => pair,
        Err(why) => return println!("{why}"),
    };
    for (host, number) in [(&mut pair.source, 1), (&mut pair.target, 2)] {
        assert!(ok(host, "ferry probe --output json").contains("\"kernel\""));
        // What one host writes the other does not see; each has devices of its own, and both are in one network.
        assert_eq!(ok(host, "echo $LAB_HOST >>/tmp/own; cat /tmp/own"), format!("here/{number}\n"));
        assert_eq!(
            ok(host, "for tap in ${LAB_TAP}0 ${LAB_TAP}1; do tunctl -t $tap >/dev/null && echo $tap; done"),
            format!("host{number}tap0\nhost{number}tap1\n")
        );
    }
    let name = format!("here-{}", std::process::id());
    let run = format!("ferry run --id {name} --memory 16M --payload churn --working-set 4M --rate 4M");
    guest::start(&mut pair.source, &name, &run);
    guest::wait(&mut pair.source, &format!("ferry status {name}"));
    for from_target in [false, true] {
        guest::carry(&mut pair, &name, from_target, "", guest::LONG);
        works(pair.host(!from_target), &name);
        assert_ne!(pair.host(from_target).run(&format!("ferry status {name}"), STEP_MAX).unwrap().status, 0);
    }
    assert_ne!(processes(&name), 0, "the guest's process is looked for by its name");
    drop(pair);
    assert_eq!(processes(&name), 0, "the guest's process outlives its host");
}

/// The guest works on, and finds its pages as it left them.
fn works(host: &mut Machine, name: &str) {
    let status = |host: &mut Machine| -> Value {
        serde_json::from_str(&ok(host, &format!("ferry status {name} --output json"))).unwrap()
    };
    let first = status(host);
    let limit = Instant::now() + STEP_MAX;
    loop {
        let now = status(host);
        assert_eq!(now["faults"], 0, "{now}");
        if now["progress"].as_u64().unwrap() > first["progress"].as_u64().unwrap() {
            return;
        }
        assert!(Instant::now() < limit, "{now}");
    }
}

/// How many processes of this machine have a command line with that word.
fn processes(word: &str) -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(word)).count()
}
