//! Fuzzes the JSON of contracts.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::contract::json);
