//! The target's judgement of an offered machine: what can be found wrong without building it.
//!
//! [`judge`] is pure: it holds a [`MachineDescription`] against [`HostLimits`]. A VMM's
//! [`Builder::judge`](ferry_migrate::Builder::judge) calls it and adds findings about its own
//! configuration.

use ferry_contract::{Finding, FindingKind, Layer};
use ferry_memory::PAGE_SIZE;
use ferry_protocol::{MachineDescription, RegionSpan};

use crate::{HostLimits, KIND};

/// The highest guest-physical address that a memory region may reach, in bytes: 52 bits, the most
/// that x86-64 has (Intel SDM volume 3, 5.5.4; AMD APM volume 2, 5.3).
const PHYSICAL_LIMIT: u64 = 1 << 52;

/// Every reason why this host cannot take the machine; none if it can.
pub fn judge(limits: &HostLimits, machine: &MachineDescription) -> Vec<Finding> {
    if machine.kind != KIND {
        // Nothing else of another kind of machine can be judged.
        return vec![kind_differs(&machine.kind)];
    }
    [
        vcpus_fit(limits, machine.vcpus),
        layout_makes_sense(&machine.regions),
        slots_suffice(limits, machine.regions.len() as u64),
        memory_fits(limits, machine.memory_bytes()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A refusal because of what the host cannot hold, with its two values and its remedy.
fn refusal(subject: &str, layer: Layer, values: (String, String), effect: &str, remedy: String) -> Finding {
    Finding {
        kind: FindingKind::Refusal,
        subject: subject.to_owned(),
        layer,
        guest: values.0,
        target: values.1,
        effect: effect.to_owned(),
        remedy,
    }
}

fn kind_differs(kind: &str) -> Finding {
    // The kind comes from the other side: show a bounded, printable piece of it.
    let shown: String = kind.chars().take(40).flat_map(char::escape_default).collect();
    refusal(
        "kind of machine",
        Layer::Machine,
        (format!("`{shown}`"), format!("takes `{KIND}`")),
        "its state would mean nothing here",
        format!("choose a target that takes machines of kind `{shown}`"),
    )
}

fn vcpus_fit(limits: &HostLimits, vcpus: u32) -> Option<Finding> {
    if vcpus == 0 {
        return Some(refusal(
            "vCPUs",
            Layer::Machine,
            ("0".to_owned(), "needs at least 1".to_owned()),
            "nothing would run",
            "look into the source's machine description, a guest has at least one vCPU".to_owned(),
        ));
    }
    (u64::from(vcpus) > limits.vcpus_max).then(|| {
        refusal(
            "vCPUs",
            Layer::Kernel,
            (vcpus.to_string(), format!("runs at most {}", limits.vcpus_max)),
            "vCPUs would be missing",
            format!("choose a host whose KVM runs {vcpus} vCPUs"),
        )
    })
}

fn layout_makes_sense(regions: &[RegionSpan]) -> Option<Finding> {
    let mut free_from = 0;
    for region in regions {
        let end = region.start.checked_add(region.length);
        let aligned = region.start.is_multiple_of(PAGE_SIZE) && region.length.is_multiple_of(PAGE_SIZE);
        match end {
            Some(end)
                if region.length > 0 && aligned && region.start >= free_from && end <= PHYSICAL_LIMIT =>
            {
                free_from = end;
            }
            _ => return Some(bad_region(*region)),
        }
    }
    regions.is_empty().then(|| bad_region(RegionSpan { start: 0, length: 0 }))
}

fn bad_region(region: RegionSpan) -> Finding {
    refusal(
        "memory layout",
        Layer::Machine,
        (
            format!("a region of {:#x} bytes at {:#x}", region.length, region.start),
            "needs non-empty regions of whole pages below 2^52, sorted, none over another".to_owned(),
        ),
        "the guest would not find its memory",
        "look into the source's machine description, it contradicts itself".to_owned(),
    )
}

fn slots_suffice(limits: &HostLimits, regions: u64) -> Option<Finding> {
    (regions > limits.memslots_max).then(|| {
        refusal(
            "memory regions",
            Layer::Kernel,
            (regions.to_string(), format!("has {} memory slots", limits.memslots_max)),
            "memory would be missing",
            "choose a host whose KVM has more memory slots".to_owned(),
        )
    })
}

fn memory_fits(limits: &HostLimits, bytes: u64) -> Option<Finding> {
    let available = limits.memory_available_bytes?;
    (bytes > available).then(|| {
        refusal(
            "memory",
            Layer::Kernel,
            (mib(bytes), format!("has {} available", mib(available))),
            "the host would run out of memory and the guest would be killed",
            format!("free {} on the target or choose another", mib(bytes - available)),
        )
    })
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> HostLimits {
        HostLimits { vcpus_max: 4, memslots_max: 3, memory_available_bytes: Some(64 << 20) }
    }

    fn machine(vcpus: u32, regions: &[(u64, u64)]) -> MachineDescription {
        MachineDescription {
            kind: KIND.to_owned(),
            vcpus,
            regions: regions.iter().map(|&(start, length)| RegionSpan { start, length }).collect(),
            config: Vec::new(),
            contract: Vec::new(),
            disks: Vec::new(),
        }
    }

    fn subjects(machine: &MachineDescription) -> Vec<String> {
        judge(&limits(), machine).into_iter().map(|finding| finding.subject).collect()
    }

    #[test]
    fn a_machine_that_fits_has_no_finding() {
        assert_eq!(judge(&limits(), &machine(4, &[(0, 32 << 20), (4 << 30, 32 << 20)])), []);
    }

    #[test]
    fn another_kind_is_the_only_finding() {
        let mut other = machine(9, &[]);
        other.kind = "sim\n".repeat(100);
        let findings = judge(&limits(), &other);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].guest.starts_with("`sim\\n") && findings[0].is_bounded());
    }

    #[test]
    fn each_limit_is_found() {
        assert_eq!(subjects(&machine(5, &[(0, 4096)])), ["vCPUs"]);
        assert_eq!(subjects(&machine(0, &[(0, 4096)])), ["vCPUs"]);
        assert_eq!(subjects(&machine(1, &[(0, 65 << 20)])), ["memory"]);
        let many = [(0, 4096), (8192, 4096), (16384, 4096), (24576, 4096)];
        assert_eq!(subjects(&machine(1, &many)), ["memory regions"]);
        assert_eq!(subjects(&machine(5, &[(0, 65 << 20)])), ["vCPUs", "memory"]);
    }

    #[test]
    fn a_layout_that_contradicts_itself_is_found() {
        for bad in [
            &[][..],
            &[(0, 0)],
            &[(1, 4096)],
            &[(0, 4097)],
            &[(0, 8192), (4096, 4096)],
            &[(8192, 4096), (0, 4096)],
            &[(u64::MAX - 4095, 4096)],
            &[(1 << 52, 4096)],
        ] {
            assert_eq!(subjects(&machine(1, bad)), ["memory layout"], "{bad:?}");
        }
    }
}
