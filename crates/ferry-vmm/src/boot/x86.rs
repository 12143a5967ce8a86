//! What lies in low memory of a guest of x86-64, and what its vCPUs' registers hold.
//!
//! Every vCPU begins in 64-bit mode at privilege level 3 with IOPL 3 or at level 0. The descriptors are those that a GDT in memory has, so that the
//! entry checks of VMX and SVM pass and nothing is at odds. The IDT has the vectors that the program
//! handles, at level 0; any other exception ends the guest, and the VMM says so. The APIC is in x2APIC mode,
//! so that no device needs a mapping.
//!
//! IOPL 3 lets the program use its ports on VMX and SVM. `kvm_pvm` runs level 3 natively and loses IOPL
//! at the first exit, but its emulation of `IN` and `OUT` honours the TSS's I/O permission bitmap; so
//! the TSS has one, and it opens the payload's ports and no others.
//!
//! Facts: Intel SDM volume 3, 4.5 "4-level paging", 3.4.5 "Segment descriptors", 8.2 "Task
//! management data structures"; volume 1, 19.5.2 "I/O permission bit map"; volume 3, 27.3.1 "Checks on the guest state area".

use std::convert::Infallible;

use ferry_memory::{GuestRam, RamError};
use ferry_protocol::RegionSpan;

use super::{
    CPU_AREAS, DIRECTORIES, DIRECTORY_SPAN, LARGE_PAGE, TABLE_BYTES, TOP_TABLE, area, physical, write_words,
};
use crate::{GuestConfig, ports};

mod registers;

pub(crate) use registers::{counter_khz, start_at};

/// Where memory begins, at linear and guest-physical addresses alike.
pub(crate) const RAM_START: u64 = 0;

/// The most memory before the hole, and where the hole ends.
pub(crate) const LOW_BYTES_MAX: u64 = ferry_kvm::HOLE_START;
pub(super) const HIGH_START: u64 = ferry_kvm::HOLE_END;

/// The machine of its programs in an ELF header (`EM_X86_64`).
pub(crate) const ELF_MACHINE: u16 = 62;

/// Where memory lies.
pub(crate) fn layout(memory_bytes: u64, low_end: u64) -> Vec<RegionSpan> {
    ferry_kvm::x86_layout(memory_bytes, low_end)
}

const GDT: u64 = 0x1000;
const PML4: u64 = 0x1_0000;

/// In a vCPU's page: the TSS begins it, the stack of level 0 ends here and that of level 3 with the page.
const STACK_0_END: u64 = 0xa00;

// Page-table entries: present, writable, user, accessed; and for a large page dirty and size. With
// accessed and dirty set beforehand the processor writes no table.
const TABLE_ENTRY: u64 = 0x27;
const LARGE_ENTRY: u64 = 0xe7;

// Selectors into the GDT, with the requested privilege level.
const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_DATA: u16 = 0x18 | 3;
const USER_CODE: u16 = 0x20 | 3;
const TASK: u16 = 0x28;

/// Whether the payload may use this port.
fn is_open(port: usize) -> bool {
    u16::try_from(port).is_ok_and(|port| {
        (ports::SERIAL..=ports::SERIAL_LAST).contains(&port) || (ports::FIRST..=ports::LAST).contains(&port)
    })
}

/// Offsets into the TSS: the stack of level 0, where the offset of the I/O permission bitmap stands, and
/// the bitmap.
const RSP0: usize = 4;
const IO_MAP_POINTER: usize = 0x66;
const IO_MAP_OFFSET: u16 = 0x68;
const IO_MAP: usize = IO_MAP_OFFSET as usize;

/// The last byte of the TSS: after the bitmap up to the last port, a byte of ones.
const TASK_LIMIT: u16 = IO_MAP_OFFSET + ports::LAST / 8 + 1;
const TASK_BYTES: usize = TASK_LIMIT as usize + 1;

/// The last byte of the GDT, which has seven entries.
const GDT_LIMIT: u16 = 7 * 8 - 1;

/// A gate of the IDT: present, an interrupt gate of level 0, without a stack of its own.
const GATE: u64 = 0x8e00_0000_0000 | (KERNEL_CODE as u64) << 16;

/// Gates of the whole IDT, and its last byte: a gate has 16.
const GATES: usize = 256;
const IDT_LIMIT: u16 = 0xfff;

/// The IDT.
#[expect(clippy::unnecessary_wraps, reason = "those of arm64 are code, which may not assemble")]
pub(super) fn vectors(handlers: &[(u8, u64)]) -> Result<Vec<u8>, Infallible> {
    let mut gates = [[0; 2]; GATES];
    for (vector, handler) in handlers {
        if let Some(place) = gates.get_mut(usize::from(*vector)) {
            *place = gate(*handler);
        }
    }
    Ok(gates.iter().flatten().flat_map(|word| word.to_le_bytes()).collect())
}

/// Writes the tables: those of descriptors, those of pages, a TSS for each vCPU.
pub(super) fn write_tables(ram: &GuestRam, config: &GuestConfig) -> Result<(), RamError> {
    write_words(ram, GDT, &descriptors())?;
    for cpu in 0..config.cpus {
        ram.write(area(cpu), &task_state(cpu))?;
    }
    write_page_tables(ram, config)
}

/// A gate of the IDT.
fn gate(handler: u64) -> [u64; 2] {
    [handler & 0xffff | GATE | (handler >> 16 & 0xffff) << 48, handler >> 32]
}

/// A vCPU's TSS: the stack of level 0 and its I/O permission bitmap, in which a clear bit opens a port.
/// The processor reads two bytes at a time, so a byte of ones follows the last.
fn task_state(cpu: u32) -> [u8; TASK_BYTES] {
    let mut bytes = [0; TASK_BYTES];
    for (place, byte) in bytes.iter_mut().enumerate().skip(IO_MAP) {
        let closed = (0..8).filter(|bit| !is_open((place - IO_MAP) * 8 + bit));
        *byte = closed.fold(0, |ones, bit| ones | 1 << bit);
    }
    let stack = (area(cpu) + STACK_0_END).to_le_bytes();
    let fields = [(RSP0, &stack[..]), (IO_MAP_POINTER, &IO_MAP_OFFSET.to_le_bytes()[..])];
    for (place, value) in fields {
        for (byte, value) in bytes.iter_mut().skip(place).zip(value) {
            *byte = *value;
        }
    }
    bytes
}

/// The GDT: null, level 0 code and data, level 3 data and code, and vCPU 0's TSS in two entries. The others
/// have theirs in TR from the start, and nothing loads it anew.
fn descriptors() -> [u64; 7] {
    let tss = CPU_AREAS;
    let task = 0x0000_8b00_0000_0000
        | (u64::from(TASK_LIMIT))
        | (tss & 0x00ff_ffff) << 16
        | (tss >> 24 & 0xff) << 56;
    [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        task,
        tss >> 32,
    ]
}

fn write_page_tables(ram: &GuestRam, config: &GuestConfig) -> Result<(), RamError> {
    let directories = config.memory_bytes.div_ceil(DIRECTORY_SPAN);
    write_words(ram, PML4, &[TOP_TABLE | TABLE_ENTRY])?;
    let pointers: Vec<u64> =
        (0..directories).map(|index| (DIRECTORIES + index * TABLE_BYTES) | TABLE_ENTRY).collect();
    write_words(ram, TOP_TABLE, &pointers)?;
    let pages: Vec<u64> = (0..config.memory_bytes.div_ceil(LARGE_PAGE))
        .map(|index| physical(index * LARGE_PAGE, config.low_end()) | LARGE_ENTRY)
        .collect();
    write_words(ram, DIRECTORIES, &pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tss_opens_the_payloads_ports_and_no_others() {
        let tss = task_state(2);
        assert_eq!(tss[RSP0..RSP0 + 8], (0x11_4000_u64 + 0xa00).to_le_bytes());
        let open = |port: usize| tss.get(IO_MAP + port / 8).is_some_and(|byte| byte >> (port % 8) & 1 == 0);
        assert_eq!(tss[IO_MAP_POINTER..IO_MAP], [0x68, 0]);
        let expected = |port| (0x3f8..0x400).contains(&port) || (0xf00..0xf3c).contains(&port);
        assert!((0..=0xffff).all(|port| open(port) == expected(port)));
        assert_eq!(tss[TASK_BYTES - 1], 0xff);
        const { assert!(TASK_BYTES <= 0x400) };
    }

    #[test]
    fn a_gate_leads_to_its_handler() {
        assert_eq!(gate(0x0123_4567_89ab_cdef), [0x89ab_8e00_0008_cdef, 0x0123_4567]);
    }
}
