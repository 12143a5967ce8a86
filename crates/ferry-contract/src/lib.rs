//! What a guest may see of its processors and its hypervisor, and the verdict on moving it.
//!
//! This crate stands on the ground floor: it knows neither sockets nor `/dev/kvm`. Its content so
//! far is the vocabulary in which a refusal is explained: a [`Finding`] is one reason, a
//! [`Verdict`] is made of findings.

#![forbid(unsafe_code)]

mod verdict;

pub use verdict::{Finding, FindingKind, Layer, MAX_FINDINGS, MAX_TEXT_BYTES, Verdict};
