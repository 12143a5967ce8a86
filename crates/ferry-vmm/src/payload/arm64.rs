//! Programs of arm64, and what they share.
//!
//! They run at EL1 with translation and caches on from their first instruction. X18 is where the
//! [ports](crate::ports) begin, X16 the ticket of a check under way; X0 to X8 are for use. Facts: Arm's DDI 0487.

mod clock;
mod features;
mod pages;
mod ticks;

use super::Program;
use crate::a64::{Assembler, AssemblerError, Label, X};
use crate::{Payload, ports};

/// What time is read from.
pub(super) const COUNTER: &str = "CNTVCT_EL0";

/// What a program is told in its registers: see [`Parameters`](super::Parameters).
const WORKING_SET: X = X(19);
const PAGES: X = X(20);
const BURST: X = X(21);
const WAIT_US: X = X(22);
const SEED: X = X(23);
const CPU: X = X(24);
const CPUS: X = X(25);

/// Where the ports begin, and the ticket of a check.
const PORTS: X = X(18);
const TICKET: X = X(16);

/// Faults that a program counts.
const FAULTS: X = X(28);

/// Handlers by their vectors.
type Handlers = Vec<(u8, Label)>;

/// Whether guests of arm64 have the payload: `exercise` and `msrs` are of x86-64 alone.
pub(super) const fn has(payload: &Payload) -> bool {
    !matches!(payload, Payload::Exercise | Payload::Msrs)
}

/// The program of a payload; none for an image, which is one itself, and for those of x86-64.
pub(super) fn assemble(payload: &Payload, address: u64) -> Result<Program, AssemblerError> {
    let mut a = Assembler::default();
    a.mov_imm(PORTS, ports::WINDOW);
    let mut handlers = Handlers::new();
    match payload {
        Payload::Idle | Payload::Churn { .. } => pages::program(&mut a),
        Payload::Clock { .. } => clock::program(&mut a),
        Payload::Features => features::program(&mut a),
        Payload::Ticks => handlers = ticks::program(&mut a),
        Payload::Exercise | Payload::Msrs | Payload::Image { .. } | Payload::Linux => {
            return Ok(Program::default());
        }
    }
    let handlers = handlers
        .into_iter()
        .filter_map(|(vector, label)| Some((vector, address + 4 * a.offset(label)? as u64)))
        .collect();
    Ok(Program { code: a.finish()?, handlers })
}

/// How many entries the table of a payload has that has one.
pub(super) fn entries(payload: &Payload) -> Option<u64> {
    (*payload == Payload::Features).then(features::entries)
}

/// That table as it is before birth; it begins a vCPU's share.
pub(super) fn table(payload: &Payload) -> Vec<u8> {
    if *payload == Payload::Features { features::table() } else { Vec::new() }
}

/// Microseconds from turn to turn of a payload that is of this architecture alone.
pub(super) const fn wait_us(payload: &Payload) -> u32 {
    match payload {
        Payload::Features => features::WAIT_US,
        _ => 0,
    }
}

/// What a fault of such a payload says.
pub(super) fn fault(payload: &Payload, page: u32, _word: u32, expected: u64, found: u64) -> String {
    match payload {
        Payload::Ticks => ticks::fault(page, expected, found),
        _ => features::fault(page, expected, found),
    }
}

/// Writes a register to a port.
fn out(a: &mut Assembler, port: u16, value: X) {
    a.str_w(value, PORTS, port);
}

/// Writes a register to two ports, its halves; changes it.
fn out_halves(a: &mut Assembler, low: u16, high: u16, value: X) {
    out(a, low, value);
    a.lsr(value, value, 32);
    out(a, high, value);
}

/// Reports a fault and counts it; changes X0 and the registers of the values.
fn report(a: &mut Assembler, page: X, expected: X, found: X) {
    a.add_imm(FAULTS, FAULTS, 1);
    out(a, ports::FAULT_PAGE, page);
    out_halves(a, ports::FAULT_EXPECTED_LOW, ports::FAULT_EXPECTED_HIGH, expected);
    out_halves(a, ports::FAULT_FOUND_LOW, ports::FAULT_FOUND_HIGH, found);
}

/// Counts a turn of the main loop; changes X0.
fn turn_done(a: &mut Assembler) {
    a.mov_imm(X(0), 1);
    out(a, ports::PROGRESS, X(0));
}

/// Counts a turn of the main loop and waits; changes X0.
fn turn_over(a: &mut Assembler) {
    turn_done(a);
    out(a, ports::WAIT, WAIT_US);
}

/// If the host asks for a check: does this, which ends with [`answer`].
fn if_asked(a: &mut Assembler, check: impl FnOnce(&mut Assembler)) {
    let nothing = a.label();
    a.ldr_w(TICKET, PORTS, ports::COMMAND);
    a.cbz(TICKET, nothing);
    check(a);
    a.set(nothing);
}

/// Answers a check.
fn answer(a: &mut Assembler, checked: X, faults: X) {
    out(a, ports::CHECK_PAGES, checked);
    out(a, ports::CHECK_FAULTS, faults);
    out(a, ports::CHECK_DONE, TICKET);
}
