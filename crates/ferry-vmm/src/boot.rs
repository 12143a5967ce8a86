//! The guest's first state: what lies in low memory, and what its vCPUs' registers hold.
//!
//! No firmware and no kernel run: every vCPU begins in 64-bit mode, with the same program, at privilege
//! level 3 with IOPL 3 or at level 0. The descriptors are those that a GDT in memory has, so that the
//! entry checks of VMX and SVM pass and nothing is at odds. The IDT has the vectors that the program
//! handles, at level 0; any other exception ends the guest, and the VMM says so. The APIC is in x2APIC mode,
//! so that no device needs a mapping.
//!
//! IOPL 3 lets the program use its ports on VMX and SVM. `kvm_pvm` runs level 3 natively and loses IOPL
//! at the first exit, but its emulation of `IN` and `OUT` honours the TSS's I/O permission bitmap; so
//! the TSS has one, and it opens the payload's ports and no others.
//!
//! Linear address = offset into guest memory: the page tables map the hole below 4 GiB away.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0x1000 | GDT |
//! | 0x3000 | IDT |
//! | 0x8000 | the program |
//! | 0x10000 | PML4, PDPT, then one page directory for each GiB |
//! | 0x112000 | a page for each vCPU: TSS with its I/O permission bitmap, stacks of level 0 and level 3 |
//! | [`WORKING_SET_START`] | working set |
//!
//! Facts: Intel SDM volume 3, 4.5 "4-level paging", 3.4.5 "Segment descriptors", 8.2 "Task
//! management data structures"; volume 1, 19.5.2 "I/O permission bit map"; volume 3, 27.3.1 "Checks on the guest state area".

use ferry_kvm::HOLE_END;
use ferry_memory::{GuestRam, PAGE_SIZE, RamError};

use crate::payload;
use crate::{GuestConfig, Image, Payload, VmmError, ports};

#[cfg(target_arch = "x86_64")]
mod registers;

#[cfg(target_arch = "x86_64")]
pub(crate) use registers::{Extensions, registers, special_registers};

/// Where the working set begins, as an offset into guest memory. All that comes before belongs to
/// the boot.
pub(crate) const WORKING_SET_START: u64 = 2 << 20;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x3000;
const CODE: u64 = 0x8000;
const CODE_BYTES: usize = 0x8000;
const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const DIRECTORIES: u64 = 0x1_2000;

/// Bytes of a table of 512 entries.
const TABLE_BYTES: u64 = 4096;

/// Memory that one page directory maps: 512 pages of 2 MiB.
const DIRECTORY_SPAN: u64 = 1 << 30;
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

/// Where the vCPUs' own pages begin.
const CPU_AREAS: u64 = 0x11_2000;

/// How many vCPUs have room for their own page.
#[expect(clippy::cast_possible_truncation, reason = "it is 238")]
pub(crate) const CPU_AREAS_MAX: u32 = ((WORKING_SET_START - CPU_AREAS) / TABLE_BYTES) as u32;

/// In a vCPU's page: the TSS begins it, the stack of level 0 ends here and that of level 3 with the page.
const STACK_0_END: u64 = 0xa00;
const STACK_3_END: u64 = 0x1000;

/// The most memory that page tables below the vCPUs' pages can map.
pub(crate) const MAX_MEMORY_BYTES: u64 = (CPU_AREAS - DIRECTORIES) / TABLE_BYTES * DIRECTORY_SPAN;

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

/// Bytes of a gate, and of the whole IDT.
const GATE_BYTES: u64 = 16;
const IDT_LIMIT: u16 = 0xfff;

/// Writes the program and its tables into the memory of a guest.
pub(crate) fn load(ram: &GuestRam, config: &GuestConfig, image: Option<&Image>) -> Result<(), VmmError> {
    let program = payload::assemble(&config.payload, CODE).map_err(|e| VmmError::Payload(e.to_string()))?;
    if program.code.len() > CODE_BYTES {
        return Err(VmmError::Payload(format!("it has {} bytes", program.code.len())));
    }
    let write = || {
        ram.write(CODE, &program.code)?;
        write_words(ram, GDT, &descriptors())?;
        for (vector, handler) in &program.handlers {
            write_words(ram, IDT + u64::from(*vector) * GATE_BYTES, &gate(*handler))?;
        }
        for cpu in 0..config.cpus {
            ram.write(area(cpu), &task_state(cpu))?;
            let table = match config.payload {
                Payload::Features => payload::features::table(),
                Payload::Msrs => payload::msrs::table(),
                _ => continue,
            };
            ram.write(WORKING_SET_START + config.share(cpu).start * PAGE_SIZE, &table)?;
        }
        for (address, bytes) in image.iter().flat_map(|image| image.pieces()) {
            ram.write(address, bytes)?;
        }
        write_page_tables(ram, config)
    };
    write().map_err(|source| VmmError::Load { source })
}

/// Where a vCPU's own page lies.
fn area(cpu: u32) -> u64 {
    CPU_AREAS + u64::from(cpu) * TABLE_BYTES
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
    write_words(ram, PML4, &[PDPT | TABLE_ENTRY])?;
    let pointers: Vec<u64> =
        (0..directories).map(|index| (DIRECTORIES + index * TABLE_BYTES) | TABLE_ENTRY).collect();
    write_words(ram, PDPT, &pointers)?;
    let pages: Vec<u64> = (0..config.memory_bytes.div_ceil(LARGE_PAGE))
        .map(|index| physical(index * LARGE_PAGE, config.low_end()) | LARGE_ENTRY)
        .collect();
    write_words(ram, DIRECTORIES, &pages)
}

/// Where an offset into guest memory lies, whose part below the hole ends there.
pub(crate) fn physical(offset: u64, low_end: u64) -> u64 {
    if offset < low_end { offset } else { offset - low_end + HOLE_END }
}

fn write_words(ram: &GuestRam, address: u64, words: &[u64]) -> Result<(), RamError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.write(address, &bytes)
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

    #[test]
    fn tables_end_before_the_vcpus_pages_and_these_before_the_working_set() {
        let end = DIRECTORIES + MAX_MEMORY_BYTES.div_ceil(DIRECTORY_SPAN) * TABLE_BYTES;
        assert!(end <= CPU_AREAS);
        assert!(area(CPU_AREAS_MAX) <= WORKING_SET_START);
        assert!(MAX_MEMORY_BYTES.div_ceil(DIRECTORY_SPAN) <= 512, "one PDPT holds them");
        const { assert!(MAX_MEMORY_BYTES >= 256 << 30) };
    }

    #[test]
    fn memory_behind_the_hole_is_mapped_to_its_place() {
        for low_end in [8 << 20, ferry_kvm::HOLE_START] {
            assert_eq!(physical(low_end - 1, low_end), low_end - 1);
            assert_eq!(physical(low_end, low_end), HOLE_END);
            assert_eq!(physical(low_end + 4096, low_end), HOLE_END + 4096);
        }
    }
}
