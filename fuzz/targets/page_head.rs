//! Fuzzes the head of a page frame.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::protocol::page_head);
