//! MSRs: the feature MSRs with their values, and the list of all.
//!
//! Facts from Documentation/virt/kvm/api.rst, 4.3 (`KVM_GET_MSR_INDEX_LIST`, `KVM_GET_MSR_FEATURE_INDEX_LIST`)
//! and 4.18 (`KVM_GET_MSRS` on `/dev/kvm`, which returns how many it read). The values are read on
//! `/dev/kvm`: a vCPU shows 0 before it has its CPUID (from 6.13).

use ferry_contract::{Extra, MsrFacts, MsrValue};
use kvm_bindings::{KVM_CAP_GET_MSR_FEATURES, Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;
use vmm_sys_util::errno;

use crate::probe::ProbeError;
use crate::probe::error::failed;

pub(super) fn facts(kvm: &Kvm) -> Result<MsrFacts, ProbeError> {
    let list = kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST", "the list of MSRs"))?;
    let mut listed = list.as_slice().to_vec();
    listed.sort_unstable();
    listed.dedup();
    Ok(MsrFacts { features: features(kvm)?, listed, extra: Extra::new() })
}

/// The feature MSRs that KVM lists and can read, ascending.
fn features(kvm: &Kvm) -> Result<Vec<MsrValue>, ProbeError> {
    if kvm.check_extension_raw(KVM_CAP_GET_MSR_FEATURES.into()) <= 0 {
        return Ok(Vec::new());
    }
    let list = kvm
        .get_msr_feature_index_list()
        .map_err(failed("KVM_GET_MSR_FEATURE_INDEX_LIST", "the list of feature MSRs"))?;
    let mut indices = list.as_slice().to_vec();
    indices.sort_unstable();
    indices.dedup();
    let read = indices.into_iter().filter_map(|index| one(kvm, index).transpose());
    read.collect()
}

/// One feature MSR; none if KVM lists it and cannot read it.
fn one(kvm: &Kvm, index: u32) -> Result<Option<MsrValue>, ProbeError> {
    let to_error = failed("KVM_GET_MSRS", "the values of feature MSRs");
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }])
        .map_err(|_| to_error(errno::Error::new(libc::ENOMEM)))?;
    let read = kvm.get_msrs(&mut msrs).map_err(to_error)?;
    Ok(msrs.as_slice().iter().take(read).map(|msr| MsrValue { index, value: msr.data }).next())
}
