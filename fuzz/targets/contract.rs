//! Fuzzes contracts on the wire.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::contract::wire);
