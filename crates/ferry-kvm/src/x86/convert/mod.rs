//! Conversions between kvm-bindings' structures and the typed values of the state.

mod vcpu;
mod vm;

pub(super) use vcpu::{
    debug_regs_from_kvm, debug_regs_to_kvm, events_from_kvm, events_to_kvm, lapic_from_kvm, lapic_to_kvm,
    regs_from_kvm, regs_to_kvm, sregs_from_kvm, sregs_from_sregs2, sregs_to_kvm, sregs2_from_sregs,
    xcrs_from_kvm, xcrs_to_kvm,
};
pub(super) use vm::{
    clock_from_kvm, clock_to_kvm, ioapic_from_kvm, ioapic_to_kvm, pic_from_kvm, pic_to_kvm, pit_from_kvm,
    pit_to_kvm,
};
