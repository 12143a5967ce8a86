//! A machine in software behind the trait [`Machine`](ferry_migrate::Machine), deterministic from a
//! seed.
//!
//! It is no emulator and runs no guest code: the processor is a register file that a generator turns,
//! and the guest is one of two [`Workload`]s that write pages and hold them against what they wrote.
//! What it shares with a guest on KVM is all that a migration deals with: memory that changes while
//! it is read, dirty pages, a state, devices, a lock that only one may hold, and custody. It serves
//! where there is no KVM, and in tests that need a machine which fails on demand.
//!
//! - [`SimCore`] is the machine as a value that steps. Two cores with the same [`SimConfig`] that ran
//!   equally many steps are equal, so a guest that moved can be compared with one that did not.
//! - [`SimMachine`] runs a core on a thread, paced by real time; [`SimBuilder`] makes one on the
//!   target.
//! - [`SimFaults`] makes one named call of a machine fail.

#![forbid(unsafe_code)]

mod builder;
mod config;
mod faults;
mod generator;
mod machine;
mod pace;
mod page;
mod runner;
mod sim_core;
mod state;
mod walk;

pub use builder::SimBuilder;
pub use config::{
    ConfigError, KIND, MAX_CONFIG_BYTES, MAX_MEMORY_BYTES, MAX_RATE_BYTES_PER_SECOND, SimConfig, Workload,
};
pub use faults::{Call, SimFaults, SimFaultsError, When};
pub use generator::Generator;
pub use machine::{SimMachine, SimOptions, SimReport};
pub use page::Fault;
pub use sim_core::{CoreError, DebugPort, GENERAL_REGISTERS, MAX_STEPS, SimCore, SimRegisters, Verified};
pub use state::RestoreError;
