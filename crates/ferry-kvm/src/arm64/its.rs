//! An interrupt translation service in the kernel (`KVM_DEV_TYPE_ARM_VGIC_ITS`), by its device.
//!
//! Which device's event is which LPI, and for which vCPU, the guest has told it by commands, and KVM gives that out
//! nowhere but into the guest's own memory: into the tables that the guest set aside for the ITS. Where to
//! find them is in its registers. Documentation/virt/kvm/devices/arm-vgic-its.rst; Arm's IHI 0069, 5.3 and 12.19.

use std::sync::Arc;

use ferry_state::arm64::GicIts;
use kvm_bindings::{
    KVM_DEV_ARM_ITS_RESTORE_TABLES, KVM_DEV_ARM_ITS_SAVE_TABLES, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_ITS_REGS,
};
use kvm_ioctls::DeviceFd;
use vmm_sys_util::errno;

use super::attribute;

const GROUP: u32 = KVM_DEV_ARM_VGIC_GRP_ITS_REGS;

pub(super) const GITS_CTLR: u32 = 0x0;
const GITS_IIDR: u32 = 0x4;
const GITS_CBASER: u32 = 0x80;
const GITS_CWRITER: u32 = 0x88;
const GITS_CREADR: u32 = 0x90;
const GITS_BASER: u32 = 0x100;

/// The registers in the order in which they are written.
///
/// `IIDR` first: its revision says how the tables look, and how large `BASER` says that their entries are.
/// `CBASER` before `CWRITER` and `CREADR`, which it sets to 0. All before the tables, which are where they say, but
/// for `CTLR`, the last: once the ITS is on KVM takes no write of the others, and runs the commands between `CREADR`
/// and `CWRITER`.
pub(super) const ORDER: [u32; 13] = [
    GITS_IIDR,
    GITS_CBASER,
    GITS_BASER,
    GITS_BASER + 0x8,
    GITS_BASER + 0x10,
    GITS_BASER + 0x18,
    GITS_BASER + 0x20,
    GITS_BASER + 0x28,
    GITS_BASER + 0x30,
    GITS_BASER + 0x38,
    GITS_CWRITER,
    GITS_CREADR,
    GITS_CTLR,
];

/// An ITS of a VM.
#[derive(Debug, Clone)]
pub(super) struct Its {
    device: Arc<DeviceFd>,
}

impl Its {
    pub(super) fn new(device: Arc<DeviceFd>) -> Self {
        Self { device }
    }

    pub(super) fn registers(&self) -> Result<GicIts, errno::Error> {
        let read = |offset| Ok((offset, attribute::read(&self.device, GROUP, u64::from(offset))?));
        Ok(GicIts { values: ORDER.into_iter().map(read).collect::<Result<_, errno::Error>>()? })
    }

    pub(super) fn set(&self, offset: u32, value: u64) -> Result<(), errno::Error> {
        attribute::write(&self.device, GROUP, offset.into(), value)
    }

    /// Writes its tables into guest memory. No vCPU runs.
    pub(super) fn save_tables(&self) -> Result<(), errno::Error> {
        attribute::tell(&self.device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_SAVE_TABLES.into())
    }

    /// Reads them from there, and with them which LPIs wait: KVM takes those out of the pending tables.
    pub(super) fn restore_tables(&self) -> Result<(), errno::Error> {
        attribute::tell(&self.device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES.into())
    }
}
