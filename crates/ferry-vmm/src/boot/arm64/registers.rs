//! The registers with which a vCPU of arm64 begins.

use ferry_contract::arm64::{RegisterId, SystemRegister};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::VcpuFd;

use super::super::{CODE, STACK_END, TOP_TABLE, VECTORS, area};
use super::{ATTRIBUTE_DEVICE, ATTRIBUTE_MEMORY, RAM_START};
use crate::kvm_guest::step;
use crate::payload::Parameters;
use crate::{GuestConfig, Image, VmmError};

const SCTLR_EL1: SystemRegister = SystemRegister::new(3, 0, 1, 0, 0);
const CPACR_EL1: SystemRegister = SystemRegister::new(3, 0, 1, 0, 2);
const TTBR0_EL1: SystemRegister = SystemRegister::new(3, 0, 2, 0, 0);
const TCR_EL1: SystemRegister = SystemRegister::new(3, 0, 2, 0, 2);
pub(super) const ESR_EL1: SystemRegister = SystemRegister::new(3, 0, 5, 2, 0);
const MAIR_EL1: SystemRegister = SystemRegister::new(3, 0, 10, 2, 0);
const VBAR_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 0, 0);

/// `SCTLR_EL1`: the bits that are 1 where they mean nothing, and M, C, I, SA.
const SCTLR: u64 = 0x30d0_0980 | 0x1005 | 1 << 3;

/// `TCR_EL1`: 39 bits of addresses by `TTBR0_EL1` alone, in granules of 4 KiB, inner shareable, write-back; 40 bits of
/// physical ones.
const TCR: u64 = 0x19 | 1 << 8 | 1 << 10 | 3 << 12 | 0x19 << 16 | 1 << 23 | 2 << 30 | 2 << 32;

/// `MAIR_EL1`: device memory (nGnRE), and memory with write-back caches.
const MAIR: u64 = 0x04 << (8 * ATTRIBUTE_DEVICE) | 0xff << (8 * ATTRIBUTE_MEMORY);

/// `CPACR_EL1`: floating point traps nowhere.
const CPACR: u64 = 3 << 20;

/// `PSTATE`: EL1 with a stack pointer of its own, all interrupts closed.
pub(crate) const PSTATE_VALUE: u64 = 0x3c5;

// Places in `struct kvm_regs`, in words of 32 bits: X0 (each has two), PC, PSTATE, the
// stack pointer of EL1, where its last exception came from.
pub(crate) const X0: u32 = 0;
pub(crate) const PC: u32 = 64;
pub(crate) const PSTATE: u32 = 66;
const SP_EL1: u32 = 68;
pub(crate) const ELR_EL1: u32 = 70;

/// A general register of 64 bits, by its place.
pub(crate) fn core(word: u32) -> Option<RegisterId> {
    RegisterId::from_key(0x10_0000 | word, 8)
}

/// Sets a register of 64 bits.
pub(crate) fn set(vcpu: &VcpuFd, id: RegisterId, value: u64) -> Result<(), VmmError> {
    let set = vcpu.set_one_reg(id.raw(), &value.to_le_bytes());
    set.map(drop).map_err(|source| step("set a first register", source))
}

/// Makes a vCPU begin with the program.
pub(crate) fn start_at(
    vcpu: &VcpuFd,
    cpu: u32,
    config: &GuestConfig,
    seed: u64,
    image: Option<&Image>,
) -> Result<(), VmmError> {
    let system = [
        (TTBR0_EL1, RAM_START + TOP_TABLE),
        (TCR_EL1, TCR),
        (MAIR_EL1, MAIR),
        (VBAR_EL1, RAM_START + VECTORS),
        (CPACR_EL1, CPACR),
        (SCTLR_EL1, SCTLR),
    ];
    for (register, value) in system {
        set(vcpu, RegisterId::system(register), value)?;
    }
    let parameters = config.parameters(seed, cpu, counter_khz(vcpu));
    let general = general(&parameters, image.map(Image::entry));
    general
        .into_iter()
        .filter_map(|(word, value)| Some((core(word)?, value)))
        .try_for_each(|(id, value)| set(vcpu, id, value))?;
    // vCPUs beyond the first are off else, until another starts them.
    let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(runnable).map_err(|source| step("make a vCPU runnable", source))
}

/// The general registers, by their places; an image has its own entry.
fn general(parameters: &Parameters, entry: Option<u64>) -> Vec<(u32, u64)> {
    let Parameters { working_set, pages, burst_pages, wait_us, seed, cpu, cpus } = *parameters;
    let index = u32::try_from(cpu).unwrap_or(0);
    let told = [working_set, pages, burst_pages, wait_us.into(), seed, cpu, cpus];
    let mut registers: Vec<(u32, u64)> = (X0 + 2 * 19..).step_by(2).zip(told).collect();
    registers.extend([
        (SP_EL1, area(index) + STACK_END),
        (PC, entry.unwrap_or(RAM_START + CODE)),
        (PSTATE, PSTATE_VALUE),
    ]);
    registers
}

/// How fast its counter counts.
pub(crate) fn counter_khz(_: &VcpuFd) -> u32 {
    u32::try_from(ferry_kvm::arm64::counter_frequency() / 1000).unwrap_or(u32::MAX)
}
