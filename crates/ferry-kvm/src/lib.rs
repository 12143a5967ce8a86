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
//! - [`adopt()`] takes over an inherited descriptor;
//! - [`probe::probe`] makes this host's profile, [`apply_contract`] gives a vCPU what its guest's contract says;
//! - [`x86`] captures and restores the state of vCPUs and VM;
//! - [`Deviation`] is what a host really does otherwise, found by force: the lab holds verdicts against it.

#![allow(unsafe_code, reason = "KVM's ioctls and run pages are raw memory; each block has its reason")]
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        reason = "so far machines are of x86-64: what every machine shares has no user elsewhere"
    )
)]

mod adopt;
#[cfg(target_arch = "x86_64")]
mod dirty;
#[cfg(target_arch = "x86_64")]
mod dirty_log;
mod dirty_ring;
#[cfg(target_arch = "x86_64")]
mod forced;
mod host;
mod huge_pages;
mod ioctl;
#[cfg(target_arch = "x86_64")]
mod judge;
mod kick;
#[cfg(target_arch = "x86_64")]
mod machine;
mod memory;
pub mod probe;
#[cfg(target_arch = "x86_64")]
pub mod x86;

pub use adopt::adopt;
pub use dirty_ring::{DirtyRing, DirtyRingError};
#[cfg(target_arch = "x86_64")]
pub use forced::{Deviation, force_contract};
pub use host::{API_VERSION, DEVICE, HostLimits, OpenError, open, open_at};
pub use huge_pages::{HugePages, HugePagesError, Pages, allocate_in};
#[cfg(target_arch = "x86_64")]
pub use judge::judge;
pub use kick::{Entered, Kick, KickError, kick_signal};
#[cfg(target_arch = "x86_64")]
pub use machine::{Devices, KIND, KvmMachine, UseVcpu, Vcpus};
pub use memory::{HOLE_END, HOLE_START, MemoryError, MemorySlots, allocate, x86_layout};
#[cfg(target_arch = "x86_64")]
pub use x86::{ContractApplyError, apply_contract, judge_contract};
