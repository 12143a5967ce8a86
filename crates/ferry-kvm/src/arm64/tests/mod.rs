//! On the real KVM of an arm64 host: what is captured is what was set, and what is restored is what was
//! captured. Skipped with a notice where there is none.

mod contracts;
mod cost;
mod features;
mod its;
mod round_trip;
mod time;

use std::os::raw::c_int;
use std::sync::{Arc, Mutex};

use ferry_contract::VcpuFeature;
use ferry_contract::arm64::{RegisterId, SystemRegister};
use ferry_migrate::MachineError;
use ferry_state::arm64::Registers;
use ferry_state::{MachineState, Part};
use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_POWER_OFF,
    KVM_ARM_VCPU_SVE, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS as VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 as VGIC_V3, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuExit, VcpuFd, VmFd};

use super::{Gic, KvmState, attribute, registers};
use crate::{UseVcpu, Vcpus};

/// The interrupt that a vCPU's PMU raises, as most machines have it.
static PMU_INTERRUPT: u32 = 23;

/// Where guests have the ITS, and where devices write to it (`GITS_TRANSLATER`).
const ITS: u64 = 0x810_0000;
const DOORBELL: u32 = 0x811_0040;

/// vCPUs that run only as far as a test lets them.
struct Steps {
    vcpus: Vec<VcpuFd>,
    words: Arc<Mutex<Words>>,
}

/// What the first vCPU writes to a device.
#[derive(Debug, Default)]
struct Words {
    /// How many it may write the next time that it runs.
    wanted: usize,
    heard: Vec<u32>,
}

impl Vcpus for Steps {
    fn count(&self) -> u32 {
        u32::try_from(self.vcpus.len()).unwrap()
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        let mut words = self.words.lock().unwrap();
        for _ in 0..std::mem::take(&mut words.wanted) {
            match self.vcpus[0].run().unwrap() {
                VcpuExit::MmioWrite(_, word) => {
                    words.heard.push(u32::from_le_bytes(word.try_into().unwrap()));
                }
                other => panic!("{other:?}"),
            }
        }
        Ok(())
    }

    fn with_vcpu(&mut self, index: u32, use_vcpu: &mut UseVcpu<'_>) -> Result<(), MachineError> {
        use_vcpu(&self.vcpus[index as usize])
    }
}

/// What a machine is made with, beside two vCPUs and a `GICv3`.
#[derive(Debug, Clone, Default)]
struct Like {
    features: Vec<VcpuFeature>,
    /// The vector lengths that its vCPUs may have; all that the host has without.
    lengths: Option<u64>,
    its: bool,
}

/// vCPUs as a contract has them made, of which the second is powered off.
fn vcpus(vm: &VmFd, like: &Like) -> Steps {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).unwrap();
    let features = VcpuFeature::bits(&[&[VcpuFeature::Psci02], &like.features[..]].concat());
    let make = |index: u32| {
        let vcpu = vm.create_vcpu(index.into()).unwrap();
        init.features = [0; 7];
        init.features[0] = features | index << KVM_ARM_VCPU_POWER_OFF;
        vcpu.vcpu_init(&init).unwrap();
        if like.features.contains(&VcpuFeature::Sve) {
            if let Some(lengths) = like.lengths {
                features::set_lengths(&vcpu, lengths);
            }
            vcpu.vcpu_finalize(&c_int::try_from(KVM_ARM_VCPU_SVE).unwrap()).unwrap();
        }
        vcpu
    };
    Steps { vcpus: [0, 1].map(make).into(), words: Arc::default() }
}

fn place(device: &DeviceFd, which: u32, address: u64) {
    attribute::write(device, KVM_DEV_ARM_VGIC_GRP_ADDR, which.into(), address).unwrap();
}

fn initialise(device: &DeviceFd) {
    attribute::tell(device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into()).unwrap();
}

/// Its interrupt controller, with an ITS if wanted; and the device of the first.
fn gic(vm: &VmFd, like: &Like) -> (Gic, Arc<DeviceFd>) {
    let make = |type_| vm.create_device(&mut kvm_create_device { type_, fd: 0, flags: 0 }).unwrap();
    let device = make(VGIC_V3);
    place(&device, KVM_VGIC_V3_ADDR_TYPE_DIST, 0x800_0000);
    place(&device, KVM_VGIC_V3_ADDR_TYPE_REDIST, 0x80a_0000);
    let its = like.its.then(|| make(VGIC_ITS));
    initialise(&device);
    let device = Arc::new(device);
    let gic = Gic::new(Arc::clone(&device)).unwrap();
    let Some(its) = its else { return (gic, device) };
    place(&its, KVM_VGIC_ITS_ADDR_TYPE, ITS);
    initialise(&its);
    (gic.with_its(Arc::new(its)), device)
}

/// The interrupt of a vCPU's PMU, which is there once the interrupt controller is.
fn start_pmu(vcpu: &VcpuFd) {
    let addr = (&raw const PMU_INTERRUPT).expose_provenance() as u64;
    for (attr, addr) in [(KVM_ARM_VCPU_PMU_V3_IRQ, addr), (KVM_ARM_VCPU_PMU_V3_INIT, 0)] {
        let group = KVM_ARM_VCPU_PMU_V3_CTRL;
        vcpu.set_device_attr(&kvm_device_attr { group, attr: attr.into(), addr, flags: 0 }).unwrap();
    }
}

/// A machine that has not run, with its interrupt controller.
struct Fresh {
    vm: VmFd,
    vcpus: Steps,
    gic: Gic,
    device: Arc<DeviceFd>,
    state: KvmState,
}

impl Fresh {
    fn new(kvm: &Kvm, like: &Like) -> Self {
        let vm = kvm.create_vm().unwrap();
        let mut vcpus = vcpus(&vm, like);
        let (gic, device) = gic(&vm, like);
        if like.features.contains(&VcpuFeature::PmuV3) {
            vcpus.vcpus.iter().for_each(start_pmu);
        }
        let mut state = KvmState::at_creation(kvm, &vm, &mut vcpus).unwrap();
        state.use_gic(gic.clone(), &mut vcpus).unwrap();
        Self { vm, vcpus, gic, device, state }
    }

    fn first(&self) -> &VcpuFd {
        &self.vcpus.vcpus[0]
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

fn part<T: Part>(state: &MachineState, index: u32) -> T {
    state.require(index).unwrap()
}

/// Whether a vCPU's registers are the same in both, but for those that count.
fn same_registers(now: &MachineState, before: &MachineState, index: u32) {
    let (now, before): (Registers, Registers) = (part(now, index), part(before, index));
    for (id, value) in before.iter().filter(|(id, _)| !id.counts()) {
        assert_eq!(now.value(id), Some(value), "{id} of vCPU {index}");
    }
}
