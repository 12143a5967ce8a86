//! Fuzzes the state part `device/serial`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::device::Serial>);
