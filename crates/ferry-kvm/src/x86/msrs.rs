//! MSRs in the chunks that KVM takes, and the order in which they are set.
//!
//! `KVM_GET_MSRS` and `KVM_SET_MSRS` work through their list and return how many entries they did:
//! fewer than asked means that the next one was refused (`__msr_io` in arch/x86/kvm/x86.c).

use std::collections::BTreeSet;

use ferry_state::x86::{IA32_TSC, Msrs};
use ferry_state::{Part, Section};
use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs as KvmMsrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::{Notice, StateIoError};

/// How many MSRs one call may name: KVM refuses lists of `MAX_IO_MSRS` (256) and more with `E2BIG`
/// (`msr_io` in arch/x86/kvm/x86.c).
const CHUNK: usize = KVM_MAX_MSR_ENTRIES - 1;

/// `IA32_TSC_DEADLINE`.
pub(super) const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// MSRs that say what the others may be: `IA32_FEATURE_CONTROL`, the microcode's revision,
/// `MSR_PLATFORM_INFO`, `IA32_ARCH_CAPABILITIES`, `IA32_PERF_CAPABILITIES`, `MSR_AMD64_DE_CFG`, and the
/// VMX capabilities from `IA32_VMX_BASIC` to `IA32_VMX_VMFUNC`.
fn is_feature_msr(msr: u32) -> bool {
    matches!(msr, 0x3a | 0x8b | 0xce | 0x10a | 0x345 | 0x480..=0x491 | 0xc001_1029)
}

/// Which batch of a restore; they are set in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Batch {
    /// MSRs that say what the others, the special registers and a nested state may be.
    Features,
    /// Everything else but time.
    Rest,
    /// The TSC.
    Tsc,
    /// Its deadline, which counts in TSC units: after the TSC, and both as late as can be.
    Deadline,
}

impl Batch {
    /// The batch of an MSR.
    pub(super) fn with(msr: u32) -> Self {
        match msr {
            IA32_TSC => Self::Tsc,
            IA32_TSC_DEADLINE => Self::Deadline,
            _ if is_feature_msr(msr) => Self::Features,
            _ => Self::Rest,
        }
    }

    /// The MSRs of this batch.
    fn of(self, msrs: &Msrs) -> Vec<(u32, u64)> {
        let all = msrs.values.iter().map(|(msr, value)| (*msr, *value));
        all.filter(|(msr, _)| Self::with(*msr) == self).collect()
    }
}

/// Reads MSRs, and names those that KVM refuses to read.
pub(super) fn read(vcpu: &VcpuFd, index: u32, msrs: &[u32]) -> Result<(Msrs, BTreeSet<u32>), StateIoError> {
    let mut read = Msrs::default();
    let mut refused = BTreeSet::new();
    let mut left = msrs;
    while !left.is_empty() {
        let chunk = left.get(..CHUNK).unwrap_or(left);
        let entries = chunk.iter().map(|msr| entry(*msr, 0));
        let mut buffer = buffer(entries, "KVM_GET_MSRS", index)?;
        let done = vcpu.get_msrs(&mut buffer).map_err(|source| failed("KVM_GET_MSRS", index, source))?;
        read.values.extend(buffer.as_slice().iter().take(done).map(|entry| (entry.index, entry.data)));
        left = left.get(done..).unwrap_or_default();
        if done < chunk.len() {
            refused.extend(left.first());
            left = left.get(1..).unwrap_or_default();
        }
    }
    Ok((read, refused))
}

/// Sets one MSR. One that KVM does not take is an error.
pub(super) fn set(vcpu: &VcpuFd, index: u32, msr: u32, value: u64) -> Result<(), StateIoError> {
    let one = buffer([entry(msr, value)].into_iter(), "KVM_SET_MSRS", index)?;
    match vcpu.set_msrs(&one).map_err(|source| failed("KVM_SET_MSRS", index, source))? {
        0 => Err(StateIoError::MsrRefused { index, msr, value }),
        _ => Ok(()),
    }
}

/// Sets one batch of a section's MSRs. An MSR that KVM refuses is an error if the guest needs it,
/// else it is noted and stays as this host made it.
pub(super) fn write(
    vcpu: &VcpuFd,
    section: &Section,
    msrs: &Msrs,
    batch: Batch,
    notices: &mut Vec<Notice>,
) -> Result<(), StateIoError> {
    let index = section.index;
    let ordered = batch.of(msrs);
    let mut left = ordered.as_slice();
    while !left.is_empty() {
        let chunk = left.get(..CHUNK).unwrap_or(left);
        let entries = chunk.iter().map(|(msr, value)| entry(*msr, *value));
        let buffer = buffer(entries, "KVM_SET_MSRS", index)?;
        let done = vcpu.set_msrs(&buffer).map_err(|source| failed("KVM_SET_MSRS", index, source))?;
        left = left.get(done..).unwrap_or_default();
        if done < chunk.len()
            && let Some(((msr, value), rest)) = left.split_first().map(|(first, rest)| (*first, rest))
        {
            if section.needs(msr) {
                return Err(StateIoError::MsrRefused { index, msr, value });
            }
            notices.push(Notice::MsrSkipped { index, msr, value });
            left = rest;
        }
    }
    Ok(())
}

/// `HV_X64_MSR_GUEST_OS_ID`.
const HV_GUEST_OS_ID: u32 = 0x4000_0000;

/// Hyper-V's run time of a vCPU and its reference count.
const HV_TIME_MSRS: [u32; 2] = [0x4000_0010, 0x4000_0020];

/// MSRs that read otherwise than they were set, because they count time by themselves or it passes: the TSC
/// is not among them, see [`check_kept`].
pub(super) fn is_time(msr: u32) -> bool {
    msr == IA32_TSC_DEADLINE || HV_TIME_MSRS.contains(&msr)
}

/// How far the TSC may be from what it was set to, in seconds: a vCPU's TSC is pulled to that of the
/// others if it was set within one second of them (`kvm_synchronize_tsc`), and some time goes by.
const TSC_SECONDS_MAX: u64 = 5;

/// Reads back the MSRs that are needed. A KVM may take an MSR and drop its value: `kvm_pvm` does so with
/// some, and the module's parameter `ignore_msrs` with all that it does not know.
pub(super) fn check_kept(
    vcpu: &VcpuFd,
    section: &Section,
    msrs: &Msrs,
    notices: &mut Vec<Notice>,
) -> Result<(), StateIoError> {
    let index = section.index;
    let (kept, _) = read(vcpu, index, &section.needed)?;
    for (&msr, &value) in msrs.values.iter().filter(|(msr, _)| section.needs(**msr)) {
        let reads = kept.values.get(&msr).copied().unwrap_or(0);
        if msr == IA32_TSC {
            let hertz = u64::from(vcpu.get_tsc_khz().unwrap_or(0)) * 1000;
            if value.abs_diff(reads) > hertz.saturating_mul(TSC_SECONDS_MAX) {
                notices.push(Notice::TscNotKept { index, value, reads });
            }
        } else if !is_kept(msr, value, reads) && !is_time(msr) {
            return Err(StateIoError::MsrNotKept { index, msr, value, reads });
        }
    }
    Ok(())
}

/// `IA32_SYSENTER_ESP` and `IA32_SYSENTER_EIP`.
const SYSENTER_ADDRESSES: [u32; 2] = [0x175, 0x176];

/// Whether what an MSR reads is what it was set to. On AMD's processors `SYSENTER` loads 32 bits of its addresses, in legacy mode alone.
/// A guest writes 64 of them past KVM, and `KVM_SET_MSRS` takes the lower half (`svm_set_msr` in arch/x86/kvm/svm/svm.c);
/// where all 64 matter, on Intel's, KVM keeps them.
fn is_kept(msr: u32, value: u64, reads: u64) -> bool {
    let is_lower_half = SYSENTER_ADDRESSES.contains(&msr) && reads == value & u64::from(u32::MAX);
    reads == value || is_lower_half
}

/// The MSRs of a vCPU at its creation, against which a capture is held. Hyper-V's clocks have gone on since; to a
/// guest that never said what it is, and so uses nothing of Hyper-V's, that is no change.
pub(super) fn at_creation(created: &Msrs, now: &Msrs) -> Msrs {
    let mut settled = created.clone();
    if now.values.get(&HV_GUEST_OS_ID).is_none_or(|id| *id == 0) {
        for (msr, value) in &mut settled.values {
            if HV_TIME_MSRS.contains(msr) {
                *value = now.values.get(msr).copied().unwrap_or(*value);
            }
        }
    }
    settled
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

fn buffer(
    entries: impl Iterator<Item = kvm_msr_entry>,
    ioctl: &'static str,
    index: u32,
) -> Result<KvmMsrs, StateIoError> {
    let entries: Vec<kvm_msr_entry> = entries.collect();
    KvmMsrs::from_entries(&entries).map_err(|_| failed(ioctl, index, errno::Error::new(libc::ENOMEM)))
}

fn failed(ioctl: &'static str, index: u32, source: errno::Error) -> StateIoError {
    let fact = "no MSR was done".to_owned();
    StateIoError::Ioctl { ioctl, section: Msrs::NAME, index, fact, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_and_time_have_batches_of_their_own() {
        let order = [0x3a, 0x480, 0x491, 0x10, 0x174, 0x6e0, 0xc000_0102];
        let msrs = Msrs { values: order.map(|msr| (msr, u64::from(msr))).into() };
        let of = |batch: Batch| batch.of(&msrs).iter().map(|(msr, _)| *msr).collect::<Vec<_>>();
        assert_eq!(of(Batch::Features), [0x3a, 0x480, 0x491]);
        assert_eq!(of(Batch::Rest), [0x174, 0xc000_0102]);
        assert_eq!((of(Batch::Tsc), of(Batch::Deadline)), (vec![IA32_TSC], vec![IA32_TSC_DEADLINE]));
    }

    #[test]
    fn of_sysenters_addresses_the_lower_half_is_enough() {
        let value = 0xffff_fe4c_a4c8_f000;
        for msr in SYSENTER_ADDRESSES {
            assert!(is_kept(msr, value, value) && is_kept(msr, value, 0xa4c8_f000));
            assert!(!is_kept(msr, value, 0) && !is_kept(msr, value, value & !0xf000));
        }
        assert!(!is_kept(0x174, value, 0xa4c8_f000));
    }
}
