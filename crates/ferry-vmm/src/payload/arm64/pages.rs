//! `idle` and `churn` in code of arm64: see [`crate::payload::pages`].

use super::super::pages::{MIX_PAGE, MIX_SEQUENCE, PAGE_BYTES, PAGE_WORDS};
use super::{BURST, FAULTS, PAGES, SEED, WORKING_SET, answer, if_asked, out, report, turn_over};
use crate::a64::{Assembler, Condition, Label, X};
use crate::ports;

// What lives as long as the program: the next page to write, the pass; and a loop's own.
const NEXT: X = X(26);
const PASS: X = X(27);
const LOOP: X = X(29);

// What the subroutines take: the page's index and its sequence. What they change: the page's address, the value of
// the next patterned word, the step to the one after, which word it is, what is in it, what should be.
const INDEX: X = X(1);
const SEQUENCE: X = X(2);
const ADDRESS: X = X(3);
const VALUE: X = X(0);
const STEP: X = X(4);
const WORD: X = X(5);
const FOUND: X = X(6);
const EXPECTED: X = X(7);

/// The program's subroutines.
struct Routines {
    write: Label,
    verify: Label,
}

/// The program. FAULTS are those of the check under way.
pub(super) fn program(a: &mut Assembler) {
    let routines = Routines { write: a.label(), verify: a.label() };
    fill(a, &routines);
    let turn = a.here();
    if_asked(a, |a| check_all(a, &routines));
    write_burst(a, &routines);
    turn_over(a);
    a.b(turn);
    write_page(a, &routines);
    verify_page(a, &routines);
}

/// Writes every page with sequence 0; then the position is 0 and the pass is 1.
fn fill(a: &mut Assembler, routines: &Routines) {
    a.mov_imm(NEXT, 0);
    let next = a.here();
    a.mov(INDEX, NEXT);
    a.mov_imm(SEQUENCE, 0);
    a.bl(routines.write);
    a.add_imm(NEXT, NEXT, 1);
    a.cmp(NEXT, PAGES);
    a.b_if(Condition::Lo, next);
    a.mov_imm(NEXT, 0);
    a.mov_imm(PASS, 1);
}

/// Verifies every page and answers.
fn check_all(a: &mut Assembler, routines: &Routines) {
    a.mov_imm(FAULTS, 0);
    a.mov_imm(LOOP, 0);
    let next = a.here();
    a.mov(INDEX, LOOP);
    // Pages before the position were written in this pass.
    a.sub_imm(SEQUENCE, PASS, 1);
    a.cmp(LOOP, NEXT);
    a.csel(SEQUENCE, PASS, SEQUENCE, Condition::Lo);
    a.bl(routines.verify);
    a.add_imm(LOOP, LOOP, 1);
    a.cmp(LOOP, PAGES);
    a.b_if(Condition::Lo, next);
    out(a, ports::PAGES_CHECKED, PAGES);
    answer(a, PAGES, FAULTS);
}

/// Verifies and writes the next pages of a burst.
fn write_burst(a: &mut Assembler, routines: &Routines) {
    let (none, same_pass) = (a.label(), a.label());
    a.cbz(BURST, none);
    a.mov(LOOP, BURST);
    let next = a.here();
    a.mov(INDEX, NEXT);
    a.sub_imm(SEQUENCE, PASS, 1);
    a.bl(routines.verify);
    a.mov(INDEX, NEXT);
    a.mov(SEQUENCE, PASS);
    a.bl(routines.write);
    a.add_imm(NEXT, NEXT, 1);
    a.cmp(NEXT, PAGES);
    a.b_if(Condition::Lo, same_pass);
    a.mov_imm(NEXT, 0);
    a.add_imm(PASS, PASS, 1);
    a.set(same_pass);
    a.sub_imm(LOOP, LOOP, 1);
    a.cbnz(LOOP, next);
    out(a, ports::PAGES_CHECKED, BURST);
    a.set(none);
}

/// Subroutine: writes a page.
fn write_page(a: &mut Assembler, routines: &Routines) {
    a.set(routines.write);
    mix(a);
    a.str(SEQUENCE, ADDRESS, 0);
    a.str(INDEX, ADDRESS, 8);
    a.mov_imm(WORD, 2);
    let word = a.here();
    a.str_at(VALUE, ADDRESS, WORD);
    step(a, word);
    a.ret();
}

/// Subroutine: verifies a page; a fault is reported and counted, once a page.
fn verify_page(a: &mut Assembler, routines: &Routines) {
    let fault = a.label();
    a.set(routines.verify);
    mix(a);
    for (place, value) in [(0, SEQUENCE), (1, INDEX)] {
        a.mov_imm(WORD, place);
        a.mov(EXPECTED, value);
        a.ldr_at(FOUND, ADDRESS, WORD);
        a.cmp(FOUND, EXPECTED);
        a.b_if(Condition::Ne, fault);
    }
    a.mov_imm(WORD, 2);
    let word = a.here();
    a.mov(EXPECTED, VALUE);
    a.ldr_at(FOUND, ADDRESS, WORD);
    a.cmp(FOUND, EXPECTED);
    a.b_if(Condition::Ne, fault);
    step(a, word);
    a.ret();
    a.set(fault);
    out(a, ports::FAULT_WORD, WORD);
    report(a, INDEX, EXPECTED, FOUND);
    a.ret();
}

/// Goes on to the next word, if the page has one more.
fn step(a: &mut Assembler, word: Label) {
    a.add(VALUE, VALUE, STEP);
    a.add_imm(WORD, WORD, 1);
    a.cmp_imm(WORD, u64::from(PAGE_WORDS.unsigned_abs()));
    a.b_if(Condition::Lo, word);
}

/// The page's address, its first patterned word, the step to the next.
fn mix(a: &mut Assembler) {
    let factor = WORD;
    a.lsl(ADDRESS, INDEX, PAGE_BYTES.trailing_zeros().into());
    a.add(ADDRESS, ADDRESS, WORKING_SET);
    a.mov_imm(factor, MIX_PAGE);
    a.mul(VALUE, INDEX, factor);
    a.mov_imm(STEP, MIX_SEQUENCE);
    a.mul(STEP, STEP, SEQUENCE);
    a.eor(VALUE, VALUE, STEP);
    a.add(VALUE, VALUE, SEED);
    a.lsr(STEP, VALUE, 29);
    a.eor(VALUE, VALUE, STEP);
    a.mul(VALUE, VALUE, factor);
    a.lsr(STEP, VALUE, 32);
    a.eor(VALUE, VALUE, STEP);
    a.mov_imm(STEP, 1);
    a.orr(STEP, STEP, VALUE);
}
