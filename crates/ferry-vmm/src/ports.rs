//! The ports through which payloads and devices speak: all they share.
//!
//! Every access to the debug port is 32 bits wide. On x86-64 the payload writes with `OUT DX, EAX` and reads with `IN EAX, DX`; on
//! arm64 with `STR` and `LDR` of a W register, at an immediate offset or none (others tell KVM no address).
//! Values that belong together are written one after the other; the last one counts them. What was
//! written but not yet counted is part of the device's state, so that a guest can be moved in
//! between.

/// Where the ports begin on arm64, which has none: port `n` is a register at `WINDOW + n`, as behind a host bridge of PCI.
pub const WINDOW: u64 = 0x0a00_0000;

/// Write, on arm64 alone: an exception that the program does not handle, with the low half of `ESR_EL1`. Ends the
/// guest, which says so with the address in `ELR_EL1`.
pub const EXCEPTION: u16 = 0xf3c;

/// Write: wait. The value is the time in microseconds from the moment at which the last wait was
/// due, so that bursts keep their rate however long they take; 0 waits without a time. The wait may
/// end early: for a pause, for a command, or for nothing.
pub const WAIT: u16 = 0xf00;

/// Read: the ticket of the check that the host asks for, or 0. It stays until that ticket is
/// written to [`CHECK_DONE`].
pub const COMMAND: u16 = 0xf04;

/// Write: so many turns of the payload's main loop are done.
pub const PROGRESS: u16 = 0xf08;

/// Write: so many pages were held against what they should contain.
pub const PAGES_CHECKED: u16 = 0xf0c;

/// Write: the page of a fault, counted from the first of the vCPU's share of the working set. Payloads
/// without pages say here and in the next ports what else is at fault.
pub const FAULT_PAGE: u16 = 0xf10;

/// Write: the word of a fault, counted in 64-bit words from the page's first.
pub const FAULT_WORD: u16 = 0xf14;

/// Write: the low half of what the word should hold.
pub const FAULT_EXPECTED_LOW: u16 = 0xf18;

/// Write: the high half of what the word should hold.
pub const FAULT_EXPECTED_HIGH: u16 = 0xf1c;

/// Write: the low half of what the word holds.
pub const FAULT_FOUND_LOW: u16 = 0xf20;

/// Write: the high half of what the word holds. Counts the fault.
pub const FAULT_FOUND_HIGH: u16 = 0xf24;

/// Write: the pages of the check that ends.
pub const CHECK_PAGES: u16 = 0xf28;

/// Write: the faults of the check that ends.
pub const CHECK_FAULTS: u16 = 0xf2c;

/// Write: the ticket of the check that ends. Answers the host.
pub const CHECK_DONE: u16 = 0xf30;

/// Write: the low half of the largest step of time so far, in ticks of the counter.
pub const JUMP_LOW: u16 = 0xf34;

/// Write: the high half.
pub const JUMP_HIGH: u16 = 0xf38;

/// The serial port's first register, of eight; each is a byte.
pub const SERIAL: u16 = 0x3f8;

/// The serial port's last register.
pub const SERIAL_LAST: u16 = SERIAL + 7;

/// The debug port's first port.
pub const FIRST: u16 = WAIT;

/// The last byte of the debug port's last port.
pub const LAST: u16 = JUMP_HIGH + 3;
