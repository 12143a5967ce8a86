//! The devices of a guest on KVM: the debug port and the serial port behind I/O ports, virtio devices behind memory.
//!
//! The vCPUs' threads reach them through [`PortDevices`], the engine through [`KvmDevices`], which is
//! the machine's [`DeviceSet`]. A device of another kind needs a [`Device`] and a line in
//! [`KvmDevices::new`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_kvm::{Devices, MemorySlots, Pages};
use ferry_memory::PageSet;
use ferry_migrate::{Device, DeviceSet, DiskImage, MachineError, Saved};
use ferry_state::{MachineState, Section};

use crate::debug_port::DebugPort;
use crate::mmio::MmioBus;
use crate::power::Power;
use crate::serial::SerialPort;
use crate::virtio::{self, VirtioBus};
use crate::{MachineConfig, ports};

/// The devices of a guest on KVM.
#[derive(Debug)]
pub struct KvmDevices {
    set: DeviceSet,
    port: Arc<DebugPort>,
    serial: SerialPort,
    mmio: Arc<MmioBus>,
    virtio: VirtioBus,
    pages: Pages,
    /// Of a guest with a kernel, which can switch itself off, and finds a PC's emptiness where nothing answers: payloads
    /// do neither.
    power: Option<Power>,
}

impl KvmDevices {
    /// All of them, of a guest whose disks have these images and whose memory is this and lies in these pages.
    pub(crate) fn new(
        port: Arc<DebugPort>,
        config: &MachineConfig,
        images: &[Arc<DiskImage>],
        memory: &MemorySlots,
        pages: Pages,
    ) -> Result<Self, MachineError> {
        let serial = SerialPort::new(Arc::clone(memory.vm()));
        let mut set = DeviceSet::new();
        for cpu in 0..config.guest.cpus {
            set.add(DebugPortDevice { port: Arc::clone(&port), cpu })?;
        }
        set.add(serial.clone())?;
        let mut mmio = MmioBus::default();
        let power = config.board.linux.as_ref().map(|_| Power::default());
        if let Some(power) = &power {
            set.add(power.clone())?;
            #[cfg(target_arch = "aarch64")]
            crate::rtc::RealTimeClock::add(&mut set, &mut mmio)?;
        }
        let into = virtio::Into { vm: memory.vm(), memory: memory.memory(), set: &mut set, mmio: &mut mmio };
        let virtio = VirtioBus::build(&config.board, images, into)?;
        Ok(Self { set, port, serial, mmio: Arc::new(mmio), virtio, pages, power })
    }

    /// What the guest asked of its machine as a whole.
    pub(crate) fn power(&self) -> Option<&Power> {
        self.power.as_ref()
    }

    /// The debug port. A clone answers other threads while the engine holds the machine.
    pub fn port(&self) -> &Arc<DebugPort> {
        &self.port
    }

    /// The serial port. A clone serves other threads while the engine holds the machine.
    pub fn serial(&self) -> &SerialPort {
        &self.serial
    }

    /// The virtio devices.
    pub fn virtio(&self) -> &VirtioBus {
        &self.virtio
    }

    /// In which pages of the host the guest's memory lies.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// What the vCPUs' threads reach.
    pub(crate) fn ports(&self) -> PortDevices {
        let mmio = Arc::clone(&self.mmio);
        let (debug, serial, power) = (Arc::clone(&self.port), self.serial.clone(), self.power.clone());
        PortDevices { debug, serial, mmio, power, is_missed: AtomicBool::new(false) }
    }
}

impl Drop for KvmDevices {
    /// No vCPU runs any more.
    fn drop(&mut self) {
        self.serial.finish();
        self.virtio.consoles().iter().for_each(virtio::ConsolePort::finish);
    }
}

impl Devices for KvmDevices {
    fn capture(&mut self) -> Result<MachineState, MachineError> {
        self.set.capture()
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.set.restore(state)
    }

    fn harvest_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.set.harvest_dirty(into)
    }

    fn quiesce(&mut self) -> Result<(), MachineError> {
        self.set.quiesce()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.set.resume()
    }

    fn announce(&mut self) {
        self.set.announce();
    }
}

/// The debug port of one vCPU in the set. It does nothing by itself: its waits are the vCPUs' and end with them.
#[derive(Debug)]
struct DebugPortDevice {
    port: Arc<DebugPort>,
    cpu: u32,
}

impl Device for DebugPortDevice {
    fn name(&self) -> String {
        "debug-port".to_owned()
    }

    fn index(&self) -> u32 {
        self.cpu
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        self.port.save(self.cpu as usize)
    }

    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        self.port
            .restore(self.cpu as usize, section)
            .map_err(|error| MachineError::with_source("this is no state of a debug port", error))
    }

    fn harvest_dirty(&mut self, _: &mut PageSet) -> Result<(), MachineError> {
        Ok(()) // it reads and writes no guest memory
    }
}

/// The devices of a guest, as its vCPUs' threads use them: those behind I/O ports, and those behind memory.
#[derive(Debug)]
pub(crate) struct PortDevices {
    debug: Arc<DebugPort>,
    serial: SerialPort,
    mmio: Arc<MmioBus>,
    power: Option<Power>,
    /// Whether it was said that nothing answers somewhere.
    is_missed: AtomicBool,
}

impl PortDevices {
    /// Those of a guest with a kernel and nothing else.
    #[cfg(test)]
    pub(crate) fn bare(vm: Arc<kvm_ioctls::VmFd>, power: Power) -> Self {
        let payload = crate::Payload::Idle;
        let guest = crate::GuestConfig { memory_bytes: 8 << 20, cpus: 1, payload, low_bytes: None };
        let (debug, serial) = (Arc::new(DebugPort::new(&guest)), SerialPort::new(vm));
        let mmio = Arc::new(MmioBus::default());
        Self { debug, serial, mmio, power: Some(power), is_missed: AtomicBool::new(false) }
    }

    /// A write by a vCPU. It may block, until [`interrupt`](Self::interrupt).
    pub(crate) fn write(&self, cpu: usize, port: u16, data: &[u8]) {
        match port.checked_sub(ports::SERIAL) {
            // KVM gives all bytes of a string instruction in one exit; they go to one register.
            Some(register @ 0..=7) => data.iter().for_each(|&byte| self.serial.write(register, byte)),
            _ if self.power.is_some() => self.nobody("port", port.into()),
            _ => {
                if let Ok(bytes) = <[u8; 4]>::try_from(data) {
                    self.debug.write(cpu, port, u32::from_le_bytes(bytes));
                }
            }
        }
    }

    /// A read by a vCPU. Ports that mean nothing read as all ones, as on a PC.
    pub(crate) fn read(&self, cpu: usize, port: u16, data: &mut [u8]) {
        match port.checked_sub(ports::SERIAL) {
            Some(register @ 0..=7) => data.iter_mut().for_each(|byte| *byte = self.serial.read(register)),
            _ => match <&mut [u8; 4]>::try_from(&mut *data) {
                Ok(word) if self.power.is_none() => *word = self.debug.read(cpu, port).to_le_bytes(),
                _ => data.fill(u8::MAX),
            },
        }
    }

    /// A read of memory that is none; false if no device answers there and the guest is to end. For a kernel all
    /// ones are there.
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        if self.mmio.read(address, data) {
            return true;
        }
        data.fill(u8::MAX);
        self.nobody("memory", address);
        self.power.is_some()
    }

    /// A write to memory that is none; false if no device answers there and the guest is to end. For a kernel
    /// nothing happens.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        if self.mmio.write(address, data) {
            return true;
        }
        self.nobody("memory", address);
        self.power.is_some()
    }

    /// The machine as a whole, of a guest with a kernel.
    pub(crate) fn power(&self) -> Option<&Power> {
        self.power.as_ref()
    }

    /// Says once that a guest reached for what is not there.
    fn nobody(&self, what: &str, address: u64) {
        if !self.is_missed.swap(true, Ordering::Relaxed) {
            tracing::debug!(
                "nothing answers at {what} {address:#x}, and perhaps elsewhere: it reads as all ones"
            );
        }
    }

    /// Ends what blocks a vCPU's thread, now and until [`allow`](Self::allow).
    pub(crate) fn interrupt(&self) {
        self.debug.interrupt();
    }

    /// Lets them block again.
    pub(crate) fn allow(&self) {
        self.debug.allow();
    }

    /// The guest has ended by itself.
    pub(crate) fn guest_ended(&self, reason: &str) {
        self.debug.guest_ended(reason);
    }
}
