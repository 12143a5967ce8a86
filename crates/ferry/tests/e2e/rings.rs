//! Guests whose written pages KVM notes in dirty rings, where that is hard.

use std::time::Instant;

use ferry_vmm::{DirtyKind, KvmBuilder};

use crate::support::house::House;
use crate::support::process::Process;
use crate::support::{PATIENCE, kvm_is_here, skipped, wait_until};

/// At level 0, from 8 MiB to 40 MiB, a word into every page, again and again, without an exit: `mov
/// rax, 0x800000; next: mov [rax], rax; add rax, 0x1000; cmp rax, 0x2800000; jne next; jmp` to its start. Twice
/// the pages that a ring holds.
const STORM: &[u8] = &[
    0x48, 0xc7, 0xc0, 0, 0, 0x80, 0, 0x48, 0x89, 0, 0x48, 5, 0, 0x10, 0, 0, 0x48, 0x3d, 0, 0, 0x80, 2, 0x75,
    0xef, 0xeb, 0xe6,
];

/// Whether KVM offers dirty rings; if not, says what is skipped.
pub(crate) fn has_rings() -> bool {
    let offered = KvmBuilder::new().unwrap().with_dirty(DirtyKind::Ring);
    if let Err(error) = &offered {
        skipped(&format!("guests with dirty rings: {error}"));
    }
    offered.is_ok()
}

fn storm(house: &House, dirty: &str) -> Process {
    let image = house.path("storm");
    std::fs::write(&image, STORM).unwrap();
    let payload = format!("--payload={}", image.display());
    let words = ["run", "--id=g", "--memory=48M", "--backend=kvm", "--image-level=0", &payload, dirty];
    let mut command = house.command(&words);
    command.args(["--output=json", "--die-with-parent"]);
    house.start(command).ready("running")
}

fn processor_time(process: &Process) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A KVM that emulates level 0 in long stretches writes over the ring. That is told, and the guest runs
/// on, now and after the next attempt; on other KVMs the vCPU waits for room and the guest moves.
#[test]
fn a_guest_that_writes_over_its_ring_stays_and_runs_on() {
    if !kvm_is_here() || !has_rings() {
        return;
    }
    let house = House::new("kvm");
    let source = storm(&house, "--dirty=ring");
    let to = house.receiver(&["--dirty=ring"]);
    for _ in 0..3 {
        let done = house.json(&["migrate", "g", "--to", &to.listen, "--wait", "--timeout=20"]);
        if done.status == 0 {
            return;
        }
        done.failed(4, &["a dirty ring overflowed", "or the dirty log", "still runs on this host"]);
        source.await_state("running");
        let before = processor_time(&source);
        wait_until("it works on", || processor_time(&source) > before + 2);
    }
}

/// A program that never answers is not waited for, and the dirty log loses nothing of what it writes.
#[test]
fn a_guest_that_writes_as_fast_moves_with_the_log_and_its_silence_is_no_wait() {
    if !kvm_is_here() {
        return;
    }
    let house = House::new("kvm");
    let source = storm(&house, "--dirty=log");
    let to = house.receiver(&[]);
    let begun = Instant::now();
    let words = ["migrate", "g", "--to", &to.listen, "--wait", "--verify", "--downtime-limit=3000"];
    let report = house.json(&words).document();
    assert_eq!((&report["outcome"], &report["hashes_equal"]), (&"moved".into(), &true.into()), "{report}");
    assert_eq!(report["verified"], serde_json::Value::Null);
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_eq!(source.end().status, 0);
    assert_eq!(to.status()["state"], "running");
}
