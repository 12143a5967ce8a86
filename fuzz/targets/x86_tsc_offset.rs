//! Fuzzes the state part `x86.tsc_offset`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::x86::TscOffset>);
