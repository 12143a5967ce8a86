//! Fuzzes the look into a file with a guest.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::oneway::file);
