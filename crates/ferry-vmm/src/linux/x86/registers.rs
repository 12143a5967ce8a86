//! The registers with which the vCPUs of a kernel of x86-64 begin.
//!
//! vCPU 0 begins with the kernel; the others stay as they were made, and wait for INIT and a start-up IPI. Every vCPU has
//! its MTRRs on and memory write-back by default, as firmware leaves them: Linux takes them for broken otherwise.
//! Nothing comes from the legacy interrupt controller, of which the ACPI tables say that there is none: LINT0 stays masked,
//! LINT1 is an NMI.
//!
//! Facts: Documentation/arch/x86/boot.rst ("64-bit Boot Protocol": flat segments 0x10 and 0x18, paging on, RSI); Xen's
//! docs/misc/pvh.pandoc (protected mode, EBX); Intel SDM volume 3, 12.11.2.1 (`IA32_MTRR_DEF_TYPE`), 11.5.1 (local vector
//! table), 2.1 (`IA32_MISC_ENABLE`).

use ferry_migrate::MachineError;
use kvm_bindings::{Msrs, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use super::super::{LinuxError, write};
use super::{Entry, pvh, zero_page};
use crate::VmmError;
use crate::kvm_guest::step;

const GDT: u64 = 0x500;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const DIRECTORIES: u64 = 0xb000;

/// Where the stack of the first instructions ends; a kernel makes its own.
const STACK_END: u64 = 0x8ff0;

/// Page directories: each maps 1 GiB.
const GIBIBYTES: u64 = 4;

// Page-table entries: present, writable; and the size of a large page.
const TABLE_ENTRY: u64 = 0x3;
const LARGE_ENTRY: u64 = 0x83;

// Selectors (`__BOOT_CS`, `__BOOT_DS`), and that of a task that never switches.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

// CR0: PE, ET; with paging also PG. CR4: PAE. EFER: LME, LMA.
const CR0_PROTECTED: u64 = 0x11;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG: u64 = 0x500;

/// The bit of RFLAGS that is always 1; interrupts are closed.
const RFLAGS: u64 = 2;

/// `IA32_MTRR_DEF_TYPE`: on, write-back.
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// `IA32_MISC_ENABLE`: fast strings.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

// Of the local APIC: its vector table, whose entries have a mode of delivery and a mask.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const NMI: u32 = 4 << 8;
const EXTERNAL: u32 = 7 << 8;
const MASKED: u32 = 1 << 16;

/// The GDT: two empty entries, code of 64 bits, data, a task. That of PVH has code of 32 bits at the same place, but only
/// in the registers: the kernel loads its own GDT first.
const DESCRIPTORS: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_ffff];

/// Writes the GDT and the page tables.
pub(super) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), LinuxError> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    write(memory, GDT, &words(&DESCRIPTORS))?;
    write(memory, PML4, &words(&[PDPT | TABLE_ENTRY]))?;
    let tables: Vec<u64> = (0..GIBIBYTES).map(|index| (DIRECTORIES + index * 4096) | TABLE_ENTRY).collect();
    write(memory, PDPT, &words(&tables))?;
    let pages: Vec<u64> = (0..GIBIBYTES * 512).map(|index| index << 21 | LARGE_ENTRY).collect();
    write(memory, DIRECTORIES, &words(&pages))
}

/// A vCPU's id of its local APIC: KVM gives it its number.
#[expect(clippy::unnecessary_wraps, reason = "on arm64 a register says it")]
pub(crate) fn name_of(_: &VcpuFd, cpu: u32) -> Result<u64, MachineError> {
    Ok(cpu.into())
}

/// Makes a vCPU ready for the kernel.
pub(crate) fn start_at(vcpu: &VcpuFd, cpu: u32, entry: &Entry) -> Result<(), VmmError> {
    set_msrs(vcpu)?;
    set_interrupts(vcpu)?;
    if cpu > 0 {
        return Ok(());
    }
    let sregs = vcpu.get_sregs().map_err(|source| step("read special registers", source))?;
    vcpu.set_sregs(&special_registers(sregs, entry))
        .map_err(|source| step("set special registers", source))?;
    vcpu.set_regs(&registers(entry)).map_err(|source| step("set registers", source))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let list = |entries: &[kvm_msr_entry]| {
        Msrs::from_entries(entries).map_err(|_| step("hold two MSRs", vmm_sys_util::errno::Error::new(0)))
    };
    let mut misc = list(&[entry(MISC_ENABLE, 0)])?;
    let read = vcpu.get_msrs(&mut misc).map_err(|source| step("read IA32_MISC_ENABLE", source))?;
    let misc = misc.as_slice().first().filter(|_| read == 1).map_or(0, |entry| entry.data);
    // The second is Intel's alone; where KVM does not take it nothing reads it.
    let wanted = list(&[entry(MTRR_DEFAULT, MTRR_ON_WRITE_BACK), entry(MISC_ENABLE, misc | FAST_STRINGS)])?;
    vcpu.set_msrs(&wanted).map(drop).map_err(|source| step("set the MTRRs' default", source))
}

fn set_interrupts(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let mut lapic = vcpu.get_lapic().map_err(|source| step("read a local APIC", source))?;
    set_lvt(&mut lapic, LVT_LINT0, EXTERNAL | MASKED);
    set_lvt(&mut lapic, LVT_LINT1, NMI);
    vcpu.set_lapic(&lapic).map_err(|source| step("set a local APIC", source))
}

fn set_lvt(lapic: &mut kvm_lapic_state, register: usize, value: u32) {
    for (place, byte) in lapic.regs.iter_mut().skip(register).zip(value.to_le_bytes()) {
        *place = i8::from_le_bytes([byte]);
    }
}

/// The special registers of the vCPU that begins with the kernel, on top of what it has.
fn special_registers(mut sregs: kvm_sregs, entry: &Entry) -> kvm_sregs {
    let is_long = matches!(entry, Entry::Long { .. });
    let (code, data) = (segment(CODE, 11, is_long), segment(DATA, 3, false));
    (sregs.cs, sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (code, data, data, data, data, data);
    sregs.tr = kvm_segment { selector: TASK, type_: 11, present: 1, limit: 0xffff, ..Default::default() };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    let limit = u16::try_from(size_of_val(&DESCRIPTORS) - 1).unwrap_or(u16::MAX);
    sregs.gdt = kvm_dtable { base: GDT, limit, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PROTECTED, 0, 0);
    if is_long {
        (sregs.cr0, sregs.cr3) = (CR0_PROTECTED | CR0_PAGING, PML4);
        (sregs.cr4, sregs.efer) = (CR4_PAE, EFER_LONG);
    }
    sregs
}

/// The registers with which it begins.
fn registers(entry: &Entry) -> kvm_regs {
    let (rip, rsi, rbx) = match *entry {
        Entry::Long { kernel } => (kernel, zero_page::ADDRESS, 0),
        Entry::Pvh { kernel } => (kernel, 0, pvh::ADDRESS),
    };
    kvm_regs { rip, rsi, rbx, rsp: STACK_END, rbp: STACK_END, rflags: RFLAGS, ..Default::default() }
}

/// A flat segment of level 0.
fn segment(selector: u16, type_: u8, is_long: bool) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: u8::from(!is_long),
        s: 1,
        l: u8::from(is_long),
        g: 1,
        ..Default::default()
    }
}
