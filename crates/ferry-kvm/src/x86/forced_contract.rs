//! A contract, put into a fresh vCPU whatever of it is refused on the way, and read back: see [`Deviation`].

use std::fmt;

use ferry_contract::{Contract, CpuidEntry, Register};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_msr_entry};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::Deviation;
use crate::probe::x86::{cpuid_entry, cpuid_value};

/// Gives a fresh vCPU all of the contract that KVM takes.
pub fn force_contract(_: &VmFd, vcpu: &VcpuFd, index: u32, contract: &Contract) -> Vec<Deviation> {
    let mut found = Vec::new();
    let Contract::X86(contract) = contract else {
        let error = "it is for another kind of machine".to_owned();
        return vec![Deviation::Refused { what: "the contract".to_owned(), error }];
    };
    // A source that shows its guests what it is told has no other list.
    let reach = contract.kvm_cpuid.is_none();
    let khz = contract.tsc_frequency_khz;
    if vcpu.get_tsc_khz().ok() != Some(khz) {
        let set = vcpu.set_tsc_khz(khz);
        refused(&mut found, &format!("KVM_SET_TSC_KHZ {khz}"), set);
    }
    let told = contract.cpuid_of_vcpu(index, reach);
    let entries: Vec<_> = told.iter().map(cpuid_entry).collect();
    match CpuId::from_entries(&entries) {
        Ok(list) => refused(&mut found, "KVM_SET_CPUID2", vcpu.set_cpuid2(&list)),
        Err(error) => refused(&mut found, "KVM_SET_CPUID2", Err(format!("{error:?}"))),
    }
    if reach {
        found.extend(cpuid_changes(vcpu, &told));
    }
    for msr in contract.msrs_to_set() {
        found.extend(force_msr(vcpu, msr.index, msr.value));
    }
    found
}

fn refused<E: fmt::Display>(found: &mut Vec<Deviation>, what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        found.push(Deviation::Refused { what: what.to_owned(), error: error.to_string() });
    }
}

fn cpuid_changes(vcpu: &VcpuFd, told: &[CpuidEntry]) -> Vec<Deviation> {
    let kept = match vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES) {
        Ok(kept) => kept,
        Err(error) => {
            return vec![Deviation::Refused { what: "KVM_GET_CPUID2".to_owned(), error: error.to_string() }];
        }
    };
    let kept: Vec<CpuidEntry> = kept.as_slice().iter().map(cpuid_value).collect();
    let mut found = Vec::new();
    for set in told {
        let there = kept.iter().find(|entry| entry.key() == set.key()).copied().unwrap_or_default();
        for register in Register::ALL {
            let mask = !ferry_contract::run_time(set.leaf, set.subleaf, register);
            let [set_to, reads] = [set, &there].map(|entry| entry.register(register) & mask);
            if set_to != reads {
                found.push(Deviation::Changed {
                    what: format!("CPUID leaf {:#x} subleaf {:#x} {register}", set.leaf, set.subleaf),
                    set: format!("{set_to:#010x}"),
                    reads: format!("{reads:#010x}"),
                });
            }
        }
    }
    found
}

/// Sets one MSR and reads it back.
pub(super) fn force_msr(vcpu: &VcpuFd, index: u32, value: u64) -> Option<Deviation> {
    let what = format!("MSR {index:#x}");
    let refused = |error: String| Some(Deviation::Refused { what: what.clone(), error });
    let mut one =
        match kvm_bindings::Msrs::from_entries(&[kvm_msr_entry { index, data: value, ..Default::default() }])
        {
            Ok(one) => one,
            Err(error) => return refused(format!("{error:?}")),
        };
    match vcpu.set_msrs(&one) {
        Ok(1) => {}
        Ok(_) => return refused(format!("KVM_SET_MSRS does not take {value:#x}")),
        Err(error) => return refused(format!("KVM_SET_MSRS {value:#x}: {error}")),
    }
    match vcpu.get_msrs(&mut one) {
        Ok(1) => {}
        Ok(_) => return refused("KVM_GET_MSRS does not read it".to_owned()),
        Err(error) => return refused(format!("KVM_GET_MSRS: {error}")),
    }
    let reads = one.as_slice().first().map_or(0, |entry| entry.data);
    (reads != value).then(|| Deviation::Changed {
        what,
        set: format!("{value:#018x}"),
        reads: format!("{reads:#018x}"),
    })
}
