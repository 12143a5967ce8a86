//! All that an x86-64 host offers, as a contract.

use super::{BirthError, Wish};
use crate::compare::x86::by_capability;
use crate::contract::x86::{is_nesting, xsave_masks};
use crate::contract::{CONTRACT_FORMAT, FeatureMsr, KVM_X86_64, X86Contract};
use crate::cpuid::{self, CpuidEntry, Register};
use crate::profile::X86Profile;

/// All that a host offers, as a contract.
pub(super) fn offered(profile: &X86Profile, vcpus: u32, wishes: &[Wish]) -> Result<X86Contract, BirthError> {
    let reach = profile.probe_guest.cpuid_settings_reach;
    let hyperv = wishes.contains(&Wish::Hyperv);
    if hyperv && (!reach || profile.cpuid.hyperv.is_empty()) {
        return Err(BirthError::NotOffered(Wish::Hyperv));
    }
    if let Some(other) = wishes.iter().find(|wish| **wish != Wish::Hyperv) {
        return Err(BirthError::NotOffered(*other));
    }
    let mut told = if hyperv { with_hyperv(profile) } else { profile.cpuid.supported.clone() };
    // Not in the list of what KVM supports: kernels look for KVM's leaves only after this bit, and for a timer of
    // the TSC's deadline after that one.
    if let Some(entry) = told.iter_mut().find(|entry| entry.key() == (1, 0)) {
        entry.ecx |= HYPERVISOR | by_capability(profile, 1, Register::Ecx);
    }
    let (xcr0, xss) = xsave_masks(&told);
    let nested_state_bytes = if is_nesting(&told) { profile.nested_state_bytes } else { 0 };
    let msrs = profile.msrs.features.iter().copied().map(FeatureMsr::from);
    // Where the guest sees other bits than KVM was told of, KVM's own checks may go by either.
    let seen = if reach { &told } else { &profile.probe_guest.cpuid };
    let feature_msrs =
        msrs.filter(|msr| [&told, seen].iter().all(|cpuid| is_shown(cpuid, msr.index))).collect();
    let (cpuid, kvm_cpuid) = if reach { (told, None) } else { (seen.clone(), Some(told)) };
    Ok(X86Contract {
        format: CONTRACT_FORMAT.to_owned(),
        kind: KVM_X86_64.to_owned(),
        vcpus,
        cpuid,
        kvm_cpuid,
        feature_msrs,
        xcr0,
        xss,
        xsave_area_bytes: profile.xsave.area_bytes,
        tsc_frequency_khz: profile.tsc.frequency_khz,
        nested_state_bytes,
    })
}

/// Leaf 1, ECX 31: a hypervisor is there (the kernel's arch/x86/kernel/cpu/hypervisor.c and kvm.c look at it first).
const HYPERVISOR: u32 = 1 << 31;

/// Where KVM's own leaves begin if Hyper-V's stand where they usually do, and how far that is (the
/// kernel's `kvm_cpuid_base_kvm`: any multiple of 0x100 in 0x40000000–0x4000ffff is searched).
const KVM_LEAVES: std::ops::Range<u32> = 0x4000_0000..0x4000_0100;
const KVM_LEAVES_MOVED_BY: u32 = 0x100;

/// The signature by which a guest knows Hyper-V, "Microsoft Hv" in EBX, ECX and EDX (TLFS 2.2). KVM's list has one
/// of its own in its place, by which none would (`kvm_get_hv_cpuid` in arch/x86/kvm/hyperv.c: "Linux KVM Hv").
pub(crate) const HYPERV_SIGNATURE: [u32; 3] = [0x7263_694d, 0x666f_736f, 0x7648_2074];

/// What KVM supports, with Hyper-V's leaves before KVM's own.
pub(crate) fn with_hyperv(profile: &X86Profile) -> Vec<CpuidEntry> {
    let moved = profile.cpuid.supported.iter().map(|entry| {
        let mut entry = *entry;
        if KVM_LEAVES.contains(&entry.leaf) {
            // The signature's leaf says how far the leaves go.
            if entry.leaf == KVM_LEAVES.start && entry.eax >= KVM_LEAVES.start {
                entry.eax += KVM_LEAVES_MOVED_BY;
            }
            entry.leaf += KVM_LEAVES_MOVED_BY;
        }
        entry
    });
    let hyperv = profile.cpuid.hyperv.iter().map(|entry| {
        let mut entry = *entry;
        if entry.leaf == KVM_LEAVES.start {
            [entry.ebx, entry.ecx, entry.edx] = HYPERV_SIGNATURE;
        }
        entry
    });
    let mut all: Vec<CpuidEntry> = moved.chain(hyperv).collect();
    all.sort_by_key(CpuidEntry::key);
    all.dedup_by_key(|entry| entry.key());
    all
}

/// Whether a guest with this CPUID has a feature MSR at all (SDM volume 4: each needs its CPUID bit;
/// volume 3, appendix A for VMX).
fn is_shown(told: &[CpuidEntry], msr: u32) -> bool {
    let has = |leaf, register, bit: u32| cpuid::value(told, leaf, 0, register) & 1 << bit != 0;
    match msr {
        0x10a => has(7, Register::Edx, 29),
        0x345 => has(1, Register::Ecx, 15),
        0x480..=0x491 => has(1, Register::Ecx, 5),
        _ => true,
    }
}
