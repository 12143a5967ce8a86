//! The state of x86-64 vCPUs and VMs: read from KVM as typed sections, and put back.
//!
//! Both sides call [`X86Caps::prepare`] on a fresh VM and [`VcpuBaseline::capture`] on each fresh vCPU
//! once it has its CPUID, before anything else is set. Then, with every vCPU stopped and its last
//! exit completed:
//!
//! ```text
//! source: capture_vcpu for each vCPU from 0 on, then capture_vm
//! target: check_sections, restore_vcpu for each vCPU from 0 on, then restore_vm, then the first run
//! ```
//!
//! What one call does in which order, and which fact of the kernel sets each place, stands at each
//! line of `capture.rs` and `restore.rs`. The facts come from the kernel's arch/x86/kvm/x86.c,
//! lapic.c and ioapic.c and Documentation/virt/kvm/api.rst; those about `kvm_pvm` from running it.

mod caps;
mod capture;
mod clocks;
mod contract;
mod convert;
mod error;
mod forced;
mod forced_contract;
mod ioctls;
mod machine_state;
mod msrs;
mod nested;
mod restore;
mod tsc;
mod vm;

#[cfg(test)]
mod tests;

pub use caps::X86Caps;
pub use capture::{VcpuBaseline, capture_vcpu};
pub(crate) use clocks::Clocks;
pub use contract::apply_contract;
pub use error::{Notice, StateIoError};
pub use forced::{force_vcpu, force_vm};
pub use forced_contract::force_contract;
pub(crate) use machine_state::KvmState;
pub use restore::{check_sections, note_pause, restore_vcpu};
pub use tsc::FirstTsc;
pub use vm::{VmBaseline, capture_vm, restore_vm};
