//! The interrupt controllers of a VM with an in-kernel irqchip: what `KVM_GET_IRQCHIP` gives for its
//! three chips.
//!
//! From `struct kvm_pic_state` and `struct kvm_ioapic_state` of the kernel's
//! arch/x86/include/uapi/asm/kvm.h; what the fields do is in arch/x86/kvm/i8259.c and ioapic.c.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The pins of the IOAPIC (`KVM_IOAPIC_NUM_PINS`).
pub const IOAPIC_PINS: usize = 24;

/// One 8259 interrupt controller (`kvm_pic_state`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Pic {
    /// The lines as last seen, for edges.
    #[n(0)]
    pub last_irr: u8,
    /// The interrupt request register.
    #[n(1)]
    pub irr: u8,
    /// The interrupt mask register.
    #[n(2)]
    pub imr: u8,
    /// The in-service register.
    #[n(3)]
    pub isr: u8,
    /// The line of the highest priority.
    #[n(4)]
    pub priority_add: u8,
    /// The first vector.
    #[n(5)]
    pub irq_base: u8,
    /// What the next read gives.
    #[n(6)]
    pub read_reg_select: u8,
    /// Poll mode.
    #[n(7)]
    pub poll: u8,
    /// Special mask mode.
    #[n(8)]
    pub special_mask: u8,
    /// How far the initialisation is.
    #[n(9)]
    pub init_state: u8,
    /// Automatic end of interrupt.
    #[n(10)]
    pub auto_eoi: u8,
    /// Rotation on automatic end of interrupt.
    #[n(11)]
    pub rotate_on_auto_eoi: u8,
    /// Special fully nested mode.
    #[n(12)]
    pub special_fully_nested_mode: u8,
    /// ICW4 will come.
    #[n(13)]
    pub init4: u8,
    /// Which lines are level-triggered (ELCR).
    #[n(14)]
    pub elcr: u8,
    /// Which bits of ELCR can be written.
    #[n(15)]
    pub elcr_mask: u8,
}

/// The IOAPIC (`kvm_ioapic_state`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct IoApic {
    /// Where its registers are in guest memory.
    #[n(0)]
    pub base_address: u64,
    /// The register that IOREGSEL selects.
    #[n(1)]
    pub ioregsel: u32,
    /// Its id.
    #[n(2)]
    pub id: u32,
    /// The lines that request an interrupt.
    #[n(3)]
    pub irr: u32,
    /// The redirection table (`redirtbl`), one entry a pin.
    #[n(4)]
    pub redirection: [u64; IOAPIC_PINS],
}

/// The three chips of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Irqchip {
    /// The first 8259, `KVM_IRQCHIP_PIC_MASTER`.
    #[n(0)]
    pub pic_master: Pic,
    /// The second 8259, `KVM_IRQCHIP_PIC_SLAVE`.
    #[n(1)]
    pub pic_slave: Pic,
    /// The IOAPIC, `KVM_IRQCHIP_IOAPIC`.
    #[n(2)]
    pub ioapic: IoApic,
}

impl Part for Irqchip {
    const NAME: &'static str = "x86.irqchip";
    const FIELDS: Fields = Fields::These(&[0, 1, 2]);
}
