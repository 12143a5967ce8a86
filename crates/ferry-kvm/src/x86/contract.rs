//! A guest's contract applied to a vCPU, with everything read back.
//!
//! A vCPU gets its contract right after its creation, before memory and before anything else is set:
//!
//! 1. the TSC's frequency, in which everything about time is counted;
//! 2. CPUID, which decides what registers and MSRs may hold;
//! 3. feature MSRs, which KVM takes only with the CPUID bits that show them.
//!
//! KVM takes CPUID that it cannot keep (Documentation/virt/kvm/api.rst, 4.20), and MSRs that it then
//! drops; so [`compare`](ferry_contract::compare) comes first and reading back last.

use ferry_contract::{Contract, CpuidEntry, FeatureMsr, Profile, Register, X86Contract, X86Profile};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;

use crate::ContractApplyError;
use crate::probe::x86 as probe;

/// Gives a vCPU what the contract says, and reads it back. The vCPU has run nothing yet; its index is
/// its APIC id.
pub fn apply_contract(
    _: &VmFd,
    vcpu: &VcpuFd,
    index: u32,
    contract: &Contract,
    profile: &Profile,
) -> Result<(), ContractApplyError> {
    let (Contract::X86(contract), Profile::X86(profile)) = (contract, profile) else {
        return Err(ContractApplyError::Kind { kind: contract.kind().to_owned() });
    };
    set_tsc_frequency(vcpu, contract.tsc_frequency_khz, profile)?;
    let reach = profile.probe_guest.cpuid_settings_reach;
    set_cpuid(vcpu, &contract.cpuid_of_vcpu(index, reach), if reach { None } else { Some(contract) })?;
    contract.msrs_to_set().try_for_each(|msr| set_msr(vcpu, msr))
}

fn set_tsc_frequency(vcpu: &VcpuFd, khz: u32, profile: &X86Profile) -> Result<(), ContractApplyError> {
    let refused = |ioctl| {
        move |source| ContractApplyError::Refused { ioctl, what: format!("a TSC of {khz} kHz"), source }
    };
    let reads = vcpu.get_tsc_khz().map_err(refused("KVM_GET_TSC_KHZ"))?;
    if reads == khz {
        return Ok(());
    }
    vcpu.set_tsc_khz(khz).map_err(refused("KVM_SET_TSC_KHZ"))?;
    let reads = vcpu.get_tsc_khz().map_err(refused("KVM_GET_TSC_KHZ"))?;
    // A processor scales in steps of its own.
    let tolerance = u64::from(khz) * u64::from(profile.tsc.tolerance_ppm) / 1_000_000;
    if u64::from(reads.abs_diff(khz)) > tolerance {
        let subject = "the TSC's frequency in kHz".to_owned();
        return Err(ContractApplyError::NotKept { subject, set: khz.to_string(), reads: reads.to_string() });
    }
    Ok(())
}

/// Sets CPUID and reads it back. `seen` is the contract where settings do not reach the guest: such a
/// KVM (`kvm_pvm`) reads back of a feature what the guest sees, or what it was told.
fn set_cpuid(
    vcpu: &VcpuFd,
    told: &[CpuidEntry],
    seen: Option<&X86Contract>,
) -> Result<(), ContractApplyError> {
    let refused =
        |ioctl| move |source| ContractApplyError::Refused { ioctl, what: "the CPUID".to_owned(), source };
    let entries: Vec<_> = told.iter().map(probe::cpuid_entry).collect();
    let list = CpuId::from_entries(&entries)
        .map_err(|_| refused("KVM_SET_CPUID2")(errno::Error::new(libc::E2BIG)))?;
    vcpu.set_cpuid2(&list).map_err(refused("KVM_SET_CPUID2"))?;
    let kept = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(refused("KVM_GET_CPUID2"))?;
    let kept: Vec<CpuidEntry> = kept.as_slice().iter().map(probe::cpuid_value).collect();
    for set in told {
        let reads = kept.iter().find(|entry| entry.key() == set.key()).copied().unwrap_or_default();
        for register in Register::ALL {
            // What the vCPU does decides these from here on.
            let mask = !ferry_contract::run_time(set.leaf, set.subleaf, register);
            let [set_to, reads] = [set, &reads].map(|entry| entry.register(register) & mask);
            let of_vm = mask & !ferry_contract::per_vcpu(set.leaf, set.subleaf, register);
            let unseen = seen.map_or(mask, |contract| {
                (contract.register(set.leaf, set.subleaf, register) ^ reads) & of_vm
            });
            if is_lost(set_to, reads, unseen) {
                return Err(ContractApplyError::NotKept {
                    subject: format!("CPUID leaf {:#x} subleaf {:#x} {register}", set.leaf, set.subleaf),
                    set: format!("{set_to:#x}"),
                    reads: format!("{reads:#x}"),
                });
            }
        }
    }
    Ok(())
}

/// Whether something was read back that was neither told nor is seen (`unseen` has the bits that the guest sees otherwise):
/// one host's `kvm_pvm` reads back the hardware's leaf 1 but for PCID, which the guest sees and KVM does not offer.
fn is_lost(told: u32, reads: u32, unseen: u32) -> bool {
    (told ^ reads) & unseen != 0
}

fn set_msr(vcpu: &VcpuFd, msr: FeatureMsr) -> Result<(), ContractApplyError> {
    let FeatureMsr { index, value } = msr;
    let refused = |ioctl| {
        move |source| ContractApplyError::Refused {
            ioctl,
            what: format!("value {value:#x} of feature MSR {index:#x}"),
            source,
        }
    };
    let entry = kvm_msr_entry { index, data: value, ..Default::default() };
    let mut msrs =
        Msrs::from_entries(&[entry]).map_err(|_| refused("KVM_SET_MSRS")(errno::Error::new(libc::ENOMEM)))?;
    let none = || errno::Error::new(libc::EINVAL);
    if vcpu.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))? != 1 {
        return Err(refused("KVM_SET_MSRS")(none()));
    }
    if vcpu.get_msrs(&mut msrs).map_err(refused("KVM_GET_MSRS"))? != 1 {
        return Err(refused("KVM_GET_MSRS")(none()));
    }
    let reads = msrs.as_slice().first().map_or(0, |entry| entry.data);
    if reads != value {
        return Err(ContractApplyError::NotKept {
            subject: format!("feature MSR {index:#x}"),
            set: format!("{value:#x}"),
            reads: format!("{reads:#x}"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge_contract;
    use ferry_contract::{BirthRequest, Features, Finding, Wish};

    fn born() -> Option<(kvm_ioctls::Kvm, Profile, Contract)> {
        let kvm = match crate::open() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let profile = crate::probe::probe(&kvm).unwrap();
        let request = BirthRequest { vcpus: 2, features: Features::Offered(Vec::new()) };
        let contract = Contract::birth(&profile, &request).unwrap();
        Some((kvm, profile, contract))
    }

    #[test]
    fn what_is_read_back_was_told_or_is_seen() {
        let (told, seen) = (0x8120_2000, 0xf7fa_3203);
        for (reads, lost) in
            [(told, false), (seen, false), (0xf7f8_3203, false), (seen | 1 << 18, true), (0, true)]
        {
            assert_eq!(is_lost(told, reads, seen ^ reads), lost, "{reads:#x}");
        }
        // Where what was told is what is seen, that alone will do.
        assert!(is_lost(told, seen, !0));
    }

    #[test]
    fn vcpus_get_what_the_contract_says_without_memory() {
        let Some((kvm, profile, contract)) = born() else { return };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        for index in 0..2 {
            let vcpu = vm.create_vcpu(index.into()).unwrap();
            apply_contract(&vm, &vcpu, index, &contract, &profile).unwrap();
            let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
            let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 1).unwrap();
            assert_eq!(leaf.ebx >> 24, index);
        }
    }

    #[test]
    fn a_guest_may_have_hyperv_before_kvms_own_leaves() {
        let Some((kvm, profile, _)) = born() else { return };
        let Profile::X86(x86) = &profile else { panic!("another") };
        let request = BirthRequest { vcpus: 1, features: Features::Offered(vec![Wish::Hyperv]) };
        if !x86.probe_guest.cpuid_settings_reach {
            println!("skipped: this KVM shows guests the hardware's CPUID");
            assert!(Contract::birth(&profile, &request).is_err());
            return;
        }
        let contract = Contract::birth(&profile, &request).unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        apply_contract(&vm, &vcpu, 0, &contract, &profile).unwrap();
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let signature = |leaf| {
            let entry = cpuid.as_slice().iter().find(|entry| entry.function == leaf).unwrap();
            [entry.ebx, entry.ecx, entry.edx].map(u32::to_le_bytes).concat()
        };
        assert_eq!(signature(0x4000_0000), b"Microsoft Hv");
        assert_eq!(signature(0x4000_0100), b"KVMKVMKVM\0\0\0");
    }

    #[test]
    fn an_offered_contract_is_judged() {
        let Some((_, profile, contract)) = born() else { return };
        let bytes = contract.to_bytes();
        assert_eq!(judge_contract(&bytes, 2, &profile).unwrap().0, contract);
        let subject = |result: Result<_, Vec<Finding>>| result.unwrap_err()[0].subject.clone();
        assert_eq!(subject(judge_contract(&bytes, 1, &profile)), "contract");
        assert_eq!(subject(judge_contract(&[], 2, &profile)), "contract");
        let (Contract::X86(mut slow), Profile::X86(profile_x86)) = (contract, &profile) else {
            panic!("another")
        };
        slow.tsc_frequency_khz /= 2;
        if !profile_x86.tsc.scales {
            let findings = judge_contract(&Contract::X86(slow).to_bytes(), 2, &profile).unwrap_err();
            assert!(findings.iter().any(|finding| finding.subject == "TSC frequency"), "{findings:?}");
        }
    }

    #[test]
    fn what_kvm_does_not_take_is_said() {
        let Some((kvm, profile, contract)) = born() else { return };
        let Contract::X86(mut contract) = contract else { panic!("another") };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        contract.feature_msrs = vec![FeatureMsr { index: 0x4d00_0000, value: 1 }];
        let contract = Contract::X86(contract);
        let error = apply_contract(&vm, &vcpu, 0, &contract, &profile).unwrap_err();
        assert!(error.to_string().contains("feature MSR 0x4d000000"), "{error}");
        assert!(error.to_finding().is_bounded());
    }
}
