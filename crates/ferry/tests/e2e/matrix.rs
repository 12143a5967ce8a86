//! Guests on KVM over every transport, with one vCPU and four, both dirty sources, memory in one piece and
//! in two, one lane and four.
//!
//! Not every combination, but every pair of values: a fault that needs two of them to show is found. Each
//! guest moves twice, so that a machine that was built for an arrival is a source, too, and verifies all
//! its pages itself after each move, while it writes.

use ferry_vmm::DirtyKind;

use crate::rings::has_rings;
use crate::support::house::House;
use crate::support::process::Process;
use crate::support::{each, kvm_is_here};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Transport {
    Tcp,
    Unix,
    File,
    Descriptor,
}

use Transport::{Descriptor, File, Tcp, Unix};

#[derive(Debug, Clone, Copy)]
struct Case {
    transport: Transport,
    cpus: u32,
    dirty: DirtyKind,
    regions: u32,
    lanes: u32,
}

const fn case(transport: Transport, cpus: u32, dirty: DirtyKind, regions: u32, lanes: u32) -> Case {
    Case { transport, cpus, dirty, regions, lanes }
}

const CASES: [Case; 8] = [
    case(Tcp, 1, DirtyKind::Log, 1, 4),
    case(Tcp, 4, DirtyKind::Ring, 2, 1),
    case(Unix, 4, DirtyKind::Ring, 2, 4),
    case(Unix, 1, DirtyKind::Log, 1, 1),
    case(File, 1, DirtyKind::Log, 2, 1),
    case(File, 4, DirtyKind::Ring, 1, 1),
    case(Descriptor, 1, DirtyKind::Ring, 1, 1),
    case(Descriptor, 4, DirtyKind::Log, 2, 1),
];

/// The working set, which begins 2 MiB into memory: of memory that is split at 8 MiB it lies on both sides.
const WORKING_SET_MIB: u64 = 12;

impl Case {
    fn flags(&self) -> Vec<String> {
        let mut flags = vec![
            "--memory=24M".to_owned(),
            "--payload=churn".to_owned(),
            "--rate=24M".to_owned(),
            format!("--working-set={WORKING_SET_MIB}M"),
            format!("--cpus={}", self.cpus),
            self.dirty_flag(),
        ];
        if self.regions == 2 {
            flags.push("--low-memory=8M".to_owned());
        }
        flags
    }

    fn dirty_flag(&self) -> String {
        format!("--dirty={}", self.dirty.name())
    }

    /// Moves the guest, and gives the process that has it then.
    fn moves(&self, house: &House, from: Process, hop: usize) -> Process {
        let (dirty, lanes) = (self.dirty_flag(), format!("--lanes={}", self.lanes));
        let verify: &[&str] = if hop == 0 { &["--verify"] } else { &[] };
        let to_address = |address: &str| {
            let to = house.receiver_at(address, &[&dirty]);
            let flags = [&[lanes.as_str()][..], verify].concat();
            (house.migrating_to("g", &to.listen, &flags), to)
        };
        let (migrating, to) = match self.transport {
            Tcp => to_address("127.0.0.1:0"),
            Unix => to_address(&format!("unix:{}", house.path(&format!("socket-{hop}")).display())),
            Descriptor => {
                let pipe = house.pipe(&format!("pipe-{hop}"));
                let to = house.reading_a_pipe(&pipe, &[&dirty]);
                (house.migrating_into_a_pipe("g", &pipe, verify), to)
            }
            File => {
                let place = format!("file:{}", house.path(&format!("file-{hop}")).display());
                let migrating = house.migrating_to("g", &place, verify);
                self.is_the_report(&migrating.end().document(), hop);
                assert_eq!(from.end().status, 0);
                return house.reading(&place, &[&dirty], true);
            }
        };
        self.is_the_report(&migrating.end().document(), hop);
        assert_eq!(from.end().status, 0);
        if self.transport == Descriptor { to.ready("arrived") } else { to }
    }

    fn is_the_report(&self, report: &serde_json::Value, hop: usize) {
        assert_eq!(report["outcome"], "moved", "{self:?}: {report}");
        assert_eq!(report["dirty_source"], self.dirty.name(), "{self:?}: {report}");
        assert_eq!(report["epoch"], hop + 2);
        assert!(report["data_bytes"].as_u64().unwrap() >= WORKING_SET_MIB << 20, "{self:?}: {report}");
    }

    fn run(&self) {
        let house = House::new("kvm");
        let flags = self.flags();
        let mut at = house.guest("g", &flags.iter().map(String::as_str).collect::<Vec<_>>());
        for hop in 0..2 {
            at = self.moves(&house, at, hop);
            at.await_state("running");
            assert_eq!(at.check(), WORKING_SET_MIB << 8, "{self:?}: all pages of the working set");
            let status = at.status();
            assert_eq!((&status["cpus"], &status["faults"]), (&self.cpus.into(), &0.into()), "{status}");
            assert_eq!(status["dirty_source"], self.dirty.name(), "{status}");
        }
        assert_eq!(house.runners().len(), 3, "{self:?}");
    }
}

#[test]
fn guests_move_in_every_pair_of_ways() {
    if !kvm_is_here() {
        return;
    }
    let has_ring = has_rings();
    let is_there = |case: &&Case| case.dirty == DirtyKind::Log || has_ring;
    let cases: Vec<_> = CASES.iter().filter(is_there).copied().collect();
    each(&cases, Case::run);
}

#[test]
fn the_cases_hold_every_pair_of_values() {
    let values = |case: &Case| {
        [case.transport as u32, case.cpus, u32::from(case.dirty == DirtyKind::Ring), case.regions, case.lanes]
    };
    let all: Vec<_> = CASES.iter().map(values).collect();
    let of = |factor: usize| {
        let mut values: Vec<_> = all.iter().map(|case| case[factor]).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    let is_one_way = |transport: u32| transport >= File as u32;
    for (one, other) in (0..5).flat_map(|one| (one + 1..5).map(move |other| (one, other))) {
        for (a, b) in of(one).into_iter().flat_map(|a| of(other).into_iter().map(move |b| (a, b))) {
            let found = all.iter().any(|case| case[one] == a && case[other] == b);
            // What has one link has one lane.
            let cannot_be = one == 0 && is_one_way(a) && other == 4 && b > 1;
            assert_ne!(found, cannot_be, "factors {one} and {other} with {a} and {b}");
        }
    }
}

#[test]
fn a_ring_is_asked_for_where_there_is_none() {
    let house = House::new("sim");
    for words in [&["run", "--memory=16M"][..], &["receive", "--listen=127.0.0.1:0"]] {
        let done = house.json(&[words, &["--backend=sim", "--dirty=ring"]].concat());
        done.failed(1, &["no dirty ring"]);
    }
    let done = house.ferry(&["run", "--dirty=bitmap"]);
    assert!(done.status == 2 && done.errors.contains("use `log` or `ring`"), "{done:?}");
}
