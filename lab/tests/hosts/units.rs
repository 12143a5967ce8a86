//! The tests of `ferry-kvm` and `ferry-vmm` on a KVM that honours what it is told.
//!
//! Where these tests run usually the KVM may be `kvm_pvm`, which shows a guest the hardware's CPUID and the
//! host's TSC and nests nothing: there they prove less, or skip. Here the same programs run in a host.

use std::path::PathBuf;
use std::time::Duration;

use ferry_lab::{Host, Machine};

use crate::{Ready, TESTS, all, ready, told};

/// All tests of one program, in a host that emulates each instruction.
const PROGRAM_MAX: Duration = Duration::from_secs(900);

/// Enough for a guest whose memory reaches over the hole below 4 GiB; only touched pages cost.
const MEMORY_MIB: u32 = 4096;

/// What a test says that finds no KVM, or one that does not honour what it is told.
const UNFIT: &[&str] = &[
    "skipped: there is no",
    "skipped: /dev/kvm",
    "skipped: no /dev/kvm",
    "skipped: this KVM lets guests see the host's own TSC",
    "skipped: this KVM shows guests the hardware's CPUID",
];

/// The static test programs of a package for these hosts.
fn programs(hosts: &[Host], package: &str) -> Vec<PathBuf> {
    let all = told(TESTS, hosts).unwrap_or_default().into_string().unwrap();
    let of = all.split(':').filter_map(|named| named.strip_prefix(package)?.strip_prefix('='));
    of.map(PathBuf::from).collect()
}

/// Runs the programs in the host; answers with what they said.
fn run(host: &mut Machine, names: &[String]) -> String {
    let mut said = String::new();
    for name in names {
        let output = host.run(&format!("{name} --nocapture 2>&1"), PROGRAM_MAX).unwrap();
        assert_eq!(output.status, 0, "{name} in {}:\n{}", host.name(), output.text());
        said.push_str(&output.text());
    }
    said
}

fn passes(lab: Option<Ready>, package: &str) {
    let Some(lab) = lab else { return };
    let programs = programs(&lab.hosts, package);
    assert!(!programs.is_empty(), "{TESTS} names no tests of {package}");
    let mut job = lab.job.clone().memory(MEMORY_MIB);
    let mut names = Vec::new();
    for program in &programs {
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        job = job.program(&name, program);
        names.push(name);
    }
    for host in &lab.hosts {
        let mut machine = lab.lab.boot(host, &job).unwrap();
        let said = run(&mut machine, &names);
        for unfit in UNFIT {
            assert!(!said.contains(unfit), "{host}: {said}");
        }
    }
}

#[test]
fn states_and_contracts_hold_on_a_kvm_that_honours_them() {
    passes(ready(&["amd/6.12/EPYC"]), "ferry-kvm");
}

#[test]
fn guests_are_moved_on_a_kvm_that_honours_what_it_is_told() {
    passes(all(&["amd/6.12/EPYC"]), "ferry-vmm");
}

#[test]
fn states_and_contracts_hold_on_an_old_kernel_and_on_the_newest() {
    passes(all(&["amd/5.10/EPYC", "amd/newest/EPYC"]), "ferry-kvm");
}

#[test]
fn states_of_arm64_hold_on_an_old_kernel_and_on_todays() {
    passes(ready(&["arm64/5.10/cortex-a57", "arm64/6.12/cortex-a76"]), "ferry-kvm");
}

#[test]
fn states_of_arm64_with_vectors_hold() {
    let names: Vec<String> = Host::with_vectors().iter().map(ToString::to_string).collect();
    passes(all(&names.iter().map(String::as_str).collect::<Vec<_>>()), "ferry-kvm");
}

#[test]
fn guests_are_moved_on_arm64() {
    passes(all(&["arm64/6.12/cortex-a76"]), "ferry-vmm");
}
