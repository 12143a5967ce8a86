//! The state of arm64 vCPUs and VMs: read from KVM as typed sections, and put back.
//!
//! A vCPU's registers are those that KVM lists, each read and written by itself; the interrupt controller,
//! a `GICv3` in the kernel, has a device. Both sides look at the machine once its vCPUs are made,
//! with the features and the registers that the guest's contract gives them, and its GIC is initialised. Then,
//! with every vCPU stopped and its last exit completed:
//!
//! ```text
//! source: for each vCPU its registers and events, the GIC's part of it; then the distributor, each ITS, the counter
//! target: the counter, for each vCPU its registers and events; the distributor; for each vCPU the GIC's
//!         part of it, then the lines; each ITS; whether each vCPU runs; then the first run
//! ```
//!
//! One thing goes another way. What a guest told an ITS, and which of its LPIs wait, KVM writes into guest memory
//! and nowhere else: into tables that the guest has set aside there for the GIC and may not use itself. That is
//! done when the machine is paused, before the last harvest of written pages, so that it moves with the memory; every
//! restore finds it there. It is the only guest memory that saving a state writes to, and a guest that runs on
//! instead finds nothing changed: its GIC goes by what KVM holds.
//!
//! What is done in which order, and which fact of the kernel sets each place, stands at each line of
//! `restore.rs`. The facts come from the kernel's arch/arm64/kvm (`sys_regs.c`, guest.c, `arch_timer.c`, vgic/) and
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic-its.rst.

mod attribute;
mod capture;
mod clocks;
mod contract;
mod error;
mod forced;
mod gic;
mod its;
mod machine_state;
pub(crate) mod registers;
mod restore;
mod tables;
pub(crate) mod vcpu;

#[cfg(test)]
mod tests;

pub(crate) use clocks::Clocks;
pub use contract::{apply_contract, force_contract};
pub use error::{Notice, StateIoError};
pub use gic::Gic;
pub(crate) use machine_state::KvmState;

pub use crate::probe::arm64::counter_frequency;
