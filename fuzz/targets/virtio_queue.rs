//! Fuzzes a virtio device by its driver: registers, queues, moves.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::guests::virtio_queue);
