//! The state of a guest's vCPUs and VM.
#![forbid(unsafe_code)]
mod section;
pub use section::{MachineState, Section};
