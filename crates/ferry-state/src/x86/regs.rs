//! General registers: what `KVM_GET_REGS` gives.
//!
//! From `struct kvm_regs` of the kernel's arch/x86/include/uapi/asm/kvm.h; the registers are those of
//! the Intel SDM, volume 1, chapter 3.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The general registers, the instruction pointer and the flags of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Regs {
    /// The register RAX.
    #[n(0)]
    pub rax: u64,
    /// The register RBX.
    #[n(1)]
    pub rbx: u64,
    /// The register RCX.
    #[n(2)]
    pub rcx: u64,
    /// The register RDX.
    #[n(3)]
    pub rdx: u64,
    /// The register RSI.
    #[n(4)]
    pub rsi: u64,
    /// The register RDI.
    #[n(5)]
    pub rdi: u64,
    /// The register RSP.
    #[n(6)]
    pub rsp: u64,
    /// The register RBP.
    #[n(7)]
    pub rbp: u64,
    /// The register R8.
    #[n(8)]
    pub r8: u64,
    /// The register R9.
    #[n(9)]
    pub r9: u64,
    /// The register R10.
    #[n(10)]
    pub r10: u64,
    /// The register R11.
    #[n(11)]
    pub r11: u64,
    /// The register R12.
    #[n(12)]
    pub r12: u64,
    /// The register R13.
    #[n(13)]
    pub r13: u64,
    /// The register R14.
    #[n(14)]
    pub r14: u64,
    /// The register R15.
    #[n(15)]
    pub r15: u64,
    /// The instruction pointer RIP.
    #[n(16)]
    pub rip: u64,
    /// The flags RFLAGS.
    #[n(17)]
    pub rflags: u64,
}

impl Part for Regs {
    const NAME: &'static str = "x86.regs";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
}
