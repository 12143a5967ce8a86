//! The interrupt controller, a `GICv3` in the kernel: what its device gives by `KVM_GET_DEVICE_ATTR`.
//!
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic-its.rst; what the registers do is in Arm's IHI
//! 0069, chapter 12. Pending interrupts are among them: reading `GICD_ISPENDR` through the device gives the latch,
//! and the lines are a group of their own. Only what belongs to LPIs is not here: which there are and which of
//! them wait is in tables in guest memory, and moves with it.

use std::collections::BTreeMap;

use crate::table::table_part;

/// Registers of the distributor (`KVM_DEV_ARM_VGIC_GRP_DIST_REGS`), one for a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GicDistributor {
    /// 32 bits by their offset in the distributor's frame.
    pub values: BTreeMap<u32, u32>,
}

/// Registers of a vCPU's redistributor (`KVM_DEV_ARM_VGIC_GRP_REDIST_REGS`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GicRedistributor {
    /// 32 bits by their offset in the redistributor's two frames.
    pub values: BTreeMap<u32, u32>,
}

/// Registers of a vCPU's CPU interface (`KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GicCpuInterface {
    /// Value by the system register's number: the low 16 bits of
    /// [`SystemRegister::bits`](ferry_contract::arm64::SystemRegister::bits).
    pub values: BTreeMap<u32, u64>,
}

/// The levels of interrupt lines (`KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO`): of a vCPU's own ones, and with vCPU
/// 0 those of all devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GicLines {
    /// 32 lines by the number of the first.
    pub values: BTreeMap<u32, u32>,
}

/// Registers of an interrupt translation service (`KVM_DEV_ARM_VGIC_GRP_ITS_REGS`), of which a VM may have several:
/// the section's index counts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GicIts {
    /// 64 bits by their offset in the ITS's control frame; of a register of 32 bits the lower half.
    pub values: BTreeMap<u32, u64>,
}

table_part!(GicDistributor, "arm64.gic_distributor");
table_part!(GicRedistributor, "arm64.gic_redistributor");
table_part!(GicCpuInterface, "arm64.gic_cpu_interface");
table_part!(GicLines, "arm64.gic_lines");
table_part!(GicIts, "arm64.gic_its");
