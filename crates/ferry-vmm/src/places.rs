//! Where a host has what a guest needs that comes from elsewhere: images of disks, tap devices, kernel and initramfs.
//!
//! The offer of a guest names them as its source has them. That is the other side's word, and none of them is opened on
//! it: a target takes its own places, and the source's only where it was told to ([`Places::same_paths`]).

use std::collections::BTreeMap;

use ferry_contract::{Finding, FindingKind, Layer};

use crate::board::{Board, DeviceSpec, Linux, MachineConfig};

/// Where a host has what a guest needs: of devices by their numbers among the guest's devices of the kind, counted from
/// 0. Paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Paths of disks' images.
    pub disks: BTreeMap<u32, String>,
    /// Names of network cards' tap devices.
    pub taps: BTreeMap<u32, String>,
    /// Path of the kernel.
    pub kernel: Option<String>,
    /// Path of the initramfs.
    pub initramfs: Option<String>,
    /// What is not named here is where the guest comes from says it is.
    pub same_paths: bool,
    /// The guest runs while it is judged here. So each image of its disks that does not come along is locked by its source,
    /// and one that nobody locked is another file than the guest's.
    pub runs_elsewhere: bool,
}

impl Places {
    /// Everything is where the guest's description says: for descriptions that are one's own.
    pub fn same() -> Self {
        Self { same_paths: true, ..Self::default() }
    }

    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        let Self { disks, taps, kernel, initramfs, same_paths: _, runs_elsewhere: _ } = self;
        disks.is_empty() && taps.is_empty() && kernel.is_none() && initramfs.is_none()
    }

    /// The same machine with everything where this host has it. With findings: refusals for what is missing or one
    /// thing too many, notices for what is missed at a restart alone.
    pub(crate) fn settle(&self, machine: MachineConfig) -> (MachineConfig, Vec<Finding>) {
        let MachineConfig { guest, board: Board { mut linux, mut devices } } = machine;
        let mut findings = self.settle_kernel(linux.as_mut());
        let (mut disks, mut nets) = (0, 0);
        for device in &mut devices {
            let (own, named, flag, count) = match device {
                DeviceSpec::Disk { path, .. } => (path, self.disks.get(&disks), "disk", &mut disks),
                DeviceSpec::Net { tap, .. } => (tap, self.taps.get(&nets), "net", &mut nets),
                DeviceSpec::Entropy | DeviceSpec::Console => continue,
            };
            match named {
                Some(named) => own.clone_from(named),
                None if self.same_paths => {}
                None => findings.push(unnamed(flag, *count, own)),
            }
            *count += 1;
        }
        for (flag, named, count) in [("disk", &self.disks, disks), ("net", &self.taps, nets)] {
            findings.extend(named.range(count..).map(|(&number, _)| no_device(flag, number, count)));
        }
        let machine = MachineConfig { guest, board: Board { linux, devices } };
        if findings.iter().all(|finding| finding.kind == FindingKind::Notice)
            && let Err(error) = machine.validate()
        {
            findings.push(impossible(&error.to_string()));
        }
        (machine, findings)
    }

    /// Kernel and initramfs are needed at a restart: without them the guest comes all the same.
    fn settle_kernel(&self, linux: Option<&mut Linux>) -> Vec<Finding> {
        let (mut kernel, mut initramfs) = (None, None);
        if let Some(linux) = linux {
            kernel = Some(&mut linux.kernel);
            initramfs = linux.initramfs.as_mut();
        }
        let files = [("kernel", kernel, &self.kernel), ("initramfs", initramfs, &self.initramfs)];
        let settle = |(what, own, named): (&str, Option<&mut String>, &Option<String>)| match (own, named) {
            (Some(own), Some(named)) => {
                own.clone_from(named);
                None
            }
            // A host on the guest's way was not told, and all after it must be.
            (Some(own), None) if own.is_empty() => Some(restart_without(what, "")),
            (Some(_), None) if self.same_paths => None,
            // Not the source's path, which must not be opened here, nor on the host where the guest goes next.
            (Some(own), None) => {
                own.clear();
                Some(restart_without(what, ", or with `--same-paths` if the source's path holds there"))
            }
            (None, Some(_)) => Some(no_file(what)),
            (None, None) => None,
        };
        files.into_iter().filter_map(settle).collect()
    }
}

/// A device whose place nobody named.
fn unnamed(flag: &str, number: u32, there: &str) -> Finding {
    let (what, value) = if flag == "disk" { ("image", "PATH") } else { ("tap device", "TAP") };
    Finding {
        kind: FindingKind::Refusal,
        subject: format!("{flag} {number}"),
        layer: Layer::Vmm,
        guest: format!("one, whose {what} is {there:?} on its source"),
        target: format!("was not told which {what} to give it"),
        effect: "the guest would lose the device".to_owned(),
        remedy: format!(
            "name it where the guest is received, with `--{flag} {number}={value}`, or take what the source names \
             with `--same-paths`"
        ),
    }
}

/// A place for a device that the guest does not have.
fn no_device(flag: &str, number: u32, count: u32) -> Finding {
    refusal(
        format!("{flag} {number}"),
        format!("{count} of the kind, counted from 0"),
        "was told a place for one more".to_owned(),
        format!("leave `--{flag} {number}=` out where the guest is received, or name one that the guest has"),
    )
}

/// A file for a guest that has none of the kind.
fn no_file(what: &str) -> Finding {
    refusal(
        what.to_owned(),
        "none".to_owned(),
        "was told where one is".to_owned(),
        format!("leave `--{what}` out where the guest is received"),
    )
}

/// Places that do not go together.
fn impossible(problem: &str) -> Finding {
    refusal(
        "places of devices".to_owned(),
        "devices and files with a place each".to_owned(),
        format!("cannot use the places that it was told: {problem}"),
        "name others where the guest is received".to_owned(),
    )
}

fn refusal(subject: String, guest: String, target: String, remedy: String) -> Finding {
    let effect = "the machine would not be the one that was meant".to_owned();
    Finding { kind: FindingKind::Refusal, subject, layer: Layer::Vmm, guest, target, effect, remedy }
}

/// A file that is missed once the guest restarts, and what else than its name would do.
fn restart_without(what: &str, or: &str) -> Finding {
    notice(
        what,
        "was not told where it has it".to_owned(),
        format!("before the guest restarts move it to where it is received with `--{what} PATH`{or}"),
    )
}

/// An image that nobody uses, of a disk that a guest uses.
pub(crate) fn another_image(disk: u32, path: &str) -> Finding {
    Finding {
        kind: FindingKind::Refusal,
        subject: format!("disk {disk}"),
        layer: Layer::Vmm,
        guest: "one, whose image its source holds the lock of".to_owned(),
        target: format!("finds that nobody holds the lock of {path}"),
        effect: "the guest would go on with another image than its own".to_owned(),
        remedy: "name the image that the guest uses, on storage whose locks (flock) reach both hosts, or move it with \
                 `migrate --copy-storage`"
            .to_owned(),
    }
}

/// A file that cannot be used as it is.
pub(crate) fn restart_with(what: &str, problem: &str) -> Finding {
    notice(
        what,
        format!("has none that it can use: {problem}"),
        "put it there before the guest restarts".to_owned(),
    )
}

fn notice(what: &str, target: String, remedy: String) -> Finding {
    Finding {
        kind: FindingKind::Notice,
        subject: what.to_owned(),
        layer: Layer::Vmm,
        guest: "one, with which it begins when it restarts".to_owned(),
        target,
        effect: "nothing now; a restart would end the guest".to_owned(),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestConfig, Payload};

    fn disk(path: &str) -> DeviceSpec {
        DeviceSpec::Disk { path: path.to_owned(), read_only: false }
    }

    fn net(tap: &str) -> DeviceSpec {
        DeviceSpec::Net { tap: tap.to_owned(), mac: [2, 0, 0, 0, 0, 1] }
    }

    fn linux(kernel: &str, initramfs: Option<&str>) -> Linux {
        let initramfs = initramfs.map(str::to_owned);
        Linux { kernel: kernel.to_owned(), initramfs, command_line: "quiet".to_owned() }
    }

    fn machine(linux: Linux, devices: Vec<DeviceSpec>) -> MachineConfig {
        let guest = GuestConfig { memory_bytes: 64 << 20, cpus: 1, payload: Payload::Linux, low_bytes: None };
        MachineConfig { guest, board: Board { linux: Some(linux), devices } }
    }

    /// A guest with all that has a place.
    fn full() -> MachineConfig {
        let devices = vec![disk("/a"), DeviceSpec::Entropy, disk("/b"), net("t")];
        machine(linux("/k", Some("/i")), devices)
    }

    fn named() -> Places {
        Places {
            disks: [(0, "/c".to_owned()), (1, "/d".to_owned())].into(),
            taps: [(0, "u".to_owned())].into(),
            kernel: Some("/l".to_owned()),
            initramfs: Some("/j".to_owned()),
            ..Places::default()
        }
    }

    /// The findings, refusals alone or notices alone.
    fn findings(places: &Places, machine: MachineConfig, kind: FindingKind) -> Vec<String> {
        let (_, findings) = places.settle(machine);
        findings.iter().filter(|finding| finding.kind == kind).map(ToString::to_string).collect()
    }

    #[test]
    fn named_places_are_taken_and_the_sources_only_if_that_was_said() {
        let there =
            machine(linux("/l", Some("/j")), vec![disk("/c"), DeviceSpec::Entropy, disk("/d"), net("u")]);
        assert_eq!(named().settle(full()), (there, Vec::new()));
        assert_eq!(Places::same().settle(full()), (full(), Vec::new()));
        let some = Places { disks: [(1, "/d".to_owned())].into(), ..Places::same() };
        let (settled, found) = some.settle(full());
        assert_eq!((settled.board.devices[2].clone(), found), (disk("/d"), Vec::new()));
    }

    #[test]
    fn what_nobody_named_is_refused_with_the_flag_that_names_it() {
        let refused = findings(&Places::default(), full(), FindingKind::Refusal);
        for (text, flag) in refused.iter().zip(["--disk 0=PATH", "--disk 1=PATH", "--net 0=TAP"]) {
            assert!(text.contains(flag) && text.contains("`--same-paths`"), "{text}");
        }
        assert_eq!(refused.len(), 3);
    }

    #[test]
    fn a_kernel_that_nobody_named_is_a_notice_and_its_path_is_forgotten() {
        let all_but = |places: Places| {
            let (settled, _) = places.settle(full());
            let linux = settled.board.linux.clone().unwrap();
            // The next host reads this of it, and forgets the same.
            assert_eq!(MachineConfig::from_bytes(&settled.to_bytes()).as_ref(), Ok(&settled));
            (linux.kernel, linux.initramfs, findings(&places, full(), FindingKind::Notice))
        };
        let (kernel, initramfs, found) = all_but(Places { kernel: None, ..named() });
        assert_eq!((kernel.as_str(), initramfs.as_deref()), ("", Some("/j")));
        assert!(found.len() == 1 && found[0].contains("`--kernel PATH`"), "{found:?}");
        let (kernel, initramfs, found) = all_but(Places { initramfs: None, ..named() });
        // That the guest has one is not forgotten: it must not begin without.
        assert_eq!((kernel.as_str(), initramfs.as_deref()), ("/l", Some("")));
        assert!(found.len() == 1 && found[0].contains("`--initramfs PATH`"), "{found:?}");
    }

    #[test]
    fn a_forgotten_path_is_told_on_every_host_until_one_is_named() {
        let (first, _) = Places { kernel: None, initramfs: None, ..named() }.settle(full());
        let told = findings(&Places::same(), first.clone(), FindingKind::Notice);
        for (text, flag) in told.iter().zip(["`--kernel PATH`", "`--initramfs PATH`"]) {
            assert!(text.contains(flag) && !text.contains("--same-paths"), "{text}");
        }
        assert_eq!(told.len(), 2);
        let (second, _) = Places::same().settle(first);
        let third =
            Places { kernel: Some("/l".to_owned()), initramfs: Some("/j".to_owned()), ..Places::same() };
        let (third, found) = third.settle(second);
        assert_eq!((third.board.linux.unwrap().kernel.as_str(), found), ("/l", Vec::new()));
    }

    #[test]
    fn a_place_for_what_the_guest_has_not_is_refused_with_what_to_leave_out() {
        let places = Places { disks: [(5, "/e".to_owned())].into(), ..Places::same() };
        let refused = findings(&places, full(), FindingKind::Refusal);
        assert!(refused[0].contains("leave `--disk 5=` out"), "{refused:?}");
        let plain = MachineConfig {
            board: Board::default(),
            guest: GuestConfig { payload: Payload::Idle, ..full().guest },
        };
        let refused = findings(&named(), plain, FindingKind::Refusal);
        for flag in ["--kernel", "--initramfs", "--disk 0=", "--disk 1=", "--net 0="] {
            assert!(refused.iter().any(|text| text.contains(&format!("leave `{flag}` out"))), "{refused:?}");
        }
        let places = Places { initramfs: Some("/i".to_owned()), ..Places::same() };
        let refused = findings(&places, machine(linux("/k", None), Vec::new()), FindingKind::Refusal);
        assert!(refused[0].starts_with("initramfs (VMM): the guest has none"), "{refused:?}");
    }

    #[test]
    fn places_that_do_not_go_together_are_refused_as_places() {
        for places in [
            Places { disks: [(0, "/b".to_owned())].into(), ..Places::same() },
            Places { disks: [(0, "relative".to_owned())].into(), ..Places::same() },
            Places { taps: [(0, "a tap".to_owned())].into(), ..Places::same() },
        ] {
            let refused = findings(&places, full(), FindingKind::Refusal);
            assert!(refused.len() == 1 && refused[0].contains("places of devices"), "{refused:?}");
        }
    }
}
