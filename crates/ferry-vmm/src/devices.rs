//! The devices of a guest on KVM: the debug port and the serial port, both behind I/O ports.
//!
//! The vCPUs' threads reach them through [`PortDevices`], the engine through [`KvmDevices`], which is
//! the machine's [`DeviceSet`]. A device of another kind needs a [`Device`] and a line in
//! [`KvmDevices::new`].

use std::sync::Arc;

use ferry_kvm::{Devices, Pages};
use ferry_memory::PageSet;
use ferry_migrate::{Device, DeviceSet, MachineError, Saved};
use ferry_state::{MachineState, Section};

use crate::debug_port::DebugPort;
use crate::ports;
use crate::serial::SerialPort;

/// The devices of a guest on KVM.
#[derive(Debug)]
pub struct KvmDevices {
    set: DeviceSet,
    port: Arc<DebugPort>,
    serial: SerialPort,
    pages: Pages,
}

impl KvmDevices {
    /// All of them, of a guest whose memory lies in these pages.
    pub(crate) fn new(
        port: Arc<DebugPort>,
        cpus: u32,
        serial: SerialPort,
        pages: Pages,
    ) -> Result<Self, MachineError> {
        let mut set = DeviceSet::new();
        for cpu in 0..cpus {
            set.add(DebugPortDevice { port: Arc::clone(&port), cpu })?;
        }
        set.add(serial.clone())?;
        Ok(Self { set, port, serial, pages })
    }

    /// The debug port. A clone answers other threads while the engine holds the machine.
    pub fn port(&self) -> &Arc<DebugPort> {
        &self.port
    }

    /// The serial port. A clone serves other threads while the engine holds the machine.
    pub fn serial(&self) -> &SerialPort {
        &self.serial
    }

    /// In which pages of the host the guest's memory lies.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// What the vCPUs' threads reach.
    pub(crate) fn ports(&self) -> PortDevices {
        PortDevices { debug: Arc::clone(&self.port), serial: self.serial.clone() }
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

/// The I/O ports of a guest, as its vCPUs' threads use them.
#[derive(Debug)]
pub(crate) struct PortDevices {
    debug: Arc<DebugPort>,
    serial: SerialPort,
}

impl PortDevices {
    /// A write by a vCPU. It may block, until [`interrupt`](Self::interrupt).
    pub(crate) fn write(&self, cpu: usize, port: u16, data: &[u8]) {
        match port.checked_sub(ports::SERIAL) {
            // KVM gives all bytes of a string instruction in one exit; they go to one register.
            Some(register @ 0..=7) => data.iter().for_each(|&byte| self.serial.write(register, byte)),
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
                Ok(word) => *word = self.debug.read(cpu, port).to_le_bytes(),
                Err(_) => data.fill(u8::MAX),
            },
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
