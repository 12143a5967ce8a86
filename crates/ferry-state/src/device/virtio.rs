//! Virtio devices behind memory (virtio-mmio, version 2): the registers that all have, and what each kind
//! has beside.
//!
//! The names are those of virtio 1.2: 4.2.2 for the registers, 2.7 for the queues. A device is saved with
//! no request under way, so how far it has come with a queue is two indices.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The most queues of a device.
pub const MAX_VIRTIO_QUEUES: usize = 8;

/// The registers of a virtio-mmio device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VirtioTransport {
    /// `Status`.
    #[n(0)]
    pub status: u8,
    /// `DeviceFeatures`, all 64.
    #[n(1)]
    pub offered_features: u64,
    /// `DriverFeatures`, all 64.
    #[n(2)]
    pub accepted_features: u64,
    /// `DeviceFeaturesSel`.
    #[n(3)]
    pub device_features_select: u32,
    /// `DriverFeaturesSel`.
    #[n(4)]
    pub driver_features_select: u32,
    /// `QueueSel`.
    #[n(5)]
    pub queue_select: u32,
    /// `InterruptStatus`; the interrupt's line is high while it is not 0.
    #[n(6)]
    pub interrupts: u8,
    /// `ConfigGeneration`.
    #[n(7)]
    pub config_generation: u32,
    /// The queues, at most [`MAX_VIRTIO_QUEUES`].
    #[n(8)]
    pub queues: Vec<VirtioQueue>,
}

/// One queue of a virtio device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VirtioQueue {
    /// `QueueNumMax`.
    #[n(0)]
    pub size_max: u16,
    /// `QueueNum`, as the driver wrote it.
    #[n(1)]
    pub size: u32,
    /// `QueueReady`.
    #[n(2)]
    pub is_ready: bool,
    /// `QueueDesc`: guest-physical address of the descriptor table.
    #[n(3)]
    pub descriptors: u64,
    /// `QueueDriver`: guest-physical address of the available ring.
    #[n(4)]
    pub available: u64,
    /// `QueueDevice`: guest-physical address of the used ring.
    #[n(5)]
    pub used: u64,
    /// Requests taken from the available ring, modulo 65536.
    #[n(6)]
    pub next_available: u16,
    /// Requests put into the used ring, modulo 65536.
    #[n(7)]
    pub next_used: u16,
}

impl VirtioTransport {
    fn check(&self) -> Result<(), String> {
        match self.queues.len() {
            0..=MAX_VIRTIO_QUEUES => Ok(()),
            count => Err(format!("{count} queues are more than a device has ({MAX_VIRTIO_QUEUES})")),
        }
    }
}

/// A virtio block device. What is on the disk is not here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VirtioBlock {
    /// The registers.
    #[n(0)]
    pub transport: VirtioTransport,
    /// `capacity`: sectors of 512 bytes.
    #[n(1)]
    pub capacity_sectors: u64,
}

/// A virtio network card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VirtioNet {
    /// The registers.
    #[n(0)]
    pub transport: VirtioTransport,
    /// `mac`: the card's address.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub mac: [u8; 6],
    /// `status`: bit 0 the link is up, bit 1 the guest is to announce itself.
    #[n(2)]
    pub status: u16,
}

/// A virtio source of random bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VirtioEntropy {
    /// The registers.
    #[n(0)]
    pub transport: VirtioTransport,
}

/// A virtio console with one port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VirtioConsole {
    /// The registers.
    #[n(0)]
    pub transport: VirtioTransport,
}

impl Part for VirtioBlock {
    const NAME: &'static str = "device/virtio-block";
    const FIELDS: Fields = Fields::These(&[0, 1]);

    fn check(&self) -> Result<(), String> {
        self.transport.check()
    }
}

impl Part for VirtioNet {
    const NAME: &'static str = "device/virtio-net";
    const FIELDS: Fields = Fields::These(&[0, 1, 2]);

    fn check(&self) -> Result<(), String> {
        self.transport.check()
    }
}

impl Part for VirtioEntropy {
    const NAME: &'static str = "device/virtio-entropy";
    const FIELDS: Fields = Fields::These(&[0]);

    fn check(&self) -> Result<(), String> {
        self.transport.check()
    }
}

impl Part for VirtioConsole {
    const NAME: &'static str = "device/virtio-console";
    const FIELDS: Fields = Fields::These(&[0]);

    fn check(&self) -> Result<(), String> {
        self.transport.check()
    }
}
