//! Fuzzes the state part `arm64.gic_its`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::arm64::GicIts>);
