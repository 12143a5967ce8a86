//! Moves by a file that goes from one host of a pair to the other, with and without a network.

use std::time::Duration;

use ferry_lab::pair::Step;
use serde_json::Value;

use super::{Ready, all, ready};

/// A step under Bochs.
const STEP_MAX: Duration = Duration::from_secs(300);

/// Moves a guest through a file that a pair carries, with or without a network, from the first host to the second.
fn moves_by_a_file(lab: Option<Ready>) {
    let Some(lab) = lab else { return };
    let mut pair = lab.lab.pair((&lab.hosts[0], &lab.job), (&lab.hosts[1], &lab.job)).unwrap();
    let mut step = |text: &str| {
        let step = Step::parse(text).unwrap();
        let output = pair.run(&step, STEP_MAX).unwrap();
        assert_eq!(output.status, 0, "{text}: {} {}", output.text(), String::from_utf8_lossy(&output.stderr));
        output.text()
    };
    step(
        "source: ferry run --id g --memory 32M --payload features >/tmp/run.log 2>&1 & sleep 3; ferry status g",
    );
    step(
        "source: ferry migrate g --to file:$CARRY/g.ferry --downtime-limit 60000 --wait && echo kept >$CARRY/note",
    );
    step("target: ferry receive --from file:$CARRY/g.ferry >/tmp/receive.log 2>&1 & sleep 3; rm $CARRY/note");
    let status: Value = serde_json::from_str(&step("target: ferry status g --output json")).unwrap();
    assert_eq!(status["faults"], 0, "{status}");
    // The folder comes back as the other side left it.
    assert_eq!(step("source: ls $CARRY"), "g.ferry\n");
}

#[test]
fn a_guest_moves_by_a_file_that_goes_from_side_to_side() {
    moves_by_a_file(ready(&["amd/5.10/EPYC", "amd/6.12/EPYC"]));
}

#[test]
fn a_guest_moves_between_intel_hosts_by_a_file() {
    moves_by_a_file(all(&["intel/6.1/corei5_lynnfield_750", "intel/6.12/corei5_lynnfield_750"]));
}

#[test]
fn a_guest_of_the_newest_kernel_goes_to_the_one_before() {
    moves_by_a_file(all(&["arm64/newest/cortex-a76", "arm64/7.1/cortex-a76"]));
}
