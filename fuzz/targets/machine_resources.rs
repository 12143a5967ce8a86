//! Fuzzes the state part `machine.resources`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::Resources>);
