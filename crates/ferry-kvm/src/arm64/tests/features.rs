//! vCPUs with vectors of SVE, and with a performance monitor.

use ferry_contract::arm64::RegisterValue;
use kvm_bindings::{KVM_CAP_ARM_PMU_V3, KVM_CAP_ARM_SVE};

use super::*;

/// Whether this host's KVM offers it; says so if not.
fn has(kvm: &Kvm, capability: u32, name: &str) -> bool {
    let has = kvm.check_extension_raw(capability.into()) > 0;
    if !has {
        println!("left out: this host's KVM has no {name} for guests");
    }
    has
}

/// The vector lengths of a vCPU, as a number for the first 64 of them: bit *n* is *n* + 1 times 128 bits.
fn lengths(vcpu: &VcpuFd) -> u64 {
    let all = registers::read(vcpu, RegisterId::SVE_VECTOR_LENGTHS).unwrap();
    u64::from_le_bytes(all.bytes()[..8].try_into().unwrap())
}

/// Gives a vCPU that is not finalised these vector lengths.
pub(super) fn set_lengths(vcpu: &VcpuFd, lengths: u64) {
    let mut all = vec![0; 64];
    all[..8].copy_from_slice(&lengths.to_le_bytes());
    let value = RegisterValue::new(all).unwrap();
    registers::write(vcpu, RegisterId::SVE_VECTOR_LENGTHS, &value).unwrap();
}

/// A vector (`z`), a predicate (`p`) or the first fault register, which follows the predicates, by its number.
fn vector(number: u32) -> RegisterId {
    RegisterId::from_key(0x15_0000 | number << 5, 256).unwrap()
}

fn predicate(number: u32) -> RegisterId {
    RegisterId::from_key(0x15_0400 | number << 5, 32).unwrap()
}

const FIRST_FAULT: u32 = 16;

/// What a guest has in its SVE registers: unlike bytes in each, as many as its longest vector has.
fn vectors(bytes: usize) -> Vec<(RegisterId, RegisterValue)> {
    let value = |number: u32, used: usize, all: usize| {
        let byte = |at: usize| u8::try_from((at * 7 + number as usize * 13 + 1) % 255).unwrap();
        RegisterValue::new((0..all).map(|at| if at < used { byte(at) } else { 0 }).collect()).unwrap()
    };
    let vectors = (0..32).map(|number| (vector(number), value(number, bytes, 256)));
    let predicates = (0..FIRST_FAULT).map(|number| (predicate(number), value(number, bytes / 8, 32)));
    // The first fault register has ones only up to the first zero.
    let first_fault = RegisterValue::new([vec![0xff; bytes / 8], vec![0; 32 - bytes / 8]].concat()).unwrap();
    vectors.chain(predicates).chain([(predicate(FIRST_FAULT), first_fault)]).collect()
}

/// What was written to the first vCPU is in another machine after a move.
fn comes_back(kvm: &Kvm, like: &Like, written: &[(RegisterId, RegisterValue)]) {
    let mut source = Fresh::new(kvm, like);
    for (id, value) in written {
        registers::write(source.first(), *id, value).unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    let captured = source.capture();
    drop(source);
    let registers: Registers = part(&captured, 0);
    let needed = &captured.section(Registers::NAME, 0).unwrap().unwrap().needed;
    for (id, value) in written.iter().filter(|(id, _)| !id.counts()) {
        assert_eq!(registers.value(*id), Some(value), "{id}");
        assert!(needed.contains(&id.key()), "{id}");
    }
    let mut target = Fresh::new(kvm, like);
    target.restore(&captured).unwrap();
    let again = target.capture();
    for index in [0, 1] {
        same_registers(&again, &captured, index);
    }
    assert_eq!(again.section(Registers::NAME, 0).unwrap().unwrap().needed, *needed);
}

#[test]
fn vectors_come_back_at_every_length_that_a_guest_may_have() {
    let Some(kvm) = kvm() else { return };
    if !has(&kvm, KVM_CAP_ARM_SVE, "SVE") {
        return;
    }
    let like = Like { features: vec![VcpuFeature::Sve], ..Like::default() };
    let all = lengths(Fresh::new(&kvm, &like).first());
    // The shortest alone, the two shortest, …, all: KVM takes no set with one left out in the middle.
    for most in (0..64_u32).filter(|bit| all >> bit & 1 != 0) {
        let lengths = Some(all & (u64::MAX >> (63 - most)));
        // ZCR_EL1.LEN: as long as there is.
        let mut written = vec![(system(0, 1, 2, 0), u64::from(most).into())];
        written.retain(|_| most > 0);
        written.extend(vectors(16 * (most as usize + 1)));
        comes_back(&kvm, &Like { lengths, ..like.clone() }, &written);
    }
}

#[test]
fn a_performance_monitor_comes_back() {
    let Some(kvm) = kvm() else { return };
    if !has(&kvm, KVM_CAP_ARM_PMU_V3, "PMU") {
        return;
    }
    let like = Like { features: vec![VcpuFeature::PmuV3], ..Like::default() };
    let control = registers::read(Fresh::new(&kvm, &like).first(), system(3, 9, 12, 0)).unwrap();
    let control = control.number().unwrap();
    let counters = control >> 11 & 0x1f;
    let mut written = vec![
        // PMCR_EL0: counting, and events in what guests export; PMCNTENSET_EL0 and PMINTENSET_EL1: cycles;
        // PMOVSSET_EL0: they have overflown; PMUSERENR_EL0; PMCCFILTR_EL0: not at EL0; PMCCNTR_EL0.
        (system(3, 9, 12, 0), (control | 0x1).into()),
        (system(3, 9, 12, 1), 0x8000_0000.into()),
        (system(0, 9, 14, 1), 0x8000_0000.into()),
        (system(3, 9, 14, 3), 0x8000_0000.into()),
        (system(3, 9, 14, 0), 0xf.into()),
        (system(3, 14, 15, 7), 0x4000_0000.into()),
        (system(3, 9, 13, 0), 0x1234_5678.into()),
    ];
    if counters > 0 {
        // PMEVTYPER0_EL0: CPU_CYCLES; PMEVCNTR0_EL0; PMSELR_EL0: the cycle counter.
        written.push((system(3, 14, 12, 0), 0x11.into()));
        written.push((system(3, 14, 8, 0), 0x777.into()));
        written.push((system(3, 9, 12, 5), 0x1f.into()));
    }
    comes_back(&kvm, &like, &written);
}
