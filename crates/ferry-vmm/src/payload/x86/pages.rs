//! `idle` and `churn` in code of x86-64: see [`crate::payload::pages`].

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, ebp, ecx, edx, esi, qword_ptr, r8, r8d, r9, r10, r11, r12d, r13, r14, r14d,
    r15, r15d, rax, rbp, rbx, rcx, rdi, rdx, rsi,
};

use super::super::pages::{MIX_PAGE, MIX_SEQUENCE, PAGE_BYTES, PAGE_WORDS};
use super::{answer, if_asked, out, turn_over};
use crate::ports;

/// The program.
///
/// Registers that live as long as the program: RBX, R8, R11, R12, R13 as in
/// [`Parameters`](super::Parameters); R9 the next page to write, R10 the pass, R15 the faults of the check
/// under way, RBP a loop's own.
pub(super) fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut routines = Routines { write: a.create_label(), verify: a.create_label(), mix: a.create_label() };
    fill(a, &routines)?;
    let mut turn = a.create_label();
    a.set_label(&mut turn)?;
    if_asked(a, |a| check_all(a, &routines))?;
    write_burst(a, &routines)?;
    turn_over(a, r12d)?;
    a.jmp(turn)?;
    write_page(a, &mut routines)?;
    verify_page(a, &mut routines)?;
    mix(a, &mut routines)
}

/// The program's subroutines. Each takes the page's index in RSI and its sequence in RDX, and
/// changes RAX, RCX, RDX, RDI and R14.
struct Routines {
    write: CodeLabel,
    verify: CodeLabel,
    mix: CodeLabel,
}

/// Writes every page with sequence 0; then the position is 0 and the pass is 1.
fn fill(a: &mut CodeAssembler, routines: &Routines) -> Result<(), IcedError> {
    a.xor(r9, r9)?;
    let mut next = a.create_label();
    a.set_label(&mut next)?;
    a.mov(rsi, r9)?;
    a.xor(edx, edx)?;
    a.call(routines.write)?;
    a.inc(r9)?;
    a.cmp(r9, r8)?;
    a.jb(next)?;
    a.xor(r9, r9)?;
    a.mov(r10, 1_u64)
}

/// Verifies every page and answers.
fn check_all(a: &mut CodeAssembler, routines: &Routines) -> Result<(), IcedError> {
    a.xor(r15, r15)?;
    a.xor(ebp, ebp)?;
    let mut next = a.create_label();
    a.set_label(&mut next)?;
    a.mov(rsi, rbp)?;
    // Pages before the position were written in this pass: the borrow of the comparison says so.
    a.mov(rdx, r10)?;
    a.cmp(rbp, r9)?;
    a.cmc()?;
    a.sbb(rdx, 0)?;
    a.call(routines.verify)?;
    a.inc(rbp)?;
    a.cmp(rbp, r8)?;
    a.jb(next)?;
    out(a, ports::PAGES_CHECKED, r8d)?;
    answer(a, r8d, r15d)
}

/// Verifies and writes the next R11 pages.
fn write_burst(a: &mut CodeAssembler, routines: &Routines) -> Result<(), IcedError> {
    let mut none = a.create_label();
    let mut next = a.create_label();
    let mut same_pass = a.create_label();
    a.test(r11, r11)?;
    a.jz(none)?;
    a.mov(rbp, r11)?;
    a.set_label(&mut next)?;
    a.mov(rsi, r9)?;
    a.lea(rdx, r10 - 1)?;
    a.call(routines.verify)?;
    a.mov(rsi, r9)?;
    a.mov(rdx, r10)?;
    a.call(routines.write)?;
    a.inc(r9)?;
    a.cmp(r9, r8)?;
    a.jb(same_pass)?;
    a.xor(r9, r9)?;
    a.inc(r10)?;
    a.set_label(&mut same_pass)?;
    a.dec(rbp)?;
    a.jnz(next)?;
    a.mov(rcx, r11)?;
    out(a, ports::PAGES_CHECKED, ecx)?;
    a.set_label(&mut none)
}

/// Subroutine: writes a page.
fn write_page(a: &mut CodeAssembler, routines: &mut Routines) -> Result<(), IcedError> {
    a.set_label(&mut routines.write)?;
    a.call(routines.mix)?;
    a.mov(qword_ptr(rdi), rdx)?;
    a.mov(qword_ptr(rdi + 8), rsi)?;
    a.mov(r14, 2_u64)?;
    let mut word = a.create_label();
    a.set_label(&mut word)?;
    a.mov(qword_ptr(rdi + r14 * 8), rax)?;
    a.add(rax, rcx)?;
    a.inc(r14)?;
    a.cmp(r14, PAGE_WORDS)?;
    a.jb(word)?;
    a.ret()
}

/// Subroutine: verifies a page; a fault is reported and counted in R15, once a page.
fn verify_page(a: &mut CodeAssembler, routines: &mut Routines) -> Result<(), IcedError> {
    let mut fault = a.create_label();
    let mut word = a.create_label();
    let mut body = a.create_label();
    a.set_label(&mut routines.verify)?;
    a.call(routines.mix)?;
    a.push(rax)?;
    a.xor(r14, r14)?;
    a.mov(rax, rdx)?;
    a.cmp(qword_ptr(rdi), rax)?;
    a.jne(fault)?;
    a.inc(r14)?;
    a.mov(rax, rsi)?;
    a.cmp(qword_ptr(rdi + 8), rax)?;
    a.jne(fault)?;
    a.pop(rax)?;
    a.push(rax)?;
    a.inc(r14)?;
    a.set_label(&mut word)?;
    a.cmp(qword_ptr(rdi + r14 * 8), rax)?;
    a.jne(fault)?;
    a.add(rax, rcx)?;
    a.inc(r14)?;
    a.cmp(r14, PAGE_WORDS)?;
    a.jb(word)?;
    a.set_label(&mut body)?;
    a.pop(rax)?;
    a.ret()?;
    a.set_label(&mut fault)?;
    report_fault(a)?;
    a.jmp(body)
}

/// Reports the fault of page RSI, word R14, which should hold RAX and lies in the page at RDI.
fn report_fault(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(r15)?;
    a.mov(rcx, rax)?;
    out(a, ports::FAULT_PAGE, esi)?;
    out(a, ports::FAULT_WORD, r14d)?;
    out(a, ports::FAULT_EXPECTED_LOW, ecx)?;
    a.shr(rcx, 32)?;
    out(a, ports::FAULT_EXPECTED_HIGH, ecx)?;
    a.mov(rcx, qword_ptr(rdi + r14 * 8))?;
    out(a, ports::FAULT_FOUND_LOW, ecx)?;
    a.shr(rcx, 32)?;
    out(a, ports::FAULT_FOUND_HIGH, ecx)
}

/// Subroutine: the page's address in RDI, its first patterned word in RAX, the step to the next in
/// RCX. Leaves RSI and RDX as they are.
fn mix(a: &mut CodeAssembler, routines: &mut Routines) -> Result<(), IcedError> {
    a.set_label(&mut routines.mix)?;
    a.mov(rdi, rsi)?;
    a.shl(rdi, PAGE_BYTES.trailing_zeros())?;
    a.add(rdi, rbx)?;
    a.mov(r14, MIX_PAGE)?;
    a.mov(rax, rsi)?;
    a.imul_2(rax, r14)?;
    a.mov(rcx, MIX_SEQUENCE)?;
    a.imul_2(rcx, rdx)?;
    a.xor(rax, rcx)?;
    a.add(rax, r13)?;
    a.mov(rcx, rax)?;
    a.shr(rcx, 29)?;
    a.xor(rax, rcx)?;
    a.imul_2(rax, r14)?;
    a.mov(rcx, rax)?;
    a.shr(rcx, 32)?;
    a.xor(rax, rcx)?;
    a.mov(rcx, rax)?;
    a.or(rcx, 1)?;
    a.ret()
}
