//! The probe guest: what a guest really sees here of what KVM was told.
//!
//! Two VMs of their own. In the first, CPUID's brand string says something that no processor says, bits
//! of the feature leaves are turned off, and the TSC is set far off: does the guest see it? In the
//! second KVM is told what it supports, and the guest reads every leaf. Both run the program of
//! `guest_code.rs`. CPUID settings reach a guest only if it reads in both what KVM was told: `kvm_pvm`
//! shows the brand string that it is told, and the processor's own feature bits.
//!
//! Which leaves there are: Intel SDM volume 2 and AMD APM volume 3, CPUID: leaf 0, 0x40000000 and
//! 0x80000000 say how far each range goes.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use ferry_contract::{CpuidEntry, Extra, ProbeGuest, Register};
use ferry_memory::GuestRam;
use ferry_protocol::RegionSpan;
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use vmm_sys_util::errno;

use super::guest_code;
use crate::probe::ProbeError;
use crate::probe::error::failed;
use crate::{Kick, MemorySlots};

/// How long the guest may take; it needs milliseconds.
const RUN: Duration = Duration::from_secs(20);

/// What the guest's TSC is set to: more than a thousand years of counting from any host's.
const FAR_TSC: u64 = 1 << 60;

/// How far the TSC may have counted since, in seconds.
const COUNTED_SECONDS: u64 = 60;

/// What the brand string is set to, in the 48 bytes of leaves 0x80000002 to 0x80000004.
const BRAND: [u8; 48] = *b"Ferry's probe guest: no processor is named so   ";
const BRAND_LEAVES: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

/// The first leaf of each range, which says the last, and how many leaves of a range are read.
const RANGES: [u32; 3] = [0, 0x4000_0000, 0x8000_0000];
const MAX_RANGE: u32 = 0x40;

/// `IA32_TIME_STAMP_COUNTER`.
const IA32_TSC: u32 = 0x10;

/// Three pages for a TSS and one for an identity map that Intel's KVM may need (api.rst, 4.37, 4.41).
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

pub(super) fn run(kvm: &Kvm, supported: &[CpuidEntry]) -> Result<ProbeGuest, ProbeError> {
    let told = altered(supported);
    let mut altered = Guest::new(kvm, &told)?;
    let frequency_khz =
        altered.vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ", "the TSC's frequency"))?;
    altered.set_tsc(FAR_TSC)?;
    let altered_reach = reach(&told, &altered.read(&told.iter().map(CpuidEntry::key).collect::<Vec<_>>())?);
    let counted = guest_code::tsc(&altered.ram)?.wrapping_sub(FAR_TSC);
    let tsc_settings_reach = counted <= u64::from(frequency_khz) * 1000 * COUNTED_SECONDS;
    let cpuid = Guest::new(kvm, supported)?.read_all(supported)?;
    let cpuid_settings_reach = altered_reach && reach(supported, &cpuid);
    Ok(ProbeGuest {
        privilege_level: 3,
        cpuid_settings_reach,
        tsc_settings_reach,
        cpuid,
        extra: Extra::new(),
    })
}

/// Feature bits that are turned off where they are on: POPCNT, ERMS. The program uses neither.
const TURNED_OFF: [(u32, Register, u32); 2] = [(1, Register::Ecx, 1 << 23), (7, Register::Ebx, 1 << 9)];

/// What KVM supports with another brand string and without some features.
fn altered(supported: &[CpuidEntry]) -> Vec<CpuidEntry> {
    let mut altered: Vec<CpuidEntry> =
        supported.iter().filter(|entry| !BRAND_LEAVES.contains(&entry.leaf)).copied().collect();
    for entry in &mut altered {
        let key = entry.key();
        for (_, register, bits) in TURNED_OFF.iter().filter(|(leaf, _, _)| (*leaf, 0) == key) {
            *entry.register_mut(*register) &= !bits;
        }
        // A range that ends before the brand string would hide it.
        if entry.key() == (0x8000_0000, 0) {
            entry.eax = entry.eax.max(*BRAND_LEAVES.end());
        }
    }
    for (leaf, text) in BRAND_LEAVES.zip(BRAND.chunks(16)) {
        let mut words =
            text.chunks(4).map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte)));
        let mut word = || words.next().unwrap_or(0);
        let (eax, ebx, ecx, edx) = (word(), word(), word(), word());
        altered.push(CpuidEntry { leaf, subleaf: 0, indexed: false, eax, ebx, ecx, edx });
    }
    altered.sort_by_key(CpuidEntry::key);
    altered
}

/// Whether the guest reads what KVM was told, but for what belongs to one vCPU or changes while it runs.
fn reach(told: &[CpuidEntry], read: &[CpuidEntry]) -> bool {
    let registers = |entry: &CpuidEntry| Register::ALL.map(|register| entry.of_vm().register(register));
    told.iter().all(|told| {
        let seen = read.iter().find(|read| read.key() == told.key());
        seen.is_some_and(|seen| registers(seen) == registers(told))
    })
}

/// One VM with the probe program.
struct Guest {
    vcpu: VcpuFd,
    ram: GuestRam,
    _memory: MemorySlots,
}

impl Guest {
    fn new(kvm: &Kvm, cpuid: &[CpuidEntry]) -> Result<Self, ProbeError> {
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM", "the probe guest's VM"))?;
        if vm.check_extension(Cap::SetIdentityMapAddr) {
            vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
                .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR", "the probe guest's VM"))?;
        }
        if vm.check_extension(Cap::SetTssAddr) {
            vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR", "the probe guest's VM"))?;
        }
        let vm = Arc::new(vm);
        let region = RegionSpan { start: 0, length: guest_code::MEMORY_BYTES };
        let memory = MemorySlots::register(Arc::clone(&vm), crate::allocate(&[region])?)?;
        let ram = GuestRam::new(Arc::new(memory.memory().clone()))?;
        guest_code::load(&ram)?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU", "the probe guest's vCPU"))?;
        let entries: Vec<_> = cpuid.iter().map(super::cpuid::entry).collect();
        let to_error = failed("KVM_SET_CPUID2", "the probe guest's CPUID");
        let entries = CpuId::from_entries(&entries).map_err(|_| to_error(errno::Error::new(libc::E2BIG)))?;
        vcpu.set_cpuid2(&entries).map_err(to_error)?;
        let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS", "the probe guest's first registers"))?;
        vcpu.set_sregs(&guest_code::special_registers(sregs))
            .map_err(failed("KVM_SET_SREGS", "the probe guest's first registers"))?;
        vcpu.set_regs(&guest_code::registers())
            .map_err(failed("KVM_SET_REGS", "the probe guest's first registers"))?;
        Ok(Self { vcpu, ram, _memory: memory })
    }

    fn set_tsc(&self, value: u64) -> Result<(), ProbeError> {
        let to_error = failed("KVM_SET_MSRS", "whether the TSC can be set");
        let entry = kvm_msr_entry { index: IA32_TSC, data: value, ..Default::default() };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| to_error(errno::Error::new(libc::ENOMEM)))?;
        // A KVM that takes none of it shows the guest its own count: that is an answer, too.
        self.vcpu.set_msrs(&msrs).map(drop).map_err(to_error)
    }

    /// Lets the guest read some leaves.
    fn read(&mut self, leaves: &[(u32, u32)]) -> Result<Vec<CpuidEntry>, ProbeError> {
        let mut entries = Vec::with_capacity(leaves.len());
        for leaves in leaves.chunks(guest_code::MAX_LEAVES) {
            guest_code::ask(&self.ram, leaves)?;
            self.run_once()?;
            entries.extend(guest_code::answers(&self.ram, leaves)?);
        }
        Ok(entries)
    }

    /// Lets the guest read every leaf of every range, and every subleaf that KVM knows.
    fn read_all(&mut self, supported: &[CpuidEntry]) -> Result<Vec<CpuidEntry>, ProbeError> {
        let firsts = self.read(&RANGES.map(|first| (first, 0)))?;
        let mut leaves: Vec<(u32, u32)> = Vec::new();
        for first in &firsts {
            let last = first.eax.min(first.leaf + MAX_RANGE);
            for leaf in first.leaf..=last.max(first.leaf) {
                leaves.extend((0..subleaves(leaf)).map(|subleaf| (leaf, subleaf)));
            }
        }
        leaves.extend(supported.iter().map(CpuidEntry::key));
        leaves.sort_unstable();
        leaves.dedup();
        let mut entries: Vec<CpuidEntry> = self.read(&leaves)?.into_iter().map(CpuidEntry::of_vm).collect();
        entries.retain(|entry| {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            registers != [0; 4] || supported.iter().any(|known| known.key() == entry.key())
        });
        for entry in &mut entries {
            entry.indexed = subleaves(entry.leaf) > 1
                || supported.iter().any(|known| known.leaf == entry.leaf && known.indexed);
        }
        Ok(entries)
    }

    /// Runs until the guest says that it is done.
    fn run_once(&mut self) -> Result<(), ProbeError> {
        let kick = Kick::new(&self.vcpu)?;
        let (done, over) = mpsc::channel::<()>();
        let vcpu = &mut self.vcpu;
        let begun = Instant::now();
        thread::scope(|scope| {
            let watch = kick.clone();
            scope.spawn(move || {
                // A guest that never comes to its end must not hold up whoever asks.
                if over.recv_timeout(RUN) == Err(RecvTimeoutError::Timeout) {
                    watch.kick();
                }
            });
            let entered = kick.enter();
            let exit = loop {
                match vcpu.run() {
                    // Any signal ends a run: also when the process was stopped and goes on.
                    Err(error) if error.errno() == libc::EINTR && begun.elapsed() < RUN => {}
                    exit => break exit,
                }
            };
            drop(entered);
            drop(done);
            match exit {
                Ok(VcpuExit::IoOut(guest_code::PORT, _)) => Ok(()),
                Ok(exit) => Err(ProbeError::Guest { exit: format!("{exit:?}") }),
                Err(error) if error.errno() == libc::EINTR => {
                    Err(ProbeError::Guest { exit: format!("none in {} s", RUN.as_secs()) })
                }
                Err(source) => Err(failed("KVM_RUN", "what the probe guest sees")(source)),
            }
        })
    }
}

/// How many subleaves of a leaf are read (SDM volume 2 and APM volume 3, at each leaf).
fn subleaves(leaf: u32) -> u32 {
    match leaf {
        0xd => 64,
        4 | 0xb | 0x1f | 0x8000_001d | 0x8000_0026 => 8,
        7 | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1d | 0x1e | 0x20 | 0x23 | 0x24 | 0x8000_0020 => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_altered_is_what_is_looked_for() {
        let entry = |leaf, eax, ebx| CpuidEntry { leaf, eax, ebx, ..CpuidEntry::default() };
        let supported = [entry(7, 0, 0x201), entry(0x8000_0000, 0x8000_0001, 0)];
        let told = altered(&supported);
        assert_eq!((told[0].ebx, told[1].eax), (1, 0x8000_0004));
        let text = told[2..].iter().flat_map(|entry| Register::ALL.map(|register| entry.register(register)));
        assert_eq!(text.flat_map(u32::to_le_bytes).collect::<Vec<_>>(), BRAND);
        assert!(reach(&told, &told));
        assert!(!reach(&told, &supported));
    }
}
