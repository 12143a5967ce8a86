//! Tests on the real KVM; each is skipped with a notice where there is none.

#![expect(clippy::unwrap_used, reason = "what helps a test fails the test")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod common;
mod crossing;
mod dirty;
mod guest;
mod payloads;
mod serial;
