//! States that cannot be are refused with the reason; what the guest does not need is skipped.

use super::*;

#[test]
fn special_registers_that_cannot_be_are_refused_by_name() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let mut sregs: Sregs = state.require(0).unwrap();
    sregs.cr4 = 1 << 40; // reserved: paging without protection passes on older kernels
    let bad = replaced(&state, Section::of(&sregs, 0, None).unwrap());
    let error = Fresh::new(&kvm, 1).restore(&bad).unwrap_err();
    assert!(matches!(error, StateIoError::Ioctl { section: "x86.sregs", index: 0, .. }), "{error}");
    assert!(error.to_string().contains("CR4 0x10000000000"), "{error}");

    // The same in a section in which nothing is needed: noted, and the rest goes on.
    let unneeded = Section { needed: vec![], ..Section::of(&sregs, 0, None).unwrap() };
    let skipped = Fresh::new(&kvm, 1).restore(&replaced(&state, unneeded)).unwrap();
    assert_eq!(skipped, [Notice::SectionSkipped { section: "x86.sregs", index: 0 }]);
}

#[test]
fn an_msr_that_does_not_exist_is_refused_if_needed_and_else_skipped() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let mut msrs: Msrs = state.require(0).unwrap();
    msrs.values.insert(0x13, 0xbad); // no such MSR on any processor
    msrs.values.insert(0xc000_0102, 0x7777);
    let mut section = Section::of(&msrs, 0, None).unwrap();

    let refused = Fresh::new(&kvm, 1).restore(&replaced(&state, section.clone())).unwrap_err();
    assert!(matches!(refused, StateIoError::MsrRefused { index: 0, msr: 0x13, value: 0xbad }), "{refused}");
    assert!(refused.to_string().contains("0x13"), "{refused}");

    section.needed = vec![0xc000_0102];
    let target = Fresh::new(&kvm, 1);
    let skipped = target.restore(&replaced(&state, section)).unwrap();
    assert_eq!(skipped, [Notice::MsrSkipped { index: 0, msr: 0x13, value: 0xbad }]);
    let (read, _) = msrs::read(&target.vcpus[0], 0, &[0xc000_0102]).unwrap();
    assert_eq!(read.values[&0xc000_0102], 0x7777, "the MSRs after the skipped one are set");
}

/// `kvm_pvm` takes some MSRs and drops their values; other hosts may have none like that.
#[test]
fn an_msr_that_is_taken_and_not_kept_is_refused() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let probe = Fresh::new(&kvm, 1);
    let dropped = [0x122, 0x48, 0xc001_0117, 0xc001_011f].into_iter().find(|msr| {
        let entry = kvm_bindings::kvm_msr_entry { index: *msr, data: 1, reserved: 0 };
        let taken = probe.vcpus[0].set_msrs(&kvm_bindings::Msrs::from_entries(&[entry]).unwrap());
        let (reads, _) = msrs::read(&probe.vcpus[0], 0, &[*msr]).unwrap();
        taken == Ok(1) && reads.values.get(msr) == Some(&0)
    });
    let Some(msr) = dropped else {
        println!("skipped: this KVM keeps every MSR that it takes");
        return;
    };
    let mut msrs: Msrs = state.require(0).unwrap();
    msrs.values.insert(msr, 1);
    let section = Section { needed: vec![msr], ..Section::of(&msrs, 0, None).unwrap() };
    let refused = Fresh::new(&kvm, 1).restore(&replaced(&state, section)).unwrap_err();
    assert!(
        matches!(refused, StateIoError::MsrNotKept { index: 0, msr: m, value: 1, reads: 0 } if m == msr),
        "{refused}"
    );
}

#[test]
fn a_tsc_far_from_what_was_set_is_noticed() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let mut msrs: Msrs = state.require(0).unwrap();
    msrs.values.insert(IA32_TSC, 1 << 60);
    let target = Fresh::new(&kvm, 1);
    let section = Section { needed: vec![IA32_TSC], ..Section::of(&msrs, 0, None).unwrap() };
    let notices = target.restore(&replaced(&state, section)).unwrap();
    let (reads, _) = msrs::read(&target.vcpus[0], 0, &[IA32_TSC]).unwrap();
    let kept = reads.values[&IA32_TSC] >= 1 << 60;
    assert_eq!(notices.is_empty(), kept, "{notices:?} {reads:?}");
}

#[test]
fn events_that_kvm_would_pass_over_are_refused() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let mut events: VcpuEvents = state.require(0).unwrap();
    events.exception.pending = true;
    events.exception.vector = 13;
    events.flags &= !KVM_VCPUEVENT_VALID_PAYLOAD;
    let section = Section::of(&events, 0, None).unwrap();
    let refused = Fresh::new(&kvm, 1).restore(&replaced(&state, section)).unwrap_err();
    assert!(matches!(refused, StateIoError::EventsNotKept { index: 0, .. }), "{refused}");
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
        let optional = [TscFrequency::NAME, Xcrs::NAME, Nested::NAME, TscOffset::NAME].contains(name);
        match Fresh::new(&kvm, 1).restore(&partial) {
            Ok(_) => assert!(optional, "a state without {name} was taken"),
            Err(StateIoError::State(StateError::MissingSection { section, .. })) => {
                assert_eq!(section, *name);
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
        Section { name: "x86.unheard_of".into(), index: 0, needed: vec![1], body: vec![0xa1, 1, 1] };
    unknown.sections.push(section);
    let refused = Fresh::new(&kvm, 1).restore(&unknown).unwrap_err();
    assert!(matches!(refused, StateIoError::State(StateError::UnknownNeededSection { .. })), "{refused}");
}

#[test]
fn a_vm_without_irqchip_and_a_state_with_one_do_not_meet() {
    let Some(kvm) = kvm() else { return };
    let mut with = Fresh::new(&kvm, 1).capture();
    let vm = kvm.create_vm().unwrap();
    let mut caps = X86Caps::prepare(&kvm, &vm).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    VcpuBaseline::capture(&vcpu, 0, &mut caps).unwrap();
    let without = capture_vcpu(&vcpu, 0, None, &caps, &mut FirstTsc::default()).unwrap();
    assert!(without.iter().all(|section| section.name != Lapic::NAME));

    for section in &mut with.sections {
        if section.name == Lapic::NAME {
            section.needed = vec![0];
        }
    }
    let refused = restore_vcpu(&vcpu, 0, &with, &caps, &mut FirstTsc::default()).unwrap_err();
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
        restore_vcpu(&vcpu, 0, state, &caps, &mut FirstTsc::default())
    };
    assert_eq!(plain(&quiet).unwrap(), []);
    let refused = plain(&pending).unwrap_err();
    assert!(matches!(refused, StateIoError::Ioctl { section: "x86.vcpu_events", .. }), "{refused}");
}

/// VMX operation without a current VMCS, as a source with VMX gives it.
fn vmx_operation() -> Nested {
    let mut header = vec![0; 128];
    header[4] = 128;
    header[9] = 0x10;
    header[16..24].fill(0xff);
    Nested::from_bytes(header).unwrap()
}

/// A vCPU of this KVM may have no VMX: its CPUID or KVM itself then refuses the state, and never passes
/// over it.
#[test]
fn a_nested_state_that_is_needed_is_never_dropped() {
    let Some(kvm) = kvm() else { return };
    let mut state = Fresh::new(&kvm, 1).capture();
    let fresh = Fresh::new(&kvm, 1);
    if fresh.caps.nested_bytes > 0 {
        println!("skipped: this KVM runs nested guests; the lab restores one");
        return;
    }
    assert!(state.section(Nested::NAME, 0).unwrap().is_none());
    state.sections.push(Section::of(&vmx_operation(), 0, None).unwrap());
    let refused = fresh.restore(&state).unwrap_err();
    assert!(
        matches!(
            refused,
            StateIoError::Lacking { capability: "KVM_CAP_NESTED_STATE", section: "x86.nested", index: 0 }
        ),
        "{refused}"
    );
    let section = state.sections.last_mut().unwrap();
    section.needed.clear();
    let notices = Fresh::new(&kvm, 1).restore(&state).unwrap();
    assert_eq!(notices, [Notice::SectionSkipped { section: "x86.nested", index: 0 }]);
}

#[test]
fn a_tsc_set_apart_needs_a_kvm_that_can_do_so() {
    let Some(kvm) = kvm() else { return };
    let mut target = Fresh::new(&kvm, 2);
    if !target.caps.tsc_offset {
        println!("skipped: this KVM has no attributes of vCPUs");
        return;
    }
    let state = Fresh::new(&kvm, 2).capture();
    let section = state.section(TscOffset::NAME, 1).unwrap().unwrap();
    assert!(section.needed.is_empty() && section.read::<TscOffset>().unwrap().from_first == 0);
    assert!(state.section(TscOffset::NAME, 0).unwrap().is_none());

    let apart = TscOffset { from_first: 5000 };
    let apart = replaced(&state, Section::of(&apart, 1, Some(&TscOffset::default())).unwrap());
    let notices = target.restore(&apart).unwrap();
    let again = target.capture().require::<TscOffset>(1).unwrap().from_first;
    let dropped = notices
        .iter()
        .any(|notice| matches!(notice, Notice::TscOffsetNotKept { index: 1, wanted: 5000, .. }));
    assert_eq!(dropped, again != 5000, "{notices:?}");

    target.caps.tsc_offset = false;
    let refused = target.restore(&apart).unwrap_err();
    assert!(
        matches!(refused, StateIoError::Lacking { section: "x86.tsc_offset", index: 1, .. }),
        "{refused}"
    );
    target.restore(&state).unwrap();
}
