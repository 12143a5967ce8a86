//! The registers of the `GICv3` in the kernel, by its device.
//!
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst: groups, and how an attribute names a register; Arm's
//! IHI 0069, 12.8 to 12.12: the registers' places.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_contract::arm64::{RegisterId, SystemRegister};
use ferry_state::arm64::{GicCpuInterface, GicDistributor, GicLines, GicRedistributor};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, kvm_device_attr,
};
use kvm_ioctls::{DeviceFd, VcpuFd};
use vmm_sys_util::errno;

use super::registers;

/// Interrupts of a vCPU's own, before those of devices.
const PRIVATE: u32 = 32;

/// `MPIDR_EL1`, by which the device knows a vCPU.
const MPIDR: RegisterId = RegisterId::system(SystemRegister::new(3, 0, 0, 0, 5));

/// The redistributor's second frame: `SGI_base`.
const SGI: u32 = 0x1_0000;

/// Registers of the distributor that are one: control, identity. The identity comes first, because its
/// revision says how the others are taken (`vgic_mmio_uaccess_write_v3_misc`); control comes last.
pub(super) const GICD_CTLR: u32 = 0x0;
pub(super) const GICD_IIDR: u32 = 0x8;

/// Of the redistributor: control, whether it sleeps, where the tables of LPIs are (two words each).
pub(super) const GICR_CTLR: u32 = 0x0;
const GICR_WAKER: u32 = 0x14;
const GICR_PROPBASER: u32 = 0x70;
const GICR_PENDBASER: u32 = 0x78;

/// Registers with bits for each interrupt: their first one's place, and bits for each. Groups, enabled, latched as
/// pending, active, priority, edge or level.
const BY_INTERRUPT: [(u32, u32); 6] = [(0x80, 1), (0x100, 1), (0x200, 1), (0x300, 1), (0x400, 8), (0xc00, 2)];

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
}

impl Gic {
    /// The `GICv3` behind this device, which is initialised (`KVM_DEV_ARM_VGIC_CTRL_INIT`).
    pub fn new(device: Arc<DeviceFd>) -> Result<Self, errno::Error> {
        let mut gic = Self { device, interrupts: 0 };
        gic.interrupts = gic.word(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0)?;
        Ok(gic)
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
            match self.double(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, vcpu.attribute(number)) {
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
        let end = if index == 0 { self.interrupts } else { PRIVATE };
        let values = self.words(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu, (0..end).step_by(32))?;
        Ok(GicLines { values })
    }

    pub(super) fn set_distributor(&self, offset: u32, value: u32) -> Result<(), errno::Error> {
        self.set_word(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset.into(), value)
    }

    pub(super) fn set_redistributor(
        &self,
        vcpu: Affinity,
        offset: u32,
        value: u32,
    ) -> Result<(), errno::Error> {
        self.set_word(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, vcpu.attribute(offset), value)
    }

    pub(super) fn set_cpu_interface(
        &self,
        vcpu: Affinity,
        number: u32,
        value: u64,
    ) -> Result<(), errno::Error> {
        self.set(
            KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
            vcpu.attribute(number),
            (&raw const value).expose_provenance(),
        )
    }

    pub(super) fn set_lines(&self, vcpu: Affinity, first: u32, value: u32) -> Result<(), errno::Error> {
        self.set_word(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu.attribute(first), value)
    }

    /// The registers of the CPU interface, in the order in which they are written.
    pub(super) fn cpu_interface_numbers() -> impl Iterator<Item = u32> {
        CPU_INTERFACE.iter().map(|register| register.bits().into())
    }

    fn words(
        &self,
        group: u32,
        vcpu: Affinity,
        which: impl IntoIterator<Item = u32>,
    ) -> Result<BTreeMap<u32, u32>, errno::Error> {
        which.into_iter().map(|number| Ok((number, self.word(group, vcpu.attribute(number))?))).collect()
    }

    fn word(&self, group: u32, attr: u64) -> Result<u32, errno::Error> {
        let mut value = 0_u32;
        let mut attribute =
            kvm_device_attr { group, attr, addr: (&raw mut value).expose_provenance() as u64, flags: 0 };
        // SAFETY: KVM writes to the address in the attribute, which is `value`'s: 32 bits for these groups.
        unsafe { self.device.get_device_attr(&mut attribute) }?;
        Ok(value)
    }

    fn double(&self, group: u32, attr: u64) -> Result<u64, errno::Error> {
        let mut value = 0_u64;
        let mut attribute =
            kvm_device_attr { group, attr, addr: (&raw mut value).expose_provenance() as u64, flags: 0 };
        // SAFETY: KVM writes to the address in the attribute, which is `value`'s: at most 64 bits.
        unsafe { self.device.get_device_attr(&mut attribute) }?;
        Ok(value)
    }

    fn set_word(&self, group: u32, attr: u64, value: u32) -> Result<(), errno::Error> {
        self.set(group, attr, (&raw const value).expose_provenance())
    }

    fn set(&self, group: u32, attr: u64, address: usize) -> Result<(), errno::Error> {
        self.device.set_device_attr(&kvm_device_attr { group, attr, addr: address as u64, flags: 0 })
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

    fn attribute(self, which: u32) -> u64 {
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
    fn a_vcpu_is_named_by_its_four_levels_of_affinity() {
        assert_eq!(Affinity::from_mpidr(0x12_8034_5678).attribute(0xc), 0x1234_5678_0000_000c);
    }
}
