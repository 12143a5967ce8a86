//! Fuzzes the JSON of profiles.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::contract::profile);
