//! Guest memory as devices reach it: the one place through which they write to it, so that every page
//! that a device wrote is noted, and after the write.
//!
//! Nothing else of the devices has a handle on the memory. The used rings are written by virtio-queue,
//! which gets the memory from [`DeviceMemory::on_used_ring`] alone.

use ferry_memory::{Layout, LayoutError, PageSet, Span};
use ferry_migrate::{DevicePages, MachineError};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Bytes of a used ring beside its entries: flags, index, `avail_event` (virtio 1.2, 2.7.8).
const USED_RING_BYTES: u64 = 6;

/// Bytes of an entry of a used ring.
const USED_ENTRY_BYTES: u64 = 8;

/// Guest memory, and the pages of it that one device wrote.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    memory: GuestMemoryMmap,
    spans: Vec<Span>,
    pages: DevicePages,
}

/// Bytes that do not lie inside one region of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{length:#x} bytes at {address:#x} are not in guest memory")]
pub struct Outside {
    /// Guest-physical address of the first.
    pub address: u64,
    /// How many.
    pub length: u64,
}

impl DeviceMemory {
    /// The memory for a device that has written nothing yet.
    pub(super) fn new(memory: GuestMemoryMmap) -> Result<Self, LayoutError> {
        let spans: Vec<Span> = memory
            .iter()
            .map(|region| Span { start: region.start_addr().raw_value(), length: region.len() })
            .collect();
        let pages = DevicePages::new(&Layout::new(spans.clone())?);
        Ok(Self { memory, spans, pages })
    }

    /// Whether these bytes lie inside one region.
    pub(super) fn check(&self, address: u64, length: u64) -> Result<(), Outside> {
        let inside = |span: &Span| {
            let offset = address.checked_sub(span.start);
            offset.is_some_and(|offset| offset <= span.length && length <= span.length - offset)
        };
        if self.spans.iter().any(inside) { Ok(()) } else { Err(Outside { address, length }) }
    }

    /// Reads guest memory, which the guest may be writing.
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Outside> {
        let outside = Outside { address, length: into.len() as u64 };
        self.check(address, outside.length)?;
        self.memory.read_slice(into, GuestAddress(address)).map_err(|_| outside)
    }

    /// Writes guest memory, and then notes the pages.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Outside> {
        let outside = Outside { address, length: bytes.len() as u64 };
        self.check(address, outside.length)?;
        let written = self.memory.write_slice(bytes, GuestAddress(address));
        self.note(address, outside.length);
        written.map_err(|_| outside)
    }

    /// What virtio-queue only reads in a queue's rings.
    pub(super) fn on_rings<T>(
        &self,
        queue: &mut Queue,
        act: impl FnOnce(&mut Queue, &GuestMemoryMmap) -> T,
    ) -> T {
        act(queue, &self.memory)
    }

    /// What virtio-queue writes to a queue's used ring; afterwards the whole ring is noted.
    pub(super) fn on_used_ring<T>(
        &self,
        queue: &mut Queue,
        act: impl FnOnce(&mut Queue, &GuestMemoryMmap) -> T,
    ) -> T {
        let done = act(queue, &self.memory);
        self.note(queue.used_ring(), used_ring_bytes(queue.size()));
        done
    }

    /// Adds the pages that were written since the last call, and forgets them.
    pub(super) fn harvest(&self, into: &mut PageSet) -> Result<(), MachineError> {
        self.pages.harvest(into)
    }

    fn note(&self, address: u64, length: u64) {
        if !self.pages.wrote(address, length) {
            // Cannot be: who writes has checked the same bounds.
            tracing::error!(address, length, "a write of a device to guest memory is not noted");
        }
    }
}

/// Bytes of a used ring of so many entries.
pub(super) fn used_ring_bytes(entries: u16) -> u64 {
    USED_RING_BYTES + USED_ENTRY_BYTES * u64::from(entries)
}
