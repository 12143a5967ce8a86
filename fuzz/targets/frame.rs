//! Fuzzes a stream of frames.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::protocol::frame);
