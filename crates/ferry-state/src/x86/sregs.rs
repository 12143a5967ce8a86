//! Special registers: what `KVM_GET_SREGS2` gives.
//!
//! From `struct kvm_sregs2`, `kvm_segment` and `kvm_dtable` of the kernel's
//! arch/x86/include/uapi/asm/kvm.h, and `KVM_GET_SREGS2` in Documentation/virt/kvm/api.rst. A KVM
//! without it (before 5.14) gives the same but for the last two fields, which are then zero.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// [`Sregs::flags`]: the page directory pointers are valid (`KVM_SREGS2_FLAGS_PDPTRS_VALID`).
pub const SREGS_PDPTRS_VALID: u64 = 1;

/// One segment register with its hidden part (`kvm_segment`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Segment {
    /// The linear address at which it begins.
    #[n(0)]
    pub base: u64,
    /// Its last byte, scaled as the granularity says.
    #[n(1)]
    pub limit: u32,
    /// The selector that was loaded.
    #[n(2)]
    pub selector: u16,
    /// The type field, 4 bits.
    #[n(3)]
    pub kind: u8,
    /// P: present.
    #[n(4)]
    pub present: bool,
    /// The descriptor privilege level, 2 bits.
    #[n(5)]
    pub dpl: u8,
    /// D/B: default operation size.
    #[n(6)]
    pub db: bool,
    /// S: a code or data segment, not a system segment.
    #[n(7)]
    pub s: bool,
    /// L: 64-bit code.
    #[n(8)]
    pub l: bool,
    /// G: the limit counts pages of 4 KiB.
    #[n(9)]
    pub g: bool,
    /// AVL: the guest's own bit.
    #[n(10)]
    pub avl: bool,
    /// Not usable: VMX keeps this apart from P.
    #[n(11)]
    pub unusable: bool,
}

/// One descriptor table register (`kvm_dtable`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct DescriptorTable {
    /// The linear address at which it begins.
    #[n(0)]
    pub base: u64,
    /// Its last byte.
    #[n(1)]
    pub limit: u16,
}

/// The segment, table and control registers of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Sregs {
    /// The segment register CS.
    #[n(0)]
    pub cs: Segment,
    /// The segment register DS.
    #[n(1)]
    pub ds: Segment,
    /// The segment register ES.
    #[n(2)]
    pub es: Segment,
    /// The segment register FS.
    #[n(3)]
    pub fs: Segment,
    /// The segment register GS.
    #[n(4)]
    pub gs: Segment,
    /// The segment register SS.
    #[n(5)]
    pub ss: Segment,
    /// The task register TR.
    #[n(6)]
    pub tr: Segment,
    /// The local descriptor table register LDTR.
    #[n(7)]
    pub ldt: Segment,
    /// The global descriptor table register GDTR.
    #[n(8)]
    pub gdt: DescriptorTable,
    /// The interrupt descriptor table register IDTR.
    #[n(9)]
    pub idt: DescriptorTable,
    /// The control register CR0.
    #[n(10)]
    pub cr0: u64,
    /// The control register CR2: the address of the last page fault.
    #[n(11)]
    pub cr2: u64,
    /// The control register CR3.
    #[n(12)]
    pub cr3: u64,
    /// The control register CR4.
    #[n(13)]
    pub cr4: u64,
    /// The control register CR8: the task priority.
    #[n(14)]
    pub cr8: u64,
    /// The MSR EFER; SVME must be set before a nested state is.
    #[n(15)]
    pub efer: u64,
    /// The MSR `IA32_APIC_BASE`, which says in what mode the LAPIC is.
    #[n(16)]
    pub apic_base: u64,
    /// `KVM_SREGS2_FLAGS_PDPTRS_VALID` (bit 0) where [`pdptrs`](Self::pdptrs) count.
    #[n(17)]
    pub flags: u64,
    /// The four page directory pointers of PAE paging, as the processor holds them: memory may say
    /// otherwise.
    #[n(18)]
    pub pdptrs: [u64; 4],
}

impl Part for Sregs {
    const NAME: &'static str = "x86.sregs";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]);

    fn check(&self) -> Result<(), String> {
        let segments = [&self.cs, &self.ds, &self.es, &self.fs, &self.gs, &self.ss, &self.tr, &self.ldt];
        match segments.iter().find(|segment| segment.kind > 0xf || segment.dpl > 3) {
            None => Ok(()),
            Some(bad) => Err(format!("a segment of type {:#x} and privilege level {}", bad.kind, bad.dpl)),
        }
    }
}
