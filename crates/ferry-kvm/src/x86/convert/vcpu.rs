//! vCPU structures: KVM's on one side, the typed values of the state on the other.
//!
//! Structures are taken apart field by field, so that one which a later kvm-bindings adds does not
//! get lost unseen: the build then fails here.

use ferry_state::x86::{
    DebugRegs, DescriptorTable, Exception, Interrupt, LAPIC_BYTES, Lapic, MAX_XCRS, Nmi, Regs, Segment, Smi,
    Sregs, VcpuEvents, Xcr, Xcrs,
};
use kvm_bindings::{
    kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2,
    kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1, kvm_vcpu_events__bindgen_ty_2,
    kvm_vcpu_events__bindgen_ty_3, kvm_vcpu_events__bindgen_ty_4, kvm_vcpu_events__bindgen_ty_5, kvm_xcr,
    kvm_xcrs,
};

pub(in crate::x86) fn regs_from_kvm(regs: &kvm_regs) -> Regs {
    let kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = *regs;
    Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

pub(in crate::x86) fn regs_to_kvm(regs: &Regs) -> kvm_regs {
    let Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } =
        *regs;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn segment_from_kvm(segment: &kvm_segment) -> Segment {
    let kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable, padding: _ } =
        *segment;
    Segment {
        base,
        limit,
        selector,
        kind: type_,
        present: present != 0,
        dpl,
        db: db != 0,
        s: s != 0,
        l: l != 0,
        g: g != 0,
        avl: avl != 0,
        unusable: unusable != 0,
    }
}

fn segment_to_kvm(segment: &Segment) -> kvm_segment {
    let Segment { base, limit, selector, kind, present, dpl, db, s, l, g, avl, unusable } = *segment;
    kvm_segment {
        base,
        limit,
        selector,
        type_: kind,
        present: present.into(),
        dpl,
        db: db.into(),
        s: s.into(),
        l: l.into(),
        g: g.into(),
        avl: avl.into(),
        unusable: unusable.into(),
        padding: 0,
    }
}

fn table_from_kvm(table: &kvm_dtable) -> DescriptorTable {
    let kvm_dtable { base, limit, padding: _ } = *table;
    DescriptorTable { base, limit }
}

fn table_to_kvm(table: &DescriptorTable) -> kvm_dtable {
    let DescriptorTable { base, limit } = *table;
    kvm_dtable { base, limit, padding: [0; 3] }
}

pub(in crate::x86) fn sregs_from_kvm(sregs: &kvm_sregs2) -> Sregs {
    let kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags,
        pdptrs,
    } = *sregs;
    Sregs {
        cs: segment_from_kvm(&cs),
        ds: segment_from_kvm(&ds),
        es: segment_from_kvm(&es),
        fs: segment_from_kvm(&fs),
        gs: segment_from_kvm(&gs),
        ss: segment_from_kvm(&ss),
        tr: segment_from_kvm(&tr),
        ldt: segment_from_kvm(&ldt),
        gdt: table_from_kvm(&gdt),
        idt: table_from_kvm(&idt),
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags,
        pdptrs,
    }
}

pub(in crate::x86) fn sregs_to_kvm(sregs: &Sregs) -> kvm_sregs2 {
    let Sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags,
        pdptrs,
    } = sregs;
    kvm_sregs2 {
        cs: segment_to_kvm(cs),
        ds: segment_to_kvm(ds),
        es: segment_to_kvm(es),
        fs: segment_to_kvm(fs),
        gs: segment_to_kvm(gs),
        ss: segment_to_kvm(ss),
        tr: segment_to_kvm(tr),
        ldt: segment_to_kvm(ldt),
        gdt: table_to_kvm(gdt),
        idt: table_to_kvm(idt),
        cr0: *cr0,
        cr2: *cr2,
        cr3: *cr3,
        cr4: *cr4,
        cr8: *cr8,
        efer: *efer,
        apic_base: *apic_base,
        flags: *flags,
        pdptrs: *pdptrs,
    }
}

/// The older structure as the newer one, for a KVM before 5.14. Its bitmap of interrupts to inject
/// says nothing that the vCPU's events do not say.
pub(in crate::x86) fn sregs2_from_sregs(sregs: &kvm_sregs) -> kvm_sregs2 {
    let kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap: _,
    } = *sregs;
    kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags: 0,
        pdptrs: [0; 4],
    }
}

/// The newer structure as the older one; page directory pointers do not fit in.
pub(in crate::x86) fn sregs_from_sregs2(sregs: &kvm_sregs2) -> kvm_sregs {
    let kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags: _,
        pdptrs: _,
    } = *sregs;
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap: [0; 4],
    }
}

pub(in crate::x86) fn events_from_kvm(events: &kvm_vcpu_events) -> VcpuEvents {
    let kvm_vcpu_events {
        exception,
        interrupt,
        nmi,
        sipi_vector,
        flags,
        smi,
        triple_fault,
        reserved: _,
        exception_has_payload,
        exception_payload,
    } = *events;
    VcpuEvents {
        exception: Exception {
            injected: exception.injected != 0,
            vector: exception.nr,
            has_error_code: exception.has_error_code != 0,
            pending: exception.pending != 0,
            error_code: exception.error_code,
        },
        interrupt: Interrupt {
            injected: interrupt.injected != 0,
            vector: interrupt.nr,
            soft: interrupt.soft != 0,
            shadow: interrupt.shadow,
        },
        nmi: Nmi { injected: nmi.injected != 0, pending: nmi.pending, masked: nmi.masked != 0 },
        sipi_vector,
        flags,
        smi: Smi {
            smm: smi.smm != 0,
            pending: smi.pending != 0,
            inside_nmi: smi.smm_inside_nmi != 0,
            latched_init: smi.latched_init != 0,
        },
        triple_fault_pending: triple_fault.pending != 0,
        exception_has_payload: exception_has_payload != 0,
        exception_payload,
    }
}

pub(in crate::x86) fn events_to_kvm(events: &VcpuEvents) -> kvm_vcpu_events {
    let VcpuEvents {
        exception,
        interrupt,
        nmi,
        sipi_vector,
        flags,
        smi,
        triple_fault_pending,
        exception_has_payload,
        exception_payload,
    } = events;
    kvm_vcpu_events {
        exception: kvm_vcpu_events__bindgen_ty_1 {
            injected: exception.injected.into(),
            nr: exception.vector,
            has_error_code: exception.has_error_code.into(),
            pending: exception.pending.into(),
            error_code: exception.error_code,
        },
        interrupt: kvm_vcpu_events__bindgen_ty_2 {
            injected: interrupt.injected.into(),
            nr: interrupt.vector,
            soft: interrupt.soft.into(),
            shadow: interrupt.shadow,
        },
        nmi: kvm_vcpu_events__bindgen_ty_3 {
            injected: nmi.injected.into(),
            pending: nmi.pending,
            masked: nmi.masked.into(),
            pad: 0,
        },
        sipi_vector: *sipi_vector,
        flags: *flags,
        smi: kvm_vcpu_events__bindgen_ty_4 {
            smm: smi.smm.into(),
            pending: smi.pending.into(),
            smm_inside_nmi: smi.inside_nmi.into(),
            latched_init: smi.latched_init.into(),
        },
        triple_fault: kvm_vcpu_events__bindgen_ty_5 { pending: (*triple_fault_pending).into() },
        reserved: [0; 26],
        exception_has_payload: (*exception_has_payload).into(),
        exception_payload: *exception_payload,
    }
}

pub(in crate::x86) fn xcrs_from_kvm(xcrs: &kvm_xcrs) -> Xcrs {
    let kvm_xcrs { nr_xcrs, flags, xcrs, padding: _ } = *xcrs;
    let count = usize::try_from(nr_xcrs).unwrap_or(MAX_XCRS);
    let xcrs = xcrs.iter().take(count).map(|entry| Xcr { xcr: entry.xcr, value: entry.value }).collect();
    Xcrs { flags, xcrs }
}

/// There are at most [`MAX_XCRS`], by the bound of the part.
pub(in crate::x86) fn xcrs_to_kvm(xcrs: &Xcrs) -> kvm_xcrs {
    let mut kvm = kvm_xcrs { flags: xcrs.flags, ..Default::default() };
    for (to, from) in kvm.xcrs.iter_mut().zip(&xcrs.xcrs) {
        *to = kvm_xcr { xcr: from.xcr, reserved: 0, value: from.value };
        kvm.nr_xcrs += 1;
    }
    kvm
}

pub(in crate::x86) fn lapic_from_kvm(lapic: &kvm_lapic_state) -> Lapic {
    let regs: [u8; LAPIC_BYTES] = lapic.regs.map(i8::cast_unsigned);
    Lapic { regs }
}

pub(in crate::x86) fn lapic_to_kvm(lapic: &Lapic) -> kvm_lapic_state {
    kvm_lapic_state { regs: lapic.regs.map(u8::cast_signed) }
}

pub(in crate::x86) fn debug_regs_from_kvm(regs: &kvm_debugregs) -> DebugRegs {
    let kvm_debugregs { db, dr6, dr7, flags, reserved: _ } = *regs;
    DebugRegs { db, dr6, dr7, flags }
}

pub(in crate::x86) fn debug_regs_to_kvm(regs: &DebugRegs) -> kvm_debugregs {
    let DebugRegs { db, dr6, dr7, flags } = *regs;
    kvm_debugregs { db, dr6, dr7, flags, reserved: [0; 9] }
}
