//! Fuzzes the state part `x86.mp_state`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::x86::MpState>);
