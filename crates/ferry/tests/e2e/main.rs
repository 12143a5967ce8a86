//! End-to-end tests of the `ferry` program: real processes, real sockets, on the simulated machine
//! and on KVM. Where KVM cannot be used, its half says so and is skipped.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "this crate is nothing but tests; clippy exempts only functions marked so"
)]

#[macro_use]
mod support;

mod bad_input;
mod bad_peers;
mod bench;
#[cfg(target_arch = "x86_64")]
mod console;
mod control_socket;
mod disks;
mod freeze;
mod guest_time;
mod huge_pages;
#[cfg(target_arch = "x86_64")]
mod kernels;
mod kill;
mod lanes;
mod links;
mod linux;
mod locks;
mod matrix;
mod moves;
mod one_way;
mod one_way_kill;
mod permissions;
mod probing;
mod recover;
mod recover_unknown;
mod rings;
mod soak;
mod to_and_fro;
mod watching;
