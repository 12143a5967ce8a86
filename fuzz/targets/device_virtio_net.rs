//! Fuzzes the state part `device/virtio-net`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::device::VirtioNet>);
