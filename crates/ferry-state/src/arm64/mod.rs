//! The parts of an arm64 machine, one module a subject.
//!
//! Nearly all of a vCPU is in [`Registers`], by KVM's own ids; the interrupt controller keeps its
//! registers by their place in its frames. The order in which they are read and written is the affair
//! of whoever holds the vCPU; [`ferry_contract::arm64::RegisterClass`] says what each one is.

mod counter;
mod gic;
mod registers;
mod vcpu;

pub use counter::Counter;
pub use ferry_contract::arm64::RegisterValue;
pub use gic::{GicCpuInterface, GicDistributor, GicIts, GicLines, GicRedistributor};
pub use registers::Registers;
pub use vcpu::{MpState, VcpuEvents};

crate::known::parts!(
    MpState,
    VcpuEvents,
    Registers,
    GicCpuInterface,
    GicRedistributor,
    GicLines,
    GicDistributor,
    Counter,
    GicIts,
);
