//! What lies in low memory of a guest of arm64, and what its vCPUs' registers hold.
//!
//! Every vCPU begins at EL1 with translation and caches on, interrupts closed. Below 1 GiB lie the interrupt
//! controller and the ports ([`crate::ports::WINDOW`]), mapped to their own addresses as device memory; memory begins
//! at 1 GiB. An exception that the program does not handle goes to [`crate::ports::EXCEPTION`], and ends the guest.
//!
//! Facts: Arm's DDI 0487, D8 "The `AArch64` Virtual Memory System Architecture" (granule of 4 KiB, 39 bits: level 1
//! comes first), D1.3.1 "Exception vectors", D24.2 (`SCTLR_EL1`, `TCR_EL1`, `MAIR_EL1`, `CPACR_EL1`).

use ferry_memory::{GuestRam, RamError};
use ferry_protocol::RegionSpan;

use super::{
    DIRECTORIES, DIRECTORY_SPAN, LARGE_PAGE, MAX_MEMORY_BYTES, TABLE_BYTES, TOP_TABLE, VECTORS, physical,
    write_words,
};
use crate::GuestConfig;
use crate::a64::{Assembler, AssemblerError, X};
use crate::ports;

mod registers;

pub(crate) use registers::{ELR_EL1, PC, PSTATE, PSTATE_VALUE, X0, core, counter_khz, set, start_at};

/// Where memory begins, at linear and guest-physical addresses alike.
pub(crate) const RAM_START: u64 = ferry_kvm::ARM64_RAM_START;

/// The most memory in one piece, and where what is cut off it lies.
pub(crate) const LOW_BYTES_MAX: u64 = MAX_MEMORY_BYTES;
pub(super) const HIGH_START: u64 = ferry_kvm::ARM64_HIGH_START;

/// Where the interrupt controller lies: the distributor, and a redistributor for each vCPU.
pub(crate) const DISTRIBUTOR: u64 = 0x800_0000;
pub(crate) const REDISTRIBUTORS: u64 = 0x80a_0000;
pub(crate) const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;

/// The machine of its programs in an ELF header (`EM_AARCH64`).
pub(crate) const ELF_MACHINE: u16 = 183;

/// Where memory lies.
pub(crate) fn layout(memory_bytes: u64, low_end: u64) -> Vec<RegionSpan> {
    ferry_kvm::arm64_layout(memory_bytes, low_end)
}

/// Bytes of each of the 16 exception vectors.
const VECTOR_BYTES: u64 = 0x80;
const VECTOR_COUNT: u8 = 16;

// Descriptors: a table; a block of memory that is ordinary, or a device's. Both are accessed already, so that the
// processor writes no table, for EL1 alone, and what is no memory is not executed.
const TABLE_ENTRY: u64 = 3;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;
const NOT_EL0: u64 = 1 << 54;
const NOT_EL1: u64 = 1 << 53;
const MEMORY_ENTRY: u64 = NOT_EL0 | ACCESSED | INNER_SHAREABLE | ATTRIBUTE_MEMORY << 2 | 1;
const DEVICE_ENTRY: u64 = NOT_EL0 | NOT_EL1 | ACCESSED | ATTRIBUTE_DEVICE << 2 | 1;

// Which byte of `MAIR_EL1`.
const ATTRIBUTE_DEVICE: u64 = 0;
const ATTRIBUTE_MEMORY: u64 = 1;

/// Writes the tables: those of pages.
pub(super) fn write_tables(ram: &GuestRam, config: &GuestConfig) -> Result<(), RamError> {
    let directories = config.memory_bytes.div_ceil(DIRECTORY_SPAN);
    let tables = (0..directories).map(|index| (RAM_START + DIRECTORIES + index * TABLE_BYTES) | TABLE_ENTRY);
    let top: Vec<u64> = std::iter::once(DEVICE_ENTRY).chain(tables).collect();
    write_words(ram, RAM_START + TOP_TABLE, &top)?;
    let pages: Vec<u64> = (0..config.memory_bytes.div_ceil(LARGE_PAGE))
        .map(|index| physical(index * LARGE_PAGE, config.low_end()) | MEMORY_ENTRY)
        .collect();
    write_words(ram, RAM_START + DIRECTORIES, &pages)
}

/// The exception vectors: those that the program handles lead there, the others end the guest.
pub(super) fn vectors(handlers: &[(u8, u64)]) -> Result<Vec<u8>, AssemblerError> {
    let mut a = Assembler::default();
    for vector in 0..VECTOR_COUNT {
        a.fill_to((u64::from(vector) * VECTOR_BYTES / 4) as usize);
        if let Some((_, handler)) = handlers.iter().find(|handler| handler.0 == vector) {
            let place = a.label_at(((handler - RAM_START - VECTORS) / 4) as usize);
            a.b(place);
            continue;
        }
        a.mov_imm(X(1), ports::WINDOW);
        a.mrs(X(0), registers::ESR_EL1);
        let forever = a.here();
        a.str_w(X(0), X(1), ports::EXCEPTION);
        a.b(forever);
    }
    a.finish()
}

#[cfg(test)]
mod tests {
    use super::super::CODE;
    use super::*;

    #[test]
    fn each_vector_has_its_place_and_the_controller_ends_before_the_ports() {
        let none = vectors(&[]).unwrap();
        assert!(none.len() > 15 * 0x80 && none.len() <= 16 * 0x80 && VECTORS + 0x800 <= CODE);
        let handled = vectors(&[(5, RAM_START + CODE + 0x40)]).unwrap();
        // 0x8040 - 0x3280 is 0x4dc0.
        assert_eq!(handled[0x280..0x284], (0x1400_0000_u32 + 0x4dc0 / 4).to_le_bytes());
        assert_eq!(handled[0x300..], none[0x300..]);
        let end = REDISTRIBUTORS + u64::from(crate::MAX_CPUS) * REDISTRIBUTOR_BYTES;
        assert!(end <= ports::WINDOW && ports::WINDOW + 0x1_0000 <= RAM_START);
    }
}
