//! The built-in payloads: programs assembled here, and what they share.
//!
//! A program runs on all of memory from its first instruction, gets its parameters in registers
//! (`Parameters`), and speaks with the host through [`ports`](crate::ports). Each vCPU runs the same program on a share of
//! the working set. What a payload means stands in a module of its own; the programs are code of one architecture
//! each.

#[cfg(target_arch = "aarch64")]
mod arm64;
pub(crate) mod clock;
pub(crate) mod pages;
pub(crate) mod ticks;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64 as arch;
#[cfg(target_arch = "x86_64")]
use x86 as arch;

pub use pages::{PAGE_BYTES, PAGE_WORDS, page_word};

use arch::COUNTER;

use crate::Payload;

/// What a vCPU's program is told in its registers when it starts: those of x86-64, those of arm64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// RBX, X19: linear address of the vCPU's share of the working set.
    pub(crate) working_set: u64,
    /// R8, X20: pages of the share, at least 1, fewer than 2^32; for payloads with a table, its entries.
    pub(crate) pages: u64,
    /// R11, X21: pages of a burst; for `clock` and `ticks`, a length of time in ticks of the counter.
    pub(crate) burst_pages: u64,
    /// R12, X22: microseconds from turn to turn; 0 waits until asked.
    pub(crate) wait_us: u32,
    /// R13, X23: the seed of the vCPU's pages.
    pub(crate) seed: u64,
    /// RDI, X24: the vCPU's index.
    pub(crate) cpu: u64,
    /// RSI, X25: how many vCPUs there are.
    pub(crate) cpus: u64,
}

/// A program for one linear address.
#[derive(Debug, Default)]
pub(crate) struct Program {
    /// Its machine code; it begins with its first instruction.
    pub(crate) code: Vec<u8>,
    /// Vectors and the linear addresses of their handlers, which run at the privilege level of a kernel.
    pub(crate) handlers: Vec<(u8, u64)>,
}

/// Whether guests of this architecture have the payload.
pub(crate) fn is_to_be_had(payload: &Payload) -> bool {
    arch::has(payload)
}

/// The program of a payload; none for an image and a kernel, which are programs themselves.
pub(crate) fn assemble(payload: &Payload, address: u64) -> Result<Program, String> {
    arch::assemble(payload, address).map_err(|error| error.to_string())
}

/// How many entries the table of a payload has that has one.
pub(crate) fn entries(payload: &Payload) -> Option<u64> {
    arch::entries(payload)
}

/// That table as it is before birth, at the start of a vCPU's share; empty for payloads that have none.
pub(crate) fn table(payload: &Payload) -> Vec<u8> {
    arch::table(payload)
}

/// Microseconds from turn to turn, of payloads that have a time of their own.
pub(crate) fn wait_us(payload: &Payload) -> u32 {
    match payload {
        Payload::Clock { .. } => clock::WAIT_US,
        Payload::Ticks => ticks::WAIT_US,
        _ => arch::wait_us(payload),
    }
}

/// What a fault says that a vCPU reported whose share begins with page `share`.
pub(crate) fn fault(
    payload: &Payload,
    share: u64,
    page: u32,
    word: u32,
    expected: u64,
    found: u64,
) -> String {
    match payload {
        Payload::Clock { .. } => clock::fault(page, expected, found),
        Payload::Idle | Payload::Churn { .. } | Payload::Image { .. } | Payload::Linux => {
            pages::fault(share + u64::from(page), word, expected, found)
        }
        _ => arch::fault(payload, page, word, expected, found),
    }
}

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
        ]
        .into_iter()
        .filter(is_to_be_had)
        {
            let Program { code, handlers } = assemble(&payload, 0x8000).unwrap();
            assert!(!code.is_empty() && code.len() <= 0x8000, "{payload:?}: {} bytes", code.len());
            let end = 0x8000 + code.len() as u64;
            assert!(handlers.iter().all(|(_, address)| (0x8000..end).contains(address)));
        }
    }
}
