//! Virtio devices behind memory (virtio-mmio, version 2): block, network, entropy, console.
//!
//! [`VirtioBus`] has those of a board in their places; the vCPUs' threads reach them through their windows, the
//! engine through the machine's [`DeviceSet`]. What a guest's driver writes is hostile:
//! every descriptor is held against its bounds, and a queue that makes no sense stops its device
//! (`DEVICE_NEEDS_RESET`), until the driver resets it.
//!
//! - `registers`: the transport, as plain values; `ring`, `chain`: queues and requests; `memory`: the one
//!   place through which devices write to guest memory;
//! - `device`: all of it together, `thread`: what drives it;
//! - `block`, `net` with its `announcement`, `entropy`, `console`: what the kinds of devices do.
//!
//! Facts: virtio 1.2 (OASIS, 2022); the sections are named where they are used.

use std::io;
use std::sync::Arc;

use ferry_migrate::{DeviceSet, DiskImage, DiskImageError, DiskPlace, MachineError};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vm_memory::GuestMemoryMmap;

use crate::board::{Board, DEVICE_BYTES, DEVICE_INTERRUPTS, DEVICES, DeviceSpec};
use crate::mmio::MmioBus;

mod announcement;
mod block;
mod chain;
mod complaints;
mod console;
mod device;
mod entropy;
mod memory;
mod net;
mod registers;
mod ring;
mod thread;
mod trial;
mod turn;
mod turnstile;

#[cfg(test)]
mod tests;

use block::Block;
pub use chain::Malformed;
use console::Console;
pub use console::ConsolePort;
use device::{Backend, Device, Line};
use entropy::Entropy;
pub use memory::Outside;
use net::Net;
use thread::Thread;
pub use trial::Trial;

/// A machine's virtio devices.
#[derive(Debug, Default)]
pub struct VirtioBus {
    consoles: Vec<ConsolePort>,
}

/// What devices are built into.
pub(crate) struct Into<'a> {
    /// The VM, whose interrupt controller is there.
    pub(crate) vm: &'a Arc<VmFd>,
    /// Its memory.
    pub(crate) memory: &'a GuestMemoryMmap,
    /// Takes them for the engine.
    pub(crate) set: &'a mut DeviceSet,
    /// Takes them for the vCPUs.
    pub(crate) mmio: &'a mut MmioBus,
}

impl VirtioBus {
    /// Makes a board's devices; they are quiet. Its disks have these images, in their order.
    pub(crate) fn build(
        board: &Board,
        images: &[Arc<DiskImage>],
        mut into: Into<'_>,
    ) -> Result<Self, MachineError> {
        let mut images = images.iter();
        let mut bus = Self::default();
        for (place, spec) in board.places() {
            let unavailable = |error: Box<dyn std::error::Error + Send + Sync>| {
                MachineError::with_source(format!("device {place} ({}) cannot be had", spec.kind()), error)
            };
            match spec {
                DeviceSpec::Disk { .. } => {
                    let image = images.next().ok_or_else(|| unavailable("it has no image".into()))?;
                    Self::add(Block::new(Arc::clone(image), place), place, &mut into)?;
                }
                DeviceSpec::Net { tap, mac } => {
                    let tap = ferry_kvm::open_tap(tap).map_err(|error| unavailable(error.into()))?;
                    Self::add(Net::new(tap, *mac), place, &mut into)?;
                }
                DeviceSpec::Entropy => {
                    let source = Entropy::open().map_err(|error| unavailable(error.into()))?;
                    Self::add(source, place, &mut into)?;
                }
                DeviceSpec::Console => {
                    let console = Self::add(Console::default(), place, &mut into)?;
                    bus.consoles.push(ConsolePort::new(&console));
                }
            }
        }
        Ok(bus)
    }

    /// The guest's virtio consoles, in the order of their places.
    pub fn consoles(&self) -> &[ConsolePort] {
        &self.consoles
    }

    fn add<B: Backend>(backend: B, place: u32, into: &mut Into<'_>) -> Result<Arc<Device<B>>, MachineError> {
        let window = DEVICES + u64::from(place) * DEVICE_BYTES;
        let line = KvmLine { vm: Arc::clone(into.vm), irq: irq(DEVICE_INTERRUPTS + place) };
        let device = Arc::new(Device::new(backend, place, into.memory.clone(), Box::new(line))?);
        // Spares the vCPU the way to user space; where it cannot be had, the write comes as any other.
        let notify = IoEventAddress::Mmio(window + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
        if let Err(error) = into.vm.register_ioevent(device.kick_event(), &notify, NoDatamatch) {
            tracing::debug!(%error, place, "a device's notifications come as exits");
        }
        into.mmio.add(window..window + DEVICE_BYTES, Arc::clone(&device) as _);
        into.set.add(Thread::start(Arc::clone(&device))?)?;
        Ok(device)
    }
}

/// Opens the images of a board's disks, which are there.
pub(crate) fn open_images(board: &Board) -> Result<Vec<Arc<DiskImage>>, DiskImageError> {
    DiskImage::open_all(disks(board))
}

/// The disks of a board by their numbers, and where their images lie.
pub(crate) fn disks(board: &Board) -> impl Iterator<Item = (u32, DiskPlace)> {
    let places = board.devices.iter().filter_map(|spec| match spec {
        DeviceSpec::Disk { path, read_only } => Some(DiskPlace { path: path.into(), read_only: *read_only }),
        _ => None,
    });
    (0..).zip(places)
}

/// What the devices of a board need that this host has not, and why; images apart, if they come with the guest. It is
/// looked for and left alone.
pub(crate) fn missing(board: &Board, with_images: bool) -> Vec<(String, String)> {
    let open = |(disk, DiskPlace { path, read_only })| {
        let problem = DiskImage::open(disk, &path, read_only).err()?;
        Some((format!("disk {disk}"), sentence(&problem)))
    };
    let mut found: Vec<_> = if with_images { Vec::new() } else { disks(board).filter_map(open).collect() };
    if !with_images && found.is_empty() {
        // Each is there; together they may be one.
        found.extend(open_images(board).err().map(|problem| ("disks".to_owned(), sentence(&problem))));
    }
    let taps = board.devices.iter().filter_map(|spec| match spec {
        DeviceSpec::Net { tap, .. } => Some(tap),
        _ => None,
    });
    for (net, tap) in taps.enumerate() {
        found.extend(
            ferry_kvm::check_tap(tap).err().map(|problem| (format!("net {net}"), sentence(&problem))),
        );
    }
    found
}

/// The disks of a board whose images nobody has locked, and those images' paths; those that cannot be opened apart.
pub(crate) fn unlocked(board: &Board) -> Vec<(u32, String)> {
    let look = |(disk, DiskPlace { path, read_only })| {
        let image = DiskImage::open(disk, &path, read_only).ok()?;
        image.is_unlocked().then(|| (disk, path.display().to_string()))
    };
    disks(board).filter_map(look).collect()
}

/// An error with all that caused it.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

/// An input of the in-kernel interrupt controller.
struct KvmLine {
    vm: Arc<VmFd>,
    irq: u32,
}

impl Line for KvmLine {
    fn set(&self, level: bool) -> io::Result<()> {
        self.vm.set_irq_line(self.irq, level).map_err(io::Error::from)
    }
}

/// An interrupt as `KVM_IRQ_LINE` has it.
#[cfg(target_arch = "x86_64")]
fn irq(number: u32) -> u32 {
    number
}

/// An interrupt as `KVM_IRQ_LINE` has it: on arm64 the kind in bits 31 to 24 (Documentation/virt/kvm/api.rst, 4.25).
#[cfg(target_arch = "aarch64")]
fn irq(number: u32) -> u32 {
    kvm_bindings::KVM_ARM_IRQ_TYPE_SPI << kvm_bindings::KVM_ARM_IRQ_TYPE_SHIFT | number
}
