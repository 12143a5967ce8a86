//! Tests on the real KVM; each is skipped with a notice where there is none.

#![expect(clippy::unwrap_used, reason = "what helps a test fails the test")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

#[cfg(target_arch = "aarch64")]
mod arm64;
mod common;
mod crossing;
mod dirty;
mod guest;
mod linux;
mod pauses;
mod payloads;
mod serial;
mod virtio;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64 as arch;
#[cfg(target_arch = "x86_64")]
use x86 as arch;
