//! The registers with which a vCPU of x86-64 begins.

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;

use super::super::{CODE, CPU_AREAS, STACK_END, TABLE_BYTES, VECTORS, area};
use super::{
    GDT, GDT_LIMIT, IDT_LIMIT, KERNEL_CODE, KERNEL_DATA, PML4, STACK_0_END, TASK, TASK_LIMIT, USER_CODE,
    USER_DATA,
};
use crate::kvm_guest::step;
use crate::payload::Parameters;
use crate::{GuestConfig, Image, Level, VmmError};

// CR0: PE, MP, ET, NE, WP, PG. CR4: PAE, OSFXSR, OSXMMEXCPT. EFER: LME, LMA.
const CR0: u64 = 0x8001_0033;
const CR4: u64 = 0x620;
const EFER: u64 = 0x500;

// CR4 where CPUID has what they are for: FSGSBASE, OSXSAVE.
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;

/// Bits 17 and 18 of XCR0: AMX's components, for which a process must ask its kernel first.
const XCR0_AMX: u64 = 0x6_0000;

/// `IA32_APIC_BASE`: x2APIC mode, enabled.
const X2APIC: u64 = 0xc00;

/// RFLAGS: the bit that is always 1, and IOPL 3; interrupts are closed.
const RFLAGS: u64 = 0x3002;

/// What a vCPU's CPUID has that its first registers depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Extensions {
    /// Leaf 7 EBX bit 0.
    fsgsbase: bool,
    /// Leaf 1 ECX bit 26.
    xsave: bool,
}

/// The special registers of a vCPU that begins with the program, on top of what it has.
fn special_registers(mut sregs: kvm_sregs, cpu: u32, level: Level, extensions: Extensions) -> kvm_sregs {
    let (code, data) = match level {
        Level::Kernel => (segment(KERNEL_CODE, 11, 0, true), segment(KERNEL_DATA, 3, 0, false)),
        Level::User => (segment(USER_CODE, 11, 3, true), segment(USER_DATA, 3, 3, false)),
    };
    (sregs.cs, sregs.ss) = (code, data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data);
    sregs.tr = kvm_segment {
        base: area(cpu),
        limit: TASK_LIMIT.into(),
        selector: TASK,
        type_: 11, // a busy 64-bit TSS
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.gdt = kvm_dtable { base: GDT, limit: GDT_LIMIT, ..Default::default() };
    sregs.idt = kvm_dtable { base: VECTORS, limit: IDT_LIMIT, ..Default::default() };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, PML4, CR4, EFER);
    sregs.cr4 |= if extensions.fsgsbase { CR4_FSGSBASE } else { 0 };
    sregs.cr4 |= if extensions.xsave { CR4_OSXSAVE } else { 0 };
    sregs.apic_base |= X2APIC;
    sregs
}

/// The registers with which a vCPU begins; an image has its own entry.
fn registers(parameters: &Parameters, level: Level, entry: Option<u64>) -> kvm_regs {
    let stack = match level {
        Level::Kernel => STACK_0_END,
        Level::User => STACK_END,
    };
    kvm_regs {
        rip: entry.unwrap_or(CODE),
        rsp: CPU_AREAS + parameters.cpu * TABLE_BYTES + stack,
        rflags: RFLAGS,
        rbx: parameters.working_set,
        rdi: parameters.cpu,
        rsi: parameters.cpus,
        r8: parameters.pages,
        r11: parameters.burst_pages,
        r12: u64::from(parameters.wait_us),
        r13: parameters.seed,
        ..Default::default()
    }
}

/// Makes a vCPU begin with the program.
pub(crate) fn start_at(
    vcpu: &VcpuFd,
    cpu: u32,
    config: &GuestConfig,
    seed: u64,
    image: Option<&Image>,
) -> Result<(), VmmError> {
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| step("say which CPUID a vCPU has", source))?;
    let leaf = |function, index| {
        cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index)).copied()
    };
    let extensions = Extensions {
        fsgsbase: leaf(7, 0).is_some_and(|entry| entry.ebx & 1 != 0),
        xsave: leaf(1, 0).is_some_and(|entry| entry.ecx >> 26 & 1 != 0),
    };
    let level = config.payload.level();
    let sregs = vcpu.get_sregs().map_err(|source| step("read special registers", source))?;
    vcpu.set_sregs(&special_registers(sregs, cpu, level, extensions))
        .map_err(|source| step("set special registers", source))?;
    if let Some(components) = leaf(0xd, 0).filter(|_| extensions.xsave) {
        open_components(vcpu, u64::from(components.eax) | u64::from(components.edx) << 32)?;
    }
    let parameters = config.parameters(seed, cpu, counter_khz(vcpu));
    vcpu.set_regs(&registers(&parameters, level, image.map(Image::entry)))
        .map_err(|source| step("set registers", source))?;
    // vCPUs beyond the first wait for a start-up IPI else, which nobody sends.
    let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(runnable).map_err(|source| step("make a vCPU runnable", source))
}

/// Opens the extended state components that the vCPU's CPUID has (leaf 0xd), but AMX's.
fn open_components(vcpu: &VcpuFd, offered: u64) -> Result<(), VmmError> {
    let mut xcrs = vcpu.get_xcrs().map_err(|source| step("read XCR0", source))?;
    if let Some(xcr0) = xcrs.xcrs.first_mut() {
        xcr0.value = offered & !XCR0_AMX;
    }
    vcpu.set_xcrs(&xcrs).map_err(|source| step("set XCR0", source))
}

/// How fast its TSC counts.
pub(crate) fn counter_khz(vcpu: &VcpuFd) -> u32 {
    vcpu.get_tsc_khz().unwrap_or(0)
}

/// A flat segment.
fn segment(selector: u16, type_: u8, dpl: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::descriptors;
    use super::*;

    #[test]
    fn the_gdt_says_what_the_registers_say() {
        let of = |level| special_registers(kvm_sregs::default(), 0, level, Extensions::default());
        let (sregs, kernel) = (of(Level::User), of(Level::Kernel));
        for (segment, name) in [
            (sregs.cs, "cs"),
            (sregs.ss, "ss"),
            (sregs.tr, "tr"),
            (kernel.cs, "level 0 cs"),
            (kernel.ss, "level 0 ss"),
        ] {
            let entry = descriptors()[usize::from(segment.selector >> 3)];
            assert_eq!((entry >> 40 & 0xf) as u8, segment.type_, "{name} type");
            assert_eq!((entry >> 44 & 1) as u8, segment.s, "{name} s");
            assert_eq!((entry >> 45 & 3) as u8, segment.dpl, "{name} dpl");
            assert_eq!((entry >> 47 & 1) as u8, segment.present, "{name} present");
            assert_eq!((entry >> 53 & 1) as u8, segment.l, "{name} l");
            assert_eq!((entry >> 54 & 1) as u8, segment.db, "{name} db");
        }
        assert_eq!(usize::from(sregs.gdt.limit) + 1, descriptors().len() * 8);
    }
}
