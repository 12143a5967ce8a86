//! `features`: what CPUID shows, leaf by leaf, at birth and ever after.
//!
//! Each vCPU has a table of its own at the start of its share: the leaves and subleaves to ask for, for
//! each register the bits to compare, what was there at birth, and what is there now. What belongs to
//! the processor that a vCPU happens to run on, or to its registers, is not compared: APIC ids, and where a
//! KVM shows the hardware's own leaves (`kvm_pvm`) these change with the core. Facts: Intel SDM volume
//! 2, CPUID; AMD APM volume 3, appendix E.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, ebx, ecx, edx, esi, r8, r8d, r9, r10, r12d, r14, r15, r15d, rbp, rbx,
};

use super::{answer, if_asked, out, turn_over};
use crate::ports;

/// Microseconds between two rounds of all leaves.
pub(super) const WAIT_US: u32 = 20_000;

/// Bytes of one entry: leaf, subleaf, four masks, four values at birth, four values now, padding.
const ENTRY_BYTES: usize = 64;

const MASKS: usize = 8;
const BIRTH: usize = 24;
const NOW: usize = 40;

/// Registers in the order of a fault's word and of an entry.
const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// Leaves, the subleaves to ask for from 0 on, and the bits of EAX to EDX that do not count.
const LEAVES: &[(std::ops::RangeInclusive<u32>, u32, [u32; 4])] = &[
    // The APIC id; OSXSAVE is the vCPU's own CR4, which stays.
    (0..=0, 1, [0; 4]),
    (1..=1, 1, [0, 0xff00_0000, 0, 0]),
    (2..=3, 1, [0; 4]),
    (4..=4, 6, [0; 4]),
    (5..=6, 1, [0; 4]),
    (7..=7, 3, [0; 4]),
    (8..=0xa, 1, [0; 4]),
    // The x2APIC id.
    (0xb..=0xb, 4, [0, 0, 0, u32::MAX]),
    (0xc..=0xc, 1, [0; 4]),
    // EBX is the size for the present XCR0, which stays.
    (0xd..=0xd, 20, [0; 4]),
    (0xe..=0xe, 1, [0; 4]),
    (0xf..=0x10, 4, [0; 4]),
    (0x11..=0x11, 1, [0; 4]),
    (0x12..=0x12, 4, [0; 4]),
    (0x13..=0x13, 1, [0; 4]),
    (0x14..=0x14, 2, [0; 4]),
    (0x15..=0x16, 1, [0; 4]),
    (0x17..=0x18, 5, [0; 4]),
    (0x19..=0x19, 1, [0; 4]),
    // The kind of core.
    (0x1a..=0x1a, 1, [u32::MAX, 0, 0, 0]),
    (0x1b..=0x1c, 1, [0; 4]),
    (0x1d..=0x1e, 2, [0; 4]),
    (0x1f..=0x1f, 4, [0, 0, 0, u32::MAX]),
    (0x20..=0x21, 1, [0; 4]),
    (0x23..=0x24, 4, [0; 4]),
    (0x4000_0000..=0x4000_0010, 1, [0; 4]),
    (0x4000_0100..=0x4000_0101, 1, [0; 4]),
    (0x8000_0000..=0x8000_001c, 1, [0; 4]),
    (0x8000_001d..=0x8000_001d, 5, [0; 4]),
    // The extended APIC id, the compute unit and the node.
    (0x8000_001e..=0x8000_001e, 1, [u32::MAX, u32::MAX, u32::MAX, 0]),
    (0x8000_001f..=0x8000_0028, 1, [0; 4]),
];

/// How many entries a table has.
pub(super) fn entries() -> u64 {
    LEAVES.iter().map(|(leaves, subleaves, _)| leaves.clone().count() as u64 * u64::from(*subleaves)).sum()
}

/// A table as it is before birth.
pub(super) fn table() -> Vec<u8> {
    let mut table = Vec::new();
    for (leaves, subleaves, ignored) in LEAVES {
        for leaf in leaves.clone() {
            for subleaf in 0..*subleaves {
                let mut entry = [0; ENTRY_BYTES];
                let words = [leaf, subleaf].into_iter().chain(ignored.iter().map(|bits| !bits));
                for (to, word) in entry.chunks_mut(4).zip(words) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
                table.extend(entry);
            }
        }
    }
    table
}

/// What a fault says.
pub(super) fn fault(leaf: u32, word: u32, expected: u64, found: u64) -> String {
    let register = REGISTERS.get(word as usize & 3).copied().unwrap_or_default();
    format!(
        "CPUID leaf {leaf:#x}, subleaf {}, {register}: {expected:#010x} at birth, {found:#010x} now",
        word >> 2
    )
}

/// The program. RBP is the table, R8 its entries, R9 whether birth is over, R10 the entries left, R14 the
/// entry, R15 the faults of all rounds.
pub(super) fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rbp, rbx)?;
    a.xor(r9, r9)?;
    a.xor(r15, r15)?;
    let mut turn = a.create_label();
    a.set_label(&mut turn)?;
    round(a)?;
    if_asked(a, |a| {
        // Once more, so that the answer is of now.
        round(a)?;
        answer(a, r8d, r15d)
    })?;
    turn_over(a, r12d)?;
    a.jmp(turn)
}

/// Asks for all leaves, and notes them at birth or compares them.
fn round(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut entry = a.create_label();
    let mut compare = a.create_label();
    let mut done = a.create_label();
    a.mov(r14, rbp)?;
    a.mov(r10, r8)?;
    a.set_label(&mut entry)?;
    a.mov(eax, dword_ptr(r14))?;
    a.mov(ecx, dword_ptr(r14 + 4))?;
    a.cpuid()?;
    for (register, place) in [eax, ebx, ecx, edx].into_iter().zip((NOW..).step_by(4)) {
        a.mov(dword_ptr(r14 + place), register)?;
    }
    a.test(r9, r9)?;
    a.jnz(compare)?;
    for (register, place) in [eax, ebx, ecx, edx].into_iter().zip((BIRTH..).step_by(4)) {
        a.mov(dword_ptr(r14 + place), register)?;
    }
    a.jmp(done)?;
    a.set_label(&mut compare)?;
    for register in 0..REGISTERS.len() {
        compare_register(a, register)?;
    }
    // Two labels cannot stand at one instruction.
    a.nop()?;
    a.set_label(&mut done)?;
    a.add(r14, i32::try_from(ENTRY_BYTES).unwrap_or(i32::MAX))?;
    a.dec(r10)?;
    a.jnz(entry)?;
    a.mov(r9, 1_u64)?;
    out(a, ports::PAGES_CHECKED, r8d)
}

/// Compares one register of the entry at R14.
fn compare_register(a: &mut CodeAssembler, register: usize) -> Result<(), IcedError> {
    let mut same = a.create_label();
    let at = |place: usize| dword_ptr(r14 + (place + 4 * register));
    a.mov(esi, at(NOW))?;
    a.xor(esi, at(BIRTH))?;
    a.and(esi, at(MASKS))?;
    a.jz(same)?;
    a.inc(r15)?;
    a.mov(ecx, dword_ptr(r14))?;
    out(a, ports::FAULT_PAGE, ecx)?;
    a.mov(ecx, dword_ptr(r14 + 4))?;
    a.shl(ecx, 2)?;
    a.add(ecx, u32::try_from(register).unwrap_or(0))?;
    out(a, ports::FAULT_WORD, ecx)?;
    a.mov(ecx, at(BIRTH))?;
    out(a, ports::FAULT_EXPECTED_LOW, ecx)?;
    a.mov(ecx, at(NOW))?;
    out(a, ports::FAULT_FOUND_LOW, ecx)?;
    a.xor(ecx, ecx)?;
    out(a, ports::FAULT_EXPECTED_HIGH, ecx)?;
    out(a, ports::FAULT_FOUND_HIGH, ecx)?;
    a.set_label(&mut same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_each_leaf_once() {
        let table = table();
        assert_eq!(table.len() as u64, entries() * ENTRY_BYTES as u64);
        let mut leaves: Vec<&[u8]> = table.chunks(ENTRY_BYTES).map(|entry| &entry[..8]).collect();
        leaves.sort_unstable();
        let count = leaves.len();
        leaves.dedup();
        assert_eq!(leaves.len(), count);
    }

    #[test]
    fn a_fault_names_leaf_and_register() {
        assert_eq!(
            fault(7, 4 + 1, 0xff, 0xf7),
            "CPUID leaf 0x7, subleaf 1, EBX: 0x000000ff at birth, 0x000000f7 now"
        );
    }
}
