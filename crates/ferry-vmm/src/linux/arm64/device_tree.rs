//! The device tree of a machine of arm64: what a kernel finds of it.
//!
//! Facts: the Devicetree Specification 0.4; the kernel's Documentation/devicetree/bindings (arm/cpus.yaml, arm/psci.yaml,
//! `timer/arm,arch_timer.yaml`, interrupt-controller/arm,gic-v3.yaml, serial/8250.yaml, rtc/arm,pl031.yaml,
//! virtio/mmio.yaml, chosen.yaml); the kernel's `arch/arm64/kvm/arch_timer.c` (the timers' interrupts).

use ferry_protocol::RegionSpan;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_fdt::{Error, FdtWriter};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::super::{LinuxError, Surroundings};
use super::Initramfs;
use crate::boot::{DISTRIBUTOR, REDISTRIBUTOR_BYTES, REDISTRIBUTORS};
use crate::rtc;
use crate::{DEVICE_BYTES, DEVICE_INTERRUPTS, DEVICES, ports};

const DISTRIBUTOR_BYTES: u64 = 0x1_0000;

/// Nodes that others refer to.
const CONTROLLER: u32 = 1;
const CLOCK: u32 = 2;

// An interrupt in three cells: shared or of one vCPU, its number among these, and how it is triggered.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const RISING_EDGE: u32 = 1;
const HIGH_LEVEL: u32 = 4;

/// What the numbers of shared interrupts begin at.
const FIRST_SHARED: u32 = 32;

/// The serial port's interrupt.
const SERIAL_INTERRUPT: u32 = 33;

/// The timers' interrupts among those of each vCPU: secure physical, physical, virtual, that of a hypervisor.
const TIMERS: [u32; 4] = [13, 14, 11, 10];

/// What the serial port's divisor divides, in Hz, as on a PC.
const SERIAL_CLOCK_HZ: u32 = 1_843_200;

/// The clock that the real-time clock wants to have, in Hz.
const PERIPHERAL_CLOCK_HZ: u32 = 24_000_000;

/// Bytes from the system's random numbers: enough for the kernel to count its own as ready.
const SEED_BYTES: usize = 64;

/// The tree as it lies in memory.
pub(super) fn blob(
    command_line: &str,
    initramfs: Option<Initramfs>,
    around: &Surroundings<'_>,
) -> Result<Vec<u8>, LinuxError> {
    let mut seed = [0; SEED_BYTES];
    // Without random numbers the kernel waits longer for its own; nothing else is lost.
    let got = getrandom(&mut seed, GetRandomFlags::empty()).unwrap_or(0);
    let regions = around
        .memory
        .iter()
        .map(|region| RegionSpan { start: region.start_addr().0, length: region.len() })
        .collect::<Vec<_>>();
    let facts =
        Facts { command_line, initramfs, seed: seed.get(..got).unwrap_or_default(), regions: &regions };
    tree(&facts, around.cpus, around.devices).map_err(|error| LinuxError::Tables(error.to_string()))
}

/// What is told.
struct Facts<'a> {
    command_line: &'a str,
    initramfs: Option<Initramfs>,
    seed: &'a [u8],
    regions: &'a [RegionSpan],
}

fn tree(facts: &Facts<'_>, cpus: &[u64], devices: u32) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", CONTROLLER)?;
    chosen(&mut fdt, facts)?;
    for region in facts.regions {
        let node = fdt.begin_node(&format!("memory@{:x}", region.start))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[region.start, region.length])?;
        fdt.end_node(node)?;
    }
    processors(&mut fdt, cpus)?;
    controller(&mut fdt, cpus.len())?;
    serial(&mut fdt)?;
    real_time_clock(&mut fdt)?;
    for place in 0..devices {
        let window = DEVICES + u64::from(place) * DEVICE_BYTES;
        let node = fdt.begin_node(&format!("virtio_mmio@{window:x}"))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[window, DEVICE_BYTES])?;
        fdt.property_array_u32("interrupts", &shared(DEVICE_INTERRUPTS + place, HIGH_LEVEL))?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(node)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

/// The cells of a shared interrupt, by its number in the controller.
fn shared(interrupt: u32, trigger: u32) -> [u32; 3] {
    [SHARED, interrupt.saturating_sub(FIRST_SHARED), trigger]
}

fn chosen(fdt: &mut FdtWriter, facts: &Facts<'_>) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", facts.command_line)?;
    fdt.property_string("stdout-path", &serial_node("/"))?;
    if let Some(initramfs) = facts.initramfs {
        fdt.property_u64("linux,initrd-start", initramfs.start)?;
        fdt.property_u64("linux,initrd-end", initramfs.start + initramfs.bytes)?;
    }
    if let Some((kaslr, rng)) = facts.seed.split_first_chunk::<8>() {
        fdt.property("kaslr-seed", kaslr)?;
        fdt.property("rng-seed", rng)?;
    }
    fdt.end_node(node)
}

/// vCPUs, how they are switched on, their timers.
fn processors(fdt: &mut FdtWriter, cpus: &[u64]) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for mpidr in cpus {
        let cpu = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", *mpidr)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)?;
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)?;
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts: Vec<u32> = TIMERS.iter().flat_map(|timer| [PRIVATE, *timer, HIGH_LEVEL]).collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn controller(fdt: &mut FdtWriter, cpus: usize) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{DISTRIBUTOR:x}"))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    let redistributors = cpus as u64 * REDISTRIBUTOR_BYTES;
    fdt.property_array_u64("reg", &[DISTRIBUTOR, DISTRIBUTOR_BYTES, REDISTRIBUTORS, redistributors])?;
    fdt.property_phandle(CONTROLLER)?;
    fdt.end_node(node)
}

/// The path of the serial port's node in this folder.
fn serial_node(folder: &str) -> String {
    format!("{folder}serial@{:x}", ports::WINDOW + u64::from(ports::SERIAL))
}

/// The serial port, whose registers are bytes one after the other.
fn serial(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&serial_node(""))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[ports::WINDOW + u64::from(ports::SERIAL), 8])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK_HZ)?;
    fdt.property_array_u32("interrupts", &shared(SERIAL_INTERRUPT, RISING_EDGE))?;
    fdt.end_node(node)
}

/// The real-time clock, and the clock that its driver asks for.
fn real_time_clock(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", PERIPHERAL_CLOCK_HZ)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(node)?;
    let node = fdt.begin_node(&format!("rtc@{:x}", rtc::ADDRESS))?;
    fdt.property_string_list("compatible", vec!["arm,pl031".to_owned(), "arm,primecell".to_owned()])?;
    fdt.property_array_u64("reg", &[rtc::ADDRESS, rtc::BYTES])?;
    fdt.property_array_u32("interrupts", &shared(rtc::INTERRUPT, HIGH_LEVEL))?;
    fdt.property_u32("clocks", CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    // Tokens of a tree's structure.
    const BEGIN: u32 = 1;
    const END: u32 = 2;
    const PROPERTY: u32 = 3;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn text(bytes: &[u8], at: usize) -> String {
        bytes[at..].iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
    }

    /// Every property by its path.
    fn properties(tree: &[u8]) -> BTreeMap<String, Vec<u8>> {
        assert_eq!((word(tree, 0), word(tree, 4) as usize), (0xd00d_feed, tree.len()));
        let (mut at, strings) = (word(tree, 8) as usize, word(tree, 12) as usize);
        let (mut path, mut found) = (Vec::new(), BTreeMap::new());
        loop {
            let token = word(tree, at);
            at += 4;
            match token {
                BEGIN => {
                    path.push(text(tree, at));
                    at += (path.last().unwrap().len() + 1).next_multiple_of(4);
                }
                END => drop(path.pop()),
                PROPERTY => {
                    let length = word(tree, at) as usize;
                    let name = text(tree, strings + word(tree, at + 4) as usize);
                    let value = tree[at + 8..at + 8 + length].to_vec();
                    found.insert(format!("{}/{name}", path.join("/")), value);
                    at += 8 + length.next_multiple_of(4);
                }
                _ => return found,
            }
        }
    }

    #[test]
    fn the_tree_says_what_the_machine_is() {
        let regions = [
            RegionSpan { start: 0x4000_0000, length: 0x1000_0000 },
            RegionSpan { start: 0x80_0000_0000, length: 0x2000 },
        ];
        let initramfs = Some(Initramfs { start: 0x4220_0000, bytes: 5000 });
        let facts = Facts { command_line: "quiet", initramfs, seed: &[7; 64], regions: &regions };
        let found = properties(&tree(&facts, &[0, 1, 0x100], 2).unwrap());
        let value = |path: &str| found.get(path).unwrap_or_else(|| panic!("{path}: {:?}", found.keys()));
        let cells = |path: &str| value(path).chunks(4).map(|cell| word(cell, 0)).collect::<Vec<_>>();
        assert_eq!(value("/chosen/bootargs"), b"quiet\0");
        assert_eq!(value("/chosen/stdout-path"), b"/serial@a0003f8\0");
        assert_eq!(cells("/chosen/linux,initrd-end"), [0, 0x4220_0000 + 5000]);
        assert_eq!((value("/chosen/kaslr-seed").len(), value("/chosen/rng-seed").len()), (8, 56));
        assert_eq!(cells("/memory@40000000/reg"), [0, 0x4000_0000, 0, 0x1000_0000]);
        assert_eq!(cells("/memory@8000000000/reg"), [0x80, 0, 0, 0x2000]);
        assert_eq!(cells("/cpus/cpu@100/reg"), [0, 0x100]);
        assert_eq!(
            cells("/interrupt-controller@8000000/reg")[2..],
            [0, 0x1_0000, 0, 0x80a_0000, 0, 0x6_0000]
        );
        assert_eq!(cells("/timer/interrupts")[6..9], [1, 11, 4]);
        assert_eq!(cells("/serial@a0003f8/interrupts"), [0, 1, 1]);
        assert_eq!(cells("/rtc@a010000/interrupts"), [0, 2, 4]);
        assert_eq!(cells("/virtio_mmio@a101000/reg"), [0, 0xa10_1000, 0, 0x1000]);
        assert_eq!(cells("/virtio_mmio@a101000/interrupts"), [0, 17, 4]);
        assert!(!found.contains_key("/virtio_mmio@a102000/reg"));
    }

    #[test]
    fn a_kernel_without_an_initramfs_is_told_of_none() {
        let facts = Facts { command_line: "", initramfs: None, seed: &[], regions: &[] };
        let found = properties(&tree(&facts, &[0], 0).unwrap());
        assert!(!found.keys().any(|path| path.contains("initrd") || path.contains("seed")));
    }
}
