//! Tests on the real KVM; each is skipped with a notice where there is none.

#![expect(clippy::unwrap_used, reason = "what helps a test fails the test")]

mod common;
mod dirty;
mod guest;
