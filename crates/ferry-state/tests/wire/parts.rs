//! One distinctive value of every part, for the tests in this folder.

use ferry_contract::arm64::RegisterId;
use ferry_state::device::{
    Serial, VirtioBlock, VirtioConsole, VirtioEntropy, VirtioNet, VirtioQueue, VirtioTransport,
};
use ferry_state::x86::{
    Clock, DebugRegs, DescriptorTable, Exception, IOAPIC_PINS, Interrupt, IoApic, Irqchip, LAPIC_BYTES,
    Lapic, MpState, Msrs, Nested, Nmi, PIT_CHANNELS, Pic, Pit, PitChannel, Regs, Segment, Smi, Sregs,
    TscFrequency, TscOffset, VcpuEvents, Xcr, Xcrs, Xsave,
};
use ferry_state::{GuestTime, Part, Pause, ResourceName, Resources, Section, arm64};

/// Gives a value that was not given before, so that no two fields can be mixed up unseen.
#[derive(Debug, Default)]
pub(crate) struct Counter(u64);

impl Counter {
    pub(crate) fn u64(&mut self) -> u64 {
        self.0 += 0x0101;
        0xfe00_0000_0000_0000 | self.0
    }

    pub(crate) fn u32(&mut self) -> u32 {
        0xfe00_0000 | u32::try_from(self.u64() & 0xff_ffff).unwrap()
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::try_from(self.u64() & 0xffff).unwrap()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::try_from(self.u64() & 0xff).unwrap()
    }
}

pub(crate) fn regs() -> Regs {
    let mut c = Counter::default();
    Regs {
        rax: c.u64(),
        rbx: c.u64(),
        rcx: c.u64(),
        rdx: c.u64(),
        rsi: c.u64(),
        rdi: c.u64(),
        rsp: c.u64(),
        rbp: c.u64(),
        r8: c.u64(),
        r9: c.u64(),
        r10: c.u64(),
        r11: c.u64(),
        r12: c.u64(),
        r13: c.u64(),
        r14: c.u64(),
        r15: c.u64(),
        rip: c.u64(),
        rflags: c.u64(),
    }
}

fn segment(c: &mut Counter) -> Segment {
    Segment {
        base: c.u64(),
        limit: c.u32(),
        selector: c.u16(),
        kind: c.u8() & 0xf,
        present: true,
        dpl: c.u8() & 3,
        db: false,
        s: true,
        l: false,
        g: true,
        avl: false,
        unusable: true,
    }
}

pub(crate) fn sregs() -> Sregs {
    let mut c = Counter::default();
    Sregs {
        cs: segment(&mut c),
        ds: segment(&mut c),
        es: segment(&mut c),
        fs: segment(&mut c),
        gs: segment(&mut c),
        ss: segment(&mut c),
        tr: segment(&mut c),
        ldt: segment(&mut c),
        gdt: DescriptorTable { base: c.u64(), limit: c.u16() },
        idt: DescriptorTable { base: c.u64(), limit: c.u16() },
        cr0: c.u64(),
        cr2: c.u64(),
        cr3: c.u64(),
        cr4: c.u64(),
        cr8: c.u64(),
        efer: c.u64(),
        apic_base: c.u64(),
        flags: 1,
        pdptrs: [c.u64(), c.u64(), c.u64(), c.u64()],
    }
}

pub(crate) fn events() -> VcpuEvents {
    VcpuEvents {
        exception: Exception {
            injected: true,
            vector: 14,
            has_error_code: true,
            pending: false,
            error_code: 6,
        },
        interrupt: Interrupt { injected: false, vector: 0x31, soft: true, shadow: 2 },
        nmi: Nmi { injected: true, pending: 2, masked: true },
        sipi_vector: 0x9a,
        flags: 0x3f,
        smi: Smi { smm: false, pending: true, inside_nmi: false, latched_init: true },
        triple_fault_pending: true,
        exception_has_payload: true,
        exception_payload: 0xdead_0000,
    }
}

pub(crate) fn mp_state() -> MpState {
    MpState { mp_state: 3 }
}

pub(crate) fn xcrs() -> Xcrs {
    Xcrs { flags: 1, xcrs: vec![Xcr { xcr: 0, value: 7 }, Xcr { xcr: 1, value: 0x2_0000 }] }
}

pub(crate) fn xsave() -> Xsave {
    Xsave { region: (0..600_u32).map(|i| u8::try_from(i % 251).unwrap()).collect() }
}

pub(crate) fn lapic() -> Lapic {
    let mut regs = [0; LAPIC_BYTES];
    for (byte, i) in regs.iter_mut().zip(0_u32..) {
        *byte = u8::try_from(i % 249).unwrap();
    }
    Lapic { regs }
}

pub(crate) fn debug_regs() -> DebugRegs {
    let mut c = Counter::default();
    DebugRegs { db: [c.u64(), c.u64(), c.u64(), c.u64()], dr6: c.u64(), dr7: c.u64(), flags: c.u64() }
}

pub(crate) fn msrs() -> Msrs {
    let mut c = Counter::default();
    Msrs { values: [0x10, 0x174, 0x6e0, 0xc000_0080, 0xc000_0102].map(|index| (index, c.u64())).into() }
}

pub(crate) fn tsc_frequency() -> TscFrequency {
    TscFrequency { khz: 2_900_000 }
}

pub(crate) fn tsc_offset() -> TscOffset {
    TscOffset { from_first: 0xffff_ffff_ffff_fc18 }
}

/// VMX operation without a current VMCS: a header alone, with `vmxon_pa`.
pub(crate) fn nested() -> Nested {
    let mut data = vec![0; 128];
    data[0] = 0x08;
    data[4] = 128;
    data[9] = 0x30;
    data[16..24].fill(0xff);
    Nested::from_bytes(data).unwrap()
}

fn pit_channel(c: &mut Counter) -> PitChannel {
    PitChannel {
        count: c.u32(),
        latched_count: c.u16(),
        count_latched: c.u8(),
        status_latched: c.u8(),
        status: c.u8(),
        read_state: c.u8(),
        write_state: c.u8(),
        write_latch: c.u8(),
        rw_mode: c.u8(),
        mode: c.u8(),
        bcd: c.u8(),
        gate: c.u8(),
    }
}

pub(crate) fn pit() -> Pit {
    let mut c = Counter::default();
    let mut channels = [PitChannel::default(); PIT_CHANNELS];
    channels.fill_with(|| pit_channel(&mut c));
    Pit { channels, flags: 2 }
}

fn pic(c: &mut Counter) -> Pic {
    Pic {
        last_irr: c.u8(),
        irr: c.u8(),
        imr: c.u8(),
        isr: c.u8(),
        priority_add: c.u8(),
        irq_base: c.u8(),
        read_reg_select: c.u8(),
        poll: c.u8(),
        special_mask: c.u8(),
        init_state: c.u8(),
        auto_eoi: c.u8(),
        rotate_on_auto_eoi: c.u8(),
        special_fully_nested_mode: c.u8(),
        init4: c.u8(),
        elcr: c.u8(),
        elcr_mask: c.u8(),
    }
}

pub(crate) fn irqchip() -> Irqchip {
    let mut c = Counter::default();
    let (pic_master, pic_slave) = (pic(&mut c), pic(&mut c));
    let mut redirection = [0; IOAPIC_PINS];
    redirection.fill_with(|| c.u64());
    let ioapic =
        IoApic { base_address: 0xfec0_0000, ioregsel: c.u32(), id: c.u32(), irr: c.u32(), redirection };
    Irqchip { pic_master, pic_slave, ioapic }
}

pub(crate) fn clock() -> Clock {
    let mut c = Counter::default();
    Clock { clock: c.u64(), flags: 14, realtime: c.u64(), host_tsc: c.u64() }
}

pub(crate) fn serial() -> Serial {
    let mut c = Counter::default();
    Serial {
        baud_divisor_low: c.u8(),
        baud_divisor_high: c.u8() + 1,
        interrupt_enable: c.u8() + 2,
        interrupt_identification: c.u8() + 3,
        line_control: c.u8() + 4,
        line_status: c.u8() + 5,
        modem_control: c.u8() + 6,
        modem_status: c.u8() + 7,
        scratch: c.u8() + 8,
        input: b"echo".to_vec(),
    }
}

/// The registers of a virtio device with so many queues.
fn transport(queues: usize) -> VirtioTransport {
    let mut c = Counter::default();
    let mut queue = |_| VirtioQueue {
        size_max: 256,
        size: 128,
        is_ready: true,
        descriptors: c.u64(),
        available: c.u64(),
        used: c.u64(),
        next_available: c.u16(),
        next_used: c.u16(),
    };
    let queues = (0..queues).map(&mut queue).collect();
    VirtioTransport {
        status: 15,
        offered_features: c.u64(),
        accepted_features: c.u64(),
        device_features_select: c.u32(),
        driver_features_select: c.u32(),
        queue_select: c.u32(),
        interrupts: 1,
        config_generation: c.u32(),
        queues,
    }
}

fn virtio() -> Vec<Section> {
    vec![
        section(&VirtioBlock { transport: transport(1), capacity_sectors: 0x1_0000 }),
        section(&VirtioNet { transport: transport(3), mac: [2, 3, 4, 5, 6, 7], status: 3 }),
        section(&VirtioEntropy { transport: transport(1) }),
        section(&VirtioConsole { transport: transport(2) }),
    ]
}

pub(crate) fn resources() -> Resources {
    let resource = |kind: &str, name: &str| ResourceName { kind: kind.to_owned(), name: name.to_owned() };
    Resources {
        released: vec![
            resource("file-lock", "/disks/web-1.lock"),
            resource("file-lock", "/disks/web-1-data.lock"),
        ],
    }
}

fn pause() -> Pause {
    Pause { guest_time: GuestTime::CatchesUp, realtime_ns: Counter::default().u64() }
}

pub(crate) fn registers() -> arm64::Registers {
    let mut c = Counter::default();
    let mut registers = arm64::Registers::default();
    // A vector, a word, an identity, a service's bitmap, and a vector of SVE.
    for (key, bytes) in [(0x10_0054, 16), (0x10_00d5, 4), (0x13_c000, 8), (0x16_0003, 8), (0x15_0020, 256)] {
        let value = (0..bytes).map(|_| c.u8()).collect();
        let id = RegisterId::from_key(key, bytes).unwrap();
        registers.set(id, arm64::RegisterValue::new(value).unwrap()).unwrap();
    }
    registers
}

fn arm64_parts() -> Vec<Section> {
    let mut c = Counter::default();
    let events = arm64::VcpuEvents { serror_pending: true, serror_has_esr: false, serror_esr: c.u64() };
    let words = |c: &mut Counter, numbers: [u32; 3]| numbers.map(|number| (number, c.u32())).into();
    vec![
        section(&arm64::MpState { mp_state: 5 }),
        section(&events),
        section(&registers()),
        section(&arm64::GicCpuInterface { values: [0xc230, 0xc664].map(|number| (number, c.u64())).into() }),
        section(&arm64::GicRedistributor { values: words(&mut c, [0, 0x14, 0x1_0100]) }),
        section(&arm64::GicLines { values: words(&mut c, [0, 32, 64]) }),
        section(&arm64::GicDistributor { values: words(&mut c, [0, 8, 0x6100]) }),
        section(&arm64::Counter { value: c.u64(), frequency_hz: 62_500_000 }),
        section(&arm64::GicIts { values: [0, 0x80, 0x100].map(|number| (number, c.u64())).into() }),
    ]
}

fn section<T: Part>(value: &T) -> Section {
    Section::of(value, 1, None).unwrap()
}

/// A section of every part.
pub(crate) fn all() -> Vec<Section> {
    let x86 = vec![
        section(&regs()),
        section(&sregs()),
        section(&events()),
        section(&mp_state()),
        section(&xcrs()),
        section(&xsave()),
        section(&lapic()),
        section(&debug_regs()),
        section(&nested()),
        section(&msrs()),
        section(&tsc_frequency()),
        section(&tsc_offset()),
        section(&irqchip()),
        section(&pit()),
        section(&clock()),
    ];
    [x86, arm64_parts(), vec![section(&serial())], virtio(), vec![section(&resources()), section(&pause())]]
        .concat()
}

/// Whether the numbers in this part's body are those of registers, so that any is known.
pub(crate) fn is_table(name: &str) -> bool {
    [
        Msrs::NAME,
        arm64::Registers::NAME,
        arm64::GicCpuInterface::NAME,
        arm64::GicRedistributor::NAME,
        arm64::GicLines::NAME,
        arm64::GicDistributor::NAME,
        arm64::GicIts::NAME,
    ]
    .contains(&name)
}
