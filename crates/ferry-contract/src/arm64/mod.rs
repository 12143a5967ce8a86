//! What an arm64 guest sees, in KVM's own terms: registers by their ids.

pub(crate) mod fields;
mod names;
mod register;
mod system;
mod value;

pub use register::{MAX_REGISTER_BYTES, RegisterClass, RegisterId, RegisterIdError, RegisterKind};
pub use system::SystemRegister;
pub use value::RegisterValue;
