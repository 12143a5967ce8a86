//! Fuzzes guest names.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::protocol::guest_id);
