//! What every vCPU has, and the interrupt controller.

use ferry_contract::arm64::{RegisterId, RegisterValue, SystemRegister};
use ferry_state::arm64::{
    Counter, GicCpuInterface, GicDistributor, GicLines, GicRedistributor, MpState, Registers,
};
use ferry_state::{MachineState, Part, Section};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVMIO, kvm_mp_state};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::super::gic::{Affinity, GICD_IIDR, ICC_CTLR_EL1, MPIDR};
use super::super::registers::{self, PHYSICAL_COUNT, TIMER_COUNT};
use super::super::tables::Outcome;
use super::super::{Notice, restore};
use super::{Fresh, Like, core, kvm, part, same_registers, system};

/// What a guest has in its registers after a while: `x1`, `pc`, `v3`, `TTBR0_EL1`, `VBAR_EL1`, a breakpoint, and
/// both timers.
fn guests_registers() -> Vec<(RegisterId, RegisterValue)> {
    vec![
        (core(2, 8), 0x1122_3344_5566_7788.into()),
        (core(64, 8), 0x4008_0000.into()),
        (core(84 + 12, 16), RegisterValue::new((1..17).collect()).unwrap()),
        (system(0, 2, 0, 0), 0x4010_0000.into()),
        (system(0, 12, 0, 0), 0x4020_0000.into()),
        (RegisterId::system(SystemRegister::new(2, 0, 0, 0, 4)), 0x4000_1000.into()),
        (system(3, 14, 0, 2), 0x7000_0000_0000.into()),
        (system(3, 14, 3, 1), 1.into()),
    ]
}

/// Gives a machine something of its own in every part.
pub(super) fn set_everything(fresh: &Fresh) {
    let first = fresh.first();
    // With SVE there is no v3.
    for (id, value) in guests_registers().iter().filter(|(id, _)| registers::read(first, *id).is_ok()) {
        registers::write(first, *id, value).unwrap();
    }
    registers::write(first, TIMER_COUNT, &0x1234_0000_0000.into()).unwrap();
    fresh.vcpus.vcpus[1].set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    let affinity = Affinity::of(first).unwrap();
    let gic = &fresh.gic;
    // Groups on; interrupt 40 of group 1, enabled, pending, edge, priority 0x80, to vCPU 1.
    for (offset, value) in
        [(0x84, 0x100), (0x104, 0x100), (0x204, 0x100), (0x428, 0x80), (0xc08, 0x2_0000), (0x6140, 1), (0, 2)]
    {
        gic.set_distributor(offset, value).unwrap();
    }
    // The timer's interrupt 27 enabled, group 1, and an SGI pending.
    for (offset, value) in [(0x1_0080, 0x0800_0008), (0x1_0100, 0x0800_0008), (0x1_0200, 8)] {
        gic.set_redistributor(affinity, offset, value).unwrap();
    }
    let number = |crn, crm, op2| SystemRegister::new(3, 0, crn, crm, op2).bits().into();
    gic.set_cpu_interface(affinity, number(4, 6, 0), 0xf0).unwrap();
    gic.set_cpu_interface(affinity, number(12, 12, 7), 1).unwrap();
    gic.set_lines(affinity, 32, 0x200).unwrap();
}

#[test]
fn what_was_captured_is_there_in_another_machine() {
    let Some(kvm) = kvm() else { return };
    let mut source = Fresh::new(&kvm, &Like::default());
    set_everything(&source);
    let captured = source.capture();
    drop(source);

    let registers: Registers = part(&captured, 0);
    let needed = &captured.section(Registers::NAME, 0).unwrap().unwrap().needed;
    for (id, value) in guests_registers() {
        assert_eq!(registers.value(id), Some(&value), "{id}");
        assert!(needed.contains(&id.key()), "{id}");
    }
    assert!(!needed.contains(&system(0, 0, 4, 0).key()), "what the contract gives is as at creation");
    let lines: GicLines = part(&captured, 0);
    assert_eq!((lines.values[&0], lines.values[&32]), (0, 0x200));
    let distributor: GicDistributor = part(&captured, 0);
    assert_eq!((distributor.values[&0x204], distributor.values[&0x6140]), (0x100, 1));

    let mut target = Fresh::new(&kvm, &Like::default());
    target.restore(&captured).unwrap();
    let again = target.capture();
    for index in [0, 1] {
        assert_eq!(part::<MpState>(&again, index), part(&captured, index));
        assert_eq!(part::<GicRedistributor>(&again, index), part(&captured, index));
        assert_eq!(part::<GicCpuInterface>(&again, index), part(&captured, index));
        assert_eq!(part::<GicLines>(&again, index), part(&captured, index));
        same_registers(&again, &captured, index);
    }
    assert_eq!(part::<GicDistributor>(&again, 0), distributor);
    assert_eq!(part::<MpState>(&again, 1).mp_state, KVM_MP_STATE_RUNNABLE);
    // The counter went on from where it stood: not back, and no more than a minute.
    let (now, before): (Counter, Counter) = (part(&again, 0), part(&captured, 0));
    assert!(before.value >= 0x1234_0000_0000);
    assert!(now.value >= before.value && now.value - before.value < 60 * before.frequency_hz);
}

#[test]
fn interrupts_that_the_guest_switched_off_stay_off() {
    let Some(kvm) = kvm() else { return };
    let mut source = Fresh::new(&kvm, &Like::default());
    let affinity = Affinity::of(source.first()).unwrap();
    // KVM makes a vCPU with all 16 enabled.
    let enabled = |state: &MachineState| part::<GicRedistributor>(state, 0).values[&0x1_0100];
    assert_eq!(enabled(&source.capture()), 0xffff);
    source.gic.set_redistributor(affinity, 0x1_0100, 0x0800_00f0).unwrap();
    let captured = source.capture();
    assert_eq!(enabled(&captured), 0x0800_00f0);

    let mut target = Fresh::new(&kvm, &Like::default());
    // Something enabled and active there already, which the guest has not.
    target.gic.set_distributor(0x104, 0x300).unwrap();
    target.gic.set_distributor(0x304, 0x300).unwrap();
    target.restore(&captured).unwrap();
    let again = target.capture();
    assert_eq!(part::<GicRedistributor>(&again, 0), part(&captured, 0));
    assert_eq!(part::<GicDistributor>(&again, 0), part(&captured, 0));
}

/// Changes one number of a state's table.
fn alter(state: &mut MachineState, name: &str, number: u32, change: impl Fn(u32) -> u32, needed: bool) {
    let section = state.sections.iter_mut().find(|it| it.name == name && it.index == 0).unwrap();
    section.body = match name {
        GicCpuInterface::NAME => {
            let mut part: GicCpuInterface = section.read().unwrap();
            part.values
                .entry(number)
                .and_modify(|value| *value = change(u32::try_from(*value).unwrap()).into());
            Section::of(&part, 0, None).unwrap().body
        }
        GicRedistributor::NAME => {
            let mut part: GicRedistributor = section.read().unwrap();
            part.values.entry(number).and_modify(|value| *value = change(*value));
            Section::of(&part, 0, None).unwrap().body
        }
        _ => {
            let mut part: GicDistributor = section.read().unwrap();
            part.values.entry(number).and_modify(|value| *value = change(*value));
            Section::of(&part, 0, None).unwrap().body
        }
    };
    if needed {
        section.needed.push(number);
        section.needed.sort_unstable();
        section.needed.dedup();
    }
}

#[test]
fn another_interrupt_controller_is_refused_and_force_says_all_of_it() {
    let Some(kvm) = kvm() else { return };
    let fresh = || Fresh::new(&kvm, &Like::default());
    let plain = fresh().capture();
    let control = ICC_CTLR_EL1;
    // Another product, and more bits of priority than any GIC has: needed though not marked so.
    for (name, number, bit) in
        [(GicDistributor::NAME, GICD_IIDR, 0x100_0000), (GicCpuInterface::NAME, control, 0x700)]
    {
        let mut state = plain.clone();
        alter(&mut state, name, number, |value| if bit == 0x700 { value | bit } else { value ^ bit }, false);
        let text = format!("{:?}", fresh().restore(&state).unwrap_err());
        assert!(text.contains("KVM_SET_DEVICE_ATTR") && text.contains(name), "{text}");
    }
    // What KVM takes and does not keep: GICR_WAKER reads as zero, and an edge of a vCPU's own cannot be had.
    let mut state = plain.clone();
    alter(&mut state, GicRedistributor::NAME, 0x14, |_| 2, false);
    fresh().restore(&state).unwrap();
    alter(&mut state, GicRedistributor::NAME, 0x14, |_| 2, true);
    alter(&mut state, GicRedistributor::NAME, 0x1_0c04, |value| value ^ 2, true);
    let text = format!("{:?}", fresh().restore(&state).unwrap_err());
    assert!(text.contains("GicNotKept") && text.contains("number: 20"), "{text}");
    let mut forced = fresh();
    let found = forced.state.force(&forced.vm, &mut forced.vcpus, &state).unwrap();
    let said = |what: &str| found.iter().any(|it| it.to_string().contains(what));
    assert!(said("gic_redistributor 0x14") && said("gic_redistributor 0x10c04"), "{found:?}");
}

#[test]
fn a_fresh_machine_needs_nothing_but_its_counter() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm, &Like::default()).capture();
    for section in &state.sections {
        let counts = |key: &u32| {
            section.name == Registers::NAME
                && [TIMER_COUNT.key(), PHYSICAL_COUNT.key(), system(3, 14, 2, 0).key()].contains(key)
        };
        let needed: Vec<&u32> = section.needed.iter().filter(|key| !counts(key)).collect();
        assert!(needed.is_empty() || section.name == Counter::NAME, "{} {needed:x?}", section.name);
    }
    assert_eq!(part::<MpState>(&state, 1).mp_state, KVM_MP_STATE_STOPPED);
}

#[test]
fn what_this_kvm_does_not_take_is_refused_by_its_name() {
    let Some(kvm) = kvm() else { return };
    let mut captured = Fresh::new(&kvm, &Like::default()).capture();
    let strange = RegisterId::from_key(0x16_0fff, 8).unwrap();
    let place = captured.sections.iter().position(|it| it.name == Registers::NAME && it.index == 0).unwrap();
    let mut registers: Registers = captured.sections[place].read().unwrap();
    registers.set(strange, 5.into()).unwrap();
    let body = Section::of(&registers, 0, None).unwrap().body;
    captured.sections[place].body = body;

    // Not needed: it is passed over.
    Fresh::new(&kvm, &Like::default()).restore(&captured).unwrap();
    captured.sections[place].needed.push(strange.key());
    captured.sections[place].needed.sort_unstable();
    let error = Fresh::new(&kvm, &Like::default()).restore(&captured).unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("NotGiven") && text.contains("KVM_REG_ARM_FW_FEAT_BMAP_REG(4095)"), "{text}");
}

#[test]
fn a_guest_of_an_earlier_revision_keeps_it_or_a_notice_says_so() {
    let Some(kvm) = kvm() else { return };
    let mut state = Fresh::new(&kvm, &Like::default()).capture();
    // Revision 2, as 5.10 has it.
    alter(&mut state, GicDistributor::NAME, GICD_IIDR, |value| value & !0xf000 | 0x2000, false);
    let wanted = part::<GicDistributor>(&state, 0).values[&GICD_IIDR];
    let target = Fresh::new(&kvm, &Like::default());
    let mut outcome = Outcome::default();
    restore::distributor(&target.gic, &state, &mut outcome).unwrap();
    assert!(outcome.refused.is_empty(), "{outcome:?}");
    let reads = target.gic.distributor().unwrap().values[&GICD_IIDR];
    let notice = Notice::GicRevision { value: wanted.into(), reads: reads.into() };
    println!("{wanted:#x} reads {reads:#x}");
    assert_eq!(outcome.notices.contains(&notice), reads != wanted, "{outcome:?}");
}

#[test]
fn a_vcpu_of_another_number_is_refused() {
    let Some(kvm) = kvm() else { return };
    let mut captured = Fresh::new(&kvm, &Like::default()).capture();
    let section =
        captured.sections.iter_mut().find(|it| it.name == Registers::NAME && it.index == 1).unwrap();
    let mut registers: Registers = section.read().unwrap();
    registers.set(MPIDR, 0x8000_0100.into()).unwrap();
    section.body = Section::of(&registers, 1, None).unwrap().body;
    assert!(!section.needs(MPIDR.key()));
    let text = format!("{:?}", Fresh::new(&kvm, &Like::default()).restore(&captured).unwrap_err());
    assert!(text.contains("NotGiven") && text.contains("MPIDR_EL1"), "{text}");
}

ioctl_iow_nr!(KVM_ARM_SET_COUNTER_OFFSET, KVMIO, 0xb5, [u64; 2]);

#[test]
fn a_counter_that_takes_no_write_is_refused() {
    let Some(kvm) = kvm() else { return };
    let captured = Fresh::new(&kvm, &Like::default()).capture();
    let mut target = Fresh::new(&kvm, &Like::default());
    // SAFETY: KVM reads two words through the pointer, which are there.
    let result = unsafe { ioctl_with_ref(&target.vm, KVM_ARM_SET_COUNTER_OFFSET(), &[0x1_0000_0000_u64, 0]) };
    if result < 0 {
        println!("skipped: this KVM has no offset for a whole VM");
        return;
    }
    let text = format!("{:?}", target.restore(&captured).unwrap_err());
    assert!(text.contains("CounterNotKept"), "{text}");
}

#[test]
fn a_counter_of_another_frequency_is_refused() {
    let Some(kvm) = kvm() else { return };
    let mut captured = Fresh::new(&kvm, &Like::default()).capture();
    let place = captured.sections.iter().position(|section| section.name == Counter::NAME).unwrap();
    let mut counter: Counter = captured.sections[place].read().unwrap();
    counter.frequency_hz += 1;
    captured.sections[place] = Section::of(&counter, 0, None).unwrap();
    let text = format!("{:?}", Fresh::new(&kvm, &Like::default()).restore(&captured).unwrap_err());
    assert!(text.contains("CounterFrequency"), "{text}");
}
