//! The guest's first state: what lies in low memory, and what its vCPUs' registers hold.
//!
//! No firmware and no kernel run: every vCPU begins with the same program, with all of memory mapped. Linear address
//! = offset into guest memory, from where memory begins: the page tables map a hole in it away. What lies where is
//! the same on every architecture, what it is stands in a module of each.
//!
//! | offset into guest memory | x86-64 | arm64 |
//! |---|---|---|
//! | 0x1000 | GDT | |
//! | 0x3000 | IDT | exception vectors |
//! | 0x8000 | the program | the program |
//! | 0x10000 | PML4 | |
//! | 0x11000 | PDPT | the level 1 table |
//! | 0x12000 | a page directory for each GiB | a level 2 table for each GiB |
//! | 0x112000 | a page for each vCPU: TSS with its I/O permission bitmap, stacks | a page for each vCPU: its stack |
//! | [`WORKING_SET_START`] | working set | working set |

#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64 as arch;
#[cfg(target_arch = "x86_64")]
use x86 as arch;

#[cfg(target_arch = "aarch64")]
pub(crate) use arch::{
    DISTRIBUTOR, ELR_EL1, PC, PSTATE, PSTATE_VALUE, REDISTRIBUTOR_BYTES, REDISTRIBUTORS, X0, core, set,
};
pub(crate) use arch::{ELF_MACHINE, LOW_BYTES_MAX, RAM_START, counter_khz, layout, start_at};

use ferry_memory::{GuestRam, RamError};

use crate::payload;
use crate::{GuestConfig, Image, VmmError};

/// Where the working set begins, as an offset into guest memory. All that comes before belongs to
/// the boot.
pub(crate) const WORKING_SET_START: u64 = 2 << 20;

const VECTORS: u64 = 0x3000;
const CODE: u64 = 0x8000;
const CODE_BYTES: usize = 0x8000;
const TOP_TABLE: u64 = 0x1_1000;
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

/// In a vCPU's page: the stack of its first program ends with it.
const STACK_END: u64 = 0x1000;

/// The most memory that page tables below the vCPUs' pages can map.
pub(crate) const MAX_MEMORY_BYTES: u64 = (CPU_AREAS - DIRECTORIES) / TABLE_BYTES * DIRECTORY_SPAN;

/// Writes the program and its tables into the memory of a guest.
pub(crate) fn load(ram: &GuestRam, config: &GuestConfig, image: Option<&Image>) -> Result<(), VmmError> {
    let program = payload::assemble(&config.payload, RAM_START + CODE).map_err(VmmError::Payload)?;
    if program.code.len() > CODE_BYTES {
        return Err(VmmError::Payload(format!("it has {} bytes", program.code.len())));
    }
    let vectors = arch::vectors(&program.handlers).map_err(|error| VmmError::Payload(error.to_string()))?;
    let write = || {
        ram.write(RAM_START + CODE, &program.code)?;
        ram.write(RAM_START + VECTORS, &vectors)?;
        arch::write_tables(ram, config)?;
        let table = payload::table(&config.payload);
        for cpu in (0..config.cpus).filter(|_| !table.is_empty()) {
            ram.write(config.working_set_address(config.share(cpu).start), &table)?;
        }
        for (address, bytes) in image.iter().flat_map(|image| image.pieces()) {
            ram.write(address, bytes)?;
        }
        Ok(())
    };
    write().map_err(|source| VmmError::Load { source })
}

/// Where a vCPU's own page lies.
fn area(cpu: u32) -> u64 {
    RAM_START + CPU_AREAS + u64::from(cpu) * TABLE_BYTES
}

/// Where an offset into guest memory lies, whose part before a hole ends there.
pub(crate) fn physical(offset: u64, low_end: u64) -> u64 {
    if offset < low_end { RAM_START + offset } else { offset - low_end + arch::HIGH_START }
}

fn write_words(ram: &GuestRam, address: u64, words: &[u64]) -> Result<(), RamError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.write(address, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_end_before_the_vcpus_pages_and_these_before_the_working_set() {
        let end = DIRECTORIES + MAX_MEMORY_BYTES.div_ceil(DIRECTORY_SPAN) * TABLE_BYTES;
        assert!(end <= CPU_AREAS);
        assert!(area(CPU_AREAS_MAX) <= RAM_START + WORKING_SET_START);
        assert!(RAM_START.div_ceil(DIRECTORY_SPAN) + MAX_MEMORY_BYTES.div_ceil(DIRECTORY_SPAN) <= 512);
        const { assert!(MAX_MEMORY_BYTES >= 256 << 30) };
    }

    #[test]
    fn memory_behind_the_hole_is_mapped_to_its_place() {
        for low_end in [8 << 20, LOW_BYTES_MAX] {
            assert_eq!(physical(low_end - 1, low_end), RAM_START + low_end - 1);
            assert_eq!(physical(low_end, low_end), arch::HIGH_START);
            assert_eq!(physical(low_end + 4096, low_end), arch::HIGH_START + 4096);
        }
        let regions = layout(16 << 20, 4 << 20);
        assert_eq!(regions.iter().map(|it| it.start).collect::<Vec<_>>(), [RAM_START, arch::HIGH_START]);
    }
}
