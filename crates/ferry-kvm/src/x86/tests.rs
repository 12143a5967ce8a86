//! On the real `/dev/kvm`: what is captured is what was set, and what is restored is what was
//! captured. Without the device each test says so and passes.

use std::collections::BTreeMap;

use ferry_state::x86::{
    Clock, DebugRegs, Irqchip, KNOWN_SECTIONS, Lapic, MpState, Msrs, Regs, Sregs, TscFrequency, VcpuEvents,
    Xcrs, Xsave,
};
use ferry_state::{MachineState, Part, Section, StateError};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_mp_state,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::msrs::{self, IA32_TSC};
use super::*;

/// MSRs that a guest sets early and that every KVM lists or is known to have: SYSENTER, STAR, LSTAR,
/// KERNEL_GS_BASE, PAT, the default memory type, one fixed range, a machine check bank's control.
const SET_MSRS: [(u32, u64); 9] = [
    (0x174, 0x10),
    (0x175, 0xffff_8000_0000_1000),
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
        let vm_baseline = VmBaseline::capture(&vm).unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let vcpus: Vec<VcpuFd> = (0..vcpus).map(|index| vm.create_vcpu(index.into()).unwrap()).collect();
        let mut baselines = Vec::new();
        for (vcpu, index) in vcpus.iter().zip(0..) {
            vcpu.set_cpuid2(&cpuid).unwrap();
            baselines.push(VcpuBaseline::capture(vcpu, index, &mut caps).unwrap());
        }
        Self { vm, vcpus, caps, vm_baseline, baselines }
    }

    fn capture(&self) -> MachineState {
        let mut sections = Vec::new();
        for ((vcpu, baseline), index) in self.vcpus.iter().zip(&self.baselines).zip(0..) {
            sections.extend(capture_vcpu(vcpu, index, Some(baseline), &self.caps).unwrap());
        }
        sections.extend(capture_vm(&self.vm, Some(&self.vm_baseline)).unwrap());
        MachineState::from_sections(sections).unwrap()
    }

    fn restore(&self, state: &MachineState) -> Result<Vec<Skipped>, StateIoError> {
        check_sections(state, u32::try_from(self.vcpus.len()).unwrap())?;
        let mut skipped = Vec::new();
        for (vcpu, index) in self.vcpus.iter().zip(0..) {
            skipped.extend(restore_vcpu(vcpu, index, state, &self.caps)?);
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
    set_extended(vcpu);
    for (msr, value) in SET_MSRS {
        set_msr(vcpu, msr, value);
    }
    let mut lapic = vcpu.get_lapic().unwrap();
    // The spurious interrupt vector register (0xf0): enabled, vector 0xff.
    lapic.regs[0xf0] = -1;
    lapic.regs[0xf1] = 1;
    vcpu.set_lapic(&lapic).unwrap();
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
    let chips = MachineState::from_sections(vec![
        Section::of(&chips, 0, None).unwrap(),
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
fn set_extended(vcpu: &VcpuFd) {
    let mut xcrs = vcpu.get_xcrs().unwrap();
    xcrs.xcrs[0].value = 3;
    vcpu.set_xcrs(&xcrs).unwrap();
    let mut region = ioctls::xsave(vcpu, 4096, true).unwrap();
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
    if section.name != Msrs::NAME {
        return section.clone();
    }
    let mut msrs: Msrs = section.read().unwrap();
    msrs.values.insert(IA32_TSC, 0);
    Section { body: Section::of(&msrs, section.index, None).unwrap().body, ..section.clone() }
}

#[test]
fn a_restored_vm_holds_what_was_captured() {
    let Some(kvm) = kvm() else { return };
    let source = Fresh::new(&kvm, 1);
    set_everything(&source);
    let state = source.capture();
    let sent: Vec<Vec<u8>> = state.sections.iter().map(Section::to_bytes).collect();
    let received = sent.iter().map(|bytes| Section::from_bytes(bytes).unwrap()).collect();
    let received = MachineState::from_sections(received).unwrap();
    assert_eq!(received, state);

    let target = Fresh::new(&kvm, 1);
    assert_eq!(target.restore(&received).unwrap(), []);
    let again = target.capture();
    let names = |state: &MachineState| state.sections.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&again), names(&state));
    for (before, after) in state.sections.iter().zip(&again.sections) {
        if before.name == Clock::NAME {
            let (before, after): (Clock, Clock) = (before.read().unwrap(), after.read().unwrap());
            assert!(after.clock >= before.clock, "the clock went back: {before:?} {after:?}");
            assert!(after.clock - before.clock < 10_000_000_000, "the clock leapt: {before:?} {after:?}");
        } else {
            assert_eq!(without_time(after), without_time(before), "{}", before.name);
        }
    }
}

#[test]
fn every_part_that_was_set_is_captured_and_needed() {
    let Some(kvm) = kvm() else { return };
    let fresh = Fresh::new(&kvm, 1);
    set_everything(&fresh);
    let state = fresh.capture();

    assert_eq!(state.require::<Regs>(0).unwrap().r15, 0x2222);
    let sregs: Sregs = state.require(0).unwrap();
    assert!(sregs.cs.l && sregs.cs.dpl == 3 && sregs.efer == 0x501 && sregs.fs.base == 0x7000);
    let events: VcpuEvents = state.require(0).unwrap();
    assert!(events.exception.pending && events.exception.vector == 14 && events.nmi.masked);
    assert_eq!((events.exception_has_payload, events.exception_payload), (true, 0xdead_0000));
    assert_eq!(state.require::<MpState>(0).unwrap().mp_state, KVM_MP_STATE_HALTED);
    assert_eq!(state.require::<Xcrs>(0).unwrap().xcrs[0].value, 3);
    let xmm0 = state.require::<Xsave>(0).unwrap().region[160..168].to_vec();
    assert_eq!(xmm0, 0x0123_4567_89ab_cdef_u64.to_ne_bytes());
    assert_eq!(state.require::<Lapic>(0).unwrap().regs[0xf0], 0xff);
    assert_eq!(state.require::<DebugRegs>(0).unwrap().db[3], 0x4000);
    let msrs: Msrs = state.require(0).unwrap();
    for (msr, value) in SET_MSRS {
        assert_eq!(msrs.values.get(&msr), Some(&value), "MSR {msr:#x}");
    }
    assert_eq!(state.require::<Irqchip>(0).unwrap().ioapic.redirection[4], 0x0100_0000_0001_0031);

    for name in KNOWN_SECTIONS {
        let section = state.section(name, 0).unwrap().unwrap();
        assert!(!section.needed.is_empty(), "{name}");
    }
    let needed = &state.section(Msrs::NAME, 0).unwrap().unwrap().needed;
    for (msr, _) in SET_MSRS {
        assert!(needed.contains(&msr), "MSR {msr:#x}");
    }
    assert!(!needed.contains(&0xc000_0084), "an MSR that was not set is needed");
}

#[test]
fn a_fresh_vm_needs_nothing_but_its_time() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 2).capture();
    let needed: Vec<(&str, u32, &[u32])> = state
        .sections
        .iter()
        .filter(|section| !section.needed.is_empty())
        .map(|section| (section.name.as_str(), section.index, section.needed.as_slice()))
        .collect();
    let expected: [(&str, u32, &[u32]); 5] = [
        (Msrs::NAME, 0, &[IA32_TSC]),
        (TscFrequency::NAME, 0, &[0]),
        (Msrs::NAME, 1, &[IA32_TSC]),
        (TscFrequency::NAME, 1, &[0]),
        (Clock::NAME, 0, &[0]),
    ];
    assert_eq!(needed, expected);
}

#[test]
fn several_vcpus_keep_apart() {
    let Some(kvm) = kvm() else { return };
    let source = Fresh::new(&kvm, 2);
    for (vcpu, marker) in source.vcpus.iter().zip([7, 8]) {
        let mut regs = vcpu.get_regs().unwrap();
        regs.rbx = marker;
        vcpu.set_regs(&regs).unwrap();
    }
    let target = Fresh::new(&kvm, 2);
    target.restore(&source.capture()).unwrap();
    for (vcpu, marker) in target.vcpus.iter().zip([7, 8]) {
        assert_eq!(vcpu.get_regs().unwrap().rbx, marker);
    }
}

/// A captured state with one section replaced.
fn replaced(state: &MachineState, section: Section) -> MachineState {
    let mut sections = state.sections.clone();
    let place = sections.iter_mut().find(|s| s.name == section.name && s.index == section.index).unwrap();
    *place = section;
    MachineState { sections }
}

#[test]
fn special_registers_that_cannot_be_are_refused_by_name() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let mut sregs: Sregs = state.require(0).unwrap();
    sregs.cr0 = 0x8000_0000; // paging without protection
    let bad = replaced(&state, Section::of(&sregs, 0, None).unwrap());
    let error = Fresh::new(&kvm, 1).restore(&bad).unwrap_err();
    assert!(matches!(error, StateIoError::Ioctl { section: "x86.sregs", index: 0, .. }), "{error}");
    assert!(error.to_string().contains("CR0 0x80000000"), "{error}");

    // The same in a section in which nothing is needed: noted, and the rest goes on.
    let unneeded = Section { needed: vec![], ..Section::of(&sregs, 0, None).unwrap() };
    let skipped = Fresh::new(&kvm, 1).restore(&replaced(&state, unneeded)).unwrap();
    assert_eq!(skipped, [Skipped::Section { section: "x86.sregs", index: 0 }]);
}

#[test]
fn an_msr_that_does_not_exist_is_refused_if_needed_and_else_skipped() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let mut msrs: Msrs = state.require(0).unwrap();
    let mut first = BTreeMap::from([(0x13, 0xbad)]); // no such MSR on any processor
    first.append(&mut msrs.values);
    msrs.values = first;
    msrs.values.insert(0xc000_0102, 0x7777);
    let mut section = Section::of(&msrs, 0, None).unwrap();

    let refused = Fresh::new(&kvm, 1).restore(&replaced(&state, section.clone())).unwrap_err();
    assert!(matches!(refused, StateIoError::MsrRefused { index: 0, msr: 0x13, value: 0xbad }), "{refused}");
    assert!(refused.to_string().contains("0x13"), "{refused}");

    section.needed = vec![0xc000_0102];
    let target = Fresh::new(&kvm, 1);
    let skipped = target.restore(&replaced(&state, section)).unwrap();
    assert_eq!(skipped, [Skipped::Msr { index: 0, msr: 0x13, value: 0xbad }]);
    let (read, _) = msrs::read(&target.vcpus[0], 0, &[0xc000_0102]).unwrap();
    assert_eq!(read.values[&0xc000_0102], 0x7777, "the MSRs after the skipped one are set");
}

#[test]
fn xsave_areas_that_are_too_short_long_or_rich_are_refused() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let region: Vec<u8> = state.require::<Xsave>(0).unwrap().region;
    let restore = |region: Vec<u8>| {
        let section = Section::of(&Xsave { region }, 0, None).unwrap();
        Fresh::new(&kvm, 1).restore(&replaced(&state, section))
    };

    let short = restore(vec![0; 100]).unwrap_err();
    assert!(matches!(short, StateIoError::State(StateError::Invalid { .. })), "{short}");

    let mut long = region.clone();
    long.resize(20_000, 0);
    assert_eq!(restore(long.clone()).unwrap(), [], "zeroes behind what KVM takes hold nothing");
    long[19_999] = 1;
    let refused = restore(long).unwrap_err();
    assert!(matches!(refused, StateIoError::XsaveTooLong { length: 20_000, .. }), "{refused}");

    let mut rich = region;
    rich[519] = 0x40; // XSTATE_BV bit 62: no component
    let refused = restore(rich).unwrap_err();
    assert!(matches!(refused, StateIoError::Ioctl { section: "x86.xsave", .. }), "{refused}");
    assert!(refused.to_string().contains("0x40000000000000"), "{refused}");
}

#[test]
fn a_state_that_is_not_whole_or_holds_too_much_is_refused() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    for name in KNOWN_SECTIONS {
        let mut partial = state.clone();
        partial.sections.retain(|section| section.name != *name);
        let optional = [TscFrequency::NAME, Xcrs::NAME].contains(name);
        match Fresh::new(&kvm, 1).restore(&partial) {
            Ok(_) => assert!(optional, "a state without {name} was taken"),
            Err(StateIoError::State(StateError::MissingSection { section, .. })) => {
                assert_eq!(section, *name)
            }
            Err(StateIoError::NotInState { section, .. }) => assert_eq!(section, *name),
            Err(other) => panic!("without {name}: {other}"),
        }
    }

    let two = Fresh::new(&kvm, 2).capture();
    let refused = Fresh::new(&kvm, 1).restore(&two).unwrap_err();
    assert!(matches!(refused, StateIoError::NoSuchVcpu { index: 1, vcpus: 1, .. }), "{refused}");

    let mut unknown = state.clone();
    let section =
        Section { name: "x86.nested_state".into(), index: 0, needed: vec![1], body: vec![0xa1, 1, 1] };
    unknown.sections.push(section);
    let refused = Fresh::new(&kvm, 1).restore(&unknown).unwrap_err();
    assert!(matches!(refused, StateIoError::State(StateError::UnknownNeededSection { .. })), "{refused}");
}

#[test]
fn a_vm_without_irqchip_and_a_state_with_one_do_not_meet() {
    let Some(kvm) = kvm() else { return };
    let mut with = Fresh::new(&kvm, 1).capture();
    let vm = kvm.create_vm().unwrap();
    let caps = X86Caps::prepare(&kvm, &vm).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let without = capture_vcpu(&vcpu, 0, None, &caps).unwrap();
    assert!(without.iter().all(|section| section.name != Lapic::NAME));

    for section in &mut with.sections {
        if section.name == Lapic::NAME {
            section.needed = vec![0];
        }
    }
    let refused = restore_vcpu(&vcpu, 0, &with, &caps).unwrap_err();
    assert!(matches!(refused, StateIoError::Ioctl { section: "x86.lapic", .. }), "{refused}");
}

#[test]
fn events_of_a_kvm_with_more_flags_are_taken_when_they_say_nothing() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let mut events: VcpuEvents = state.require(0).unwrap();
    events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT | KVM_VCPUEVENT_VALID_PAYLOAD;
    let quiet = replaced(&state, Section::of(&events, 0, None).unwrap());
    events.triple_fault_pending = true;
    let pending = replaced(&state, Section::of(&events, 0, None).unwrap());

    // A VM without either capability, as on an older kernel.
    let plain = |state: &MachineState| {
        let vm = kvm.create_vm().unwrap();
        let mut caps = X86Caps::prepare(&kvm, &kvm.create_vm().unwrap()).unwrap();
        (caps.exception_payload, caps.triple_fault) = (false, false);
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
        VcpuBaseline::capture(&vcpu, 0, &mut caps).unwrap();
        restore_vcpu(&vcpu, 0, state, &caps)
    };
    assert_eq!(plain(&quiet).unwrap(), []);
    let refused = plain(&pending).unwrap_err();
    assert!(matches!(refused, StateIoError::Ioctl { section: "x86.vcpu_events", .. }), "{refused}");
}

#[test]
fn older_interfaces_give_the_same_state() {
    let Some(kvm) = kvm() else { return };
    let mut source = Fresh::new(&kvm, 1);
    set_everything(&source);
    let state = source.capture();
    source.caps.sregs2 = false;
    source.caps.xsave2 = false;
    let older = source.capture();
    for name in [Sregs::NAME, Xsave::NAME] {
        assert_eq!(older.section(name, 0).unwrap(), state.section(name, 0).unwrap());
    }
    let mut target = Fresh::new(&kvm, 1);
    target.caps.sregs2 = false;
    assert_eq!(target.restore(&state).unwrap(), []);

    let mut sregs: Sregs = state.require(0).unwrap();
    sregs.flags = 1;
    let with_pdptrs = replaced(&state, Section::of(&sregs, 0, None).unwrap());
    let refused = target.restore(&with_pdptrs).unwrap_err();
    assert!(matches!(refused, StateIoError::Lacking { section: "x86.sregs", .. }), "{refused}");
}
