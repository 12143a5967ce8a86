//! On the real `/dev/kvm`: what is captured is what was set, and what is restored is what was
//! captured. Without the device each test says so and passes.

mod refusals;
mod round_trip;
mod time;

use ferry_state::x86::{
    Clock, DebugRegs, IA32_TSC, Irqchip, KNOWN_SECTIONS, Lapic, MpState, Msrs, Nested, Pit, Regs, Sregs,
    TscFrequency, TscOffset, VcpuEvents, Xcrs, Xsave,
};
use ferry_state::{MachineState, Part, Section, StateError};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_mp_state, kvm_pit_config,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::msrs;
use super::*;

/// MSRs that a guest sets early and that every KVM lists or is known to have: SYSENTER, STAR, LSTAR,
/// `KERNEL_GS_BASE`, PAT, the default memory type, one fixed range, a machine check bank's control.
const SET_MSRS: [(u32, u64); 9] = [
    (0x174, 0x10),
    (0x175, 0x8000_1000), // AMD's has 32 bits
    (0xc000_0081, 0x0023_0010_0000_0000),
    (0xc000_0082, 0xffff_8000_0000_2000),
    (0xc000_0102, 0xffff_8000_0000_3000),
    (0x277, 0x0007_0406_0007_0401),
    (0x2ff, 0xc06),
    (0x250, 0x0606_0606_0606_0606),
    (0x400, u64::MAX),
];

/// A VM with an irqchip and vCPUs that have just got their CPUID.
struct Fresh {
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    caps: X86Caps,
    vm_baseline: VmBaseline,
    baselines: Vec<VcpuBaseline>,
}

impl Fresh {
    fn new(kvm: &Kvm, vcpus: u32) -> Self {
        let vm = kvm.create_vm().unwrap();
        let mut caps = X86Caps::prepare(kvm, &vm).unwrap();
        vm.create_irq_chip().unwrap();
        vm.create_pit2(kvm_pit_config::default()).unwrap();
        let vm_baseline = VmBaseline::capture(&vm).unwrap();
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        // Every KVM here has the timer; the older say so by a capability only.
        let leaf = cpuid.as_mut_slice().iter_mut().find(|entry| entry.function == 1).unwrap();
        leaf.ecx |= 1 << 24;
        let vcpus: Vec<VcpuFd> = (0..vcpus).map(|index| vm.create_vcpu(index.into()).unwrap()).collect();
        let mut baselines = Vec::new();
        for (vcpu, index) in vcpus.iter().zip(0..) {
            vcpu.set_cpuid2(&cpuid).unwrap();
            baselines.push(VcpuBaseline::capture(vcpu, index, &mut caps).unwrap());
        }
        Self { vm, vcpus, caps, vm_baseline, baselines }
    }

    fn capture(&self) -> MachineState {
        let (mut sections, mut first) = (Vec::new(), FirstTsc::default());
        for ((vcpu, baseline), index) in self.vcpus.iter().zip(&self.baselines).zip(0..) {
            sections.extend(capture_vcpu(vcpu, index, Some(baseline), &self.caps, &mut first).unwrap());
        }
        sections.extend(capture_vm(&self.vm, Some(&self.vm_baseline)).unwrap());
        MachineState::from_sections(sections).unwrap()
    }

    fn restore(&self, state: &MachineState) -> Result<Vec<Notice>, StateIoError> {
        check_sections(state, u32::try_from(self.vcpus.len()).unwrap())?;
        let (mut skipped, mut first) = (Vec::new(), FirstTsc::default());
        for (vcpu, index) in self.vcpus.iter().zip(0..) {
            skipped.extend(restore_vcpu(vcpu, index, state, &self.caps, &mut first)?);
        }
        skipped.extend(restore_vm(&self.vm, state)?);
        Ok(skipped)
    }
}

fn kvm() -> Option<Kvm> {
    Kvm::new().inspect_err(|error| println!("skipped: /dev/kvm cannot be opened: {error}")).ok()
}

/// Gives a vCPU and its VM a value of their own in every part.
fn set_everything(fresh: &Fresh) {
    let vcpu = &fresh.vcpus[0];
    set_long_mode(vcpu);
    set_registers(vcpu);
    set_extended(vcpu, fresh.caps.xsave2);
    for (msr, value) in SET_MSRS {
        set_msr(vcpu, msr, value);
    }
    let mut lapic = vcpu.get_lapic().unwrap();
    // The spurious interrupt vector register (0xf0): enabled, vector 0xff.
    lapic.regs[0xf0] = -1;
    lapic.regs[0xf1] = 1;
    // The timer's register (0x320): vector 0xec, TSC deadline mode. The deadline goes into its MSR only
    // in this mode, so it shows whether the LAPIC is restored before it.
    lapic.regs[0x320] = 0xec_u8.cast_signed();
    lapic.regs[0x322] = 4;
    vcpu.set_lapic(&lapic).unwrap();
    set_msr(vcpu, 0x6e0, 1 << 62);
    let mut debug = vcpu.get_debug_regs().unwrap();
    debug.db = [0x1000, 0x2000, 0x3000, 0x4000];
    debug.dr7 = 0x455;
    vcpu.set_debug_regs(&debug).unwrap();
    let mut events = vcpu.get_vcpu_events().unwrap();
    events.exception.pending = 1;
    events.exception.nr = 14;
    events.exception.has_error_code = 1;
    events.exception.error_code = 6;
    events.exception_has_payload = 1;
    events.exception_payload = 0xdead_0000;
    events.nmi.masked = 1;
    events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    vcpu.set_vcpu_events(&events).unwrap();
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED }).unwrap();

    let mut chips = fresh.capture().require::<Irqchip>(0).unwrap();
    chips.pic_master.irq_base = 0x20;
    chips.pic_slave.imr = 0xfe;
    chips.ioapic.redirection[4] = 0x0100_0000_0001_0031;
    let mut pit = fresh.capture().require::<Pit>(0).unwrap();
    // The tick a hundred times a second (mode 2), and the speaker's channel half written.
    (pit.channels[0].count, pit.channels[0].mode, pit.channels[0].rw_mode) = (11_932, 2, 3);
    (pit.channels[2].mode, pit.channels[2].write_state, pit.channels[2].write_latch) = (3, 4, 0x5a);
    pit.flags = 2;
    let chips = MachineState::from_sections(vec![
        Section::of(&chips, 0, None).unwrap(),
        Section::of(&pit, 0, None).unwrap(),
        Section::of(&Clock { clock: 1_000_000_000_000, ..Clock::default() }, 0, None).unwrap(),
    ]);
    restore_vm(&fresh.vm, &chips.unwrap()).unwrap();
}

fn set_long_mode(vcpu: &VcpuFd) {
    let mut sregs = vcpu.get_sregs().unwrap();
    sregs.cs.l = 1;
    sregs.cs.selector = 0x33;
    sregs.cs.base = 0;
    sregs.cs.dpl = 3;
    sregs.ss.dpl = 3;
    sregs.fs.base = 0x7000;
    sregs.gdt.base = 0x5000;
    sregs.gdt.limit = 0x37;
    sregs.cr0 = 0x8000_0011;
    sregs.cr2 = 0x6000;
    sregs.cr3 = 0x1000;
    sregs.cr4 |= 0x20;
    sregs.efer = 0x501;
    vcpu.set_sregs(&sregs).unwrap();
}

fn set_registers(vcpu: &VcpuFd) {
    let mut regs = vcpu.get_regs().unwrap();
    regs.rax = 0x1111;
    regs.r15 = 0x2222;
    regs.rsp = 0x8000;
    regs.rip = 0x10_0000;
    regs.rflags = 0x3202;
    vcpu.set_regs(&regs).unwrap();
}

/// XCR0 with SSE, and a number in XMM0.
fn set_extended(vcpu: &VcpuFd, by_xsave2: bool) {
    let mut xcrs = vcpu.get_xcrs().unwrap();
    xcrs.xcrs[0].value = 3;
    vcpu.set_xcrs(&xcrs).unwrap();
    let mut region = ioctls::xsave(vcpu, 4096, by_xsave2).unwrap();
    region[160..168].copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_ne_bytes());
    region[512] |= 3;
    ioctls::set_xsave(vcpu, &region).unwrap();
}

fn set_msr(vcpu: &VcpuFd, msr: u32, value: u64) {
    let entry = kvm_bindings::kvm_msr_entry { index: msr, data: value, reserved: 0 };
    let one = kvm_bindings::Msrs::from_entries(&[entry]).unwrap();
    assert_eq!(vcpu.set_msrs(&one).unwrap(), 1, "MSR {msr:#x}");
}

/// Reads a section with the values blanked that count time by themselves.
fn without_time(section: &Section) -> Section {
    let settled = match section.name.as_str() {
        Msrs::NAME => {
            let mut msrs: Msrs = section.read().unwrap();
            for msr in [IA32_TSC, 0x4000_0010, 0x4000_0020] {
                msrs.values.insert(msr, 0);
            }
            Section::of(&msrs, section.index, None)
        }
        Irqchip::NAME => {
            // The PIT ticks: line 0 of the PIC, and line 2 of the IOAPIC, which it reaches as well.
            let mut chips: Irqchip = section.read().unwrap();
            (chips.pic_master.last_irr, chips.pic_master.irr) = (0, 0);
            chips.ioapic.irr = 0;
            Section::of(&chips, section.index, None)
        }
        _ => return section.clone(),
    };
    Section { body: settled.unwrap().body, ..section.clone() }
}

/// A captured state with one section replaced.
fn replaced(state: &MachineState, section: Section) -> MachineState {
    let mut sections = state.sections.clone();
    let place = sections.iter_mut().find(|s| s.name == section.name && s.index == section.index).unwrap();
    *place = section;
    MachineState { sections }
}
