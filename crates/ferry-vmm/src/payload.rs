//! The built-in payloads: programs assembled here, one module each, and what they share.
//!
//! A program runs in 64-bit mode from its first instruction, gets its parameters in registers
//! (`Parameters`), and speaks with the host through [`ports`]. Most run at privilege level 3 with
//! IOPL 3: the level that every KVM runs at full speed. Each vCPU runs the same program on a share of
//! the working set. Facts: Intel SDM volume 1, 19.5 "I/O privilege level"; volume 2, `IN` and `OUT`.

pub(crate) mod clock;
pub(crate) mod exercise;
pub(crate) mod features;
pub(crate) mod msrs;
pub(crate) mod pages;
pub(crate) mod ticks;

pub use pages::{PAGE_BYTES, PAGE_WORDS, page_word};

use iced_x86::code_asm::{AsmRegister32, CodeAssembler, CodeLabel, dx, eax, ecx, edx, rax, rcx};
use iced_x86::{BlockEncoderOptions, IcedError};

use crate::{Payload, ports};

/// What a vCPU's program is told in its registers when it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// RBX: linear address of the vCPU's share of the working set.
    pub(crate) working_set: u64,
    /// R8: pages of the share, at least 1, fewer than 2^32; for `features` and `msrs`, entries of its table.
    pub(crate) pages: u64,
    /// R11: pages of a burst; for `clock` and `ticks`, a length of time in TSC ticks.
    pub(crate) burst_pages: u64,
    /// R12: microseconds from turn to turn; 0 waits until asked.
    pub(crate) wait_us: u32,
    /// R13: the seed of the vCPU's pages.
    pub(crate) seed: u64,
    /// RDI: the vCPU's index.
    pub(crate) cpu: u64,
    /// RSI: how many vCPUs there are.
    pub(crate) cpus: u64,
}

/// A program for one linear address.
#[derive(Debug, Default)]
pub(crate) struct Program {
    /// Its machine code; it begins with its first instruction.
    pub(crate) code: Vec<u8>,
    /// Vectors and the linear addresses of their handlers, which run at privilege level 0.
    pub(crate) handlers: Vec<(u8, u64)>,
}

/// The program of a payload; none for an image, which is one itself.
pub(crate) fn assemble(payload: &Payload, address: u64) -> Result<Program, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let handlers = match payload {
        Payload::Idle | Payload::Churn { .. } => pages::program(&mut a).map(|()| Vec::new())?,
        Payload::Clock { .. } => clock::program(&mut a).map(|()| Vec::new())?,
        Payload::Features => features::program(&mut a).map(|()| Vec::new())?,
        Payload::Exercise => exercise::program(&mut a)?,
        Payload::Msrs => msrs::program(&mut a)?,
        Payload::Ticks => ticks::program(&mut a)?,
        Payload::Image { .. } => return Ok(Program::default()),
    };
    let assembled = a.assemble_options(address, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let handlers: Result<Vec<(u8, u64)>, IcedError> =
        handlers.iter().map(|(vector, label)| Ok((*vector, assembled.label_ip(label)?))).collect();
    Ok(Program { handlers: handlers?, code: assembled.inner.code_buffer })
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

/// Handlers by their vectors.
type Handlers = Vec<(u8, CodeLabel)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_fits_its_place() {
        for payload in [
            Payload::Idle,
            Payload::Clock { jump_limit_ms: 1 },
            Payload::Features,
            Payload::Exercise,
            Payload::Msrs,
            Payload::Ticks,
        ] {
            let Program { code, handlers } = assemble(&payload, 0x8000).unwrap();
            assert!(!code.is_empty() && code.len() <= 0x8000, "{payload:?}: {} bytes", code.len());
            let end = 0x8000 + code.len() as u64;
            assert!(handlers.iter().all(|(_, address)| (0x8000..end).contains(address)));
        }
    }
}
