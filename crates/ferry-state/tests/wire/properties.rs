//! Properties of the wire form that hold for every value and for any bytes at all.

use ferry_contract::arm64::RegisterId;
use ferry_state::device::{
    MAX_SERIAL_INPUT, MAX_VIRTIO_QUEUES, Serial, VirtioBlock, VirtioConsole, VirtioEntropy, VirtioNet,
    VirtioQueue, VirtioTransport,
};
use ferry_state::x86::{
    Clock, DebugRegs, DescriptorTable, Exception, Interrupt, IoApic, Irqchip, Lapic, MpState, Msrs, Nested,
    Nmi, Pic, Pit, Regs, Segment, Smi, Sregs, TscFrequency, TscOffset, VcpuEvents, Xcr, Xcrs, Xsave,
};
use ferry_state::{Fields, Part, Pause, Resources, Section, StateError, arm64, decode_known};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::parts;

/// There and back again, through the section's own bytes.
fn round<T: Part + PartialEq + std::fmt::Debug>(value: &T, baseline: &T) {
    let section = Section::of(value, 3, Some(baseline)).unwrap();
    let received = Section::from_bytes(&section.to_bytes()).unwrap();
    assert_eq!(received, section);
    assert_eq!(&received.read::<T>().unwrap(), value);
    assert_eq!(section.needed.is_empty(), value == baseline);
    assert!(Section::of(value, 3, Some(value)).unwrap().needed.is_empty());
}

fn segment() -> impl Strategy<Value = Segment> {
    let flags = any::<[bool; 7]>();
    (any::<u64>(), any::<u32>(), any::<u16>(), 0_u8..16, 0_u8..4, flags).prop_map(
        |(base, limit, selector, kind, dpl, [present, db, s, l, g, avl, unusable])| Segment {
            base,
            limit,
            selector,
            kind,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
        },
    )
}

fn sregs() -> impl Strategy<Value = Sregs> {
    let table = || (any::<u64>(), any::<u16>()).prop_map(|(base, limit)| DescriptorTable { base, limit });
    let segments = proptest::array::uniform8(segment());
    (segments, table(), table(), any::<[u64; 8]>(), any::<[u64; 4]>()).prop_map(
        |(
            [cs, ds, es, fs, gs, ss, tr, ldt],
            gdt,
            idt,
            [cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags],
            pdptrs,
        )| {
            Sregs {
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
            }
        },
    )
}

fn regs() -> impl Strategy<Value = Regs> {
    any::<[u64; 18]>().prop_map(
        |[rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags]| Regs {
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
        },
    )
}

fn events() -> impl Strategy<Value = VcpuEvents> {
    (any::<[bool; 13]>(), any::<[u8; 4]>(), any::<[u32; 3]>(), any::<u64>()).prop_map(
        |(b, [exception, interrupt, shadow, nmis], [error_code, sipi_vector, flags], exception_payload)| {
            VcpuEvents {
                exception: Exception {
                    injected: b[0],
                    vector: exception,
                    has_error_code: b[1],
                    pending: b[2],
                    error_code,
                },
                interrupt: Interrupt { injected: b[3], vector: interrupt, soft: b[4], shadow },
                nmi: Nmi { injected: b[5], pending: nmis, masked: b[6] },
                sipi_vector,
                flags,
                smi: Smi { smm: b[7], pending: b[8], inside_nmi: b[9], latched_init: b[10] },
                triple_fault_pending: b[11],
                exception_has_payload: b[12],
                exception_payload,
            }
        },
    )
}

fn pic() -> impl Strategy<Value = Pic> {
    any::<[u8; 16]>().prop_map(|b| Pic {
        last_irr: b[0],
        irr: b[1],
        imr: b[2],
        isr: b[3],
        priority_add: b[4],
        irq_base: b[5],
        read_reg_select: b[6],
        poll: b[7],
        special_mask: b[8],
        init_state: b[9],
        auto_eoi: b[10],
        rotate_on_auto_eoi: b[11],
        special_fully_nested_mode: b[12],
        init4: b[13],
        elcr: b[14],
        elcr_mask: b[15],
    })
}

fn irqchip() -> impl Strategy<Value = Irqchip> {
    (pic(), pic(), any::<u64>(), any::<[u32; 3]>(), any::<[u64; 24]>()).prop_map(
        |(pic_master, pic_slave, base_address, [ioregsel, id, irr], redirection)| Irqchip {
            pic_master,
            pic_slave,
            ioapic: IoApic { base_address, ioregsel, id, irr, redirection },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn registers_come_back(value in regs(), other in regs()) {
        round(&value, &other);
    }

    #[test]
    fn special_registers_come_back(value in sregs(), other in sregs()) {
        round(&value, &other);
    }

    #[test]
    fn events_come_back(value in events(), other in events()) {
        round(&value, &other);
    }

    #[test]
    fn small_parts_come_back(a in any::<[u32; 2]>(), b in any::<[u64; 6]>(), c in any::<[u64; 3]>()) {
        round(&MpState { mp_state: a[0] }, &MpState { mp_state: a[1] });
        round(&TscFrequency { khz: a[0] }, &TscFrequency { khz: a[1] });
        let [db @ .., dr6, dr7] = b;
        round(&DebugRegs { db, dr6, dr7, flags: c[0] }, &DebugRegs::default());
        round(&Clock { clock: c[0], flags: a[0], realtime: c[1], host_tsc: c[2] }, &Clock::default());
    }

    #[test]
    fn extended_state_comes_back(
        flags in any::<u32>(),
        xcrs in vec((any::<u32>(), any::<u64>()), 0..=16),
        region in vec(any::<u8>(), 576..8192),
    ) {
        let xcrs = xcrs.into_iter().map(|(xcr, value)| Xcr { xcr, value }).collect();
        round(&Xcrs { flags, xcrs }, &Xcrs::default());
        round(&Xsave { region }, &Xsave { region: vec![0; 576] });
    }

    #[test]
    fn lapics_come_back(page in vec(any::<u8>(), 1024)) {
        round(&Lapic { regs: page.try_into().unwrap() }, &Lapic::default());
    }

    #[test]
    fn irqchips_come_back(value in irqchip(), other in irqchip()) {
        round(&value, &other);
    }

    #[test]
    fn msrs_come_back(values in btree_map(any::<u32>(), any::<u64>(), 0..300)) {
        round(&Msrs { values }, &Msrs::default());
    }

    #[test]
    fn arm64_registers_come_back(values in btree_map(0_u32..1 << 28, (0_u32..9, any::<u8>()), 0..300)) {
        let mut registers = arm64::Registers::default();
        for (key, (size, fill)) in values {
            let value = arm64::RegisterValue::new(vec![fill; 1 << size]).unwrap();
            registers.set(RegisterId::from_key(key, 1 << size).unwrap(), value).unwrap();
        }
        round(&registers, &arm64::Registers::default());
    }

    #[test]
    fn interrupt_controllers_come_back(values in btree_map(any::<u32>(), any::<u32>(), 0..300)) {
        round(&arm64::GicDistributor { values }, &arm64::GicDistributor::default());
    }

    /// No bytes make the envelope panic, and what it takes is the only form of what it read.
    #[test]
    fn arbitrary_bytes_are_a_section_or_an_error(bytes in vec(any::<u8>(), 0..512)) {
        if let Ok(section) = Section::from_bytes(&bytes) {
            prop_assert_eq!(Section::from_bytes(&section.to_bytes()).unwrap(), section);
        }
    }

    /// No body makes a part panic.
    #[test]
    fn arbitrary_bodies_are_a_part_or_an_error(body in vec(any::<u8>(), 0..512)) {
        for section in parts::all() {
            drop(decode_known(&Section { body: body.clone(), ..section }));
        }
    }

    /// Nor does a good body with a few bytes changed, which gets further; and what is taken with
    /// every field needed is exactly what was sent.
    #[test]
    fn garbled_bodies_are_a_part_or_an_error(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let all = parts::all();
        let mut section = which.get(&all).clone();
        for (at, byte) in changes {
            let at = at.index(section.body.len());
            section.body[at] = byte;
        }
        if decode_known(&section).is_ok() {
            prop_assert!(is_canonical(&section));
        }
    }

    /// A field of a later build is skipped as long as the guest does not need it.
    #[test]
    fn a_later_field_is_skipped_or_refused(which in any::<prop::sample::Index>(), field in 1000_u32.., value in any::<u64>()) {
        let all = parts::all();
        let mut section = which.get(&all).clone();
        if parts::is_table(&section.name) {
            return Ok(()); // any number is a register's there
        }
        section.body = with_field(&section.body, field, value);
        prop_assert!(decode_known(&section).is_ok());
        section.needed.push(field);
        let refused = match decode_known(&section) {
            Err(StateError::UnknownNeededField { field, .. }) => Some(field),
            _ => None,
        };
        prop_assert_eq!(refused, Some(field));
    }
}

/// Whether the body is written as this build writes it.
fn is_canonical(section: &Section) -> bool {
    fn same<T: Part>(section: &Section) -> bool {
        section.name == T::NAME
            && Section::of(&section.read::<T>().unwrap(), section.index, None).unwrap().body == section.body
    }
    same::<Regs>(section)
        || same::<Sregs>(section)
        || same::<VcpuEvents>(section)
        || same::<MpState>(section)
        || same::<Xcrs>(section)
        || same::<Xsave>(section)
        || same::<Lapic>(section)
        || same::<DebugRegs>(section)
        || same::<Nested>(section)
        || same::<Msrs>(section)
        || same::<TscOffset>(section)
        || same::<Pit>(section)
        || same::<TscFrequency>(section)
        || same::<Irqchip>(section)
        || same::<Clock>(section)
        || same::<Serial>(section)
        || same::<VirtioBlock>(section)
        || same::<VirtioNet>(section)
        || same::<VirtioEntropy>(section)
        || same::<VirtioConsole>(section)
        || same::<Resources>(section)
        || same::<Pause>(section)
        || same::<arm64::MpState>(section)
        || same::<arm64::VcpuEvents>(section)
        || same::<arm64::Registers>(section)
        || same::<arm64::GicCpuInterface>(section)
        || same::<arm64::GicRedistributor>(section)
        || same::<arm64::GicLines>(section)
        || same::<arm64::GicDistributor>(section)
        || same::<arm64::GicIts>(section)
        || same::<arm64::Counter>(section)
}

/// A body with one more field at its end; the parts have fewer than 23 fields.
fn with_field(body: &[u8], field: u32, value: u64) -> Vec<u8> {
    let mut longer = body.to_vec();
    longer[0] += 1;
    let mut encoder = minicbor::Encoder::new(&mut longer);
    encoder.u32(field).unwrap().u64(value).unwrap();
    longer
}

#[test]
fn bounds_of_lists_hold() {
    let xcrs = Xcrs { flags: 0, xcrs: vec![Xcr::default(); 17] };
    let short = Xsave { region: vec![0; 575] };
    let long = Xsave { region: vec![0; 64 * 1024 + 1] };
    let input = Serial { input: vec![0; MAX_SERIAL_INPUT + 1], ..parts::serial() };
    let queues = vec![VirtioQueue::default(); MAX_VIRTIO_QUEUES + 1];
    let entropy = VirtioEntropy { transport: VirtioTransport { queues, ..VirtioTransport::default() } };
    for section in [
        Section::of(&entropy, 0, None),
        Section::of(&xcrs, 0, None),
        Section::of(&short, 0, None),
        Section::of(&long, 0, None),
        Section::of(&input, 0, None),
    ]
    .map(Result::unwrap)
    {
        assert!(matches!(decode_known(&section), Err(StateError::Invalid { .. })), "{}", section.name);
    }
    let many = Msrs { values: (0..4097).map(|index| (index, 0)).collect() };
    assert!(Section::of(&many, 0, None).is_err());

    let mut sregs = parts::sregs();
    sregs.ss.dpl = 4;
    assert!(matches!(
        decode_known(&Section::of(&sregs, 0, None).unwrap()),
        Err(StateError::Invalid { problem, .. }) if problem.contains("privilege level 4")
    ));
}

#[test]
fn a_lapic_of_another_length_is_refused() {
    for length in [0_u16, 1023, 1025] {
        let mut body = vec![0xa1, 0x00, 0x59];
        body.extend(length.to_be_bytes());
        body.extend(vec![0; usize::from(length)]);
        let section = Section { name: Lapic::NAME.into(), index: 0, needed: vec![], body };
        assert!(matches!(section.read::<Lapic>(), Err(StateError::Malformed { .. })), "{length}");
    }
}

#[test]
fn every_part_lists_exactly_the_fields_that_it_writes() {
    fn listed<T: Part>(section: &Section) -> bool {
        section.name == T::NAME && T::FIELDS != Fields::These(&section.needed.clone().leak()[..])
    }
    for section in parts::all() {
        let differs = listed::<Regs>(&section)
            || listed::<Sregs>(&section)
            || listed::<VcpuEvents>(&section)
            || listed::<MpState>(&section)
            || listed::<Xcrs>(&section)
            || listed::<Xsave>(&section)
            || listed::<Lapic>(&section)
            || listed::<DebugRegs>(&section)
            || listed::<Nested>(&section)
            || listed::<TscFrequency>(&section)
            || listed::<TscOffset>(&section)
            || listed::<Pit>(&section)
            || listed::<Irqchip>(&section)
            || listed::<Clock>(&section)
            || listed::<Serial>(&section)
            || listed::<VirtioBlock>(&section)
            || listed::<VirtioNet>(&section)
            || listed::<VirtioEntropy>(&section)
            || listed::<VirtioConsole>(&section)
            || listed::<Resources>(&section)
            || listed::<arm64::MpState>(&section)
            || listed::<arm64::VcpuEvents>(&section)
            || listed::<arm64::Counter>(&section);
        assert!(!differs, "{} writes fields {:?}", section.name, section.needed);
    }
}
