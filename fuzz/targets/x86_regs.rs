//! Fuzzes the state part `x86.regs`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::x86::Regs>);
