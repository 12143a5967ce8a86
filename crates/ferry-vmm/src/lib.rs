//! Ferry's reference VMM: vCPU threads, a debug port, a serial port, built-in payloads.
//!
//! It is as small as a VMM can be that shows what a migration must keep: a guest whose payload writes
//! memory, knows what it wrote, and says on being asked whether all is still there. [`create()`] makes
//! a guest, [`KvmBuilder`] the machine that takes one on the target; [`AnyGuest`] and [`AnyBuilder`]
//! are the same over KVM and the simulated machine, chosen by [`Backend`].
//!
//! - [`GuestConfig`]: what a guest is asked to be; [`ports`]: how payload and device speak;
//!   [`payload`]: what the payload does to its pages;
//! - [`Guest`]: a machine whose payload reports;
//! - [`RunLog`]: a journal by which tests see that no two processes run one guest.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unreachable_code,
        reason = "so far guests on KVM are of x86-64: what they are made of has no user elsewhere"
    )
)]

mod backend;
mod boot;
mod config;
mod debug_port;
#[cfg(target_arch = "x86_64")]
mod devices;
mod error;
mod guest;
mod image;
#[cfg_attr(not(target_arch = "x86_64"), path = "no_kvm_guest.rs")]
mod kvm_guest;
pub mod payload;
pub mod ports;
mod run_log;
mod serial;
#[cfg(target_arch = "x86_64")]
mod shell;
mod sim_guest;
#[cfg(target_arch = "x86_64")]
mod vcpu_threads;

pub use backend::{
    AnyBuilder, AnyGuest, Backend, BackendError, Birth, Chosen, DirtyKind, DirtyKindError, create, fresh_seed,
};
pub use config::{
    ConfigError, GuestConfig, Level, MAX_CPUS, MAX_RATE_BYTES_PER_SECOND, MIN_MEMORY_BYTES, Payload,
};
pub use debug_port::DebugPort;
#[cfg(target_arch = "x86_64")]
pub use devices::KvmDevices;
pub use error::VmmError;
pub use ferry_kvm::HugePages;
pub use guest::{CheckReport, Guest, GuestReport};
pub use image::{FLAT_ADDRESS, Image, ImageError, MAX_IMAGE_BYTES};
pub use kvm_guest::{KvmBuilder, KvmGuest, create as create_on_kvm};
pub use run_log::{RunEvent, RunLine, RunLog};
pub use serial::SerialPort;
pub use sim_guest::create as create_in_sim;
#[cfg(target_arch = "x86_64")]
pub use vcpu_threads::VcpuThreads;
