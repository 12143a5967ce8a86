//! Fuzzes the wire form of a state section, and of the part in it.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::section);
