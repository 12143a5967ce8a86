//! Fuzzes journals.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::journal::journal);
