//! `ferry run --kernel` in hosts: Debian's cloud kernel comes up with its vCPUs, its clock and its console, begins anew
//! when it wants to, also after a move, and ends when it switches itself off.

use std::time::Duration;

use ferry_lab::{Job, Machine};

use super::{Ready, STEP_MAX, ok, ready, told};

/// Names the static `ferry-load`, which is part of the guests' initial root.
const LOAD: &str = "FERRY_LAB_LOAD";

/// How long a nested guest may take to boot, or to do what it was told.
const BOOT_MAX: Duration = Duration::from_secs(240);

/// The lab with hosts for Linux guests, and what starts them.
fn linux(names: &[&str]) -> Option<(Ready, Job)> {
    let ready = ready(names)?;
    let Some(load) = told(LOAD, &ready.hosts) else {
        println!("skipped: `cargo xtask test --lab=linux` runs this, with {LOAD}");
        return None;
    };
    if !ready.lab.has_linux(&ready.hosts[0]) {
        println!("skipped: the lab's host {} is not prepared for Linux guests", ready.hosts[0]);
        return None;
    }
    let guest = ready.lab.linux(&ready.hosts[0], load.as_ref()).unwrap();
    let job = ready.job.clone().linux(guest);
    Some((ready, job))
}

/// Waits until so many lines of a file say something.
fn says(host: &mut Machine, file: &str, what: &str, times: usize) {
    let script = format!(
        "for try in $(seq 1100); do [ $(grep -c '{what}' {file}) -ge {times} ] && exit 0; usleep 200000; done; \
         tail -n 60 {file} /tmp/*.err >&2; exit 1"
    );
    host.expect(&script, BOOT_MAX).unwrap_or_else(|error| panic!("no {times} times {what:?}: {error}"));
}

/// Types a line on a guest's console.
fn type_in(host: &mut Machine, pipe: &str, line: &str) {
    ok(host, &format!("echo '{line}' >{pipe}"));
}

/// Boots, restarts, moves to another process, restarts there, switches off.
fn a_guest_lives_its_life(name: &str, clock: &str) {
    let Some((ready, job)) = linux(&[name]) else { return };
    let mut host = ready.lab.boot(&ready.hosts[0], &job).unwrap();
    let host = &mut host;
    // Both ends of the pipes stay open: each line is written by a process of its own.
    ok(host, "mkfifo /tmp/in /tmp/in2; sleep 100000 >/tmp/in & sleep 100000 >/tmp/in2 &");
    let files = "--kernel /lab/linux/vmlinuz --initramfs /lab/linux/initramfs";
    ok(
        host,
        &format!(
            "(ferry run --id g --memory 256M --cpus 2 {files} --console </tmp/in >/tmp/out 2>/tmp/run.err; \
             echo status $? >>/tmp/out) &"
        ),
    );
    says(host, "/tmp/out", "lab: a shell after", 1);
    let facts = "echo cpus $(grep -c ^processor /proc/cpuinfo) year $(date +%Y) clock \
                 $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource) said";
    type_in(host, "/tmp/in", facts);
    says(host, "/tmp/out", &format!("^cpus 2 year 20[2-9][0-9] clock {clock} said"), 1);
    type_in(host, "/tmp/in", "reboot -f");
    says(host, "/tmp/out", "lab: a shell after", 2);

    ok(
        host,
        &format!(
            "(ferry receive --listen unix:/tmp/to {files} --console </tmp/in2 >/tmp/out2 2>/tmp/receive.err; \
             echo status $? >>/tmp/out2) &"
        ),
    );
    says(host, "/tmp/out2", "waiting", 1);
    host.expect(
        "ferry migrate g --to unix:/tmp/to --downtime-limit 10000 --wait >/tmp/move.err 2>&1",
        BOOT_MAX,
    )
    .unwrap();
    says(host, "/tmp/out", "^status 0", 1);
    type_in(host, "/tmp/in2", "echo moved $((6 * 7)) cpus");
    says(host, "/tmp/out2", "^moved 42 cpus", 1);
    type_in(host, "/tmp/in2", "reboot -f");
    says(host, "/tmp/out2", "lab: a shell after", 1);
    type_in(host, "/tmp/in2", "poweroff -f");
    says(host, "/tmp/out2", "switched itself off", 1);
    says(host, "/tmp/out2", "^status 0", 1);
    let warnings = "grep -i -E 'BUG:|WARNING: CPU|call trace|soft lockup|rcu.*stall' /tmp/out /tmp/out2";
    let found = host.run(warnings, STEP_MAX).unwrap();
    assert_eq!(found.status, 1, "{}", String::from_utf8_lossy(&found.stdout));
}

#[test]
fn a_linux_guest_on_amd_lives_its_life() {
    a_guest_lives_its_life("amd/6.1/EPYC", "kvm-clock");
}

#[test]
fn a_linux_guest_on_arm64_lives_its_life() {
    a_guest_lives_its_life("arm64/6.18/cortex-a76", "arch_sys_counter");
}
