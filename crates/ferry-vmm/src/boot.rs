//! The guest's first state: what lies in low memory, and what its first vCPU's registers hold.
//!
//! No firmware and no kernel run: the vCPU begins in 64-bit mode at privilege level 3 with IOPL 3.
//! The descriptors are those that a GDT in memory has, so that the entry checks of VMX and SVM pass
//! and nothing is at odds. The IDT is empty: an exception ends the guest, and the VMM says so.
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
//! | 0x2000 | TSS with its I/O permission bitmap |
//! | 0x7000 | the end of the stack, which grows down from here |
//! | 0x8000 | the program |
//! | 0x10000 | PML4, PDPT, then one page directory for each GiB |
//! | [`WORKING_SET_START`] | working set |
//!
//! Facts: Intel SDM volume 3, 4.5 "4-level paging", 3.4.5 "Segment descriptors", 8.2 "Task
//! management data structures"; volume 1, 19.5.2 "I/O permission bit map"; volume 3, 27.3.1 "Checks on the guest state area".

use ferry_kvm::{HOLE_END, HOLE_START};
use ferry_memory::{GuestRam, RamError};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::payload::{self, Parameters};
use crate::{VmmError, ports};

/// Where the working set begins, as an offset into guest memory. All that comes before belongs to
/// the boot.
pub(crate) const WORKING_SET_START: u64 = 2 << 20;

const GDT: u64 = 0x1000;
const TSS: u64 = 0x2000;
const STACK_END: u64 = 0x7000;
const CODE: u64 = 0x8000;
const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const DIRECTORIES: u64 = 0x1_2000;

/// Bytes of a table of 512 entries.
const TABLE_BYTES: u64 = 4096;

/// Memory that one page directory maps: 512 pages of 2 MiB.
const DIRECTORY_SPAN: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;

/// The most memory that page tables below the working set can map.
pub(crate) const MAX_MEMORY_BYTES: u64 = (WORKING_SET_START - DIRECTORIES) / TABLE_BYTES * DIRECTORY_SPAN;

// Page-table entries: present, writable, user, accessed; and for a large page dirty and size. With
// accessed and dirty set beforehand the processor writes no table.
const TABLE_ENTRY: u64 = 0x27;
const LARGE_ENTRY: u64 = 0xe7;

// Selectors into the GDT, with the requested privilege level.
const USER_DATA: u16 = 0x18 | 3;
const USER_CODE: u16 = 0x20 | 3;
const TASK: u16 = 0x28;

// CR0: PE, MP, ET, NE, WP, PG. CR4: PAE, OSFXSR, OSXMMEXCPT. EFER: LME, LMA.
const CR0: u64 = 0x8001_0033;
const CR4: u64 = 0x620;
const EFER: u64 = 0x500;

/// The ports that the payload may use.
const IO_PORTS: std::ops::RangeInclusive<usize> = ports::FIRST as usize..=ports::LAST as usize;

/// Offsets into the TSS: where the offset of the I/O permission bitmap stands, and the bitmap.
const IO_MAP_POINTER: usize = 0x66;
const IO_MAP_OFFSET: u16 = 0x68;
const IO_MAP: usize = IO_MAP_OFFSET as usize;

/// The last byte of the TSS: after the bitmap up to the last port, a byte of ones.
const TASK_LIMIT: u16 = IO_MAP_OFFSET + ports::LAST / 8 + 1;
const TASK_BYTES: usize = TASK_LIMIT as usize + 1;

/// The last byte of the GDT, which has seven entries.
const GDT_LIMIT: u16 = 7 * 8 - 1;

/// RFLAGS: the bit that is always 1, and IOPL 3.
const RFLAGS: u64 = 0x3002;

/// Writes the program and its tables into the guest's memory of `memory_bytes`.
pub(crate) fn load(ram: &GuestRam, memory_bytes: u64) -> Result<(), VmmError> {
    let code = payload::assemble(CODE).map_err(|error| VmmError::Payload(error.to_string()))?;
    let failed = |source| VmmError::Load { source };
    ram.write(CODE, &code).map_err(failed)?;
    write_words(ram, GDT, &descriptors()).map_err(failed)?;
    ram.write(TSS, &task_state()).map_err(failed)?;
    write_page_tables(ram, memory_bytes).map_err(failed)
}

/// The special registers of a vCPU that begins at privilege level 3, on top of what it has.
pub(crate) fn special_registers(mut sregs: kvm_sregs) -> kvm_sregs {
    let data = segment(USER_DATA, 3, false);
    (sregs.cs, sregs.ss) = (segment(USER_CODE, 11, true), data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: TASK_LIMIT.into(),
        selector: TASK,
        type_: 11, // a busy 64-bit TSS
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.gdt = kvm_dtable { base: GDT, limit: GDT_LIMIT, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, PML4, CR4, EFER);
    sregs
}

/// The registers with which the program starts.
pub(crate) fn registers(parameters: &Parameters) -> kvm_regs {
    kvm_regs {
        rip: CODE,
        rsp: STACK_END,
        rflags: RFLAGS,
        rbx: parameters.working_set,
        r8: parameters.pages,
        r11: parameters.burst_pages,
        r12: u64::from(parameters.wait_us),
        r13: parameters.seed,
        ..Default::default()
    }
}

/// The TSS: empty but for its I/O permission bitmap, in which a clear bit opens a port. The processor
/// reads two bytes at a time, so a byte of ones follows the last.
fn task_state() -> [u8; TASK_BYTES] {
    let mut bytes = [0; TASK_BYTES];
    for (place, byte) in bytes.iter_mut().enumerate().skip(IO_MAP) {
        let closed = (0..8).filter(|bit| !IO_PORTS.contains(&((place - IO_MAP) * 8 + bit)));
        *byte = closed.fold(0, |ones, bit| ones | 1 << bit);
    }
    for (byte, value) in bytes.iter_mut().skip(IO_MAP_POINTER).zip(IO_MAP_OFFSET.to_le_bytes()) {
        *byte = value;
    }
    bytes
}

/// A flat segment of privilege level 3.
fn segment(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

/// The GDT: null, level 0 code and data, level 3 data and code, and the TSS in two entries.
fn descriptors() -> [u64; 7] {
    let task = 0x0000_8b00_0000_0000
        | (u64::from(TASK_LIMIT))
        | (TSS & 0x00ff_ffff) << 16
        | (TSS >> 24 & 0xff) << 56;
    [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        task,
        TSS >> 32,
    ]
}

fn write_page_tables(ram: &GuestRam, memory_bytes: u64) -> Result<(), RamError> {
    let directories = memory_bytes.div_ceil(DIRECTORY_SPAN);
    write_words(ram, PML4, &[PDPT | TABLE_ENTRY])?;
    let pointers: Vec<u64> =
        (0..directories).map(|index| (DIRECTORIES + index * TABLE_BYTES) | TABLE_ENTRY).collect();
    write_words(ram, PDPT, &pointers)?;
    let pages: Vec<u64> = (0..memory_bytes.div_ceil(LARGE_PAGE))
        .map(|index| physical(index * LARGE_PAGE) | LARGE_ENTRY)
        .collect();
    write_words(ram, DIRECTORIES, &pages)
}

/// Where an offset into guest memory lies.
pub(crate) fn physical(offset: u64) -> u64 {
    if offset < HOLE_START { offset } else { offset - HOLE_START + HOLE_END }
}

fn write_words(ram: &GuestRam, address: u64, words: &[u64]) -> Result<(), RamError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.write(address, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gdt_says_what_the_registers_say() {
        let sregs = special_registers(kvm_sregs::default());
        for (segment, name) in [(sregs.cs, "cs"), (sregs.ss, "ss"), (sregs.tr, "tr")] {
            let entry = descriptors()[usize::from(segment.selector >> 3)];
            assert_eq!((entry >> 40 & 0xf) as u8, segment.type_, "{name} type");
            assert_eq!((entry >> 44 & 1) as u8, segment.s, "{name} s");
            assert_eq!((entry >> 45 & 3) as u8, segment.dpl, "{name} dpl");
            assert_eq!((entry >> 47 & 1) as u8, segment.present, "{name} present");
            assert_eq!((entry >> 53 & 1) as u8, segment.l, "{name} l");
            assert_eq!((entry >> 54 & 1) as u8, segment.db, "{name} db");
        }
        assert_eq!(usize::from(sregs.gdt.limit) + 1, descriptors().len() * 8);
    }

    #[test]
    fn the_tss_opens_the_payloads_ports_and_no_others() {
        let tss = task_state();
        let open = |port: usize| tss.get(IO_MAP + port / 8).is_some_and(|byte| byte >> (port % 8) & 1 == 0);
        assert_eq!(tss[IO_MAP_POINTER..IO_MAP], [0x68, 0]);
        assert!((0..=0xffff).all(|port| open(port) == IO_PORTS.contains(&port)));
        assert_eq!(tss[TASK_BYTES - 1], 0xff);
        const { assert!(TASK_BYTES <= 4096) };
    }

    #[test]
    fn tables_end_before_the_working_set() {
        let end = DIRECTORIES + MAX_MEMORY_BYTES.div_ceil(DIRECTORY_SPAN) * TABLE_BYTES;
        assert!(end <= WORKING_SET_START);
        assert!(MAX_MEMORY_BYTES.div_ceil(DIRECTORY_SPAN) <= 512, "one PDPT holds them");
        const { assert!(MAX_MEMORY_BYTES >= 256 << 30) };
    }

    #[test]
    fn memory_behind_the_hole_is_mapped_to_its_place() {
        assert_eq!(physical(HOLE_START - 1), HOLE_START - 1);
        assert_eq!(physical(HOLE_START), HOLE_END);
        assert_eq!(physical(HOLE_START + 4096), HOLE_END + 4096);
    }
}
