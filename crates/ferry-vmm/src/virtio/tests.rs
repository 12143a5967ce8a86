//! A driver in miniature, and what the devices answer it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::mmio::MmioDevice;
use virtio_bindings::virtio_mmio as reg;

mod block;
mod net;
mod small;
mod transport;

/// Bytes of guest memory.
const MEMORY: usize = 1 << 20;

/// Where buffers lie.
const BUFFERS: u64 = 0x8_0000;

/// Each queue's rings.
const RINGS: u64 = 0x1_0000;
const ENTRIES: u16 = 16;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A line that counts how often it was raised.
#[derive(Default)]
struct Counted(AtomicU32, AtomicU32);

struct CountedLine(Arc<Counted>);

impl Line for CountedLine {
    fn set(&self, level: bool) -> io::Result<()> {
        if self.0.1.swap(level.into(), Ordering::SeqCst) == 0 && level {
            self.0.0.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Counted {
    fn is_high(&self) -> bool {
        self.1.load(Ordering::SeqCst) == 1
    }
}

/// A buffer of a request.
#[derive(Clone, Copy)]
struct Buffer {
    address: u64,
    length: u32,
    is_written: bool,
}

fn reads(address: u64, length: u32) -> Buffer {
    Buffer { address, length, is_written: false }
}

fn writes(address: u64, length: u32) -> Buffer {
    Buffer { address, length, is_written: true }
}

/// A device and its driver.
struct Rig<B> {
    device: Arc<Device<B>>,
    memory: GuestMemoryMmap,
    line: Arc<Counted>,
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

impl<B: Backend> Rig<B> {
    fn new(backend: B, memory: GuestMemoryMmap) -> Self {
        let line = Arc::<Counted>::default();
        let device = Device::new(backend, 0, memory.clone(), Box::new(CountedLine(Arc::clone(&line))));
        Self { device: Arc::new(device.unwrap()), memory, line }
    }

    fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.device.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, register: u32, value: u32) {
        self.device.write(register.into(), &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.get(reg::VIRTIO_MMIO_STATUS)
    }

    /// Negotiates these features, or fewer; true if the device took them.
    fn negotiate(&self, features: u64) -> bool {
        self.set(reg::VIRTIO_MMIO_STATUS, 0);
        self.set(reg::VIRTIO_MMIO_STATUS, 1);
        self.set(reg::VIRTIO_MMIO_STATUS, 3);
        for (half, value) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(value).unwrap());
        }
        self.set(reg::VIRTIO_MMIO_STATUS, 11);
        self.status() & 8 == 8
    }

    fn offered(&self) -> u64 {
        let half = |select| {
            self.set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.get(reg::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    fn rings(queue: u16) -> [u64; 3] {
        let base = RINGS + u64::from(queue) * 0x3000;
        [base, base + 0x1000, base + 0x2000]
    }

    fn place(&self, queue: u16, size: u32, [table, available, used]: [u64; 3]) {
        self.set(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        self.set(reg::VIRTIO_MMIO_QUEUE_NUM, size);
        for (low, address) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, table),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.set(low, u32::try_from(address & 0xffff_ffff).unwrap());
            self.set(low + 4, u32::try_from(address >> 32).unwrap());
        }
        self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Starts the device with all its queues, and with these features.
    fn start_with(&self, features: u64) {
        for queue in 0..u16::try_from(B::QUEUES.len()).unwrap() {
            for address in Self::rings(queue) {
                self.memory.write_slice(&[0; 0x1000], GuestAddress(address)).unwrap();
            }
        }
        assert!(self.negotiate(features));
        for queue in 0..u16::try_from(B::QUEUES.len()).unwrap() {
            self.place(queue, ENTRIES.into(), Self::rings(queue));
        }
        self.set(reg::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(self.status(), 15);
    }

    fn start(&self) {
        self.start_with(self.offered());
    }

    fn descriptor(&self, queue: u16, at: u16, buffer: Buffer, flags: u16, next: u16) {
        let [table, ..] = Self::rings(queue);
        let mut bytes = buffer.address.to_le_bytes().to_vec();
        bytes.extend(buffer.length.to_le_bytes());
        bytes.extend((flags | if buffer.is_written { WRITE } else { 0 }).to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(at))).unwrap();
    }

    /// Offers the chain that begins with this descriptor.
    fn offer(&self, queue: u16, head: u16) {
        let [_, available, _] = Self::rings(queue);
        let index: u16 = self.memory.read_obj(GuestAddress(available + 2)).unwrap();
        let entry = available + 4 + 2 * u64::from(index % ENTRIES);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.memory.write_obj(index.wrapping_add(1), GuestAddress(available + 2)).unwrap();
        self.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
    }

    /// A request of these buffers, from descriptor `head` on.
    fn request(&self, queue: u16, head: u16, buffers: &[Buffer]) {
        for (at, buffer) in (head..).zip(buffers) {
            let is_last = usize::from(at - head) + 1 == buffers.len();
            self.descriptor(queue, at, *buffer, if is_last { 0 } else { NEXT }, at + 1);
        }
        self.offer(queue, head);
    }

    /// Entries in the used ring: heads and lengths.
    fn used(&self, queue: u16) -> Vec<(u32, u32)> {
        let [_, _, used] = Self::rings(queue);
        let count: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let entry = |at: u16| {
            let address = used + 4 + 8 * u64::from(at % ENTRIES);
            let [head, length]: [u32; 2] =
                [0, 4].map(|field| self.memory.read_obj(GuestAddress(address + field)).unwrap());
            (head, length)
        };
        (0..count).map(entry).collect()
    }

    fn fill(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Acknowledges every interrupt; which there were.
    fn acknowledge(&self) -> u32 {
        let interrupts = self.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, interrupts);
        interrupts
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_driver_brings_the_host_down_or_a_page_past_the_notes(
        script in proptest::collection::vec(any::<u8>(), 0..1024),
    ) {
        let mut trial = Trial::new().unwrap();
        // Begins as a driver does, or all would end at the first status.
        trial.play(&[4]).unwrap();
        prop_assert_eq!(trial.play(&script), Ok(()));
    }
}
