//! Tests and programs of x86-64 alone.

use ferry_contract::{Contract, Finding};
use ferry_migrate::{Builder, Machine};
use ferry_protocol::MachineDescription;
use ferry_state::{MachineState, Section, x86};
use ferry_vmm::{Birth, Guest, GuestConfig, KvmBuilder, Payload, ports};
use iced_x86::code_asm::{CodeAssembler, al, cl, dx, eax, ebx, ecx};

use crate::common::{IDLE, PATIENCE, born, code_address, custody, kvm_is_here, running, wait_until};
use crate::crossing::cross;
use crate::payloads::through_it_all;

/// What `clock` reads.
pub(crate) const COUNTER: &str = "the TSC";

/// Sources of ticks that only the first vCPU has: the PIT.
pub(crate) const TICKS_OF_THE_FIRST: u64 = 1;

/// Whether a check pushes something.
pub(crate) const PUSHES: u64 = 1;

/// The section of a vCPU's registers.
pub(crate) const REGISTERS: &str = "x86.regs";

/// HLT is a privileged instruction: at level 3 an exception, and there is no handler. And what is said then.
pub(crate) const CRASH: &[u8] = &[0xf4; 16];
pub(crate) const CRASHED: &str = "KVM_EXIT_SHUTDOWN";

/// again: mov edx, 0xf08; mov eax, 1; out dx, eax; mov edx, 0xf00; mov eax, 1000; out dx, eax; jmp again
pub(crate) const IMAGE: &[u8] = &[
    0xba, 0x08, 0x0f, 0, 0, 0xb8, 1, 0, 0, 0, 0xef, 0xba, 0x00, 0x0f, 0, 0, 0xb8, 0xe8, 3, 0, 0, 0xef, 0xeb,
    0xe8,
];

fn assembled(program: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    program(&mut assembler).unwrap();
    assembler.assemble(code_address()).unwrap()
}

pub(crate) fn print() -> Vec<u8> {
    assembled(print_with)
}

pub(crate) fn echo() -> Vec<u8> {
    assembled(echo_with)
}

pub(crate) fn deaf() -> Vec<u8> {
    assembled(deaf_with)
}

/// Prints the numbers from 0 in eight hexadecimal digits, a line each, as fast as it can.
fn print_with(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let (mut number, mut digit, mut decimal) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(dx, u32::from(ports::SERIAL))?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut number)?;
    a.mov(ecx, 32)?;
    a.set_label(&mut digit)?;
    a.sub(ecx, 4)?;
    a.mov(eax, ebx)?;
    a.shr(eax, cl)?;
    a.and(eax, 15)?;
    a.add(eax, u32::from(b'0'))?;
    a.cmp(eax, u32::from(b'9'))?;
    a.jbe(decimal)?;
    a.add(eax, u32::from(b'a' - b'9' - 1))?;
    a.set_label(&mut decimal)?;
    a.out(dx, al)?;
    a.test(ecx, ecx)?;
    a.jnz(digit)?;
    a.mov(al, u32::from(b'\n'))?;
    a.out(dx, al)?;
    a.inc(ebx)?;
    a.jmp(number)
}

/// Reads byte after byte and writes each back.
fn echo_with(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.mov(dx, u32::from(ports::SERIAL + 5))?; // LSR
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.jz(wait)?;
    a.mov(dx, u32::from(ports::SERIAL))?;
    a.in_(al, dx)?;
    a.out(dx, al)?;
    a.jmp(wait)
}

/// Asks for the interrupt of received data, says so, and reads none.
fn deaf_with(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut forever = a.create_label();
    a.mov(dx, u32::from(ports::SERIAL + 1))?; // IER
    a.mov(al, 1)?;
    a.out(dx, al)?;
    a.mov(dx, u32::from(ports::SERIAL))?;
    a.mov(al, u32::from(b'!'))?;
    a.out(dx, al)?;
    a.set_label(&mut forever)?;
    a.jmp(forever)
}

/// Whether the serial port's interrupt, 4, waits in the interrupt controller.
pub(crate) fn serial_interrupt_waits(state: &MachineState) -> bool {
    let chips: x86::Irqchip = state.require(0).unwrap();
    chips.pic_master.irr & 0x10 != 0
}

/// The guest has had it.
pub(crate) fn take_serial_interrupt(state: &mut MachineState) {
    let mut chips: x86::Irqchip = state.require(0).unwrap();
    chips.pic_master.irr &= !0x10;
    let section = Section::of(&chips, 0, None).unwrap();
    *state.sections.iter_mut().find(|section| section.name == "x86.irqchip").unwrap() = section;
}

#[test]
fn memory_behind_the_hole_follows_on_memory_before_it() {
    if !kvm_is_here() {
        return;
    }
    let memory_bytes = (3 << 30) + (8 << 20);
    let mut guest = born(&GuestConfig { memory_bytes, ..IDLE });
    // To fill all memory up to the hole takes long: let the working set begin 1 MiB before it.
    guest
        .with_vcpu(0, &mut |vcpu| {
            let mut regs = vcpu.get_regs().unwrap();
            (regs.rbx, regs.r8) = ((3 << 30) - (1 << 20), 512);
            vcpu.set_regs(&regs).unwrap();
            Ok(())
        })
        .unwrap();
    guest.resume(custody()).unwrap();
    let check = guest.verify(PATIENCE).unwrap();
    assert_eq!((check.pages, check.faults), (512, 0));
    // The first page behind the hole is the 256th, and says so in its second word.
    let mut word = [0; 8];
    guest.ram().read((4 << 30) + 8, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 256);
}

#[test]
fn a_guest_is_built_under_its_contract_and_no_other() {
    if !kvm_is_here() {
        return;
    }
    let guest = born(&IDLE);
    let offer = guest.description();
    let Contract::X86(mut promising) = Contract::from_bytes(&offer.contract).unwrap() else {
        panic!("another kind")
    };
    let mut builder = KvmBuilder::new().unwrap();
    assert!(!builder.judge(&offer).is_refusal());
    assert_eq!(builder.build(&offer).unwrap().description(), offer);

    // One feature more than this host has: bit 0 of CPUID leaf 7 EDX is reserved.
    let entry = promising.cpuid.iter_mut().find(|entry| entry.key() == (7, 0)).unwrap();
    entry.edx |= 1;
    let promising = Contract::X86(promising);
    let error =
        ferry_vmm::create_on_kvm(&IDLE, Birth { contract: Some(&promising), ..Birth::plain(1) }, None)
            .unwrap_err();
    assert!(error.to_string().contains("CPUID.7.0:EDX"), "{error}");
    assert!(error.findings().iter().all(Finding::is_bounded) && !error.findings().is_empty());
    let offer = MachineDescription { contract: promising.to_bytes(), ..offer };
    let verdict = builder.judge(&offer);
    assert!(verdict.is_refusal());
    assert!(verdict.findings.iter().any(|finding| finding.subject.starts_with("CPUID.7.0:EDX")));
    assert!(builder.build(&offer).is_err());
}

#[test]
fn what_cpuid_shows_stays() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (_, leaves) = through_it_all(Payload::Features, cpus);
        assert!(leaves > 150 * u64::from(cpus), "{leaves} leaves");
    }
}

#[test]
fn a_guest_sees_its_contract_and_not_its_host_wherever_it_goes() {
    if !kvm_is_here() {
        return;
    }
    // All that the host offers, less one feature: PCLMULQDQ, bit 1 of leaf 1 ECX.
    let offered = running(&IDLE).description().contract;
    let Contract::X86(mut contract) = Contract::from_bytes(&offered).unwrap() else { panic!("another kind") };
    if contract.kvm_cpuid.is_some() {
        println!("skipped: this KVM shows guests the hardware's CPUID");
        return;
    }
    let leaf = contract.cpuid.iter_mut().find(|entry| entry.leaf == 1).unwrap();
    assert_ne!(leaf.ecx & 2, 0, "the host has it");
    leaf.ecx &= !2;
    let told = contract.cpuid.iter().find(|entry| entry.leaf == 1).unwrap().ecx;
    let contract = Contract::X86(contract);
    let birth = Birth { contract: Some(&contract), ..Birth::plain(1) };
    let config = GuestConfig { payload: Payload::Features, ..IDLE };
    let mut guest = ferry_vmm::create_on_kvm(&config, birth, None).unwrap();
    guest.resume(custody()).unwrap();
    for _ in 0..2 {
        assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
        // Leaf 1 is the second entry of 64 bytes; at 48 lies its ECX of now.
        let mut shown = [0; 4];
        guest.ram().read((2 << 20) + 64 + 48, &mut shown).unwrap();
        // OSXSAVE and MONITOR follow what the vCPU does.
        let run_time = 1 << 27 | 1 << 3;
        assert_eq!(u32::from_le_bytes(shown) & !run_time, told & !run_time);
        guest = cross(guest);
    }
}

#[test]
fn a_leaf_that_is_not_as_at_birth_is_a_fault() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&GuestConfig { payload: Payload::Features, ..IDLE });
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let custody = guest.pause().unwrap();
    // Leaf 1 is the second entry of 64 bytes; at 32 lies its ECX of birth.
    let mut shown = [0; 4];
    guest.ram().read((2 << 20) + 64 + 32, &mut shown).unwrap();
    shown[2] ^= 0x10; // SSE4.2
    guest.ram().write((2 << 20) + 64 + 32, &shown).unwrap();
    guest.resume(custody).unwrap();
    assert!(guest.verify(PATIENCE).unwrap().faults > 0);
    let fault = guest.report().first_fault.unwrap();
    assert!(fault.starts_with("CPUID leaf 0x1, subleaf 0, ECX: "), "{fault}");
}

#[test]
fn every_promised_instruction_can_be_used() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (_, used) = through_it_all(Payload::Exercise, cpus);
        println!("{cpus} vCPUs: {used} features used");
        assert!(used >= 10 * u64::from(cpus), "{used} features");
    }
}

#[test]
fn what_rdmsr_gives_stays() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (_, entries) = through_it_all(Payload::Msrs, cpus);
        assert!(entries > 50 * u64::from(cpus), "{entries} entries");
    }
}

#[test]
fn an_msr_that_is_not_as_at_birth_or_not_there_any_more_is_a_fault() {
    if !kvm_is_here() {
        return;
    }
    // The third entry of 64 bytes is the microcode's revision, which every KVM shows: at 0 lies its number,
    // at 32 its value of birth.
    for (at, byte, expected) in [(32, 0x5a, "now"), (3, 0xf0, "raises #GP")] {
        let mut guest = running(&GuestConfig { payload: Payload::Msrs, ..IDLE });
        assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
        let custody = guest.pause().unwrap();
        let place = (2 << 20) + 2 * 64 + at;
        let mut was = [0];
        guest.ram().read(place, &mut was).unwrap();
        guest.ram().write(place, &[was[0] ^ byte]).unwrap();
        guest.resume(custody).unwrap();
        assert!(guest.verify(PATIENCE).unwrap().faults > 0);
        let fault = guest.report().first_fault.unwrap();
        assert!(fault.starts_with("MSR 0x") && fault.ends_with(expected), "{fault}");
    }
}

#[test]
fn an_instruction_that_is_not_there_is_named() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&GuestConfig { payload: Payload::Exercise, ..IDLE });
    let custody = guest.pause().unwrap();
    // The vCPU's notes: 1 is promised, 2 is not. No processor has all of AMD's and Intel's.
    let mut notes = [0; 128];
    guest.ram().read(2 << 20, &mut notes).unwrap();
    assert!(notes.contains(&2));
    guest.ram().write(2 << 20, &notes.map(|note| note.min(1))).unwrap();
    guest.resume(custody).unwrap();
    wait_until("it is found", || guest.report().faults > 0);
    let report = guest.report();
    assert_eq!(report.stopped, None, "the guest goes on after the exception");
    let fault = report.first_fault.unwrap();
    assert!(fault.ends_with(" at birth, and its instruction raises #UD"), "{fault}");
    let before = report.progress;
    wait_until("it goes on", || guest.report().progress > before);
}
