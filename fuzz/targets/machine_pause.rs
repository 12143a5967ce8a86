//! Fuzzes the state part `machine.pause`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::Pause>);
