//! What a VM's KVM can read and set, asked once.

use std::collections::BTreeSet;

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_NESTED_STATE, KVM_CAP_SREGS2, KVM_CAP_VCPU_ATTRIBUTES,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CAP_XSAVE2, kvm_enable_cap, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::StateIoError;

/// MSRs of the memory type ranges: `KVM_GET_MSR_INDEX_LIST` leaves them out, and
/// arch/x86/kvm/mtrr.c reads and writes them all the same. Variable ranges (eight pairs), fixed
/// ranges, the default type.
const MTRRS: [&[u32]; 4] = [
    &[0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207],
    &[0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f],
    &[0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f],
    &[0x2ff],
];

/// The first MSR of the machine check banks, four for each of `KVM_MAX_MCE_BANKS` (32); the list
/// leaves them out, too.
const MC0_CTL: u32 = 0x400;
const MC_BANK_MSRS: u32 = 32 * 4;

/// What KVM can do for one VM and its vCPUs, as far as state goes.
#[derive(Debug, Clone)]
pub struct X86Caps {
    /// MSRs to capture, ascending.
    pub(super) msrs: Vec<u32>,
    /// MSRs that KVM lists and cannot read.
    pub(super) unreadable: BTreeSet<u32>,
    /// Size of an XSAVE area, at least `sizeof(struct kvm_xsave)`.
    pub(super) xsave_bytes: usize,
    pub(super) xsave2: bool,
    pub(super) sregs2: bool,
    pub(super) xcrs: bool,
    pub(super) exception_payload: bool,
    pub(super) triple_fault: bool,
    pub(super) kvmclock_ctrl: bool,
    /// The most bytes of a nested state; 0 where KVM has none.
    pub(super) nested_bytes: usize,
    /// vCPUs have attributes, the TSC's offset among them.
    pub(super) tsc_offset: bool,
}

impl X86Caps {
    /// Asks KVM what it can do for a VM, and turns on what makes a state complete: exception payloads
    /// and the triple fault event. Call it on source and target alike, right after the VM is created;
    /// a VMM that asks for dynamic XSAVE components (AMX, by `arch_prctl`) does so before.
    pub fn prepare(kvm: &Kvm, vm: &VmFd) -> Result<Self, StateIoError> {
        let has = |capability: u32| vm.check_extension_raw(capability.into()) > 0;
        let bytes = |capability: u32| usize::try_from(vm.check_extension_raw(capability.into())).unwrap_or(0);
        let xsave2_bytes = bytes(KVM_CAP_XSAVE2);
        Ok(Self {
            msrs: msrs_to_capture(kvm)?,
            unreadable: BTreeSet::new(),
            xsave_bytes: xsave2_bytes.max(size_of::<kvm_xsave>()),
            xsave2: xsave2_bytes > 0,
            sregs2: has(KVM_CAP_SREGS2),
            xcrs: vm.check_extension(Cap::Xcrs),
            exception_payload: turn_on(vm, KVM_CAP_EXCEPTION_PAYLOAD, "exception payloads")?,
            triple_fault: turn_on(vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, "the triple fault event")?,
            kvmclock_ctrl: vm.check_extension(Cap::KvmclockCtrl),
            nested_bytes: bytes(KVM_CAP_NESTED_STATE),
            tsc_offset: has(KVM_CAP_VCPU_ATTRIBUTES),
        })
    }

    /// MSRs that KVM lists and could not read when a vCPU was created: they are not captured.
    pub fn unreadable_msrs(&self) -> impl Iterator<Item = u32> + '_ {
        self.unreadable.iter().copied()
    }

    /// The MSRs that are captured, ascending.
    pub fn captured_msrs(&self) -> &[u32] {
        &self.msrs
    }
}

/// `KVM_GET_MSR_INDEX_LIST` and what it is known to leave out.
fn msrs_to_capture(kvm: &Kvm) -> Result<Vec<u32>, StateIoError> {
    let listed = kvm.get_msr_index_list().map_err(|source| StateIoError::Prepare {
        ioctl: "KVM_GET_MSR_INDEX_LIST",
        fact: "the list of MSRs to capture",
        source,
    })?;
    let mut msrs = listed.as_slice().to_vec();
    msrs.extend(MTRRS.iter().copied().flatten());
    msrs.extend(MC0_CTL..MC0_CTL + MC_BANK_MSRS);
    msrs.sort_unstable();
    msrs.dedup();
    Ok(msrs)
}

/// Turns on a capability of a VM where KVM has it, and says whether it has.
fn turn_on(vm: &VmFd, capability: u32, fact: &'static str) -> Result<bool, StateIoError> {
    if vm.check_extension_raw(capability.into()) <= 0 {
        return Ok(false);
    }
    let on = kvm_enable_cap { cap: capability, args: [1, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&on).map_err(|source| StateIoError::Prepare { ioctl: "KVM_ENABLE_CAP", fact, source })?;
    Ok(true)
}
