//! Fuzzes the state part `arm64.gic_distributor`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::arm64::GicDistributor>);
