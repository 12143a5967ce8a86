//! Contracts on the real KVM of an arm64 host; skipped with a notice where there is none.

use ferry_contract::arm64::{RegisterId, RegisterValue, SystemRegister};
use ferry_contract::{
    Arm64Contract, BirthError, BirthRequest, Contract, Features, Profile, VcpuFeature, Wish, compare,
};
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 as VGIC_V3};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};

use crate::arm64::{apply_contract, force_contract, registers};
use crate::{ContractApplyError, judge_contract};

/// A VM with two vCPUs of which nothing is set, and the device of a GIC.
struct Bare {
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    _gic: DeviceFd,
}

impl Bare {
    fn new(kvm: &Kvm) -> Self {
        let vm = kvm.create_vm().unwrap();
        let vcpus = (0..2).map(|index| vm.create_vcpu(index).unwrap()).collect();
        let gic = vm.create_device(&mut kvm_create_device { type_: VGIC_V3, fd: 0, flags: 0 }).unwrap();
        Self { vm, vcpus, _gic: gic }
    }

    fn apply(&self, contract: &Contract, profile: &Profile) -> Result<(), ContractApplyError> {
        let mut vcpus = (0..).zip(&self.vcpus);
        vcpus.try_for_each(|(index, vcpu)| apply_contract(&self.vm, vcpu, index, contract, profile))
    }

    fn reads(&self, id: RegisterId) -> RegisterValue {
        registers::read(&self.vcpus[1], id).unwrap()
    }
}

fn host() -> Option<(Kvm, Profile)> {
    let kvm = crate::open().inspect_err(|error| println!("skipped: {error}")).ok()?;
    let profile = crate::probe::probe(&kvm).unwrap();
    Some((kvm, profile))
}

fn born(profile: &Profile, wishes: &[Wish]) -> Result<Contract, BirthError> {
    Contract::birth(profile, &BirthRequest { vcpus: 2, features: Features::Offered(wishes.to_vec()) })
}

fn arm64(contract: &Contract) -> Arm64Contract {
    let Contract::Arm64(contract) = contract else { panic!("{contract:?}") };
    Arm64Contract::clone(contract)
}

const PSCI_VERSION: u64 = 0x6030_0000_0014_0000;

#[test]
fn vcpus_are_what_the_contract_says_with_every_set_of_features() {
    let Some((kvm, profile)) = host() else { return };
    for wishes in [&[][..], &[Wish::Pmu], &[Wish::Sve], &[Wish::Pmu, Wish::Sve]] {
        let contract = match born(&profile, wishes) {
            Ok(contract) => contract,
            Err(BirthError::NotOffered(wish)) => {
                println!("skipped: this host has not {wish}, or not with {wishes:?}");
                continue;
            }
            Err(error) => panic!("{wishes:?}: {error}"),
        };
        let bare = Bare::new(&kvm);
        bare.apply(&contract, &profile).unwrap();
        let contract = arm64(&contract);
        assert!(contract.features.contains(&VcpuFeature::Psci02) && contract.registers.len() > 50);
        for id in registers::list(&bare.vcpus[1]).unwrap() {
            if let Some(value) = contract.registers.get(&id) {
                assert_eq!(bare.reads(id), *value, "{id}");
            }
        }
    }
}

#[test]
fn a_guest_of_an_older_psci_keeps_it_and_what_kvm_does_not_take_is_said() {
    let Some((kvm, profile)) = host() else { return };
    let mut contract = arm64(&born(&profile, &[]).unwrap());
    let psci = RegisterId::new(PSCI_VERSION).unwrap();
    contract.registers.insert(psci, 2.into());
    let older = Contract::from(contract.clone());
    let (kept, notices) = judge_contract(&older.to_bytes(), 2, &profile).unwrap();
    assert!(kept == older && notices.is_empty(), "{notices:?}");
    let bare = Bare::new(&kvm);
    bare.apply(&older, &profile).unwrap();
    assert_eq!(bare.reads(psci), 2.into());

    contract.registers.insert(psci, 0x7_0000.into());
    let newer = Contract::from(contract);
    let refused = compare(&newer, &profile);
    assert!(refused.is_refusal() && refused.findings[0].subject == "KVM_REG_ARM_PSCI_VERSION", "{refused:?}");
    let error = Bare::new(&kvm).apply(&newer, &profile).unwrap_err();
    assert!(error.to_string().contains("KVM_REG_ARM_PSCI_VERSION"), "{error}");
    assert!(error.to_finding().is_bounded());
    let bare = Bare::new(&kvm);
    let found = force_contract(&bare.vm, &bare.vcpus[0], 0, &newer);
    assert!(found.iter().any(|it| it.to_string().contains("PSCI")), "{found:?}");
}

#[test]
fn a_feature_that_can_be_lowered_is_and_another_processor_is_refused() {
    let Some((kvm, profile)) = host() else { return };
    let contract = arm64(&born(&profile, &[]).unwrap());
    let Profile::Arm64(arm64) = &profile else { panic!("another") };
    let set = arm64.feature_sets.iter().find(|set| set.features == contract.features).unwrap();
    // One field at a time, of each register that says features.
    let mut lowered = 0;
    for register in &set.registers {
        let Some(value) = contract.registers.get(&register.id).and_then(RegisterValue::number) else {
            continue;
        };
        let system = matches!(register.id.kind(), ferry_contract::arm64::RegisterKind::System(_));
        let places = register.lowering.as_ref().filter(|_| system).map_or(&[][..], |tries| &tries.taken);
        // KVM works KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2 out from SSBS (`get_kernel_wa_level` in hypercalls.c).
        let is_ssbs = |place: u32| register.id.name() == "ID_AA64PFR1_EL1" && place == 4;
        for place in places.iter().filter(|place| *place % 4 == 0 && !is_ssbs(**place)) {
            let mut less = contract.clone();
            less.registers.insert(register.id, (value - (1 << place)).into());
            let less = Contract::from(less);
            assert!(!compare(&less, &profile).is_refusal(), "{} at {place}", register.id);
            Bare::new(&kvm).apply(&less, &profile).unwrap();
            lowered += 1;
        }
    }
    println!("{lowered} fields lowered one by one");
    let mut other = contract;
    other.registers.insert(RegisterId::system(SystemRegister::MIDR_EL1), 0x410f_d4f0.into());
    let other = Contract::from(other);
    assert_eq!(compare(&other, &profile).findings[0].subject, "MIDR_EL1");
    assert!(Bare::new(&kvm).apply(&other, &profile).unwrap_err().to_string().contains("MIDR_EL1"));
}
