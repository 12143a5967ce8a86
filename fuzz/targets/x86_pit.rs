//! Fuzzes the state part `x86.pit`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::x86::Pit>);
