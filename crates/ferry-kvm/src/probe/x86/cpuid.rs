//! What KVM says of CPUID, and of extended state.
//!
//! Facts from Documentation/virt/kvm/api.rst, 4.46 (`KVM_GET_SUPPORTED_CPUID`), 4.88
//! (`KVM_GET_EMULATED_CPUID`), 4.118 (`KVM_GET_SUPPORTED_HV_CPUID`: on `/dev/kvm` with
//! `KVM_CAP_SYS_HYPERV_CPUID`, else on a vCPU), 4.42 (`KVM_GET_XSAVE2`); Intel SDM volume 1, 13.2.

use ferry_contract::{CpuidEntry, CpuidFacts, Extra, XsaveComponent, XsaveFacts};
use kvm_bindings::{
    CpuId, KVM_CAP_EXT_EMUL_CPUID, KVM_CAP_HYPERV_CPUID, KVM_CAP_SYS_ATTRIBUTES, KVM_CAP_SYS_HYPERV_CPUID,
    KVM_CAP_XSAVE2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::ioctls;
use crate::probe::ProbeError;
use crate::probe::error::failed;

pub(super) fn facts(kvm: &Kvm, vcpu: &VcpuFd) -> Result<CpuidFacts, ProbeError> {
    let has = |capability: u32| kvm.check_extension_raw(capability.into()) > 0;
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_SUPPORTED_CPUID", "the CPUID that it supports"))?;
    let emulated = if has(KVM_CAP_EXT_EMUL_CPUID) {
        let list = kvm
            .get_emulated_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_EMULATED_CPUID", "the CPUID that it emulates"))?;
        values(&list)
    } else {
        Vec::new()
    };
    let to_error = failed("KVM_GET_SUPPORTED_HV_CPUID", "Hyper-V's CPUID");
    let hyperv = if has(KVM_CAP_SYS_HYPERV_CPUID) {
        values(&ioctls::hyperv_cpuid(kvm).map_err(to_error)?)
    } else if has(KVM_CAP_HYPERV_CPUID) {
        values(&ioctls::hyperv_cpuid(vcpu).map_err(to_error)?)
    } else {
        Vec::new()
    };
    Ok(CpuidFacts { supported: values(&supported), emulated, hyperv, extra: Extra::new() })
}

/// A list as a profile has it: ascending, without what belongs to the processor that was asked on.
fn values(list: &CpuId) -> Vec<CpuidEntry> {
    let mut values: Vec<CpuidEntry> = list.as_slice().iter().map(|entry| value(entry).of_vm()).collect();
    values.sort_by_key(CpuidEntry::key);
    values.dedup_by_key(|entry| entry.key());
    values
}

/// One entry in Ferry's form.
pub(crate) fn value(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        leaf: entry.function,
        subleaf: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

/// One entry in KVM's form.
pub(crate) fn entry(value: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: value.leaf,
        index: value.subleaf,
        flags: if value.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: value.eax,
        ebx: value.ebx,
        ecx: value.ecx,
        edx: value.edx,
        ..Default::default()
    }
}

/// Extended state: the components of CPUID leaf 0xD, what may be granted, the size of an area.
pub(super) fn xsave(kvm: &Kvm, vm: &VmFd, supported: &[CpuidEntry]) -> Result<XsaveFacts, ProbeError> {
    let leaf = |subleaf: u32| {
        supported.iter().find(|entry| entry.key() == (0xd, subleaf)).copied().unwrap_or_default()
    };
    let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let (main, more) = (leaf(0), leaf(1));
    let (xcr0, xss) = (wide(main.eax, main.edx), wide(more.ecx, more.edx));
    let component = |component: u32| {
        let entry = leaf(component);
        XsaveComponent {
            component,
            size_bytes: entry.eax,
            offset_bytes: entry.ebx,
            flags: entry.ecx,
            extra: Extra::new(),
        }
    };
    let guest_permission = if kvm.check_extension_raw(KVM_CAP_SYS_ATTRIBUTES.into()) > 0 {
        ioctls::guest_permission(kvm)
            .map_err(failed("KVM_GET_DEVICE_ATTR", "the components that may be granted"))?
    } else {
        0
    };
    let area = super::check(vm, KVM_CAP_XSAVE2);
    Ok(XsaveFacts {
        xcr0,
        xss,
        guest_permission,
        granted: ioctls::granted().unwrap_or(0) & guest_permission,
        area_bytes: area.max(size_of::<kvm_xsave>() as u64),
        components: (2..64).filter(|bit| (xcr0 | xss) >> bit & 1 == 1).map(component).collect(),
        extra: Extra::new(),
    })
}
