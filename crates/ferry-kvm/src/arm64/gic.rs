//! The registers of the `GICv3` in the kernel, by its device.
//!
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst: groups, and how an attribute names a register; Arm's
//! IHI 0069, 12.8 to 12.12: the registers' places.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_contract::arm64::{RegisterId, SystemRegister};
use ferry_state::arm64::{GicCpuInterface, GicDistributor, GicLines, GicRedistributor};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES,
};
use kvm_ioctls::{DeviceFd, VcpuFd};
use vmm_sys_util::errno;

use super::its::Its;
use super::{attribute, registers};

/// Interrupts of a vCPU's own, before those of devices.
const PRIVATE: u32 = 32;

/// `MPIDR_EL1`, by which the device knows a vCPU.
pub(super) const MPIDR: RegisterId = RegisterId::system(SystemRegister::MPIDR_EL1);

/// The redistributor's second frame: `SGI_base`.
const SGI: u32 = 0x1_0000;

/// Registers of the distributor that are one: control, identity. The identity comes first: from its
/// revision it follows what the redistributors say that they have (`vgic_mmio_read_v3r_ctlr`). Control comes last.
pub(super) const GICD_CTLR: u32 = 0x0;
pub(super) const GICD_IIDR: u32 = 0x8;

/// Of the redistributor: control, whether it sleeps, where the tables of LPIs are (two words each).
pub(super) const GICR_CTLR: u32 = 0x0;
const GICR_WAKER: u32 = 0x14;
const GICR_PROPBASER: u32 = 0x70;
const GICR_PENDBASER: u32 = 0x78;

/// `ICC_CTLR_EL1`, which has fixed bits: how many of priority and of numbers there are, `SEIS`, `A3V`.
pub(super) const ICC_CTLR_EL1: u32 = SystemRegister::new(3, 0, 12, 12, 4).bits() as u32;

/// Registers with bits for each interrupt: their first one's place, and bits for each. Groups, enabled, latched as
/// pending, active, priority, edge or level.
const BY_INTERRUPT: [(u32, u32); 6] = [(0x80, 1), (0x100, 1), (0x200, 1), (0x300, 1), (0x400, 8), (0xc00, 2)];

/// Registers that only set bits, and how far behind is the one that clears them: enabled, active. KVM makes vCPUs
/// whose interrupts 0 to 15 are enabled. (What is latched as pending is taken as it is written: the device's write
/// of `ISPENDR` is no guest's.)
const SETTING: [std::ops::Range<u32>; 2] = [0x100..0x180, 0x300..0x380];
const CLEARING: u32 = 0x80;

/// Where the distributor routes each interrupt of a device: 64 bits each.
const ROUTERS: u32 = 0x6000;

/// Of the CPU interface, in the order in which they are written. The active priorities beyond the first word
/// are there only with more bits of priority.
const CPU_INTERFACE: [SystemRegister; 15] = [
    SystemRegister::new(3, 0, 12, 12, 5), // ICC_SRE_EL1
    SystemRegister::new(3, 0, 12, 12, 4), // ICC_CTLR_EL1
    SystemRegister::new(3, 0, 4, 6, 0),   // ICC_PMR_EL1
    SystemRegister::new(3, 0, 12, 8, 3),  // ICC_BPR0_EL1
    SystemRegister::new(3, 0, 12, 12, 3), // ICC_BPR1_EL1
    SystemRegister::new(3, 0, 12, 8, 4),  // ICC_AP0R0_EL1
    SystemRegister::new(3, 0, 12, 8, 5),
    SystemRegister::new(3, 0, 12, 8, 6),
    SystemRegister::new(3, 0, 12, 8, 7),
    SystemRegister::new(3, 0, 12, 9, 0), // ICC_AP1R0_EL1
    SystemRegister::new(3, 0, 12, 9, 1),
    SystemRegister::new(3, 0, 12, 9, 2),
    SystemRegister::new(3, 0, 12, 9, 3),
    SystemRegister::new(3, 0, 12, 12, 6), // ICC_IGRPEN0_EL1
    SystemRegister::new(3, 0, 12, 12, 7), // ICC_IGRPEN1_EL1
];

/// The `GICv3` of a VM.
#[derive(Debug, Clone)]
pub struct Gic {
    device: Arc<DeviceFd>,
    /// How many interrupts there are, those of a vCPU's own included.
    interrupts: u32,
    its: Vec<Its>,
}

impl Gic {
    /// The `GICv3` behind this device, which is initialised (`KVM_DEV_ARM_VGIC_CTRL_INIT`).
    pub fn new(device: Arc<DeviceFd>) -> Result<Self, errno::Error> {
        let interrupts = attribute::read_word(&device, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0)?;
        Ok(Self { device, interrupts, its: Vec::new() })
    }

    /// The same with an interrupt translation service (`KVM_DEV_TYPE_ARM_VGIC_ITS`), which has its address. A VM with
    /// several adds them in the same order on both sides.
    #[must_use]
    pub fn with_its(mut self, device: Arc<DeviceFd>) -> Self {
        self.its.push(Its::new(device));
        self
    }

    pub(super) fn its(&self) -> &[Its] {
        &self.its
    }

    /// Writes into the pending tables, which are in guest memory, which LPIs wait. No vCPU runs.
    pub(super) fn save_pending_tables(&self) -> Result<(), errno::Error> {
        let what = KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES;
        attribute::tell(&self.device, KVM_DEV_ARM_VGIC_GRP_CTRL, what.into())
    }

    /// The words of the distributor, in the order in which they are written.
    pub(super) fn distributor_words(&self) -> Vec<u32> {
        let mut words = vec![GICD_IIDR];
        words.extend(by_interrupt(0, PRIVATE, self.interrupts));
        words.extend((PRIVATE..self.interrupts).flat_map(|it| [ROUTERS + 8 * it, ROUTERS + 8 * it + 4]));
        words.push(GICD_CTLR);
        words
    }

    /// Those of a redistributor. Where the tables of LPIs are comes before the control that uses them.
    pub(super) fn redistributor_words() -> Vec<u32> {
        let mut words = vec![GICR_WAKER];
        words.extend([GICR_PROPBASER, GICR_PENDBASER].into_iter().flat_map(|it| [it, it + 4]));
        words.extend(by_interrupt(SGI, 0, PRIVATE));
        words.push(GICR_CTLR);
        words
    }

    pub(super) fn distributor(&self) -> Result<GicDistributor, errno::Error> {
        let values = self.words(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, Affinity::NONE, self.distributor_words())?;
        Ok(GicDistributor { values })
    }

    pub(super) fn redistributor(&self, vcpu: Affinity) -> Result<GicRedistributor, errno::Error> {
        let values = self.words(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, vcpu, Self::redistributor_words())?;
        Ok(GicRedistributor { values })
    }

    pub(super) fn cpu_interface(&self, vcpu: Affinity) -> Result<GicCpuInterface, errno::Error> {
        let mut values = BTreeMap::new();
        for register in CPU_INTERFACE {
            let number = u32::from(register.bits());
            let group = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
            match attribute::read(&self.device, group, vcpu.attribute(number)) {
                Ok(value) => drop(values.insert(number, value)),
                // There are not so many bits of priority.
                Err(error) if is_further_priority(register) && is_absent(error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(GicCpuInterface { values })
    }

    /// The lines of a vCPU's own interrupts, and with the first vCPU those of devices.
    pub(super) fn lines(&self, index: u32, vcpu: Affinity) -> Result<GicLines, errno::Error> {
        let values = self.words(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu, self.line_words(index))?;
        Ok(GicLines { values })
    }

    /// The first of each 32 lines that go with a vCPU.
    pub(super) fn line_words(&self, index: u32) -> Vec<u32> {
        let end = if index == 0 { self.interrupts } else { PRIVATE };
        (0..end).step_by(32).collect()
    }

    pub(super) fn set_distributor(&self, offset: u32, value: u32) -> Result<(), errno::Error> {
        self.set_word(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, Affinity::NONE, offset, value)
    }

    pub(super) fn set_redistributor(
        &self,
        vcpu: Affinity,
        offset: u32,
        value: u32,
    ) -> Result<(), errno::Error> {
        self.set_word(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, vcpu, offset, value)
    }

    /// Writes a register of a frame; one that sets bits comes to hold this value and no more.
    fn set_word(&self, group: u32, vcpu: Affinity, offset: u32, value: u32) -> Result<(), errno::Error> {
        let put =
            |offset, value: u32| attribute::write(&self.device, group, vcpu.attribute(offset), value.into());
        // Where a redistributor has interrupts is in its second frame.
        let frame = if group == KVM_DEV_ARM_VGIC_GRP_REDIST_REGS { SGI } else { 0 };
        if offset.checked_sub(frame).is_some_and(|it| SETTING.iter().any(|setting| setting.contains(&it))) {
            put(offset + CLEARING, !value)?;
        }
        put(offset, value)
    }

    pub(super) fn set_cpu_interface(
        &self,
        vcpu: Affinity,
        number: u32,
        value: u64,
    ) -> Result<(), errno::Error> {
        attribute::write(&self.device, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, vcpu.attribute(number), value)
    }

    pub(super) fn set_lines(&self, vcpu: Affinity, first: u32, value: u32) -> Result<(), errno::Error> {
        attribute::write(&self.device, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu.attribute(first), value.into())
    }

    /// The registers of the CPU interface, in the order in which they are written.
    pub(super) fn cpu_interface_numbers() -> Vec<u32> {
        CPU_INTERFACE.iter().map(|register| register.bits().into()).collect()
    }

    fn words(
        &self,
        group: u32,
        vcpu: Affinity,
        which: impl IntoIterator<Item = u32>,
    ) -> Result<BTreeMap<u32, u32>, errno::Error> {
        let read = |number| Ok((number, attribute::read_word(&self.device, group, vcpu.attribute(number))?));
        which.into_iter().map(read).collect()
    }
}

/// A vCPU as the device names it: the four affinity levels of its `MPIDR_EL1`, in the upper half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Affinity(u64);

impl Affinity {
    /// For what a VM has once.
    const NONE: Self = Self(0);

    pub(super) fn of(vcpu: &VcpuFd) -> Result<Self, errno::Error> {
        let mpidr = registers::read(vcpu, MPIDR)?.number().unwrap_or(0);
        Ok(Self::from_mpidr(mpidr))
    }

    fn from_mpidr(mpidr: u64) -> Self {
        Self((mpidr >> 8 & 0xff00_0000 | mpidr & 0x00ff_ffff) << 32)
    }

    pub(super) fn attribute(self, which: u32) -> u64 {
        self.0 | u64::from(which)
    }
}

/// The words that hold what there is of each of these interrupts, from a frame's place on.
fn by_interrupt(frame: u32, from: u32, to: u32) -> impl Iterator<Item = u32> {
    BY_INTERRUPT.into_iter().flat_map(move |(place, bits)| {
        let words = (from * bits).div_ceil(32)..(to * bits).div_ceil(32);
        words.map(move |word| frame + place + 4 * word)
    })
}

/// The bits of a redistributor's register that must read as they were. Of where the tables are that is where, and how
/// large: KVM chooses how memory is cached (`vgic_sanitise_field`). Of the control it is whether LPIs are
/// enabled: the other bits go with the revision of the distributor.
pub(super) fn redistributor_bits(offset: u32) -> u32 {
    const HIGH_PROPBASER: u32 = GICR_PROPBASER + 4;
    const HIGH_PENDBASER: u32 = GICR_PENDBASER + 4;
    match offset {
        GICR_CTLR => 1,
        GICR_PROPBASER | GICR_PENDBASER => !0xf80,
        // The outer cache's bits; and PTZ, which is only written.
        HIGH_PROPBASER | HIGH_PENDBASER => !0x4700_0000,
        _ => u32::MAX,
    }
}

/// Whether two values of `GICD_IIDR` are the same but for the revision, and it is a later one here.
pub(super) fn is_later_revision(value: u64, reads: u64) -> bool {
    const REVISION: u64 = 0xf000;
    (value ^ reads) & !REVISION == 0 && reads & REVISION > value & REVISION
}

/// Whether it holds active priorities beyond those that every GIC has.
fn is_further_priority(register: SystemRegister) -> bool {
    matches!((register.crm(), register.op2()), (8, 5..=7) | (9, 1..=3)) && register.crn() == 12
}

fn is_absent(error: errno::Error) -> bool {
    [libc::EINVAL, libc::ENXIO].contains(&error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_manual() {
        let own: Vec<u32> = by_interrupt(SGI, 0, PRIVATE).collect();
        let mut expected = vec![0x1_0080, 0x1_0100, 0x1_0200, 0x1_0300];
        expected.extend((0..8).map(|word| 0x1_0400 + 4 * word));
        expected.extend([0x1_0c00, 0x1_0c04]);
        assert_eq!(own, expected);
        // 32 interrupts of devices: their first words come after those of the vCPUs' own.
        let devices: Vec<u32> = by_interrupt(0, PRIVATE, 64).collect();
        assert_eq!(devices.get(..4), Some(&[0x84, 0x104, 0x204, 0x304][..]));
        assert_eq!((devices.get(4), devices.last(), devices.len()), (Some(&0x420), Some(&0xc0c), 14));
    }

    #[test]
    fn a_later_revision_of_the_same_is_told_from_another() {
        assert!(is_later_revision(0x4b00_243b, 0x4b00_343b));
        assert!(!is_later_revision(0x4b00_343b, 0x4b00_243b) && !is_later_revision(0x4b00_243b, 0x4c00_343b));
        assert!(!is_later_revision(0x4b00_343b, 0x4b00_343b));
    }

    #[test]
    fn a_vcpu_is_named_by_its_four_levels_of_affinity() {
        assert_eq!(Affinity::from_mpidr(0x12_8034_5678).attribute(0xc), 0x1234_5678_0000_000c);
    }
}
