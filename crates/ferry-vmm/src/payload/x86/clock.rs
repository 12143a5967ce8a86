//! `clock` in code of x86-64: see [`crate::payload::clock`].

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, ecx, esi, qword_ptr, r8, r9, r10, r11, r12d, r13, r13d, r15, r15d, rax, rbx, rcx, rdi,
    rdx, rsi,
};

use super::super::clock::{LEAPT, WENT_BACK};
use super::{answer, if_asked, out, turn_over};
use crate::boot::WORKING_SET_START;
use crate::ports;

/// The program. R8 is the last look, R9 the address of the last look of all vCPUs, R10 the largest step, R11
/// the largest allowed, R13 how many looks there were, R15 the faults.
pub(super) fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r9, WORKING_SET_START)?;
    for zero in [r8, r10, r13, r15] {
        a.xor(zero, zero)?;
    }
    let mut turn = a.create_label();
    a.set_label(&mut turn)?;
    look(a)?;
    // Fails if another vCPU was faster: then what lies there is newer still.
    a.mov(rax, rsi)?;
    a.lock().cmpxchg(qword_ptr(r9), rdi)?;
    step(a)?;
    if_asked(a, |a| answer(a, r13d, r15d))?;
    turn_over(a, r12d)?;
    a.jmp(turn)
}

/// Reads the last look of all into RSI and, after that, the TSC into RDI, and compares.
fn look(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut forward = a.create_label();
    a.mov(rsi, qword_ptr(r9))?;
    a.lfence()?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.mov(rdi, rax)?;
    a.inc(r13)?;
    a.cmp(rdi, rsi)?;
    a.jae(forward)?;
    a.mov(ecx, WENT_BACK)?;
    a.mov(rbx, rdi)?;
    report(a)?;
    a.set_label(&mut forward)
}

/// Holds the step since this vCPU's last look against the largest so far and the largest allowed.
fn step(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut smaller = a.create_label();
    let mut allowed = a.create_label();
    a.mov(rbx, rdi)?;
    a.sub(rbx, r8)?;
    a.test(r8, r8)?;
    a.mov(r8, rdi)?;
    a.jz(allowed)?;
    a.cmp(rbx, r10)?;
    a.jbe(smaller)?;
    a.mov(r10, rbx)?;
    a.mov(rcx, rbx)?;
    out(a, ports::JUMP_LOW, ecx)?;
    a.shr(rcx, 32)?;
    out(a, ports::JUMP_HIGH, ecx)?;
    a.set_label(&mut smaller)?;
    a.cmp(rbx, r11)?;
    a.jbe(allowed)?;
    a.mov(ecx, LEAPT)?;
    a.mov(rsi, r11)?;
    report(a)?;
    a.set_label(&mut allowed)
}

/// Reports a fault of kind ECX: expected RSI, found RBX, both of which it changes.
fn report(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(r15)?;
    out(a, ports::FAULT_PAGE, ecx)?;
    out(a, ports::FAULT_EXPECTED_LOW, esi)?;
    a.shr(rsi, 32)?;
    out(a, ports::FAULT_EXPECTED_HIGH, esi)?;
    a.mov(rcx, rbx)?;
    out(a, ports::FAULT_FOUND_LOW, ecx)?;
    a.shr(rcx, 32)?;
    out(a, ports::FAULT_FOUND_HIGH, ecx)
}
