//! One queue of a device that runs: virtio-queue's `Queue`, whose errors are told apart and whose writes
//! are noted.
//!
//! The device never asks the driver to be silent while it works: with `VIRTIO_F_EVENT_IDX` the driver is
//! silent by itself, and without it a notification too many costs an eventfd's write.

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};

use super::chain::{Chain, Malformed};
use super::memory::{DeviceMemory, used_ring_bytes};

/// Bytes of a descriptor (virtio 1.2, 2.7.5).
const DESCRIPTOR_BYTES: u64 = 16;

/// Bytes of an available ring beside its entries: flags, index, `used_event` (2.7.6).
const AVAILABLE_RING_BYTES: u64 = 6;

/// Bytes of an entry of an available ring.
const AVAILABLE_ENTRY_BYTES: u64 = 2;

/// Where a queue lies, as its registers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The most entries.
    pub(super) max: u16,
    /// Entries.
    pub(super) size: u32,
    /// Guest-physical address of the descriptors.
    pub(super) descriptors: u64,
    /// Guest-physical address of the available ring, which the driver writes.
    pub(super) available: u64,
    /// Guest-physical address of the used ring, which the device writes.
    pub(super) used: u64,
}

/// How far a queue has come: the free-running indices of both rings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The entry of the available ring that is taken next.
    pub(super) available: u16,
    /// The entry of the used ring that is written next.
    pub(super) used: u16,
}

/// A queue in use.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
}

impl Place {
    /// The number of entries, if a queue can be there: size, alignment, guest memory.
    pub(super) fn check(&self, memory: &DeviceMemory) -> Result<u16, Malformed> {
        let entries =
            u16::try_from(self.size).ok().filter(|size| size.is_power_of_two() && *size <= self.max);
        let entries = entries.ok_or(Malformed::Size { size: self.size, max: self.max })?;
        for (ring, address, alignment, bytes) in [
            ("descriptor table", self.descriptors, 16, DESCRIPTOR_BYTES * u64::from(entries)),
            (
                "available ring",
                self.available,
                2,
                AVAILABLE_RING_BYTES + AVAILABLE_ENTRY_BYTES * u64::from(entries),
            ),
            ("used ring", self.used, 4, used_ring_bytes(entries)),
        ] {
            // virtio-queue takes 0 for a queue that is not set up.
            if address == 0 || !address.is_multiple_of(alignment) {
                return Err(Malformed::Alignment { ring, address });
            }
            memory.check(address, bytes).map_err(|source| Malformed::Outside { what: ring, source })?;
        }
        Ok(entries)
    }
}

impl Ring {
    /// The queue at this place, which has come so far.
    pub(super) fn new(
        memory: &DeviceMemory,
        place: &Place,
        progress: Progress,
        event_idx: bool,
    ) -> Result<Self, Malformed> {
        let size = place.check(memory)?;
        let state = QueueState {
            max_size: place.max,
            next_avail: progress.available,
            next_used: progress.used,
            event_idx_enabled: event_idx,
            size,
            ready: true,
            desc_table: place.descriptors,
            avail_ring: place.available,
            used_ring: place.used,
        };
        let queue = Queue::try_from(state).map_err(|error| Malformed::Available(error.to_string()))?;
        Ok(Self { queue })
    }

    /// How far it has come.
    pub(super) fn progress(&self) -> Progress {
        Progress { available: self.queue.next_avail(), used: self.queue.next_used() }
    }

    /// The next request, if there is one.
    pub(super) fn pop(&mut self, memory: &DeviceMemory) -> Result<Option<Chain>, Malformed> {
        let entries = self.queue.size();
        memory.on_rings(&mut self.queue, |queue, guest| {
            let mut available = queue.iter(guest).map_err(|error| Malformed::Available(error.to_string()))?;
            available.next().map(|chain| Chain::parse(memory, chain, entries)).transpose()
        })
    }

    /// Gives the request back that was taken last: it is the next one again.
    pub(super) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Says that a request is done, into which so many bytes were written. True if the driver wants an
    /// interrupt.
    pub(super) fn complete(
        &mut self,
        memory: &DeviceMemory,
        head: u16,
        written: u32,
    ) -> Result<bool, Malformed> {
        memory
            .on_used_ring(&mut self.queue, |queue, guest| {
                queue.add_used(guest, head, written)?;
                queue.needs_notification(guest)
            })
            .map_err(|error| Malformed::Used(error.to_string()))
    }

    /// Asks the driver to notify the device of the next request. True if there is one already.
    pub(super) fn wait_for_more(&mut self, memory: &DeviceMemory) -> Result<bool, Malformed> {
        memory
            .on_used_ring(&mut self.queue, QueueT::enable_notification)
            .map_err(|error| Malformed::Used(error.to_string()))
    }
}
