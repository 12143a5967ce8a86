//! The target's side: holds an offered simulated machine against this host, and builds it.

use std::fs;

use ferry_contract::{Finding, FindingKind, Layer, Verdict};
use ferry_migrate::{Builder, MachineError};
use ferry_protocol::MachineDescription;

use crate::config::{ConfigError, KIND, SimConfig};
use crate::faults::{Call, SimFaults};
use crate::machine::{SimMachine, SimOptions};

/// The longest text of the other side that a finding repeats, in characters.
const MAX_REPEATED_CHARS: usize = 64;

/// Makes simulated machines for guests that arrive.
#[derive(Debug)]
pub struct SimBuilder {
    options: SimOptions,
    /// Counts the builds apart from what the machines count.
    build_faults: SimFaults,
    memory_limit_bytes: Option<u64>,
}

impl SimBuilder {
    /// A builder whose machines have these options. It accepts guests with as much memory as the host
    /// has available at that moment.
    pub fn new(options: SimOptions) -> Self {
        Self { build_faults: options.faults.clone(), options, memory_limit_bytes: None }
    }

    /// Accepts guests with at most so much memory, whatever the host has available.
    #[must_use]
    pub fn with_memory_limit(mut self, memory_limit_bytes: u64) -> Self {
        self.memory_limit_bytes = Some(memory_limit_bytes);
        self
    }
}

impl Builder for SimBuilder {
    type Machine = SimMachine;

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        if machine.kind != KIND {
            // Nothing else in it can be read.
            return Verdict { findings: vec![other_kind(&machine.kind)] };
        }
        let mut findings = Vec::new();
        if machine.vcpus != SimConfig::VCPUS {
            findings.push(vcpus(machine.vcpus));
        }
        match SimConfig::from_bytes(&machine.config) {
            Err(error) => findings.push(config(&error)),
            Ok(config) => findings.extend(layout(machine, &config)),
        }
        let limit = self.memory_limit_bytes.or_else(available_memory_bytes);
        findings.extend(limit.and_then(|limit| memory(machine.memory_bytes(), limit)));
        Verdict { findings }
    }

    fn build(&mut self, machine: &MachineDescription) -> Result<SimMachine, MachineError> {
        self.build_faults.meet(Call::Build)?;
        let config = SimConfig::from_description(machine)
            .map_err(|error| MachineError::with_source("the offered machine cannot be built", error))?;
        SimMachine::born(config, self.options.clone())
    }
}

fn refusal(subject: &str, guest: String, target: String, effect: &str, remedy: &str) -> Finding {
    Finding {
        kind: FindingKind::Refusal,
        subject: subject.to_owned(),
        layer: Layer::Machine,
        guest,
        target,
        effect: effect.to_owned(),
        remedy: remedy.to_owned(),
    }
}

fn other_kind(kind: &str) -> Finding {
    let shown: String = kind.chars().take(MAX_REPEATED_CHARS).flat_map(char::escape_default).collect();
    refusal(
        "kind",
        format!("`{shown}`"),
        format!("`{KIND}`"),
        "its state would mean nothing here",
        "receive it with the backend that it runs on",
    )
}

fn vcpus(vcpus: u32) -> Finding {
    refusal(
        "vcpus",
        vcpus.to_string(),
        SimConfig::VCPUS.to_string(),
        "the others would be missing",
        "simulate a guest with one vCPU",
    )
}

fn config(error: &ConfigError) -> Finding {
    refusal(
        "config",
        "a config that cannot be used".to_owned(),
        error.to_string(),
        "another guest would run here",
        "use the same build of ferry on both sides",
    )
}

fn layout(machine: &MachineDescription, config: &SimConfig) -> Option<Finding> {
    let wanted = config.description().ok()?.regions;
    let shown = machine.regions.first().map_or_else(
        || "no region".to_owned(),
        |first| {
            let count = machine.regions.len();
            format!("{count} regions, the first with {} bytes at {:#x}", first.length, first.start)
        },
    );
    (machine.regions != wanted).then(|| {
        refusal(
            "memory layout",
            shown,
            format!("one region of {} bytes at 0x0, as the config says", config.memory_bytes),
            "pages would lie where the guest does not look for them",
            "use the same build of ferry on both sides",
        )
    })
}

fn memory(wanted: u64, limit: u64) -> Option<Finding> {
    (wanted > limit).then(|| {
        refusal(
            "memory",
            format!("{wanted} bytes"),
            format!("{limit} bytes available"),
            "it would be killed when it uses its memory",
            "free memory on the target, choose another target, or start the guest with less memory",
        )
    })
}

/// What the kernel thinks can be had without swapping: `MemAvailable` of `proc_meminfo(5)`, in KiB
/// there. None where that is not to be read.
fn available_memory_bytes() -> Option<u64> {
    parse_available(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use ferry_migrate::Machine;
    use ferry_protocol::RegionSpan;

    use super::*;
    use crate::Workload;

    const MIB: u64 = 1 << 20;

    fn offer() -> MachineDescription {
        let workload = Workload::Idle { patterned_bytes: MIB };
        SimConfig { seed: 1, memory_bytes: 4 * MIB, workload }.description().unwrap()
    }

    fn builder() -> SimBuilder {
        SimBuilder::new(SimOptions::default()).with_memory_limit(8 * MIB)
    }

    fn subjects(machine: &MachineDescription) -> Vec<String> {
        let verdict = builder().judge(machine);
        assert_eq!(verdict.is_refusal(), !verdict.findings.is_empty());
        assert!(verdict.is_bounded());
        verdict.findings.into_iter().map(|finding| finding.subject).collect()
    }

    #[test]
    fn a_machine_that_fits_is_accepted_and_built() {
        assert_eq!(builder().judge(&offer()), Verdict::accept());
        let built = builder().build(&offer()).unwrap();
        assert_eq!(built.description(), offer());
        let mut page = [1; 4096];
        built.ram().read(0, &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
    }

    #[test]
    fn everything_wrong_is_found_at_once() {
        assert_eq!(subjects(&MachineDescription { kind: "x".repeat(5000), ..offer() }), ["kind"]);
        assert_eq!(subjects(&MachineDescription { vcpus: 0, ..offer() }), ["vcpus"]);
        assert_eq!(subjects(&MachineDescription { regions: vec![], ..offer() }), ["memory layout"]);
        let shifted = vec![RegionSpan { start: 4096, length: 16 * MIB }];
        let all = MachineDescription { vcpus: 3, regions: shifted.clone(), ..offer() };
        assert_eq!(subjects(&all), ["vcpus", "memory layout", "memory"]);
        let garbled = MachineDescription { config: vec![0xff; 3000], vcpus: 3, regions: shifted, ..offer() };
        assert_eq!(subjects(&garbled), ["vcpus", "config", "memory"]);
        for bad in [all, garbled] {
            assert!(builder().build(&bad).is_err());
        }
    }

    #[test]
    fn memory_up_to_the_limit_fits() {
        let mut exact = SimBuilder::new(SimOptions::default()).with_memory_limit(4 * MIB);
        assert_eq!(exact.judge(&offer()), Verdict::accept());
        let mut short = SimBuilder::new(SimOptions::default()).with_memory_limit(4 * MIB - 1);
        assert_eq!(short.judge(&offer()).findings[0].subject, "memory");
    }

    #[test]
    fn the_kernels_own_words_are_read() {
        let text = "MemTotal:       16303428 kB\nMemFree:  1 kB\nMemAvailable:   12001234 kB\n";
        assert_eq!(parse_available(text), Some(12_001_234 * 1024));
        for bad in ["", "MemAvailable:", "MemAvailable: x kB", "MemAvailable: 18446744073709551615 kB"] {
            assert_eq!(parse_available(bad), None);
        }
        assert!(available_memory_bytes().is_some());
    }

    #[test]
    fn a_build_fails_when_told_to() {
        let faults = SimFaults::once(Call::Build);
        let mut builder = SimBuilder::new(SimOptions { faults, ..SimOptions::default() });
        assert!(builder.build(&offer()).is_err());
        assert!(builder.build(&offer()).is_ok());
    }
}
