//! Fuzzes the messages to the source.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::protocol::message::<ferry_protocol::message::ToSource>);
