//! The live-migration engine: pumps around the decisions of `ferry-protocol`, and the trait
//! [`Machine`] that a VMM implements to become movable.

#![forbid(unsafe_code)]

mod custody;
mod machine;

pub use custody::Custody;
pub use machine::{Builder, Harvest, Machine, MachineError, ResumeError, RunWatch};
