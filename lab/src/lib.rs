//! Real KVM hosts on any machine: a real Linux kernel with its real KVM inside an emulated machine.
//!
//! QEMU's TCG emulates AMD's SVM and EL2 of arm64, Bochs emulates Intel's VMX, so `/dev/kvm` in there is the
//! kernel's own. A [`Host`] names one: `amd/6.12/EPYC-Rome`. [`Lab::prepare`] fetches what it needs once,
//! [`Lab::boot`] keeps it running for as many programs as are wanted, and [`Lab::pair`] boots two with a
//! network between them. `cargo xtask lab` is the same for the command line;
//! `docs/lab.md` says how it works and what it can not show.
//!
//! Kernels and emulators are Debian's packages, taken through the machine's own apt configuration into
//! a private root ([`apt`]); the machine's own packages stay as they are.

#![forbid(unsafe_code)]

pub mod apt;
pub mod cache;
pub mod cpio;
pub mod error;
pub mod files;
pub mod host;
pub mod kernel;

mod bochs;
mod command;
mod here;
mod initramfs;
mod lab;
mod linux;
mod machine;
pub mod pair;
mod process;
mod program;
mod qemu;
mod stream;
mod toolchain;

pub use crate::error::Error;
pub use crate::host::{Architecture, Host, Vendor};
pub use crate::lab::{Job, Lab};
pub use crate::linux::Linux;
pub use crate::machine::{Machine, Output, Side};
pub use crate::pair::Pair;
pub use crate::program::{Programs, check_static};
