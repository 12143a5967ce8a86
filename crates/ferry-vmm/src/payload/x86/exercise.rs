//! `exercise`: one instruction of every feature that CPUID promises, again and again.
//!
//! At birth each vCPU notes which features its CPUID promises, at the start of its share; from then on it
//! executes the instruction of each, whatever CPUID says later. One that raises #UD is a fault with the
//! feature's name. The handler runs at privilege level 0 and returns behind the instruction.
//!
//! This works on `kvm_pvm`, too: it runs level 3 natively and gives the exception to level 0. Facts: Intel SDM volume 2, CPUID and the instructions; AMD APM volume 3,
//! appendix E. The instructions' bytes are those of the GNU assembler.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, byte_ptr, eax, ebx, ecx, edx, ptr, qword_ptr, r8, r8d, r12d, r13, r14, r14d,
    r15, r15d, rbp, rbx, rdi, rsp,
};

use super::{Handlers, answer, if_asked, out, turn_over};
use crate::ports;

/// Microseconds between two rounds.
pub(super) const WAIT_US: u32 = 5000;

/// The vector of #UD, an undefined instruction.
const UNDEFINED: u8 = 6;

/// Where in its share a vCPU lets instructions write; its notes come before.
const SCRATCH: i32 = 1024;

/// In the notes: promised, or not. Zero is not looked at yet.
const PROMISED: u32 = 1;
const NOT_PROMISED: u32 = 2;

/// Leaves of AMD's.
const EXTENDED: u32 = 0x8000_0001;
const ADDRESSES: u32 = 0x8000_0008;

/// A feature: where CPUID promises it, and code that uses it. The code may change RAX, RCX, RDX, RSI,
/// flags, vector and mask registers, and 960 bytes at RDI, an address divisible by 64.
#[derive(Debug)]
struct Feature {
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    /// 0 to 3 for EAX to EDX.
    register: usize,
    bit: u32,
    code: &'static [u8],
}

const fn feature(
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: usize,
    bit: u32,
    code: &'static [u8],
) -> Feature {
    Feature { name, leaf, subleaf, register, bit, code }
}

/// Every feature with an instruction of its own that may be used at level 3. Those of AVX and later need
/// their bits in XCR0, which the VMM sets to all that the vCPU's CPUID has but AMX's, for which a
/// process must ask its kernel first.
#[rustfmt::skip]
const FEATURES: &[Feature] = &[
    feature("FXSR", 1, 0, 3, 24, &[0x0f, 0xae, 0x07]),
    feature("SSE", 1, 0, 3, 25, &[0x0f, 0x58, 0xc1]),
    feature("SSE2", 1, 0, 3, 26, &[0x66, 0x0f, 0x58, 0xc1]),
    feature("CLFSH", 1, 0, 3, 19, &[0x0f, 0xae, 0x3f]),
    feature("CX8", 1, 0, 3, 8, &[0x0f, 0xc7, 0x0f]),
    feature("CMOV", 1, 0, 3, 15, &[0x0f, 0x44, 0xc1]),
    feature("MMX", 1, 0, 3, 23, &[0x0f, 0x77]),
    feature("TSC", 1, 0, 3, 4, &[0x0f, 0x31]),
    feature("SSE3", 1, 0, 2, 0, &[0xf2, 0x0f, 0x7c, 0xc1]),
    feature("PCLMULQDQ", 1, 0, 2, 1, &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0x00]),
    feature("SSSE3", 1, 0, 2, 9, &[0x66, 0x0f, 0x38, 0x1c, 0xc1]),
    feature("FMA", 1, 0, 2, 12, &[0xc4, 0xe2, 0x75, 0xa8, 0xc1]),
    feature("CX16", 1, 0, 2, 13, &[0x48, 0x0f, 0xc7, 0x0f]),
    feature("SSE4.1", 1, 0, 2, 19, &[0x66, 0x0f, 0x38, 0x40, 0xc1]),
    feature("SSE4.2", 1, 0, 2, 20, &[0xf2, 0x0f, 0x38, 0xf0, 0xc1]),
    feature("MOVBE", 1, 0, 2, 22, &[0x0f, 0x38, 0xf0, 0x07]),
    feature("POPCNT", 1, 0, 2, 23, &[0xf3, 0x0f, 0xb8, 0xc1]),
    feature("AES", 1, 0, 2, 25, &[0x66, 0x0f, 0x38, 0xdc, 0xc1]),
    feature("XSAVE", 1, 0, 2, 26, &[0x31, 0xc9, 0x0f, 0x01, 0xd0]),
    feature("AVX", 1, 0, 2, 28, &[0xc5, 0xf4, 0x58, 0xc1]),
    feature("F16C", 1, 0, 2, 29, &[0xc4, 0xe2, 0x7d, 0x13, 0xc1]),
    feature("RDRAND", 1, 0, 2, 30, &[0x0f, 0xc7, 0xf0]),
    feature("FSGSBASE", 7, 0, 1, 0, &[0xf3, 0x48, 0x0f, 0xae, 0xc0]),
    feature("BMI1", 7, 0, 1, 3, &[0xc4, 0xe2, 0x78, 0xf2, 0xc1]),
    feature("AVX2", 7, 0, 1, 5, &[0xc5, 0xf5, 0xfe, 0xc1]),
    feature("BMI2", 7, 0, 1, 8, &[0xc4, 0xe2, 0x7a, 0xf5, 0xc1]),
    feature("RTM", 7, 0, 1, 11, &[0x0f, 0x01, 0xd6]),
    feature("AVX512F", 7, 0, 1, 16, &[0x62, 0xf1, 0x75, 0x48, 0xfe, 0xc1]),
    feature("AVX512DQ", 7, 0, 1, 17, &[0x62, 0xf2, 0xf5, 0x48, 0x40, 0xc1]),
    feature("RDSEED", 7, 0, 1, 18, &[0x0f, 0xc7, 0xf8]),
    feature("ADX", 7, 0, 1, 19, &[0x66, 0x0f, 0x38, 0xf6, 0xc1]),
    feature("AVX512_IFMA", 7, 0, 1, 21, &[0x62, 0xf2, 0xf5, 0x48, 0xb4, 0xc1]),
    feature("CLFLUSHOPT", 7, 0, 1, 23, &[0x66, 0x0f, 0xae, 0x3f]),
    feature("CLWB", 7, 0, 1, 24, &[0x66, 0x0f, 0xae, 0x37]),
    feature("AVX512CD", 7, 0, 1, 28, &[0x62, 0xf2, 0x7d, 0x48, 0x44, 0xc1]),
    feature("SHA", 7, 0, 1, 29, &[0x0f, 0x38, 0xc9, 0xc1]),
    feature("AVX512BW", 7, 0, 1, 30, &[0x62, 0xf1, 0x75, 0x48, 0xfc, 0xc1]),
    feature("AVX512VL", 7, 0, 1, 31, &[0x62, 0xf1, 0x75, 0x09, 0xfe, 0xc1]),
    feature("AVX512_VBMI", 7, 0, 2, 1, &[0x62, 0xf2, 0x75, 0x48, 0x8d, 0xc1]),
    feature("AVX512_VBMI2", 7, 0, 2, 6, &[0x62, 0xf2, 0x7d, 0x48, 0x63, 0xc8]),
    feature("GFNI", 7, 0, 2, 8, &[0x66, 0x0f, 0x38, 0xcf, 0xc1]),
    feature("VAES", 7, 0, 2, 9, &[0xc4, 0xe2, 0x75, 0xdc, 0xc1]),
    feature("VPCLMULQDQ", 7, 0, 2, 10, &[0xc4, 0xe3, 0x75, 0x44, 0xc1, 0x00]),
    feature("AVX512_VNNI", 7, 0, 2, 11, &[0x62, 0xf2, 0x75, 0x48, 0x50, 0xc1]),
    feature("AVX512_BITALG", 7, 0, 2, 12, &[0x62, 0xf2, 0x7d, 0x48, 0x54, 0xc1]),
    feature("AVX512_VPOPCNTDQ", 7, 0, 2, 14, &[0x62, 0xf2, 0x7d, 0x48, 0x55, 0xc1]),
    feature("RDPID", 7, 0, 2, 22, &[0xf3, 0x0f, 0xc7, 0xf8]),
    feature("CLDEMOTE", 7, 0, 2, 25, &[0x0f, 0x1c, 0x07]),
    feature("MOVDIRI", 7, 0, 2, 27, &[0x0f, 0x38, 0xf9, 0x07]),
    feature("MOVDIR64B", 7, 0, 2, 28, &[0x66, 0x0f, 0x38, 0xf8, 0x3f]),
    feature("SERIALIZE", 7, 0, 3, 14, &[0x0f, 0x01, 0xe8]),
    feature("AVX512_FP16", 7, 0, 3, 23, &[0x62, 0xf5, 0x74, 0x48, 0x58, 0xc1]),
    feature("AVX_VNNI", 7, 1, 0, 4, &[0xc4, 0xe2, 0x75, 0x50, 0xc1]),
    feature("AVX512_BF16", 7, 1, 0, 5, &[0x62, 0xf2, 0x7e, 0x48, 0x72, 0xc1]),
    feature("XSAVEOPT", 0xd, 1, 0, 0, &[0xb8, 0x02, 0x00, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0xae, 0x77, 0x40]),
    feature("XSAVEC", 0xd, 1, 0, 1, &[0xb8, 0x02, 0x00, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0xc7, 0x67, 0x40]),
    feature("XGETBV_ECX1", 0xd, 1, 0, 2, &[0xb9, 0x01, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xd0]),
    feature("LAHF_LM", EXTENDED, 0, 2, 0, &[0x9f]),
    feature("LZCNT", EXTENDED, 0, 2, 5, &[0xf3, 0x0f, 0xbd, 0xc1]),
    feature("SSE4A", EXTENDED, 0, 2, 6, &[0x66, 0x0f, 0x79, 0xc1]),
    feature("PREFETCHW", EXTENDED, 0, 2, 8, &[0x0f, 0x0d, 0x0f]),
    feature("XOP", EXTENDED, 0, 2, 11, &[0x8f, 0xe9, 0x78, 0xc2, 0xc1]),
    feature("FMA4", EXTENDED, 0, 2, 16, &[0xc4, 0xe3, 0xf1, 0x68, 0xc1, 0x10]),
    feature("TBM", EXTENDED, 0, 2, 21, &[0x8f, 0xe9, 0x78, 0x01, 0xc9]),
    feature("RDTSCP", EXTENDED, 0, 3, 27, &[0x0f, 0x01, 0xf9]),
    feature("CLZERO", ADDRESSES, 0, 1, 0, &[0x48, 0x89, 0xf8, 0x0f, 0x01, 0xfc]),
];

/// What a fault says.
pub(super) fn fault(feature: u32) -> String {
    let name = FEATURES.get(feature as usize).map_or("an unknown feature", |feature| feature.name);
    format!("CPUID promised {name} at birth, and its instruction raises #UD")
}

/// The program. RBP is the vCPU's share, RDI its scratch memory, R8 the number of features used in a
/// round, R13 where to go on after an exception, R14 whether there was one, R15 the faults.
pub(super) fn program(a: &mut CodeAssembler) -> Result<Handlers, IcedError> {
    a.mov(rbp, rbx)?;
    a.lea(rdi, ptr(rbp + SCRATCH))?;
    a.xor(r15, r15)?;
    let mut turn = a.create_label();
    a.set_label(&mut turn)?;
    a.xor(r8, r8)?;
    for (feature, place) in FEATURES.iter().zip(0..) {
        exercise(a, feature, place)?;
    }
    out(a, ports::PAGES_CHECKED, r8d)?;
    if_asked(a, |a| answer(a, r8d, r15d))?;
    turn_over(a, r12d)?;
    a.jmp(turn)?;
    let mut undefined: CodeLabel = a.create_label();
    a.set_label(&mut undefined)?;
    a.mov(r14d, 1_u32)?;
    a.mov(qword_ptr(rsp), r13)?;
    a.iretq()?;
    Ok(vec![(UNDEFINED, undefined)])
}

/// Uses one feature if CPUID promised it at birth.
fn exercise(a: &mut CodeAssembler, feature: &Feature, place: i32) -> Result<(), IcedError> {
    let mut known = a.create_label();
    let mut resume = a.create_label();
    let mut next = a.create_label();
    a.cmp(byte_ptr(rbp + place), 0)?;
    a.jne(known)?;
    note(a, feature, place)?;
    a.set_label(&mut known)?;
    a.cmp(byte_ptr(rbp + place), PROMISED)?;
    a.jne(next)?;
    a.inc(r8)?;
    a.lea(r13, ptr(resume))?;
    a.xor(r14, r14)?;
    a.db(feature.code)?;
    a.set_label(&mut resume)?;
    a.test(r14d, r14d)?;
    a.jz(next)?;
    a.inc(r15)?;
    a.mov(ecx, u32::try_from(place).unwrap_or(0))?;
    out(a, ports::FAULT_PAGE, ecx)?;
    out(a, ports::FAULT_FOUND_HIGH, r14d)?;
    a.set_label(&mut next)?;
    a.nop()
}

/// Notes whether CPUID promises a feature.
fn note(a: &mut CodeAssembler, feature: &Feature, place: i32) -> Result<(), IcedError> {
    let mut noted = a.create_label();
    let register = [eax, ebx, ecx, edx].get(feature.register).copied().unwrap_or(eax);
    a.mov(byte_ptr(rbp + place), NOT_PROMISED)?;
    // Beyond the highest leaf of its range CPUID may answer with another leaf's values.
    a.mov(eax, feature.leaf & 0x8000_0000)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.cmp(eax, i32::from_ne_bytes(feature.leaf.to_ne_bytes()))?;
    a.jb(noted)?;
    a.mov(eax, feature.leaf)?;
    a.mov(ecx, feature.subleaf)?;
    a.cpuid()?;
    a.bt(register, feature.bit)?;
    a.jnc(noted)?;
    a.mov(byte_ptr(rbp + place), PROMISED)?;
    a.set_label(&mut noted)?;
    a.nop()
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::CodeAssembler;

    #[test]
    fn the_notes_end_before_the_scratch_memory() {
        assert!(FEATURES.len() < usize::try_from(SCRATCH).unwrap());
        assert!(FEATURES.iter().all(|feature| feature.register < 4 && feature.bit < 32));
        let mut names: Vec<&str> = FEATURES.iter().map(|feature| feature.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FEATURES.len());
    }

    #[test]
    fn bytes_are_the_instructions_that_another_assembler_makes() {
        type Make = fn(&mut CodeAssembler) -> Result<(), IcedError>;
        use iced_x86::code_asm::{xmm0, xmm1, zmm0, zmm1};
        let all: [(&str, Make); 4] = [
            ("SSE2", |a| a.addpd(xmm0, xmm1)),
            ("POPCNT", |a| a.popcnt(eax, ecx)),
            ("AVX512F", |a| a.vpaddd(zmm0, zmm1, zmm1)),
            ("RDTSCP", CodeAssembler::rdtscp),
        ];
        for (name, make) in all {
            let mut a = CodeAssembler::new(64).unwrap();
            make(&mut a).unwrap();
            let feature = FEATURES.iter().find(|feature| feature.name == name).unwrap();
            assert_eq!(feature.code, a.assemble(0).unwrap(), "{name}");
        }
        assert!(fault(0).contains("FXSR"));
    }
}
