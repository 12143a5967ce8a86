//! On the real KVM of an arm64 host: what is captured is what was set, and what is restored is what was
//! captured. Skipped with a notice where there is none.

use std::sync::Arc;

use ferry_contract::arm64::{RegisterId, RegisterValue, SystemRegister};
use ferry_migrate::MachineError;
use ferry_state::arm64::{
    Counter, GicCpuInterface, GicDistributor, GicLines, GicRedistributor, MpState, Registers,
};
use ferry_state::{MachineState, Part, Section};
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 as VGIC_V3, kvm_mp_state, kvm_vcpu_init,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::registers::{self, PHYSICAL_COUNT, TIMER_COUNT};
use super::{Gic, KvmState};
use crate::{UseVcpu, Vcpus};

/// vCPUs that never run.
struct Stopped(Vec<VcpuFd>);

impl Vcpus for Stopped {
    fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap()
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn with_vcpu(&mut self, index: u32, use_vcpu: &mut UseVcpu<'_>) -> Result<(), MachineError> {
        use_vcpu(&self.0[index as usize])
    }
}

/// A machine of two vCPUs, of which the second is powered off, with its interrupt controller.
struct Fresh {
    vm: VmFd,
    vcpus: Stopped,
    gic: Gic,
    state: KvmState,
}

impl Fresh {
    fn new(kvm: &Kvm) -> Self {
        let vm = kvm.create_vm().unwrap();
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).unwrap();
        let vcpus = (0..2_u32)
            .map(|index| {
                let vcpu = vm.create_vcpu(index.into()).unwrap();
                init.features = [0; 7];
                init.features[0] = 1 << KVM_ARM_VCPU_PSCI_0_2 | index << KVM_ARM_VCPU_POWER_OFF;
                vcpu.vcpu_init(&init).unwrap();
                vcpu
            })
            .collect();
        let device = vm.create_device(&mut kvm_create_device { type_: VGIC_V3, fd: 0, flags: 0 }).unwrap();
        let places =
            [(KVM_VGIC_V3_ADDR_TYPE_DIST, 0x800_0000_u64), (KVM_VGIC_V3_ADDR_TYPE_REDIST, 0x80a_0000)];
        for (which, address) in &places {
            let addr = (&raw const *address).expose_provenance() as u64;
            let group = KVM_DEV_ARM_VGIC_GRP_ADDR;
            device
                .set_device_attr(&kvm_device_attr { group, attr: (*which).into(), addr, flags: 0 })
                .unwrap();
        }
        let (group, attr) = (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into());
        device.set_device_attr(&kvm_device_attr { group, attr, addr: 0, flags: 0 }).unwrap();
        let (mut vcpus, gic) = (Stopped(vcpus), Gic::new(Arc::new(device)).unwrap());
        let mut state = KvmState::at_creation(kvm, &vm, &mut vcpus).unwrap();
        state.use_gic(gic.clone(), &mut vcpus).unwrap();
        Self { vm, vcpus, gic, state }
    }

    fn capture(&mut self) -> MachineState {
        self.state.capture(&self.vm, &mut self.vcpus).unwrap()
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.state.restore(&self.vm, &mut self.vcpus, state)
    }
}

fn kvm() -> Option<Kvm> {
    crate::open().inspect_err(|error| println!("skipped: {error}")).ok()
}

fn system(op1: u8, crn: u8, crm: u8, op2: u8) -> RegisterId {
    RegisterId::system(SystemRegister::new(3, op1, crn, crm, op2))
}

fn core(word: u32, bytes: usize) -> RegisterId {
    RegisterId::from_key(0x10_0000 | word, bytes).unwrap()
}

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
fn set_everything(fresh: &Fresh) {
    let first = &fresh.vcpus.0[0];
    for (id, value) in guests_registers() {
        registers::write(first, id, &value).unwrap();
    }
    registers::write(first, TIMER_COUNT, &0x1234_0000_0000.into()).unwrap();
    fresh.vcpus.0[1].set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    let affinity = super::gic::Affinity::of(first).unwrap();
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

fn part<T: Part>(state: &MachineState, index: u32) -> T {
    state.require(index).unwrap()
}

#[test]
fn what_was_captured_is_there_in_another_machine() {
    let Some(kvm) = kvm() else { return };
    let mut source = Fresh::new(&kvm);
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

    let mut target = Fresh::new(&kvm);
    target.restore(&captured).unwrap();
    let again = target.capture();
    for index in [0, 1] {
        assert_eq!(part::<MpState>(&again, index), part(&captured, index));
        assert_eq!(part::<GicRedistributor>(&again, index), part(&captured, index));
        assert_eq!(part::<GicCpuInterface>(&again, index), part(&captured, index));
        assert_eq!(part::<GicLines>(&again, index), part(&captured, index));
        let (now, before): (Registers, Registers) = (part(&again, index), part(&captured, index));
        for (id, value) in before.iter().filter(|(id, _)| !registers::counts_by_itself(*id)) {
            assert_eq!(now.value(id), Some(value), "{id} of vCPU {index}");
        }
    }
    assert_eq!(part::<GicDistributor>(&again, 0), distributor);
    assert_eq!(part::<MpState>(&again, 1).mp_state, KVM_MP_STATE_RUNNABLE);
    // The counter went on from where it stood: not back, and no more than a minute.
    let (now, before): (Counter, Counter) = (part(&again, 0), part(&captured, 0));
    assert!(before.value >= 0x1234_0000_0000);
    assert!(now.value >= before.value && now.value - before.value < 60 * before.frequency_hz);
}

#[test]
fn a_fresh_machine_needs_nothing_but_its_counter() {
    let Some(kvm) = kvm() else { return };
    let state = Fresh::new(&kvm).capture();
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
    let mut captured = Fresh::new(&kvm).capture();
    let strange = RegisterId::from_key(0x16_0fff, 8).unwrap();
    let place = captured.sections.iter().position(|it| it.name == Registers::NAME && it.index == 0).unwrap();
    let mut registers: Registers = captured.sections[place].read().unwrap();
    registers.set(strange, 5.into()).unwrap();
    let body = Section::of(&registers, 0, None).unwrap().body;
    captured.sections[place].body = body;

    // Not needed: it is passed over.
    Fresh::new(&kvm).restore(&captured).unwrap();
    captured.sections[place].needed.push(strange.key());
    captured.sections[place].needed.sort_unstable();
    let error = Fresh::new(&kvm).restore(&captured).unwrap_err();
    let text = format!("{error:?}");
    assert!(
        text.contains("RegisterRefused") && text.contains("KVM_REG_ARM_FW_FEAT_BMAP_REG(4095)"),
        "{text}"
    );
}

#[test]
fn a_counter_of_another_frequency_is_refused() {
    let Some(kvm) = kvm() else { return };
    let mut captured = Fresh::new(&kvm).capture();
    let place = captured.sections.iter().position(|section| section.name == Counter::NAME).unwrap();
    let mut counter: Counter = captured.sections[place].read().unwrap();
    counter.frequency_hz += 1;
    captured.sections[place] = Section::of(&counter, 0, None).unwrap();
    let text = format!("{:?}", Fresh::new(&kvm).restore(&captured).unwrap_err());
    assert!(text.contains("CounterFrequency"), "{text}");
}
