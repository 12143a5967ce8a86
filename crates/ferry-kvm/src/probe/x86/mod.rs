//! The profile of an x86-64 host.

mod capabilities;
mod cpuid;
mod guest;
mod guest_code;
mod ioctls;
mod msrs;
mod processor;

#[cfg(test)]
mod tests;

pub(crate) use cpuid::{entry as cpuid_entry, value as cpuid_value};

use std::str::FromStr;

use ferry_contract::{Contract, Extra, Limits, Module, PROFILE_FORMAT, TscFacts, X86Profile};
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_MAX_VCPU_ID, KVM_CAP_MAX_VCPUS,
    KVM_CAP_NESTED_STATE, KVM_CAP_NR_VCPUS, KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TYPES, KVM_CAP_X2APIC_API,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT,
};
use kvm_ioctls::{Kvm, VmFd};

use super::capabilities::check;
use super::error::failed;
use super::{ProbeError, host};
use crate::x86::X86Caps;

/// `KVM_X2APIC_API_USE_32BIT_IDS` (linux/kvm.h).
const X2APIC_API_32_BIT_IDS: u64 = 1;

/// The highest APIC id without 32-bit ids: 0xff is the broadcast.
const XAPIC_ID_MAX: u32 = 0xfe;

/// All of it: little of it could be left out for one guest.
pub(super) fn probe_for(kvm: &Kvm, _: Option<&Contract>) -> Result<X86Profile, ProbeError> {
    probe(kvm)
}

/// Makes this x86-64 host's profile.
pub fn probe(kvm: &Kvm) -> Result<X86Profile, ProbeError> {
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM", "a VM to ask"))?;
    // What Ferry turns on in every VM is on when the rest is read.
    X86Caps::prepare(kvm, &vm)?;
    let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU", "a vCPU to ask"))?;
    let value = |capability: u32| check(&vm, capability);
    let cpuid = cpuid::facts(kvm, &vcpu)?;
    let modules = host::modules()?;
    let tolerance_ppm = parameter(&modules, "kvm", "tsc_tolerance_ppm").unwrap_or(TSC_TOLERANCE_PPM);
    let profile = X86Profile {
        format: PROFILE_FORMAT.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        kernel: host::kernel(),
        processor: processor::processor()?,
        kvm_api_version: u32::try_from(kvm.get_api_version()).unwrap_or(0),
        capabilities: super::capabilities::all(capabilities::CAPABILITIES, kvm, &vm),
        enabled_capabilities: [KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT]
            .into_iter()
            .filter(|capability| value(*capability) > 0)
            .collect(),
        xsave: cpuid::xsave(kvm, &vm, &cpuid.supported)?,
        msrs: msrs::facts(kvm)?,
        quirks: value(KVM_CAP_DISABLE_QUIRKS2),
        vm_types: value(KVM_CAP_VM_TYPES),
        nested_state_bytes: value(KVM_CAP_NESTED_STATE),
        tsc: TscFacts {
            frequency_khz: vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ", "the TSC's frequency"))?,
            scales: value(KVM_CAP_TSC_CONTROL) > 0,
            tolerance_ppm,
            extra: Extra::new(),
        },
        limits: limits(&vm),
        probe_guest: guest::run(kvm, &cpuid.supported)?,
        cpuid,
        modules,
        extra: Extra::new(),
    };
    profile.check().map_err(ProbeError::Sense)?;
    Ok(profile)
}

/// KVM's default where the parameter cannot be read (`tsc_tolerance_ppm` in arch/x86/kvm/x86.c).
const TSC_TOLERANCE_PPM: u32 = 250;

/// A module's parameter as a number.
fn parameter<T: FromStr>(modules: &[Module], module: &str, name: &str) -> Option<T> {
    modules.iter().find(|known| known.name == module)?.parameters.get(name)?.parse().ok()
}

fn limits(vm: &VmFd) -> Limits {
    let number = |capability: u32| u32::try_from(check(vm, capability)).unwrap_or(u32::MAX);
    // Documentation/virt/kvm/api.rst: without MAX_VCPUS it is NR_VCPUS, and 4 without that; without
    // MAX_VCPU_ID it is MAX_VCPUS.
    let or = |value: u32, other: u32| if value == 0 { other } else { value };
    let vcpus_recommended = or(number(KVM_CAP_NR_VCPUS), 4);
    let vcpus_max = or(number(KVM_CAP_MAX_VCPUS), vcpus_recommended);
    let vcpu_id_end = or(number(KVM_CAP_MAX_VCPU_ID), vcpus_max);
    let wide = check(vm, KVM_CAP_X2APIC_API) & X2APIC_API_32_BIT_IDS != 0;
    let apic_id_max = if wide { vcpu_id_end.saturating_sub(1) } else { XAPIC_ID_MAX };
    Limits { vcpus_recommended, vcpus_max, vcpu_id_end, apic_id_max, extra: Extra::new() }
}
