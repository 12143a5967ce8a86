//! The parts of an x86-64 machine, one module a subject.
//!
//! Each part mirrors one structure of KVM's interface and keeps its values and meaning; names that
//! Rust or plain English would not have are spelled out. The order in which they are read and written
//! is the affair of whoever holds the vCPU.

mod activity;
mod clock;
mod debug;
mod events;
mod extended;
mod irqchip;
mod lapic;
mod msrs;
mod nested;
mod pit;
mod regs;
mod sregs;
mod tsc;

pub use activity::MpState;
pub use clock::Clock;
pub use debug::DebugRegs;
pub use events::{Exception, Interrupt, Nmi, Smi, VcpuEvents};
pub use extended::{MAX_XCRS, MAX_XSAVE_BYTES, MIN_XSAVE_BYTES, Xcr, Xcrs, Xsave};
pub use irqchip::{IOAPIC_PINS, IoApic, Irqchip, Pic};
pub use lapic::{LAPIC_BYTES, Lapic};
pub use msrs::{IA32_TSC, MAX_MSRS, Msrs};
pub use nested::{MAX_NESTED_BYTES, NESTED_HEADER_BYTES, Nested};
pub use pit::{PIT_CHANNELS, Pit, PitChannel};
pub use regs::Regs;
pub use sregs::{DescriptorTable, SREGS_PDPTRS_VALID, Segment, Sregs};
pub use tsc::{TscFrequency, TscOffset};

crate::known::parts!(
    Regs,
    Sregs,
    VcpuEvents,
    MpState,
    Xcrs,
    Xsave,
    Lapic,
    DebugRegs,
    Nested,
    Msrs,
    TscFrequency,
    TscOffset,
    Irqchip,
    Pit,
    Clock,
);
