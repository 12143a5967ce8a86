//! `clock` in code of arm64: see [`crate::payload::clock`].
//!
//! Facts: Arm's DDI 0487, D12.1 "About the Generic Timer": a read of `CNTVCT_EL0` may come before what is before it, unless an
//! ISB lies between; one that follows a load needs the load to be complete as well.

use ferry_contract::arm64::SystemRegister;

use super::super::clock::{LEAPT, WENT_BACK};
use super::{BURST, FAULTS, answer, if_asked, out_halves, report, turn_over};
use crate::a64::{Assembler, Condition, X};
use crate::boot::{RAM_START, WORKING_SET_START};
use crate::ports;

pub(super) const CNTVCT_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 0, 2);

// What lives as long as the program: this vCPU's last look, where the last look of all is, the largest step, how
// many looks there were.
const LAST: X = X(26);
const SHARED: X = X(27);
const LARGEST: X = X(29);
const LOOKS: X = X(15);

// What a turn finds: the last look of all, and this one.
const BEFORE: X = X(6);
const NOW: X = X(7);

/// The program.
pub(super) fn program(a: &mut Assembler) {
    a.mov_imm(SHARED, RAM_START + WORKING_SET_START);
    for zero in [LAST, LARGEST, LOOKS, FAULTS] {
        a.mov_imm(zero, 0);
    }
    let turn = a.here();
    look(a);
    share(a);
    step(a);
    if_asked(a, |a| answer(a, LOOKS, FAULTS));
    turn_over(a);
    a.b(turn);
}

/// Reads the last look of all and, after that, the time, and compares.
fn look(a: &mut Assembler) {
    let forward = a.label();
    a.ldr(BEFORE, SHARED, 0);
    a.dsb();
    a.isb();
    a.mrs(NOW, CNTVCT_EL0);
    a.add_imm(LOOKS, LOOKS, 1);
    a.cmp(NOW, BEFORE);
    a.b_if(Condition::Hs, forward);
    a.mov_imm(X(0), WENT_BACK.into());
    a.mov(X(1), BEFORE);
    a.mov(X(2), NOW);
    report(a, X(0), X(1), X(2));
    a.set(forward);
}

/// Makes this look the last of all, unless another vCPU was faster: then what lies there is newer still.
fn share(a: &mut Assembler) {
    let faster = a.label();
    a.ldaxr(X(0), SHARED);
    a.cmp(X(0), BEFORE);
    a.b_if(Condition::Ne, faster);
    a.stlxr(X(1), NOW, SHARED);
    a.set(faster);
}

/// Holds the step since this vCPU's last look against the largest so far and the largest allowed.
fn step(a: &mut Assembler) {
    let (first, smaller, allowed) = (a.label(), a.label(), a.label());
    a.sub(X(2), NOW, LAST);
    a.cbz(LAST, first);
    a.cmp(X(2), LARGEST);
    a.b_if(Condition::Ls, smaller);
    a.mov(LARGEST, X(2));
    a.mov(X(1), X(2));
    out_halves(a, ports::JUMP_LOW, ports::JUMP_HIGH, X(1));
    a.set(smaller);
    a.cmp(X(2), BURST);
    a.b_if(Condition::Ls, allowed);
    a.mov_imm(X(0), LEAPT.into());
    a.mov(X(1), BURST);
    report(a, X(0), X(1), X(2));
    a.set(allowed);
    a.set(first);
    a.mov(LAST, NOW);
}
