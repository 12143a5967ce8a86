//! Other tools' dumps, made into profiles.
//!
//! A dump comes from outside: it is read with the bounds of every JSON file here, and what KVM cannot have
//! said is refused with the place. What a dump does not say stays unknown in the profile.

mod kvm_registers;

pub use kvm_registers::kvm_registers;
