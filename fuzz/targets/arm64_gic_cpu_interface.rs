//! Fuzzes the state part `arm64.gic_cpu_interface`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::arm64::GicCpuInterface>);
