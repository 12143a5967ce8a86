//! Programs of x86-64, and what they share.
//!
//! They run in 64-bit mode from their first instruction, most at privilege level 3 with IOPL 3: the level that every
//! KVM runs at full speed. Facts: Intel SDM volume 1, 19.5 "I/O privilege level"; volume 2, `IN` and `OUT`.

mod clock;
mod exercise;
mod features;
mod msrs;
mod pages;
mod ticks;

use iced_x86::code_asm::{AsmRegister32, CodeAssembler, CodeLabel, dx, eax, ecx, edx, rax, rcx};
use iced_x86::{BlockEncoderOptions, IcedError};

use super::Program;
use crate::{Payload, ports};

/// What time is read from.
pub(super) const COUNTER: &str = "the TSC";

/// Handlers by their vectors.
type Handlers = Vec<(u8, CodeLabel)>;

/// Every built-in payload is to be had.
pub(super) const fn has(_: &Payload) -> bool {
    true
}

/// The program of a payload; none for an image, which is one itself.
pub(super) fn assemble(payload: &Payload, address: u64) -> Result<Program, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let handlers = match payload {
        Payload::Idle | Payload::Churn { .. } => pages::program(&mut a).map(|()| Vec::new())?,
        Payload::Clock { .. } => clock::program(&mut a).map(|()| Vec::new())?,
        Payload::Features => features::program(&mut a).map(|()| Vec::new())?,
        Payload::Exercise => exercise::program(&mut a)?,
        Payload::Msrs => msrs::program(&mut a)?,
        Payload::Ticks => ticks::program(&mut a)?,
        Payload::Image { .. } | Payload::Linux => return Ok(Program::default()),
    };
    let assembled = a.assemble_options(address, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let handlers: Result<Vec<(u8, u64)>, IcedError> =
        handlers.iter().map(|(vector, label)| Ok((*vector, assembled.label_ip(label)?))).collect();
    Ok(Program { handlers: handlers?, code: assembled.inner.code_buffer })
}

/// How many entries the table of a payload has that has one.
pub(super) fn entries(payload: &Payload) -> Option<u64> {
    match payload {
        Payload::Features => Some(features::entries()),
        Payload::Msrs => Some(msrs::entries()),
        _ => None,
    }
}

/// That table as it is before birth; it begins a vCPU's share.
pub(super) fn table(payload: &Payload) -> Vec<u8> {
    match payload {
        Payload::Features => features::table(),
        Payload::Msrs => msrs::table(),
        _ => Vec::new(),
    }
}

/// Microseconds from turn to turn of a payload that is of this architecture alone.
pub(super) fn wait_us(payload: &Payload) -> u32 {
    match payload {
        Payload::Features => features::WAIT_US,
        Payload::Exercise => exercise::WAIT_US,
        Payload::Msrs => msrs::WAIT_US,
        _ => 0,
    }
}

/// What a fault of such a payload says.
pub(super) fn fault(payload: &Payload, page: u32, word: u32, expected: u64, found: u64) -> String {
    match payload {
        Payload::Exercise => exercise::fault(page),
        Payload::Msrs => msrs::fault(page, word, expected, found),
        Payload::Ticks => ticks::fault(page, expected, found),
        _ => features::fault(page, word, expected, found),
    }
}

/// Writes a register to a port; changes EAX and EDX.
fn out(a: &mut CodeAssembler, port: u16, value: AsmRegister32) -> Result<(), IcedError> {
    a.mov(eax, value)?;
    a.mov(edx, u32::from(port))?;
    a.out(dx, eax)
}

/// Counts a turn of the main loop and waits; changes RAX, RCX and RDX.
fn turn_over(a: &mut CodeAssembler, wait_us: AsmRegister32) -> Result<(), IcedError> {
    a.mov(ecx, 1_u32)?;
    out(a, ports::PROGRESS, ecx)?;
    out(a, ports::WAIT, wait_us)
}

/// If the host asks for a check: does this, which ends with [`answer`]; changes RAX and RDX beside.
fn if_asked(
    a: &mut CodeAssembler,
    check: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut nothing = a.create_label();
    a.mov(edx, u32::from(ports::COMMAND))?;
    a.in_(eax, dx)?;
    a.test(eax, eax)?;
    a.jz(nothing)?;
    a.push(rax)?;
    check(a)?;
    a.set_label(&mut nothing)
}

/// Answers a check, whose ticket lies on the stack; changes RAX, RCX and RDX.
fn answer(a: &mut CodeAssembler, checked: AsmRegister32, faults: AsmRegister32) -> Result<(), IcedError> {
    out(a, ports::CHECK_PAGES, checked)?;
    out(a, ports::CHECK_FAULTS, faults)?;
    a.pop(rcx)?;
    out(a, ports::CHECK_DONE, ecx)
}
