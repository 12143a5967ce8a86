//! The serial port at 0x3f8, as PCs have it, with interrupt 4, on arm64 33: vm-superio's emulation, whose registers
//! cross with the guest as part `device/serial`.
//!
//! Output goes to files or nowhere. Each byte is written before the guest's instruction ends, so
//! nothing is under way when the guest pauses: none is lost, none comes twice. Only what nobody reads waits
//! ([`Output`]), and holds nothing up. Input is taken only
//! while the port is not quiet: what was not taken stays with the caller, who gives it to the port of
//! the host where the guest then runs.
//!
//! Interrupts go in by `KVM_IRQ_LINE` and not by an irqfd: when the call returns the interrupt is in
//! the interrupt controller, and crosses with its state. An irqfd may still have it in a work queue
//! when the state is captured (`irqfd_wakeup` in the kernel's virt/kvm/eventfd.c). The line is
//! pulsed, because a PC's interrupt 4 is triggered by its edge; on arm64 the guest sets 33 to be so, too
//! (`GICD_ICFGR2`).

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_memory::PageSet;
use ferry_migrate::{Device, MachineError, Saved};
use ferry_state::{Section, device};
use kvm_ioctls::VmFd;
use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial, SerialState};

use crate::output::Output;

/// The interrupt of a PC's first serial port.
#[cfg(target_arch = "x86_64")]
pub(crate) const IRQ: u32 = 4;

/// Interrupt 33 of the GIC, the second of those of devices, as `KVM_IRQ_LINE` has it on arm64: the kind in bits 31 to
/// 24 (Documentation/virt/kvm/api.rst, 4.25).
#[cfg(target_arch = "aarch64")]
const IRQ: u32 = kvm_bindings::KVM_ARM_IRQ_TYPE_SPI << kvm_bindings::KVM_ARM_IRQ_TYPE_SHIFT | 0x21;

/// A handle of the port; all clones are the same port.
#[derive(Debug, Clone)]
pub struct SerialPort {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    serial: Serial<Irq, NoEvents, Output>,
    vm: Arc<VmFd>,
    /// From its creation to the first resume, and from each pause to the next resume.
    is_quiet: bool,
    /// An interrupt that could not be raised was reported.
    has_failed: bool,
}

/// The interrupt line.
#[derive(Debug)]
struct Irq {
    vm: Arc<VmFd>,
    /// Not while a state is restored: what was raised before is in the interrupt controller's state.
    is_wired: AtomicBool,
}

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        if !self.is_wired.load(Ordering::Relaxed) {
            return Ok(());
        }
        let set = |level| self.vm.set_irq_line(IRQ, level).map_err(io::Error::from);
        set(true)?;
        set(false)
    }
}

impl Inner {
    /// Puts these registers in the place of the port's.
    fn set(&mut self, state: &SerialState) -> Result<(), Error<io::Error>> {
        let irq = Irq { vm: Arc::clone(&self.vm), is_wired: AtomicBool::new(false) };
        let output = self.serial.writer().clone();
        self.serial = Serial::from_state(state, irq, NoEvents, output)?;
        self.serial.interrupt_evt().is_wired.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl SerialPort {
    /// The port of a VM with an in-kernel interrupt controller, as it is at birth; its output goes
    /// nowhere.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        let irq = Irq { vm: Arc::clone(&vm), is_wired: AtomicBool::new(true) };
        let serial = Serial::new(irq, Output::default());
        Self { inner: Arc::new(Mutex::new(Inner { serial, vm, is_quiet: true, has_failed: false })) }
    }

    /// Sends output to these files from now on. Of what nobody reads from a pipe the oldest is lost, beyond 1 MiB.
    pub fn write_to(&self, files: Vec<Arc<File>>) {
        *self.lock().serial.writer_mut() = Output::new(files);
    }

    /// The guest ends: gives who reads a moment for its last words.
    pub(crate) fn finish(&self) {
        let output = self.lock().serial.writer().clone();
        output.finish();
    }

    /// Gives input to the guest; the number of bytes taken, from the front. The rest does not fit yet,
    /// or the guest is not running here.
    pub fn send(&self, input: &[u8]) -> usize {
        let mut inner = self.lock();
        if inner.is_quiet {
            return 0;
        }
        match inner.serial.enqueue_raw_bytes(input) {
            Ok(taken) => taken,
            Err(Error::FullFifo) => 0,
            Err(error) => {
                // The bytes are in the port; a guest that looks finds them.
                tracing::warn!(%error, "the serial port's interrupt cannot be raised");
                input.len()
            }
        }
    }

    /// A write by the guest to one of the eight registers.
    pub(crate) fn write(&self, register: u16, value: u8) {
        let mut inner = self.lock();
        let Ok(offset) = u8::try_from(register) else { return };
        if let Err(error) = inner.serial.write(offset, value)
            && !std::mem::replace(&mut inner.has_failed, true)
        {
            tracing::warn!(%error, "the serial port's interrupt cannot be raised");
        }
    }

    /// A read by the guest.
    pub(crate) fn read(&self, register: u16) -> u8 {
        u8::try_from(register).map_or(u8::MAX, |offset| self.lock().serial.read(offset))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete in itself, so a panic elsewhere left nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for SerialPort {
    fn name(&self) -> String {
        "serial".to_owned()
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        let at_birth = part_of(SerialState::default());
        Saved::part(&part_of(self.lock().serial.state()), Some(&at_birth))
    }

    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        let refused = "this is no state of a serial port";
        let part = section.read().map_err(|error| MachineError::with_source(refused, error))?;
        self.lock().set(&state_of(part)).map_err(|error| MachineError::with_source(refused, error))
    }

    fn harvest_dirty(&mut self, _: &mut PageSet) -> Result<(), MachineError> {
        Ok(()) // it reads and writes no guest memory
    }

    fn quiesce(&mut self) -> Result<(), MachineError> {
        self.lock().is_quiet = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.lock().is_quiet = false;
        Ok(())
    }
}

fn part_of(state: SerialState) -> device::Serial {
    device::Serial {
        baud_divisor_low: state.baud_divisor_low,
        baud_divisor_high: state.baud_divisor_high,
        interrupt_enable: state.interrupt_enable,
        interrupt_identification: state.interrupt_identification,
        line_control: state.line_control,
        line_status: state.line_status,
        modem_control: state.modem_control,
        modem_status: state.modem_status,
        scratch: state.scratch,
        input: state.in_buffer,
    }
}

fn state_of(part: device::Serial) -> SerialState {
    SerialState {
        baud_divisor_low: part.baud_divisor_low,
        baud_divisor_high: part.baud_divisor_high,
        interrupt_enable: part.interrupt_enable,
        interrupt_identification: part.interrupt_identification,
        line_control: part.line_control,
        line_status: part.line_status,
        modem_control: part.modem_control,
        modem_status: part.modem_status,
        scratch: part.scratch,
        in_buffer: part.input,
    }
}
