//! Fuzzes the state part `device/virtio-block`.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::state::part::<ferry_state::device::VirtioBlock>);
