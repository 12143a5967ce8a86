//! Devices that more than one VMM has, so that all write them alike and `inspect` can read them.
//!
//! A device of a VMM's own brings a [`Part`] of its own and calls it `device/NAME`; it does not
//! belong here.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

mod virtio;

pub use virtio::{
    MAX_VIRTIO_QUEUES, VirtioBlock, VirtioConsole, VirtioEntropy, VirtioNet, VirtioQueue, VirtioTransport,
};

/// The most bytes of input that a serial port holds: the FIFO of a 16750.
pub const MAX_SERIAL_INPUT: usize = 64;

/// The registers of a serial port, a UART of the 16550's kind.
///
/// The names are those of vm-superio's `SerialState`; what the registers do is in the data sheet of
/// the 16550 (PC16550D, section 8 "Registers").
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Serial {
    /// DLL: the low byte of the baud rate's divisor.
    #[n(0)]
    pub baud_divisor_low: u8,
    /// DLM: its high byte.
    #[n(1)]
    pub baud_divisor_high: u8,
    /// IER: which interrupts the guest wants.
    #[n(2)]
    pub interrupt_enable: u8,
    /// IIR: which interrupts wait to be seen.
    #[n(3)]
    pub interrupt_identification: u8,
    /// LCR: the line control.
    #[n(4)]
    pub line_control: u8,
    /// LSR: the line status.
    #[n(5)]
    pub line_status: u8,
    /// MCR: the modem control.
    #[n(6)]
    pub modem_control: u8,
    /// MSR: the modem status.
    #[n(7)]
    pub modem_status: u8,
    /// SCR: the scratch register.
    #[n(8)]
    pub scratch: u8,
    /// Input that the guest has not read yet, at most [`MAX_SERIAL_INPUT`] bytes, oldest first.
    #[n(9)]
    #[cbor(with = "minicbor::bytes")]
    pub input: Vec<u8>,
}

impl Part for Serial {
    const NAME: &'static str = "device/serial";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);

    fn check(&self) -> Result<(), String> {
        match self.input.len() {
            0..=MAX_SERIAL_INPUT => Ok(()),
            length => {
                Err(format!("{length} bytes of input wait in a port that holds at most {MAX_SERIAL_INPUT}"))
            }
        }
    }
}
