//! `ferry bench precopy`: the figures of a move beside the raw loop's, and beside QEMU's where it is found.

use crate::support::house::House;
use crate::support::skipped;

on_both! {
    the_bench_sets_a_move_beside_the_limit_and_a_peer,
}

const SMALL: &[&str] = &["bench", "precopy", "--memory=32M", "--pairs=2", "--lanes=2"];

fn the_bench_sets_a_move_beside_the_limit_and_a_peer(on: &'static str) {
    let house = House::new(on);
    let with = |more: &[&str]| house.json(&[SMALL, &["--backend", on], more].concat()).document();
    let document = with(&["--peer=qemu", "--peer-binary=/bin/true"]);
    assert_eq!((&document["backend"], &document["verified"]), (&on.into(), &true.into()));
    let rates = ["throughput_bytes_per_second", "raw_loopback_bytes_per_second", "memcpy_bytes_per_second"];
    for figure in rates.iter().chain(&["ratio", "cpu_ratio", "downtime_ms", "total_ms"]) {
        assert!(document[*figure].as_f64().unwrap() > 0.0, "{figure}: {document}");
    }
    assert_eq!(document["each"].as_array().unwrap().len(), 2);
    let why = document["peer"]["not_measured"].as_str().unwrap();
    assert_eq!(why, "/bin/true does not say that it is a QEMU emulator");
    let text = house.ferry(&[SMALL, &["--backend", on, "--peer=qemu", "--peer-binary=/bin/true"]].concat());
    assert_eq!(text.status, 0);
    assert!(text.output.contains(&format!("QEMU        not measured: {why}")), "{text:?}");

    let document = with(&["--peer=qemu"]);
    let peer = &document["peer"];
    if let Some(why) = peer["not_measured"].as_str() {
        skipped(&format!("QEMU beside the bench: {why}"));
        return;
    }
    assert!(peer["version"].as_str().unwrap().contains('.'), "{peer}");
    assert!(peer["ratio"].as_f64().unwrap() > 0.0, "{peer}");
    for each in peer["each"].as_array().unwrap() {
        assert!(each["transferred_bytes"].as_u64().unwrap() >= 32 << 20, "random pages are no zeros: {each}");
    }
}
