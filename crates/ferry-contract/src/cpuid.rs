//! CPUID as values: entries, and which of their bits belong to one vCPU or change while it runs.
//!
//! Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; the kernel's
//! `kvm_update_cpuid_runtime` in arch/x86/kvm/cpuid.c for what KVM itself changes.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::hex;

/// The most CPUID entries of one list: what `KVM_SET_CPUID2` takes (`KVM_MAX_CPUID_ENTRIES`).
pub const MAX_CPUID_ENTRIES: usize = 256;

/// What CPUID shows for one leaf and subleaf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(array)]
#[serde(deny_unknown_fields)]
pub struct CpuidEntry {
    /// What EAX holds before the instruction.
    #[n(0)]
    #[serde(with = "hex::u32")]
    pub leaf: u32,
    /// What ECX holds before the instruction; 0 for a leaf without subleaves.
    #[n(1)]
    #[serde(with = "hex::u32")]
    pub subleaf: u32,
    /// Whether the leaf has subleaves (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
    #[n(2)]
    pub indexed: bool,
    /// EAX after it.
    #[n(3)]
    #[serde(with = "hex::u32")]
    pub eax: u32,
    /// EBX after it.
    #[n(4)]
    #[serde(with = "hex::u32")]
    pub ebx: u32,
    /// ECX after it.
    #[n(5)]
    #[serde(with = "hex::u32")]
    pub ecx: u32,
    /// EDX after it.
    #[n(6)]
    #[serde(with = "hex::u32")]
    pub edx: u32,
}

/// One of the four registers that CPUID fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Register {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Eax, Self::Ebx, Self::Ecx, Self::Edx];
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        })
    }
}

impl CpuidEntry {
    /// Leaf and subleaf, by which entries are sorted.
    pub fn key(&self) -> (u32, u32) {
        (self.leaf, self.subleaf)
    }

    /// One register.
    pub fn register(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    /// One register, to be changed.
    pub fn register_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }

    /// The same without the bits that belong to one vCPU or change while it runs.
    #[must_use]
    pub fn of_vm(mut self) -> Self {
        for register in Register::ALL {
            *self.register_mut(register) &= !not_of_vm(self.leaf, self.subleaf, register);
        }
        self
    }
}

/// The name of one register of one leaf: `CPUID.7.0:EBX`; leaves from 10 on in hexadecimal.
pub(crate) fn name(leaf: u32, subleaf: u32, register: Register) -> String {
    if leaf < 10 {
        format!("CPUID.{leaf}.{subleaf}:{register}")
    } else {
        format!("CPUID.{leaf:#x}.{subleaf}:{register}")
    }
}

/// The register of an entry in a sorted list; 0 where there is no such entry.
pub(crate) fn value(list: &[CpuidEntry], leaf: u32, subleaf: u32, register: Register) -> u32 {
    entry(list, leaf, subleaf).map_or(0, |entry| entry.register(register))
}

/// An entry of a sorted list.
pub(crate) fn entry(list: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
    let place = list.binary_search_by_key(&(leaf, subleaf), CpuidEntry::key).ok()?;
    list.get(place)
}

/// A field that is not the same on all vCPUs of a VM, or not at all times.
struct Field {
    leaf: u32,
    /// None: every subleaf.
    subleaf: Option<u32>,
    register: Register,
    mask: u32,
}

const fn field(leaf: u32, subleaf: Option<u32>, register: Register, mask: u32) -> Field {
    Field { leaf, subleaf, register, mask }
}

/// Fields that name the vCPU.
const PER_VCPU: &[Field] = &[
    // Initial APIC id (SDM: leaf 01H, EBX 31-24).
    field(1, None, Register::Ebx, 0xff00_0000),
    // x2APIC id (SDM: leaves 0BH and 1FH, EDX).
    field(0xb, None, Register::Edx, u32::MAX),
    field(0x1f, None, Register::Edx, u32::MAX),
    // Extended APIC id; core id; node id (APM: Fn8000_001E EAX, EBX 7-0, ECX 7-0).
    field(0x8000_001e, None, Register::Eax, u32::MAX),
    field(0x8000_001e, None, Register::Ebx, 0xff),
    field(0x8000_001e, None, Register::Ecx, 0xff),
    // Extended local APIC id (APM: Fn8000_0026 EDX).
    field(0x8000_0026, None, Register::Edx, u32::MAX),
];

/// Fields that follow what the guest does (`kvm_update_cpuid_runtime`, except where noted).
const RUN_TIME: &[Field] = &[
    // OSXSAVE, which is CR4.OSXSAVE; MONITOR/MWAIT, which follows IA32_MISC_ENABLE[18].
    field(1, None, Register::Ecx, 1 << 27 | 1 << 3),
    // APIC, which follows IA32_APIC_BASE[11].
    field(1, None, Register::Edx, 1 << 9),
    // OSPKE, which is CR4.PKE.
    field(7, Some(0), Register::Ecx, 1 << 4),
    // Bytes of an XSAVE area for XCR0, and for XCR0 and IA32_XSS, as they are now.
    field(0xd, Some(0), Register::Ebx, u32::MAX),
    field(0xd, Some(1), Register::Ebx, u32::MAX),
];

/// Bits of a register that belong to one vCPU: its APIC id and what is made of it.
pub fn per_vcpu(leaf: u32, subleaf: u32, register: Register) -> u32 {
    mask(PER_VCPU, leaf, subleaf, register)
}

/// Bits of a register that change while a vCPU runs.
pub fn run_time(leaf: u32, subleaf: u32, register: Register) -> u32 {
    mask(RUN_TIME, leaf, subleaf, register)
}

/// Bits of a register that are no part of what a whole VM shows at all times.
pub(crate) fn not_of_vm(leaf: u32, subleaf: u32, register: Register) -> u32 {
    per_vcpu(leaf, subleaf, register) | run_time(leaf, subleaf, register)
}

fn mask(fields: &[Field], leaf: u32, subleaf: u32, register: Register) -> u32 {
    let mine = fields.iter().filter(|field| {
        field.leaf == leaf && field.register == register && field.subleaf.is_none_or(|only| only == subleaf)
    });
    mine.fold(0, |mask, field| mask | field.mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_vcpu_or_follows_it_is_left_out() {
        let raw =
            CpuidEntry { leaf: 1, ebx: 0x0702_0800, ecx: u32::MAX, edx: u32::MAX, ..CpuidEntry::default() };
        let vm = raw.of_vm();
        assert_eq!((vm.ebx, vm.ecx, vm.edx), (0x0002_0800, 0xf7ff_fff7, 0xffff_fdff));
        assert_eq!(run_time(7, 0, Register::Ecx), 0x10);
        assert_eq!(run_time(7, 1, Register::Ecx), 0);
        assert_eq!(per_vcpu(0xb, 1, Register::Edx), u32::MAX);
        assert_eq!(run_time(0xd, 2, Register::Ebx), 0);
    }

    #[test]
    fn names_are_as_the_manuals_write_them() {
        assert_eq!(name(7, 0, Register::Ebx), "CPUID.7.0:EBX");
        assert_eq!(name(0x8000_0001, 0, Register::Ecx), "CPUID.0x80000001.0:ECX");
    }
}
