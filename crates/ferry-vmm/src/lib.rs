//! Ferry's reference VMM: vCPU threads, a debug port, a serial port, built-in payloads.
//!
//! It is as small as a VMM can be that shows what a migration must keep: a guest whose payload writes
//! memory, knows what it wrote, and says on being asked whether all is still there. [`create()`] makes
//! a guest, [`KvmBuilder`] the machine that takes one on the target; [`AnyGuest`] and [`AnyBuilder`]
//! are the same over KVM and the simulated machine, chosen by [`Backend`].
//!
//! - [`GuestConfig`]: what a guest is asked to be; [`Board`]: the kernel that it boots, and its devices; [`Places`]:
//!   where a target has what they need; [`ports`]: how payload and device speak;
//!   [`payload`]: what the payload does to its pages;
//! - [`Guest`]: a machine whose payload reports;
//! - [`RunLog`]: a journal by which tests see that no two processes run one guest.

#![forbid(unsafe_code)]
#[cfg(any(target_arch = "aarch64", test))]
mod a64;
mod backend;
mod board;
mod boot;
mod config;
mod debug_port;
mod devices;
mod error;
mod guest;
mod image;
mod kvm_guest;
mod linux;
mod mmio;
mod output;
pub mod payload;
mod places;
pub mod ports;
mod power;
#[cfg(target_arch = "aarch64")]
mod rtc;
mod run_log;
mod serial;
mod shell;
mod sim_guest;
mod vcpu_threads;
pub mod virtio;

pub use backend::{
    AnyBuilder, AnyGuest, Backend, BackendError, Birth, Chosen, DirtyKind, DirtyKindError, create, fresh_seed,
};
pub use board::{
    Board, BoardError, DEVICE_BYTES, DEVICE_INTERRUPTS, DEVICES, DeviceSpec, Linux, MAX_COMMAND_LINE_BYTES,
    MAX_DEVICES, MAX_PATH_BYTES, MAX_TAP_BYTES, MachineConfig,
};
pub use config::{
    ConfigError, GuestConfig, Level, MAX_CPUS, MAX_RATE_BYTES_PER_SECOND, MIN_MEMORY_BYTES, Payload,
};
pub use debug_port::DebugPort;
pub use devices::KvmDevices;
pub use error::VmmError;
pub use ferry_kvm::HugePages;
pub use ferry_state::{GuestTime, GuestTimeError};
pub use guest::{CheckReport, Guest, GuestReport};
pub use image::{FLAT_ADDRESS, Image, ImageError, MAX_IMAGE_BYTES};
pub use kvm_guest::{KvmBuilder, KvmGuest, create as create_on_kvm};
pub use linux::{DEFAULT_COMMAND_LINE, LinuxError, try_kernel};
pub use places::Places;
pub use power::Wish;
pub use run_log::{RunEvent, RunLine, RunLog};
pub use serial::SerialPort;
pub use sim_guest::create as create_in_sim;
pub use vcpu_threads::VcpuThreads;
