//! A block device without a VM and without a thread, driven by a script of bytes: for fuzzers and
//! property tests.
//!
//! The script is a hostile driver: it writes registers and guest memory as it likes, lets the device have
//! its turns, moves it to another one in between. After each turn guest memory is held against a copy:
//! what changed must have been noted.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_memory::{Layout, PAGE_SIZE, PageSet, Span};
use ferry_migrate::{DiskImage, MachineError, SECTOR_BYTES, Saved};
use ferry_state::Section;
use ferry_state::device::{VirtioBlock, VirtioQueue, VirtioTransport};
use rustix::fs::MemfdFlags;
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::block::Block;
use super::device::{Device, Line};
use super::registers::TRANSPORT_FEATURES;
use crate::mmio::MmioDevice;

/// Bytes of guest memory, in two regions with a hole between.
const REGION_BYTES: u64 = 8 * PAGE_SIZE;

/// Where the second region begins.
const HIGH: u64 = 1 << 20;

/// Sectors of the disk.
const SECTORS: u64 = 64;

/// The most steps of a script.
const STEPS_MAX: usize = 256;

/// A device and its guest's memory.
pub struct Trial {
    image: OwnedFd,
    memory: GuestMemoryMmap,
    layout: Layout,
    device: Device<Block>,
    line: Arc<AtomicBool>,
}

/// A line that only remembers its level.
struct Remembered(Arc<AtomicBool>);

impl Line for Remembered {
    fn set(&self, level: bool) -> io::Result<()> {
        self.0.store(level, Ordering::Relaxed);
        Ok(())
    }
}

/// What a script is read from.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn address(&mut self) -> Option<u64> {
        let offset = u64::from(u16::from_le_bytes(self.bytes()?)) % (REGION_BYTES + 64);
        let [region] = self.bytes()?;
        Some(match region {
            0..=127 => offset,
            128..=250 => HIGH + offset,
            _ => u64::MAX - offset,
        })
    }
}

impl Trial {
    /// A guest's memory, all zero, and a disk.
    pub fn new() -> Result<Self, MachineError> {
        let failed = |error: io::Error| MachineError::with_source("the trial cannot begin", error);
        let image = rustix::fs::memfd_create("trial", MemfdFlags::CLOEXEC)
            .and_then(|fd| rustix::fs::ftruncate(&fd, SECTORS * SECTOR_BYTES).map(|()| fd))
            .map_err(|errno| failed(errno.into()))?;
        let spans = [0, HIGH].map(|start| Span { start, length: REGION_BYTES });
        let regions = spans.map(|span| (GuestAddress(span.start), usize::try_from(span.length).unwrap_or(0)));
        let memory = GuestMemoryMmap::from_ranges(&regions)
            .map_err(|error| MachineError::with_source("the trial cannot begin", error))?;
        let layout = Layout::new(spans.to_vec())
            .map_err(|error| MachineError::with_source("the trial cannot begin", error))?;
        let line = Arc::new(AtomicBool::new(false));
        let device = device(&image, &memory, &line)?;
        device.resume()?;
        Ok(Self { image, memory, layout, device, line })
    }

    /// Plays a script. An error says what the device did wrong.
    pub fn play(&mut self, script: &[u8]) -> Result<(), String> {
        let mut script = Script(script);
        for _ in 0..STEPS_MAX {
            if self.step(&mut script)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// One step; none, if the script has ended.
    fn step(&mut self, script: &mut Script<'_>) -> Result<Option<()>, String> {
        let Some([code]) = script.bytes() else { return Ok(None) };
        match code % 8 {
            0 => Ok(self.register(script)),
            1 => Ok(self.remember(script)),
            2 => Ok(self.describe(script)),
            3 => Ok(self.publish(script)),
            4 => {
                self.start();
                Ok(Some(()))
            }
            5 => self.turn().map(Some),
            6 => self.travel().map(Some),
            _ => Ok(self.arrive(script)),
        }
    }

    fn set(&self, register: u32, value: u32) {
        self.device.write(register.into(), &value.to_le_bytes());
    }

    /// Any register gets any value, or is read.
    fn register(&mut self, script: &mut Script<'_>) -> Option<()> {
        let offset = u64::from(u16::from_le_bytes(script.bytes()?) & 0x1ff);
        let value: [u8; 8] = script.bytes()?;
        let length = usize::from(script.bytes::<1>()?[0]).min(value.len());
        self.device.write(offset, value.get(..length)?);
        self.device.read(offset, &mut [0; 8][..length]);
        Some(())
    }

    /// Bytes of memory get any value.
    fn remember(&mut self, script: &mut Script<'_>) -> Option<()> {
        let address = script.address()?;
        let value: [u8; 16] = script.bytes()?;
        // Outside of memory nothing is written.
        let _outside = self.memory.write_slice(&value, GuestAddress(address));
        Some(())
    }

    /// A descriptor of the table at [`Self::start`]'s place.
    fn describe(&mut self, script: &mut Script<'_>) -> Option<()> {
        let [at, flags, next, length_low, length_high] = script.bytes()?;
        let address = script.address()?;
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(u32::from(u16::from_le_bytes([length_low, length_high])).to_le_bytes());
        descriptor.extend([flags & 7, 0, next & 31, 0]);
        let place = TABLE + 16 * u64::from(at & 15);
        self.memory.write_slice(&descriptor, GuestAddress(place)).ok()
    }

    /// A head goes into the available ring, or the index jumps.
    fn publish(&mut self, script: &mut Script<'_>) -> Option<()> {
        let [head, jump] = script.bytes()?;
        let index: u16 = self.memory.read_obj(GuestAddress(AVAILABLE + 2)).ok()?;
        let entry = AVAILABLE + 4 + 2 * u64::from(index % 16);
        self.memory.write_obj(u16::from(head & 31), GuestAddress(entry)).ok()?;
        let step = if jump > 250 { u16::from(jump) } else { 1 };
        self.memory.write_obj(index.wrapping_add(step), GuestAddress(AVAILABLE + 2)).ok()
    }

    /// Starts the device as a driver does, with rings where [`Self::describe`] and [`Self::publish`] write.
    fn start(&mut self) {
        let features = TRANSPORT_FEATURES.to_le_bytes();
        let [f0, f1, f2, f3, f4, f5, f6, f7] = features;
        self.set(reg::VIRTIO_MMIO_STATUS, 0);
        self.set(reg::VIRTIO_MMIO_STATUS, 3);
        for (half, value) in [(0, [f0, f1, f2, f3]), (1, [f4, f5, f6, f7])] {
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, u32::from_le_bytes(value));
        }
        self.set(reg::VIRTIO_MMIO_STATUS, 11);
        self.set(reg::VIRTIO_MMIO_QUEUE_NUM, 16);
        for (register, address) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, TABLE),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAILABLE),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, USED),
        ] {
            self.set(register, u32::try_from(address).unwrap_or(0));
        }
        self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        self.set(reg::VIRTIO_MMIO_STATUS, 15);
    }

    /// A turn; what changed in memory must have been noted.
    fn turn(&mut self) -> Result<(), String> {
        let before = self.copy();
        self.device.turn();
        let mut noted = PageSet::empty(&self.layout);
        self.device.harvest_dirty(&mut noted).map_err(|error| error.to_string())?;
        let after = self.copy();
        let mut changed =
            before.iter().zip(&after).filter(|(old, new)| old != new).map(|((page, _), _)| *page);
        if let Some(page) = changed.find(|page| !noted.contains(*page)) {
            return Err(format!("page {page:#x} was written and not noted"));
        }
        let mut interrupts = [0; 4];
        self.device.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS.into(), &mut interrupts);
        if self.line.load(Ordering::Relaxed) == (interrupts == [0; 4]) {
            return Err("the interrupt's line is not what the register says".to_owned());
        }
        Ok(())
    }

    /// All pages with their frame numbers.
    fn copy(&self) -> Vec<(u64, Vec<u8>)> {
        let frames = self.layout.spans().iter().flat_map(|span| {
            let pages = span.pages();
            pages.first..pages.first + pages.count
        });
        let page = |frame: u64| {
            let mut bytes = vec![0; usize::try_from(PAGE_SIZE).unwrap_or(0)];
            let _inside = self.memory.read_slice(&mut bytes, GuestAddress(frame * PAGE_SIZE));
            (frame, bytes)
        };
        frames.map(page).collect()
    }

    /// Moves the device to another one, whose state must then be the same.
    fn travel(&mut self) -> Result<(), String> {
        let told = |error: MachineError| error.to_string();
        let section = |device: &Device<Block>| match device.save().map_err(told)? {
            Saved::Section(section) => Ok(section),
            Saved::Nothing => Err("the device saves nothing".to_owned()),
        };
        self.device.quiesce().map_err(told)?;
        let saved = section(&self.device)?;
        let target = device(&self.image, &self.memory, &self.line).map_err(told)?;
        target.restore(&saved).map_err(|error| format!("its own state is refused: {error:?}"))?;
        if section(&target)? != saved {
            return Err("the state changes by being restored".to_owned());
        }
        target.resume().map_err(told)?;
        self.device = target;
        Ok(())
    }

    /// A device arrives in any state, from a hostile source.
    fn arrive(&mut self, script: &mut Script<'_>) -> Option<()> {
        let [status, interrupts, is_ready, size, used_low, used_high, next_low, next_high] =
            script.bytes()?;
        let queue = VirtioQueue {
            size_max: 256,
            size: size.into(),
            is_ready: is_ready & 1 == 1,
            descriptors: script.address()?,
            available: script.address()?,
            used: script.address()?,
            next_available: u16::from_le_bytes([next_low, next_high]),
            // Others are refused: mostly what is not.
            next_used: u16::from_le_bytes(if used_low == 0xff {
                [used_low, used_high]
            } else {
                [next_low, next_high]
            }),
        };
        let transport = VirtioTransport {
            status,
            offered_features: TRANSPORT_FEATURES,
            accepted_features: TRANSPORT_FEATURES,
            interrupts,
            queues: vec![queue],
            ..VirtioTransport::default()
        };
        let state = VirtioBlock { transport, capacity_sectors: SECTORS };
        let target = device(&self.image, &self.memory, &self.line).ok()?;
        let section = Section::of(&state, 0, None).ok()?;
        if target.restore(&section).is_ok() && target.resume().is_ok() {
            self.device = target;
        }
        Some(())
    }
}

/// Where [`Trial::start`] puts the rings.
const TABLE: u64 = PAGE_SIZE;
const AVAILABLE: u64 = TABLE + 16 * 16;
const USED: u64 = 2 * PAGE_SIZE;

/// A quiet device over the image.
fn device(
    image: &OwnedFd,
    memory: &GuestMemoryMmap,
    line: &Arc<AtomicBool>,
) -> Result<Device<Block>, MachineError> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd()));
    let image = DiskImage::open(0, &path, false)
        .map_err(|error| MachineError::with_source("the trial has no disk", error))?;
    Device::new(Block::new(image, 0), 0, memory.clone(), Box::new(Remembered(Arc::clone(line))))
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("layout", &self.layout).finish_non_exhaustive()
    }
}
