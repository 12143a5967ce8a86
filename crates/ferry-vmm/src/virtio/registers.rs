//! The registers of a virtio-mmio device, version 2, as plain values: one type for all devices.
//!
//! [`Registers::write`] says what follows from a write ([`Effect`]); whoever holds the registers does it.
//! Facts: virtio 1.2, 4.2.2 (the registers), 3.1 (the order of a driver's steps), 2.1 (the status).

use ferry_state::device::{VirtioQueue, VirtioTransport};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::ring::{Place, Progress};

/// What every device offers.
pub(super) const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// "virt", the magic value.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");

/// The version without legacy.
const VERSION: u32 = 2;

/// Who made the device; drivers show it.
const VENDOR: u32 = u32::from_le_bytes(*b"FRRY");

/// The status bits that there are.
const STATUS_BITS: u8 = bit(VIRTIO_CONFIG_S_ACKNOWLEDGE)
    | bit(VIRTIO_CONFIG_S_DRIVER)
    | DRIVER_OK
    | FEATURES_OK
    | NEEDS_RESET
    | bit(VIRTIO_CONFIG_S_FAILED);
const DRIVER_OK: u8 = bit(VIRTIO_CONFIG_S_DRIVER_OK);
const FEATURES_OK: u8 = bit(VIRTIO_CONFIG_S_FEATURES_OK);
const NEEDS_RESET: u8 = bit(VIRTIO_CONFIG_S_NEEDS_RESET);

/// A used ring has something new.
pub(super) const INTERRUPT_RING: u8 = bit(reg::VIRTIO_MMIO_INT_VRING);

/// The configuration has changed.
pub(super) const INTERRUPT_CONFIG: u8 = bit(reg::VIRTIO_MMIO_INT_CONFIG);

/// A bit of one of the byte-wide registers.
const fn bit(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

/// What follows from a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    Nothing,
    /// The driver has put something into a queue.
    Notify,
    /// Which queues are in use may have changed, or the device was reset.
    Settle,
    /// The reasons for an interrupt have changed.
    Interrupt,
    /// The driver started what it may not start.
    Refused,
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers {
    device_id: u32,
    offered: u64,
    /// What the device says of itself; drivers read it.
    config: Vec<u8>,
    status: u8,
    accepted: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    interrupts: u8,
    config_generation: u32,
    queues: Vec<QueueRegisters>,
    life: u64,
}

/// Those of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct QueueRegisters {
    place: Place,
    is_ready: bool,
}

impl QueueRegisters {
    fn new(max: u16) -> Self {
        let place = Place { max, size: max.into(), descriptors: 0, available: 0, used: 0 };
        Self { place, is_ready: false }
    }
}

impl Registers {
    /// Those of a device at birth, with queues of so many entries at most.
    pub(super) fn new(device_id: u32, features: u64, queues: &[u16], config: Vec<u8>) -> Self {
        Self {
            device_id,
            offered: features | TRANSPORT_FEATURES,
            config,
            status: 0,
            accepted: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            interrupts: 0,
            config_generation: 0,
            queues: queues.iter().map(|max| QueueRegisters::new(*max)).collect(),
            life: 0,
        }
    }

    /// Whether the driver has accepted this feature.
    pub(super) fn has(&self, feature: u32) -> bool {
        self.status & FEATURES_OK != 0 && self.accepted >> feature & 1 == 1
    }

    /// Whether the device is to answer requests.
    pub(super) fn is_running(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Where a queue lies, if it is to be used now.
    pub(super) fn queue_in_use(&self, queue: usize) -> Option<Place> {
        let found = self.queues.get(queue).filter(|queue| queue.is_ready && self.is_running());
        found.map(|queue| queue.place)
    }

    /// Changes with each reset: rings of an earlier life are none of this one.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    /// Reasons for an interrupt that the driver has not acknowledged.
    pub(super) fn interrupts(&self) -> u8 {
        self.interrupts
    }

    /// Adds reasons for an interrupt.
    pub(super) fn interrupt(&mut self, reasons: u8) {
        self.interrupts |= reasons;
    }

    /// The device does no more until it is reset.
    pub(super) fn break_down(&mut self) {
        let was_running = self.status & DRIVER_OK != 0;
        self.status |= NEEDS_RESET;
        if was_running {
            self.interrupts |= INTERRUPT_CONFIG;
        }
    }

    /// Puts another configuration in the place of the old one.
    pub(super) fn configure(&mut self, config: Vec<u8>) {
        if config != self.config {
            self.config = config;
            self.config_generation = self.config_generation.wrapping_add(1);
        }
    }

    /// A read by the driver. Registers are read as a whole; what is none reads as zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            let known = usize::try_from(at).ok().and_then(|at| self.config.get(at..));
            for (to, from) in data.iter_mut().zip(known.unwrap_or_default()) {
                *to = *from;
            }
        } else if let (Ok(offset), Ok(word)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            *word = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u32) -> u32 {
        let queue = self.queues.get(self.queue_select as usize);
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device_id,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, self.device_features_select),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.place.max.into()),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| queue.is_ready.into()),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupts.into(),
            reg::VIRTIO_MMIO_STATUS => self.status.into(),
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            // There is no shared memory: its length and place read as all ones.
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    /// A write by the driver. What is no whole register is dropped; the configuration is only read.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let (Ok(offset), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return Effect::Nothing;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.accept(value),
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => return Effect::Notify,
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupts &= !bit(value);
                return Effect::Interrupt;
            }
            reg::VIRTIO_MMIO_STATUS => return self.set_status(bit(value)),
            reg::VIRTIO_MMIO_QUEUE_READY => return self.set_ready(value == 1),
            _ => self.set_place(offset, value),
        }
        Effect::Nothing
    }

    fn accept(&mut self, value: u32) {
        if self.status & FEATURES_OK == 0 {
            match self.driver_features_select {
                0 => self.accepted = self.accepted & !u64::from(u32::MAX) | u64::from(value),
                1 => self.accepted = self.accepted & u64::from(u32::MAX) | u64::from(value) << 32,
                _ => {}
            }
        }
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Settle;
        }
        let old = self.status;
        let mut new = old | value & STATUS_BITS & !NEEDS_RESET;
        if !self.may_accept() {
            // That the bit does not stay tells the driver.
            new &= !(FEATURES_OK & !old);
        }
        self.status = new;
        if new & DRIVER_OK != 0 && new & FEATURES_OK == 0 {
            return Effect::Refused;
        }
        if new == old { Effect::Nothing } else { Effect::Settle }
    }

    /// Whether the device works with what the driver accepts.
    fn may_accept(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted >> VIRTIO_F_VERSION_1 & 1 == 1
    }

    fn reset(&mut self) {
        self.status = 0;
        self.accepted = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.interrupts = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.place.max);
        }
        self.life += 1;
    }

    fn set_ready(&mut self, is_ready: bool) -> Effect {
        match self.queues.get_mut(self.queue_select as usize) {
            Some(queue) if queue.is_ready != is_ready => {
                queue.is_ready = is_ready;
                Effect::Settle
            }
            _ => Effect::Nothing,
        }
    }

    /// Where the selected queue lies; a queue that is ready does not move.
    fn set_place(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_select as usize).filter(|queue| !queue.is_ready)
        else {
            return;
        };
        let place = &mut queue.place;
        let low = |address: &mut u64| *address = *address & !u64::from(u32::MAX) | u64::from(value);
        let high = |address: &mut u64| *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => place.size = value,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => low(&mut place.descriptors),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => high(&mut place.descriptors),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => low(&mut place.available),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => high(&mut place.available),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => low(&mut place.used),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => high(&mut place.used),
            _ => {}
        }
    }

    /// As a part of the state; `progress` is how far each queue has come.
    pub(super) fn save(&self, progress: impl Fn(usize) -> Progress) -> VirtioTransport {
        let queue = |(at, queue): (usize, &QueueRegisters)| {
            let (place, come) = (queue.place, progress(at));
            VirtioQueue {
                size_max: place.max,
                size: place.size,
                is_ready: queue.is_ready,
                descriptors: place.descriptors,
                available: place.available,
                used: place.used,
                next_available: come.available,
                next_used: come.used,
            }
        };
        VirtioTransport {
            status: self.status,
            offered_features: self.offered,
            accepted_features: self.accepted,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            interrupts: self.interrupts,
            config_generation: self.config_generation,
            queues: self.queues.iter().enumerate().map(queue).collect(),
        }
    }

    /// The same device with these registers, or why it cannot have them.
    pub(super) fn restore(&self, saved: &VirtioTransport, config: Vec<u8>) -> Result<Self, String> {
        let missing = saved.offered_features & !self.offered;
        if missing != 0 {
            return Err(format!(
                "the guest was offered the features {missing:#x}, which this device has not"
            ));
        }
        if saved.queues.len() != self.queues.len() {
            let (theirs, own) = (saved.queues.len(), self.queues.len());
            return Err(format!("the guest's device has {theirs} queues, this one {own}"));
        }
        if saved.status & !STATUS_BITS != 0 {
            return Err(format!("there is no status {:#x}", saved.status));
        }
        if saved.interrupts & !(INTERRUPT_RING | INTERRUPT_CONFIG) != 0 {
            return Err(format!("there is no interrupt {:#x}", saved.interrupts));
        }
        let queues = saved.queues.iter().zip(&self.queues).map(|(saved, own)| {
            if saved.size_max > own.place.max || !saved.size_max.is_power_of_two() {
                let (theirs, own) = (saved.size_max, own.place.max);
                return Err(format!("the guest's device has a queue of {theirs} entries, this one of {own}"));
            }
            let place = Place {
                max: saved.size_max,
                size: saved.size,
                descriptors: saved.descriptors,
                available: saved.available,
                used: saved.used,
            };
            Ok(QueueRegisters { place, is_ready: saved.is_ready })
        });
        let restored = Self {
            device_id: self.device_id,
            offered: saved.offered_features,
            config,
            status: saved.status,
            accepted: saved.accepted_features,
            device_features_select: saved.device_features_select,
            driver_features_select: saved.driver_features_select,
            queue_select: saved.queue_select,
            interrupts: saved.interrupts,
            config_generation: saved.config_generation,
            queues: queues.collect::<Result<_, _>>()?,
            life: self.life + 1,
        };
        let is_bound = restored.status & FEATURES_OK != 0;
        if is_bound && !restored.may_accept() || !is_bound && restored.is_running() {
            return Err("its driver runs with features that were not offered".to_owned());
        }
        Ok(restored)
    }
}

/// A half of 64 features, by its select register.
fn half(features: u64, select: u32) -> u32 {
    let bytes = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}
