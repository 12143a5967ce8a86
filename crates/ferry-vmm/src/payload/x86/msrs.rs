//! `msrs`: what RDMSR gives of the registers that belong to what the guest was given, at birth and ever
//! after.
//!
//! A privileged program, at level 0. Each vCPU has a table of its own at the start of its share: an MSR, the bits of
//! it that stay, and where CPUID promises it. What CPUID does not promise at birth, and what raises
//! #GP then, is left out for good; the rest must be readable ever after, and hold the same bits.
//! Clocks and what KVM itself writes must only be readable. Facts: Intel SDM volume 4; AMD APM volume 2, appendix A; the
//! kernel's Documentation/virt/kvm/x86/msr.rst for KVM's own.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, dword_ptr, eax, ebx, ecx, edx, esi, ptr, qword_ptr, r8, r8d, r9, r9d, r10,
    r11d, r12d, r13, r14, r15, r15d, rbp, rbx, rcx, rsp,
};

use super::{Handlers, answer, if_asked, out, turn_over};
use crate::ports;

/// Microseconds between two rounds of all registers.
pub(super) const WAIT_US: u32 = 20_000;

/// The vector of #GP, which has an error code.
const PROTECTION: u8 = 13;

/// Bytes of one entry, and where its fields are: 32 bits each but the mask and the value at birth.
const ENTRY_BYTES: usize = 64;
const MSR: usize = 0;
const MASK: usize = 4;
const LEAF: usize = 12;
const SUBLEAF: usize = 16;
/// The bit as a mask; 0 for a register that needs no promise.
const BIT: usize = 20;
/// Which of the four words at [`CPUID`].
const WORD: usize = 24;
const STATE: usize = 28;
const BIRTH: usize = 32;
const CPUID: usize = 40;

/// States of an entry. Zero is not looked at yet.
const KEPT: u32 = 1;
const LEFT_OUT: u32 = 2;

/// A register, the bits of it that stay, and the CPUID bit that promises it.
type Entry = (u32, u64, Promise);

/// Leaf, subleaf, 0 to 3 for EAX to EDX, bit.
type Promise = (u32, u32, usize, u32);

/// A register that needs no promise.
const ALWAYS: Promise = (0, 0, 0, u32::BITS);

const ALL: u64 = u64::MAX;

/// Only readable: a clock, or what KVM writes.
const READABLE: u64 = 0;

const fn basic(register: usize, bit: u32) -> Promise {
    (1, 0, register, bit)
}
const fn structured(register: usize, bit: u32) -> Promise {
    (7, 0, register, bit)
}
const fn extended(register: usize, bit: u32) -> Promise {
    (0x8000_0001, 0, register, bit)
}
const fn kvm(bit: u32) -> Promise {
    (0x4000_0001, 0, 0, bit)
}
const fn hyperv(bit: u32) -> Promise {
    (0x4000_0003, 0, 0, bit)
}
const VMX: Promise = basic(2, 5);
const SVM: Promise = extended(2, 2);
const LONG_MODE: Promise = extended(3, 29);

#[rustfmt::skip]
const ENTRIES: &[Entry] = &[
    (0x10, READABLE, basic(3, 4)), (0x1b, READABLE, basic(3, 9)),
    (0x8b, ALL, ALWAYS), (0xce, ALL, ALWAYS), (0x140, ALL, ALWAYS), (0x1a0, ALL, ALWAYS),
    // Bits of AMD's own (HWCR, DE_CFG, VM_CR), #GP elsewhere.
    (0xc001_0015, ALL, ALWAYS), (0xc001_1029, ALL, ALWAYS),
    (0xc001_0114, ALL, SVM), (0xc001_0117, ALL, SVM), (0xc000_0104, ALL, (0x8000_000a, 0, 3, 4)),
    (0xc001_011f, ALL, (0x8000_0008, 0, 1, 25)), (0xc001_0200, READABLE, extended(2, 23)),
    // SPEC_CTRL: promised by Intel's bits, or by AMD's.
    (0x48, ALL, structured(3, 26)), (0x48, ALL, structured(3, 31)),
    (0x48, ALL, (0x8000_0008, 0, 1, 14)), (0x48, ALL, (0x8000_0008, 0, 1, 24)),
    (0x3b, ALL, structured(1, 1)), (0xe1, ALL, structured(2, 5)),
    (0x10a, ALL, structured(3, 29)), (0x345, ALL, basic(2, 15)), (0xda0, ALL, (0xd, 1, 0, 3)),
    (0x6e0, READABLE, basic(2, 24)), (0xfe, ALL, basic(3, 12)), (0x2ff, ALL, basic(3, 12)),
    (0x179, ALL, basic(3, 14)), (0x277, ALL, basic(3, 16)),
    (0x174, ALL, basic(3, 11)), (0x175, ALL, basic(3, 11)), (0x176, ALL, basic(3, 11)),
    (0xc000_0080, ALL, LONG_MODE), (0xc000_0081, ALL, LONG_MODE), (0xc000_0082, ALL, LONG_MODE),
    (0xc000_0084, ALL, LONG_MODE), (0xc000_0102, ALL, LONG_MODE), (0xc000_0103, ALL, extended(3, 27)),
    (0x3a, ALL, VMX), (0x480, ALL, VMX), (0x481, ALL, VMX), (0x482, ALL, VMX), (0x483, ALL, VMX),
    (0x484, ALL, VMX), (0x485, ALL, VMX), (0x486, ALL, VMX), (0x487, ALL, VMX), (0x488, ALL, VMX),
    (0x489, ALL, VMX), (0x48a, ALL, VMX), (0x48b, ALL, VMX), (0x48c, ALL, VMX), (0x48d, ALL, VMX),
    (0x48e, ALL, VMX), (0x48f, ALL, VMX), (0x490, ALL, VMX), (0x491, ALL, VMX),
    (0x11, READABLE, kvm(0)), (0x12, READABLE, kvm(0)),
    (0x4b56_4d00, READABLE, kvm(3)), (0x4b56_4d01, READABLE, kvm(3)),
    (0x4b56_4d02, READABLE, kvm(4)), (0x4b56_4d03, READABLE, kvm(5)), (0x4b56_4d04, READABLE, kvm(6)),
    (0x4b56_4d05, READABLE, kvm(12)), (0x4b56_4d06, READABLE, kvm(14)), (0x4b56_4d07, READABLE, kvm(14)),
    (0x4b56_4d08, READABLE, kvm(17)),
    (0x4000_0000, ALL, hyperv(5)), (0x4000_0002, ALL, hyperv(6)), (0x4000_0020, READABLE, hyperv(1)),
    (0x4000_0021, ALL, hyperv(9)), (0x4000_0118, ALL, hyperv(15)),
];

/// How many entries a table has.
pub(super) fn entries() -> u64 {
    ENTRIES.len() as u64
}

/// A table as it is before birth.
pub(super) fn table() -> Vec<u8> {
    let mut table = Vec::new();
    for &(msr, mask, promise) in ENTRIES {
        let mut entry = [0; ENTRY_BYTES];
        let mut put = |place: usize, bytes: &[u8]| {
            entry.iter_mut().skip(place).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(MSR, &msr.to_le_bytes());
        put(MASK, &mask.to_le_bytes());
        let (leaf, subleaf, register, bit) = promise;
        put(LEAF, &leaf.to_le_bytes());
        put(SUBLEAF, &subleaf.to_le_bytes());
        put(BIT, &1_u32.checked_shl(bit).unwrap_or(0).to_le_bytes());
        put(WORD, &(4 * register as u64).to_le_bytes()[..4]);
        table.extend(entry);
    }
    table
}

/// What a fault says.
pub(super) fn fault(msr: u32, raised: u32, expected: u64, found: u64) -> String {
    if raised != 0 {
        return format!("MSR {msr:#x}: {expected:#018x} at birth, now RDMSR raises #GP");
    }
    format!("MSR {msr:#x}: {expected:#018x} at birth, {found:#018x} now")
}

/// The program. RBP is the table, R8 its entries, R9 whether RDMSR raised #GP, R10 the entries left, R11 the state of
/// the entry, R13 where to go on after #GP, R14 the entry, R15 the faults of all rounds.
pub(super) fn program(a: &mut CodeAssembler) -> Result<Handlers, IcedError> {
    a.mov(rbp, rbx)?;
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
    a.jmp(turn)?;
    let mut protection: CodeLabel = a.create_label();
    a.set_label(&mut protection)?;
    a.mov(r9d, 1_u32)?;
    // The error code goes, and the return address is the one behind the instruction.
    a.add(rsp, 8)?;
    a.mov(qword_ptr(rsp), r13)?;
    a.iretq()?;
    Ok(vec![(PROTECTION, protection)])
}

/// Looks at all registers.
fn round(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut entry = a.create_label();
    let mut next = a.create_label();
    a.mov(r14, rbp)?;
    a.mov(r10, r8)?;
    a.set_label(&mut entry)?;
    a.mov(r11d, dword_ptr(r14 + STATE))?;
    a.cmp(r11d, LEFT_OUT)?;
    a.je(next)?;
    leave_out_what_is_not_promised(a, next)?;
    read(a)?;
    note_or_compare(a)?;
    a.set_label(&mut next)?;
    a.add(r14, i32::try_from(ENTRY_BYTES).unwrap_or(i32::MAX))?;
    a.dec(r10)?;
    a.jnz(entry)?;
    out(a, ports::PAGES_CHECKED, r8d)
}

/// At birth: goes to `next` if CPUID does not promise the register of the entry at R14.
fn leave_out_what_is_not_promised(a: &mut CodeAssembler, next: CodeLabel) -> Result<(), IcedError> {
    let mut go_on = a.create_label();
    a.test(r11d, r11d)?;
    a.jnz(go_on)?;
    a.cmp(dword_ptr(r14 + BIT), 0)?;
    a.je(go_on)?;
    a.mov(dword_ptr(r14 + STATE), LEFT_OUT)?;
    // Beyond the highest leaf of its range CPUID may answer with another leaf's values.
    a.mov(eax, dword_ptr(r14 + LEAF))?;
    a.and(eax, i32::MIN | 0x4000_0000)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.cmp(eax, dword_ptr(r14 + LEAF))?;
    a.jb(next)?;
    a.mov(eax, dword_ptr(r14 + LEAF))?;
    a.mov(ecx, dword_ptr(r14 + SUBLEAF))?;
    a.cpuid()?;
    for (register, place) in [eax, ebx, ecx, edx].into_iter().zip((CPUID..).step_by(4)) {
        a.mov(dword_ptr(r14 + place), register)?;
    }
    a.mov(ecx, dword_ptr(r14 + WORD))?;
    a.mov(eax, dword_ptr(r14 + rcx + CPUID))?;
    a.test(dword_ptr(r14 + BIT), eax)?;
    a.jz(next)?;
    a.set_label(&mut go_on)
}

/// Reads the register into EDX:EAX, its bits that stay; R9 is 1 if that raised #GP.
fn read(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut resume = a.create_label();
    a.lea(r13, ptr(resume))?;
    a.xor(r9, r9)?;
    a.mov(ecx, dword_ptr(r14 + MSR))?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.rdmsr()?;
    a.set_label(&mut resume)?;
    a.and(eax, dword_ptr(r14 + MASK))?;
    a.and(edx, dword_ptr(r14 + (MASK + 4)))
}

/// At birth notes what was read, later holds it against that.
fn note_or_compare(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut compare = a.create_label();
    let mut differs = a.create_label();
    let mut done = a.create_label();
    a.test(r11d, r11d)?;
    a.jnz(compare)?;
    a.mov(dword_ptr(r14 + STATE), LEFT_OUT)?;
    a.test(r9d, r9d)?;
    a.jnz(done)?;
    a.mov(dword_ptr(r14 + STATE), KEPT)?;
    a.mov(dword_ptr(r14 + BIRTH), eax)?;
    a.mov(dword_ptr(r14 + (BIRTH + 4)), edx)?;
    a.jmp(done)?;
    a.set_label(&mut compare)?;
    a.test(r9d, r9d)?;
    a.jnz(differs)?;
    a.cmp(eax, dword_ptr(r14 + BIRTH))?;
    a.jne(differs)?;
    a.cmp(edx, dword_ptr(r14 + (BIRTH + 4)))?;
    a.je(done)?;
    a.set_label(&mut differs)?;
    a.inc(r15)?;
    // OUT goes by EAX and EDX.
    a.mov(esi, eax)?;
    a.mov(r11d, edx)?;
    for (port, place) in [
        (ports::FAULT_PAGE, MSR),
        (ports::FAULT_EXPECTED_LOW, BIRTH),
        (ports::FAULT_EXPECTED_HIGH, BIRTH + 4),
    ] {
        a.mov(ecx, dword_ptr(r14 + place))?;
        out(a, port, ecx)?;
    }
    out(a, ports::FAULT_WORD, r9d)?;
    out(a, ports::FAULT_FOUND_LOW, esi)?;
    out(a, ports::FAULT_FOUND_HIGH, r11d)?;
    a.set_label(&mut done)?;
    // Two labels cannot stand at one instruction.
    a.nop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_each_register_once_for_each_promise() {
        let table = table();
        assert_eq!(table.len() as u64, entries() * ENTRY_BYTES as u64);
        let mut entries: Vec<&[u8]> = table.chunks(ENTRY_BYTES).collect();
        entries.sort_unstable();
        let count = entries.len();
        entries.dedup();
        assert_eq!(entries.len(), count);
        assert!(ENTRIES.iter().all(|(_, _, (_, _, word, bit))| *word < 4 && *bit <= 32));
    }

    #[test]
    fn a_fault_names_the_register() {
        assert_eq!(fault(0x10a, 0, 3, 1), "MSR 0x10a: 0x0000000000000003 at birth, 0x0000000000000001 now");
        assert!(fault(0x48, 1, 0, 0).ends_with("now RDMSR raises #GP"));
    }
}
