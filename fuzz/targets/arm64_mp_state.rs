//! Fuzzes the state part `arm64.mp_state`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::arm64::MpState>);
