//! What an arm64 guest sees, in KVM's own terms: registers by their ids.

mod names;
mod register;
mod system;

pub use register::{MAX_REGISTER_BYTES, RegisterClass, RegisterId, RegisterIdError, RegisterKind};
pub use system::SystemRegister;
