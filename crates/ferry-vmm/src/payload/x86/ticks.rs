//! `ticks` in code of x86-64, at privilege level 0: see [`crate::payload::ticks`].
//!
//! The timers are the local APICs'; vCPU 0 gets the PIT's tick through the PIC a hundred times a second beside.
//! Facts: Intel SDM volume 3, 11.12 "Extended xAPIC" (x2APIC registers are MSRs from 0x800 on); Intel 8259A
//! and 8254 data sheets.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmRegister64, CodeAssembler, CodeLabel, al, dx, eax, ecx, edx, qword_ptr, r8, r8d, r9, r10, r11, r12d,
    r13, r14, r15, r15d, rax, rbp, rbx, rcx, rdi, rdx, rsi,
};

use super::super::ticks::{self, SPINS_MAX};
use super::{Handlers, answer, if_asked, out};
use crate::ports;

/// Vectors; the PIC's first is 0x20, and the PIT is its line 0.
const PIT: u8 = 0x20;
const TIMER: u8 = 0x40;
const NEIGHBOUR: u8 = 0x50;
const OWN: u8 = 0x51;

/// Sources of ticks, in the order of their counters, which are words of 64 bits at R13.
const SOURCES: [(&str, u8); 4] =
    [("LAPIC timer", TIMER), ("IPI of another vCPU", NEIGHBOUR), ("own IPI", OWN), ("PIT", PIT)];
const TIMER_COUNT: i32 = 0;
const NEIGHBOUR_COUNT: i32 = 8;
const OWN_COUNT: i32 = 16;
const PIT_COUNT: i32 = 24;

/// x2APIC MSRs.
const SPURIOUS: u32 = 0x80f;
const EOI: u32 = 0x80b;
const COMMAND: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const LVT_LINT0: u32 = 0x835;
const INITIAL_COUNT: u32 = 0x838;
const DIVIDE: u32 = 0x83e;

/// What a fault says.
pub(super) fn fault(source: u32, expected: u64, found: u64) -> String {
    ticks::fault(SOURCES.get(source as usize).map(|(name, _)| *name), expected, found)
}

/// The program. R8 is the number of vCPUs and then of sources, R9 how often the vCPU sent itself an
/// interrupt, R11 the patience of a check in TSC ticks, R13 the counters, R14 the next vCPU, R15 the faults, RDI the vCPU.
pub(super) fn program(a: &mut CodeAssembler) -> Result<Handlers, IcedError> {
    a.mov(r13, rbx)?;
    a.xor(r9, r9)?;
    a.xor(r15, r15)?;
    // The next vCPU is this one's index and one, or 0.
    a.lea(r14, rdi + 1)?;
    a.xor(eax, eax)?;
    a.cmp(r14, rsi)?;
    a.cmovae(r14, rax)?;
    set_up_lapic(a)?;
    let mut others = a.create_label();
    a.mov(r8, 3_u64)?;
    a.test(rdi, rdi)?;
    a.jnz(others)?;
    a.mov(r8, 4_u64)?;
    set_up_legacy(a)?;
    a.set_label(&mut others)?;
    a.nop()?;
    let mut turn = a.create_label();
    a.set_label(&mut turn)?;
    in_flight(a)?;
    call_neighbour(a)?;
    a.hlt()?;
    if_asked(a, check)?;
    a.mov(ecx, 1_u32)?;
    out(a, ports::PROGRESS, ecx)?;
    a.jmp(turn)?;
    SOURCES.iter().zip(0..).map(|((_, vector), place)| handler(a, *vector, place * 8)).collect()
}

/// Writes an MSR; changes RAX, RCX and RDX.
fn write_msr(a: &mut CodeAssembler, msr: u32, value: u32) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

/// Turns the APIC on, and its timer: periodic, a million ticks of KVM's 1 GHz bus.
fn set_up_lapic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    write_msr(a, SPURIOUS, 0x1ff)?;
    write_msr(a, DIVIDE, 0b1011)?;
    write_msr(a, LVT_TIMER, 1 << 17 | u32::from(TIMER))?;
    write_msr(a, INITIAL_COUNT, 1_000_000)
}

/// The PICs (vectors from 0x20 on, all lines but the PIT's masked), their way to vCPU 0, and the PIT: mode 2, 11932
/// cycles of 1.193 MHz.
fn set_up_legacy(a: &mut CodeAssembler) -> Result<(), IcedError> {
    write_msr(a, LVT_LINT0, 0x700)?;
    let writes = [
        (0x20, 0x11),
        (0x21, PIT),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, PIT + 8),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, 0xfe),
        (0xa1, 0xff),
        (0x43, 0x34),
        (0x40, 0x9c),
        (0x40, 0x2e),
    ];
    for (port, value) in writes {
        a.mov(eax, u32::from(value))?;
        a.mov(edx, port)?;
        a.out(dx, al)?;
    }
    Ok(())
}

/// One interrupt to itself, sent with interrupts closed, taken after a wait in user space.
fn in_flight(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut look = a.create_label();
    let mut came = a.create_label();
    let mut once = a.create_label();
    // One that came twice in the turn before has come by now: the vCPU has halted since.
    a.cmp(qword_ptr(r13 + OWN_COUNT), r9)?;
    a.je(once)?;
    report(a, 2, r9, OWN_COUNT)?;
    // Count on from what is there, so that one fault is one.
    a.mov(r9, qword_ptr(r13 + OWN_COUNT))?;
    a.set_label(&mut once)?;
    a.cli()?;
    write_msr(a, COMMAND, 1 << 18 | u32::from(OWN))?;
    a.inc(r9)?;
    out(a, ports::WAIT, r12d)?;
    a.sti()?;
    a.mov(ecx, SPINS_MAX)?;
    a.set_label(&mut look)?;
    a.cmp(qword_ptr(r13 + OWN_COUNT), r9)?;
    a.je(came)?;
    a.pause()?;
    a.dec(ecx)?;
    a.jnz(look)?;
    report(a, 2, r9, OWN_COUNT)?;
    a.mov(r9, qword_ptr(r13 + OWN_COUNT))?;
    a.set_label(&mut came)
}

/// Sends the next vCPU an interrupt.
fn call_neighbour(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, COMMAND)?;
    a.mov(eax, u32::from(NEIGHBOUR))?;
    a.mov(rdx, r14)?;
    a.wrmsr()
}

/// Waits until every source has ticked anew, and answers.
fn check(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut done = a.create_label();
    a.mov(r10, qword_ptr(r13 + TIMER_COUNT))?;
    a.mov(rbx, qword_ptr(r13 + NEIGHBOUR_COUNT))?;
    a.mov(rsi, qword_ptr(r13 + PIT_COUNT))?;
    read_tsc(a)?;
    a.lea(rbp, rax + r11)?;
    a.set_label(&mut again)?;
    call_neighbour(a)?;
    a.hlt()?;
    let mut wait = a.create_label();
    a.cmp(qword_ptr(r13 + TIMER_COUNT), r10)?;
    a.je(wait)?;
    a.cmp(qword_ptr(r13 + NEIGHBOUR_COUNT), rbx)?;
    a.je(wait)?;
    a.test(rdi, rdi)?;
    a.jnz(done)?;
    a.cmp(qword_ptr(r13 + PIT_COUNT), rsi)?;
    a.jne(done)?;
    a.set_label(&mut wait)?;
    read_tsc(a)?;
    a.cmp(rax, rbp)?;
    a.jb(again)?;
    report_if_dead(a, 0, r10, TIMER_COUNT)?;
    report_if_dead(a, 1, rbx, NEIGHBOUR_COUNT)?;
    a.test(rdi, rdi)?;
    a.jnz(done)?;
    report_if_dead(a, 3, rsi, PIT_COUNT)?;
    // Two labels cannot stand at one instruction.
    a.nop()?;
    a.set_label(&mut done)?;
    answer(a, r8d, r15d)
}

/// Reads the TSC into RAX; changes RDX.
fn read_tsc(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)
}

/// Reports a source whose counter is still what it was.
fn report_if_dead(
    a: &mut CodeAssembler,
    source: u32,
    before: AsmRegister64,
    place: i32,
) -> Result<(), IcedError> {
    let mut lives = a.create_label();
    a.cmp(qword_ptr(r13 + place), before)?;
    a.jne(lives)?;
    a.inc(before)?;
    report(a, source, before, place)?;
    a.set_label(&mut lives)
}

/// Reports that a source's counter is not what was expected.
fn report(a: &mut CodeAssembler, source: u32, expected: AsmRegister64, place: i32) -> Result<(), IcedError> {
    a.inc(r15)?;
    a.mov(ecx, source)?;
    out(a, ports::FAULT_PAGE, ecx)?;
    a.mov(rcx, expected)?;
    out(a, ports::FAULT_EXPECTED_LOW, ecx)?;
    a.shr(rcx, 32)?;
    out(a, ports::FAULT_EXPECTED_HIGH, ecx)?;
    a.mov(rcx, qword_ptr(r13 + place))?;
    out(a, ports::FAULT_FOUND_LOW, ecx)?;
    a.shr(rcx, 32)?;
    out(a, ports::FAULT_FOUND_HIGH, ecx)
}

/// A handler: counts, ends the interrupt, returns.
fn handler(a: &mut CodeAssembler, vector: u8, place: i32) -> Result<(u8, CodeLabel), IcedError> {
    let mut label = a.create_label();
    a.set_label(&mut label)?;
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.inc(qword_ptr(r13 + place))?;
    if vector == PIT {
        a.mov(eax, 0x20)?;
        a.mov(edx, 0x20)?;
        a.out(dx, al)?;
    } else {
        write_msr(a, EOI, 0)?;
    }
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.iretq()?;
    Ok((vector, label))
}
