//! The state of arm64 vCPUs and VMs: read from KVM as typed sections, and put back.
//!
//! A vCPU's registers are those that KVM lists, each read and written by itself; the interrupt controller,
//! a `GICv3` in the kernel, has a device. Both sides look at the machine once its vCPUs are made,
//! with the features and the registers that the guest's contract gives them, and its GIC is initialised. Then,
//! with every vCPU stopped and its last exit completed:
//!
//! ```text
//! source: for each vCPU its registers and events, the GIC's part of it; then the distributor, the counter
//! target: the counter, for each vCPU its registers and events; the distributor; for each vCPU the GIC's
//!         part of it, then the lines; whether each vCPU runs; then the first run
//! ```
//!
//! What is done in which order, and which fact of the kernel sets each place, stands at each line of
//! `restore.rs`. The facts come from the kernel's arch/arm64/kvm (`sys_regs.c`, guest.c, `arch_timer.c`, vgic/) and
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst.

mod capture;
mod error;
mod gic;
mod machine_state;
pub(crate) mod registers;
mod restore;

#[cfg(test)]
mod tests;

pub use error::{Notice, StateIoError};
pub use gic::Gic;
pub(crate) use machine_state::KvmState;
