//! `ticks` in code of arm64: see [`crate::payload::ticks`].
//!
//! The timers are the virtual ones, interrupt 27; interrupts to others and to itself are software generated ones. Facts:
//! Arm's IHI 0069, 12 (registers of the distributor, the redistributor and the CPU interface); DDI 0487, D12.

use ferry_contract::arm64::SystemRegister;

use super::super::ticks::{self, SPINS_MAX};
use super::clock::CNTVCT_EL0;
use super::{
    BURST, CPU, CPUS, FAULTS, Handlers, WAIT_US, WORKING_SET, answer, if_asked, out, out_halves, turn_done,
};
use crate::a64::{Assembler, Condition, Label, X};
use crate::boot::{DISTRIBUTOR, REDISTRIBUTOR_BYTES, REDISTRIBUTORS};
use crate::ports;

/// The vector of an interrupt at the level of the program: the sixth of the table.
const INTERRUPT: u8 = 5;

/// Sources of ticks, in the order of their counters, which are words of 64 bits at the start of a vCPU's share, and
/// their interrupts.
const SOURCES: [(&str, u64); 3] = [("virtual timer", 27), ("IPI of another vCPU", 1), ("own IPI", 2)];
const TIMER: u16 = 0;
const NEIGHBOUR: u16 = 1;
const OWN: u16 = 2;

// Registers of the distributor, of the redistributor and, in its second frame, of a vCPU's own interrupts.
const GICD_CTLR: u16 = 0;
const GICR_WAKER: u16 = 0x14;
const GICR_SGI_FRAME: u64 = 0x1_0000;
const GICR_IGROUPR0: u16 = 0x80;
const GICR_ISENABLER0: u16 = 0x100;

/// Affinity routing, and interrupts of group 1.
const GICD_CTLR_VALUE: u64 = 0x12;

const ICC_PMR_EL1: SystemRegister = SystemRegister::new(3, 0, 4, 6, 0);
const ICC_IAR1_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 0);
const ICC_EOIR1_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 1);
const ICC_IGRPEN1_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 12, 7);
const ICC_SGI1R_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 11, 5);
const CNTFRQ_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 0, 0);
const CNTV_TVAL_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 3, 0);
const CNTV_CTL_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 3, 1);

// What lives as long as the program: ticks of the counter between two of the timer; what sends an interrupt to the
// neighbour and to itself; how often it sent itself one.
const PERIOD: X = X(26);
const TO_NEIGHBOUR: X = X(27);
const TO_ITSELF: X = X(29);
const SENT: X = X(15);

// A check's own: what the counters were, and when its patience ends.
const TIMER_BEFORE: X = X(9);
const NEIGHBOUR_BEFORE: X = X(10);
const END: X = X(11);

/// What a fault says.
pub(super) fn fault(source: u32, expected: u64, found: u64) -> String {
    ticks::fault(SOURCES.get(source as usize).map(|(name, _)| *name), expected, found)
}

/// The program. BURST is the patience of a check in ticks of the counter.
pub(super) fn program(a: &mut Assembler) -> Handlers {
    a.mov_imm(SENT, 0);
    a.mov_imm(FAULTS, 0);
    set_up_gic(a);
    set_up_timer(a);
    set_up_targets(a);
    a.open_interrupts();
    let turn = a.here();
    in_flight(a);
    a.msr(ICC_SGI1R_EL1, TO_NEIGHBOUR);
    a.wfi();
    if_asked(a, check);
    turn_done(a);
    a.b(turn);
    vec![(INTERRUPT, handler(a))]
}

/// The distributor, this vCPU's redistributor and CPU interface.
fn set_up_gic(a: &mut Assembler) {
    a.mov_imm(X(1), DISTRIBUTOR);
    a.mov_imm(X(0), GICD_CTLR_VALUE);
    a.str_w(X(0), X(1), GICD_CTLR);
    a.mov_imm(X(1), REDISTRIBUTOR_BYTES);
    a.mul(X(1), X(1), CPU);
    a.mov_imm(X(0), REDISTRIBUTORS);
    a.add(X(1), X(1), X(0));
    a.mov_imm(X(0), 0);
    a.str_w(X(0), X(1), GICR_WAKER);
    a.mov_imm(X(0), GICR_SGI_FRAME);
    a.add(X(1), X(1), X(0));
    a.mov_imm(X(0), u32::MAX.into());
    a.str_w(X(0), X(1), GICR_IGROUPR0);
    a.mov_imm(X(0), SOURCES.iter().fold(0, |bits, (_, number)| bits | 1 << number));
    a.str_w(X(0), X(1), GICR_ISENABLER0);
    a.mov_imm(X(0), 0xff);
    a.msr(ICC_PMR_EL1, X(0));
    a.mov_imm(X(0), 1);
    a.msr(ICC_IGRPEN1_EL1, X(0));
    a.isb();
}

/// A tick each millisecond.
fn set_up_timer(a: &mut Assembler) {
    // The frequency over 1024 is near enough.
    a.mrs(PERIOD, CNTFRQ_EL0);
    a.lsr(PERIOD, PERIOD, 10);
    a.msr(CNTV_TVAL_EL0, PERIOD);
    a.mov_imm(X(0), 1);
    a.msr(CNTV_CTL_EL0, X(0));
    a.isb();
}

/// The next vCPU is this one's index and one, or 0.
fn set_up_targets(a: &mut Assembler) {
    a.mov_imm(X(1), 0);
    a.add_imm(X(0), CPU, 1);
    a.cmp(X(0), CPUS);
    a.csel(X(0), X(0), X(1), Condition::Lo);
    for (cpu, target, source) in [(X(0), TO_NEIGHBOUR, NEIGHBOUR), (CPU, TO_ITSELF, OWN)] {
        let interrupt = SOURCES.get(usize::from(source)).map_or(0, |(_, number)| *number);
        // Affinity 1 in bits 23 to 16, a bit for each affinity 0 (KVM gives vCPU n the affinities n / 16 and n % 16,
        // `reset_mpidr` in arch/arm64/kvm/sys_regs.c), the interrupt in bits 27 to 24.
        a.mov_imm(X(2), 15);
        a.and(X(2), cpu, X(2));
        a.mov_imm(target, 1);
        a.lslv(target, target, X(2));
        a.lsr(X(2), cpu, 4);
        a.lsl(X(2), X(2), 16);
        a.orr(target, target, X(2));
        a.mov_imm(X(2), interrupt << 24);
        a.orr(target, target, X(2));
    }
}

/// One interrupt to itself, sent with interrupts closed, taken after a wait in user space.
fn in_flight(a: &mut Assembler) {
    let (once, came) = (a.label(), a.label());
    // One that came twice in the turn before has come by now: the vCPU has halted since.
    a.ldr(X(0), WORKING_SET, OWN * 8);
    a.cmp(X(0), SENT);
    a.b_if(Condition::Eq, once);
    report_count(a, OWN, SENT);
    // Count on from what is there, so that one fault is one.
    a.ldr(SENT, WORKING_SET, OWN * 8);
    a.set(once);
    a.close_interrupts();
    a.msr(ICC_SGI1R_EL1, TO_ITSELF);
    a.isb();
    a.add_imm(SENT, SENT, 1);
    out(a, ports::WAIT, WAIT_US);
    a.open_interrupts();
    a.mov_imm(X(1), SPINS_MAX.into());
    let look = a.here();
    a.ldr(X(0), WORKING_SET, OWN * 8);
    a.cmp(X(0), SENT);
    a.b_if(Condition::Eq, came);
    a.sub_imm(X(1), X(1), 1);
    a.cbnz(X(1), look);
    report_count(a, OWN, SENT);
    a.ldr(SENT, WORKING_SET, OWN * 8);
    a.set(came);
}

/// Waits until every source has ticked anew, and answers.
fn check(a: &mut Assembler) {
    let (wait, done) = (a.label(), a.label());
    a.ldr(TIMER_BEFORE, WORKING_SET, TIMER * 8);
    a.ldr(NEIGHBOUR_BEFORE, WORKING_SET, NEIGHBOUR * 8);
    a.isb();
    a.mrs(END, CNTVCT_EL0);
    a.add(END, END, BURST);
    let again = a.here();
    a.msr(ICC_SGI1R_EL1, TO_NEIGHBOUR);
    a.wfi();
    for (source, before) in [(TIMER, TIMER_BEFORE), (NEIGHBOUR, NEIGHBOUR_BEFORE)] {
        a.ldr(X(0), WORKING_SET, source * 8);
        a.cmp(X(0), before);
        a.b_if(Condition::Eq, wait);
    }
    a.b(done);
    a.set(wait);
    a.isb();
    a.mrs(X(0), CNTVCT_EL0);
    a.cmp(X(0), END);
    a.b_if(Condition::Lo, again);
    for (source, before) in [(TIMER, TIMER_BEFORE), (NEIGHBOUR, NEIGHBOUR_BEFORE)] {
        let lives = a.label();
        a.ldr(X(0), WORKING_SET, source * 8);
        a.cmp(X(0), before);
        a.b_if(Condition::Ne, lives);
        a.add_imm(before, before, 1);
        report_count(a, source, before);
        a.set(lives);
    }
    a.set(done);
    a.mov_imm(X(0), SOURCES.len() as u64);
    answer(a, X(0), FAULTS);
}

/// Reports that a source's counter is not what was expected; changes X0 and X1.
fn report_count(a: &mut Assembler, source: u16, expected: X) {
    a.add_imm(FAULTS, FAULTS, 1);
    a.mov_imm(X(0), source.into());
    out(a, ports::FAULT_PAGE, X(0));
    a.mov(X(1), expected);
    out_halves(a, ports::FAULT_EXPECTED_LOW, ports::FAULT_EXPECTED_HIGH, X(1));
    a.ldr(X(1), WORKING_SET, source * 8);
    out_halves(a, ports::FAULT_FOUND_LOW, ports::FAULT_FOUND_HIGH, X(1));
}

/// The handler: counts, ends the interrupt, returns. The timer, whose interrupt stays as long as its time is past, is set anew.
/// A number that is no source's (1020 and more: it was taken back) needs no end.
fn handler(a: &mut Assembler) -> Label {
    let (end, back) = (a.label(), a.label());
    let start = a.here();
    a.push_pair(X(0), X(1));
    a.push_pair(X(2), X(3));
    // Flags are in SPSR_EL1, which ERET restores.
    a.mrs(X(0), ICC_IAR1_EL1);
    a.dsb();
    for ((_, number), place) in SOURCES.iter().zip(0_u16..) {
        let next = a.label();
        a.cmp_imm(X(0), *number);
        a.b_if(Condition::Ne, next);
        a.ldr(X(1), WORKING_SET, place * 8);
        a.add_imm(X(1), X(1), 1);
        a.str(X(1), WORKING_SET, place * 8);
        if place == TIMER {
            a.msr(CNTV_TVAL_EL0, PERIOD);
            a.isb();
        }
        a.b(end);
        a.set(next);
    }
    a.b(back);
    a.set(end);
    a.msr(ICC_EOIR1_EL1, X(0));
    a.isb();
    a.set(back);
    a.pop_pair(X(2), X(3));
    a.pop_pair(X(0), X(1));
    a.eret();
    start
}
