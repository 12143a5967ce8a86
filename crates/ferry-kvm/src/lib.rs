//! Live migration for guests on Linux KVM.
//!
//! A VMM on kvm-ioctls and vm-memory hands its `VmFd`, `VcpuFd`s and `GuestMemory` to a
//! [`KvmMachine`], and its guests can be moved. What it needs beside that is here too:
//!
//! - [`open`] opens `/dev/kvm` or says why not; [`HostLimits`] and [`judge()`] hold an offered machine
//!   against this host;
//! - [`allocate`] maps guest memory on a memfd, [`allocate_in`] in [`HugePages`], [`MemorySlots`] registers memory with KVM;
//! - [`DirtyRing`] notes written pages by vCPU where the dirty log is not wanted;
//! - [`Kick`] gets a vCPU's thread out of `KVM_RUN`;
//! - [`adopt()`] takes over an inherited descriptor, [`open_tap`] opens a guest's network;
//! - [`probe::probe`] makes this host's profile, [`apply_contract`] gives a vCPU what its guest's contract says;
//! - `x86` and `arm64` capture and restore the state of vCPUs and VM;
//! - [`Deviation`] is what a host really does otherwise, found by force: the lab holds verdicts against it.

#![allow(unsafe_code, reason = "KVM's ioctls and run pages are raw memory; each block has its reason")]

mod adopt;
#[cfg(target_arch = "aarch64")]
pub mod arm64;
mod contract;
mod dirty;
mod dirty_log;
mod dirty_ring;
mod forced;
mod guest_time;
mod host;
mod huge_pages;
mod ioctl;
mod judge;
mod kick;
mod machine;
mod memory;
pub mod probe;
mod run;
mod tap;
#[cfg(target_arch = "x86_64")]
pub mod x86;

pub use adopt::adopt;
#[cfg(target_arch = "aarch64")]
pub use arm64::{apply_contract, force_contract};
pub use contract::{ContractApplyError, judge_contract};
pub use dirty_ring::{DirtyRing, DirtyRingError};
pub use forced::Deviation;
pub use host::{API_VERSION, DEVICE, HostLimits, OpenError, open, open_at};
pub use huge_pages::{HugePages, HugePagesError, Pages, allocate_in};
pub use judge::judge;
pub use kick::{Entered, Kick, KickError, kick_signal};
pub use machine::{Devices, KIND, KvmMachine, UseVcpu, Vcpus};
pub use memory::{
    ARM64_HIGH_START, ARM64_RAM_START, HOLE_END, HOLE_START, MemoryError, MemorySlots, allocate,
    arm64_layout, x86_layout,
};
pub use tap::{TapError, check_tap, open_tap};
#[cfg(target_arch = "x86_64")]
pub use x86::{apply_contract, force_contract};
