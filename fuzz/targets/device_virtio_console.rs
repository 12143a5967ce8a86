//! Fuzzes the state part `device/virtio-console`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::device::VirtioConsole>);
