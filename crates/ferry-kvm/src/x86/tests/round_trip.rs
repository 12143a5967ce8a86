//! What was set is captured, what was captured is restored.

use super::*;

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
    assert_eq!(msrs.values[&0x6e0], 1 << 62);
    for (msr, value) in SET_MSRS {
        assert_eq!(msrs.values.get(&msr), Some(&value), "MSR {msr:#x}");
    }
    assert_eq!(state.require::<Irqchip>(0).unwrap().ioapic.redirection[4], 0x0100_0000_0001_0031);

    let pit: Pit = state.require(0).unwrap();
    assert_eq!((pit.channels[0].count, pit.channels[2].write_latch, pit.flags), (11_932, 0x5a, 2));

    for name in KNOWN_SECTIONS {
        // Nested states are not everywhere, and vCPU 0 is not apart from itself.
        let Some(section) = state.section(name, 0).unwrap() else {
            assert!([Nested::NAME, TscOffset::NAME].contains(name), "{name}");
            continue;
        };
        if *name == Nested::NAME {
            continue;
        }
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

/// Older KVMs take such a TSC for an attempt to keep the new vCPU's own count.
#[test]
fn a_guest_younger_than_a_second_keeps_its_time() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, 1).capture();
    let count = |fresh: &Fresh| {
        msrs::read(&fresh.vcpus[0], 0, &[IA32_TSC]).unwrap().0.values.get(&IA32_TSC).copied().unwrap()
    };
    let fresh = Fresh::new(&kvm, 1);
    set_msr(&fresh.vcpus[0], IA32_TSC, 1 << 50);
    if count(&fresh) < 1 << 50 {
        println!("skipped: this KVM lets guests see the host's own TSC");
        return;
    }
    let target = Fresh::new(&kvm, 1);
    // Half a second, more than the new vCPU has counted by itself.
    let age = u64::from(target.vcpus[0].get_tsc_khz().unwrap()) * 500;
    let mut msrs: Msrs = state.require(0).unwrap();
    msrs.values.insert(IA32_TSC, age);
    target.restore(&replaced(&state, Section::of(&msrs, 0, None).unwrap())).unwrap();
    assert!(count(&target) >= age, "{} after {age}", count(&target));
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

#[test]
fn more_msrs_than_one_call_takes_are_read_in_several() {
    let Some(kvm) = kvm() else { return };
    let fresh = Fresh::new(&kvm, 1);
    for count in [255, 256, 257, 600] {
        let (read, refused) = msrs::read(&fresh.vcpus[0], 0, &vec![0x174; count]).unwrap();
        assert_eq!((read.values.len(), refused.len()), (1, 0), "{count} MSRs");
    }
}
