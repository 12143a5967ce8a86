//! Tests and programs of arm64 alone. The programs' instructions are those of LLVM's assembler.

use ferry_contract::arm64::{RegisterId, RegisterValue, SystemRegister};
use ferry_contract::{Arm64Contract, BirthRequest, Contract, Features, Finding, Wish};
use ferry_migrate::{Builder, Machine};
use ferry_protocol::MachineDescription;
use ferry_state::arm64::GicDistributor;
use ferry_state::{MachineState, Section};
use ferry_vmm::{Birth, Guest, GuestConfig, KvmBuilder, KvmGuest, Payload, VmmError};

use crate::common::{IDLE, PATIENCE, born, code_address, custody, kvm_is_here, running, wait_until};
use crate::crossing::cross;
use crate::payloads::{share, through_it_all};

/// What `clock` reads.
pub(crate) const COUNTER: &str = "CNTVCT_EL0";

/// Sources of ticks that only the first vCPU has.
pub(crate) const TICKS_OF_THE_FIRST: u64 = 0;

/// Whether a check pushes something.
pub(crate) const PUSHES: u64 = 0;

/// The section of a vCPU's registers.
pub(crate) const REGISTERS: &str = "arm64.registers";

/// No instruction, and what is said then: an exception of class 0.
pub(crate) const CRASH: &[u8] = &[0; 16];
pub(crate) const CRASHED: &str = "does not handle (ESR_EL1 0x02000000) at 0x40008000";

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Counts a turn and waits 1000 microseconds, again and again.
pub(crate) const IMAGE: &[u8] = &[
    0x01, 0x40, 0xa1, 0xd2, 0x20, 0x00, 0x80, 0xd2, 0x20, 0x08, 0x0f, 0xb9, 0x00, 0x7d, 0x80, 0xd2, 0x20,
    0x00, 0x0f, 0xb9, 0xfc, 0xff, 0xff, 0x17,
];

/// Prints the numbers from 0 in eight hexadecimal digits, a line each, as fast as it can.
#[rustfmt::skip]
const PRINT: &[u32] = &[
    0xd2a1_4001, // mov x1, #167772160
    0xd280_0002, // mov x2, #0
    0xd280_0403, // mov x3, #32
    0xd100_1063, // sub x3, x3, #4
    0x9ac3_2444, // lsr x4, x2, x3
    0x9240_0c84, // and x4, x4, #0xf
    0x9100_c084, // add x4, x4, #48
    0xf100_e49f, // cmp x4, #57
    0x5400_0049, // b.ls 0x40 <decimal>
    0x9100_9c84, // add x4, x4, #39
    0x390f_e024, // strb w4, [x1, #1016]
    0xb5ff_ff03, // cbnz x3, 0x24 <digit>
    0xd280_0144, // mov x4, #10
    0x390f_e024, // strb w4, [x1, #1016]
    0x9100_0442, // add x2, x2, #1
    0x17ff_fff3, // b 0x20 <number>
];

/// Reads byte after byte and writes each back.
#[rustfmt::skip]
const ECHO: &[u32] = &[
    0xd2a1_4001, // mov x1, #167772160
    0x394f_f420, // ldrb w0, [x1, #1021]
    0x3607_ffe0, // tbz w0, #0, 0x5c <wait>
    0x394f_e020, // ldrb w0, [x1, #1016]
    0x390f_e020, // strb w0, [x1, #1016]
    0x17ff_fffc, // b 0x5c <wait>
];

/// Lets interrupt 33 be triggered by its edge, asks for the interrupt of received data, says so, and reads none.
#[rustfmt::skip]
const DEAF: &[u32] = &[
    0xd2a1_0001, // mov x1, #134217728
    0xd280_0100, // mov x0, #8
    0xb90c_0820, // str w0, [x1, #3080]
    0xd2a1_4001, // mov x1, #167772160
    0xd280_0020, // mov x0, #1
    0x390f_e420, // strb w0, [x1, #1017]
    0xd280_0420, // mov x0, #33
    0x390f_e020, // strb w0, [x1, #1016]
    0x1400_0000, // b 0x90 <forever>
];

/// PSCI's `SYSTEM_OFF`, and `SYSTEM_RESET`.
#[rustfmt::skip]
const OFF: &[u32] = &[
    0xd280_0100, // mov x0, #8
    0xf2b0_8000, // movk x0, #33792, lsl #16
    0xd400_0002, // hvc #0
];
#[rustfmt::skip]
const RESET: &[u32] = &[
    0xd280_0120, // mov x0, #9
    0xf2b0_8000, // movk x0, #33792, lsl #16
    0xd400_0002, // hvc #0
];

pub(crate) fn print() -> Vec<u8> {
    bytes(PRINT)
}

pub(crate) fn echo() -> Vec<u8> {
    bytes(ECHO)
}

pub(crate) fn deaf() -> Vec<u8> {
    bytes(DEAF)
}

/// `GICD_ISPENDR1`, and the bit of interrupt 33 there.
const PENDING: u32 = 0x204;
const SERIAL: u32 = 1 << 1;

/// Whether the serial port's interrupt, 33, waits in the interrupt controller.
pub(crate) fn serial_interrupt_waits(state: &MachineState) -> bool {
    let distributor: GicDistributor = state.require(0).unwrap();
    distributor.values[&PENDING] & SERIAL != 0
}

/// The guest has had it.
pub(crate) fn take_serial_interrupt(state: &mut MachineState) {
    let mut distributor: GicDistributor = state.require(0).unwrap();
    *distributor.values.get_mut(&PENDING).unwrap() &= !SERIAL;
    let section = Section::of(&distributor, 0, None).unwrap();
    *state.sections.iter_mut().find(|section| section.name == "arm64.gic_distributor").unwrap() = section;
}

#[test]
fn what_the_identification_registers_show_stays() {
    if !kvm_is_here() {
        return;
    }
    for cpus in [1, 4] {
        let (guest, registers) = through_it_all(Payload::Features, cpus);
        assert_eq!(registers, 78 * u64::from(cpus));
        // The last 14 are caches, of which each processor has one at least.
        let mut caches = [0; 14 * 16];
        guest.ram().read(share() + 64 * 16, &mut caches).unwrap();
        assert_ne!(caches, [0; 14 * 16]);
    }
}

#[test]
fn a_register_that_is_not_as_at_birth_is_a_fault() {
    if !kvm_is_here() {
        return;
    }
    let mut guest = running(&GuestConfig { payload: Payload::Features, ..IDLE });
    assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
    let custody = guest.pause().unwrap();
    // Eight registers come before those of CRm 1 on; ID_AA64PFR0_EL1 is the first of CRm 4. An entry begins with the
    // value at birth.
    let place = share() + (8 + 3 * 8) * 16;
    let mut birth = [0; 8];
    guest.ram().read(place, &mut birth).unwrap();
    birth[3] ^= 1; // GIC
    guest.ram().write(place, &birth).unwrap();
    guest.resume(custody).unwrap();
    assert!(guest.verify(PATIENCE).unwrap().faults > 0);
    let fault = guest.report().first_fault.unwrap();
    assert!(fault.starts_with("ID_AA64PFR0_EL1: 0x"), "{fault}");
}

#[test]
fn a_guest_that_switches_itself_off_says_so() {
    if !kvm_is_here() {
        return;
    }
    for (program, said) in [(OFF, "PSCI SYSTEM_OFF"), (RESET, "PSCI SYSTEM_RESET")] {
        let mut guest = born(&IDLE.with_cpus(2));
        guest.ram().write(code_address(), &bytes(program)).unwrap();
        guest.resume(custody()).unwrap();
        wait_until("it ends", || guest.report().stopped.is_some());
        let reason = guest.report().stopped.unwrap();
        assert!(reason.contains(said) && reason.ends_with(" at 0x4000800c"), "{reason}");
    }
}

/// Instructions of which a guest is told; in bits 7 to 4 those of AES.
const ISAR0: RegisterId = RegisterId::system(SystemRegister::new(3, 0, 0, 6, 0));

/// All that this host offers.
fn offered() -> Arm64Contract {
    let offered = born(&IDLE).description().contract;
    let Contract::Arm64(contract) = Contract::from_bytes(&offered).unwrap() else { panic!("another kind") };
    *contract
}

/// The same with something else in that register.
fn contract_with(change: impl Fn(u64) -> u64) -> (Contract, u64) {
    let mut contract = offered();
    let value = change(contract.registers[&ISAR0].number().unwrap());
    contract.registers.insert(ISAR0, RegisterValue::from(value));
    (contract.into(), value)
}

fn born_under(contract: &Contract) -> Result<KvmGuest, VmmError> {
    let birth = Birth { contract: Some(contract), ..Birth::plain(1) };
    ferry_vmm::create_on_kvm(&GuestConfig { payload: Payload::Features, ..IDLE }, birth, None)
}

#[test]
fn a_guest_sees_its_contract_and_not_its_host_wherever_it_goes() {
    if !kvm_is_here() {
        return;
    }
    let (contract, told) = contract_with(|value| value & !0xf0);
    let mut guest = match born_under(&contract) {
        // Before Linux 6.6 no such register can be set.
        Err(error @ (VmmError::Birth(_) | VmmError::Contract(_))) => {
            assert!(error.to_string().contains("ID_AA64ISAR0_EL1"), "{error}");
            println!("left out: {error}");
            return;
        }
        guest => guest.unwrap(),
    };
    guest.resume(custody()).unwrap();
    for _ in 0..2 {
        assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
        // It is the first of CRm 6; an entry's second half is the value of now.
        let mut shown = [0; 8];
        guest.ram().read(share() + (8 + 5 * 8) * 16 + 8, &mut shown).unwrap();
        assert_eq!(u64::from_le_bytes(shown), told);
        guest = cross(guest);
    }
}

#[test]
fn a_guest_is_built_under_its_contract_and_no_other() {
    if !kvm_is_here() {
        return;
    }
    let offer = born(&IDLE).description();
    let mut builder = KvmBuilder::new().unwrap();
    assert_eq!(builder.build(&offer).unwrap().description(), offer);

    // More than any host has: what fields will say one day.
    let (promising, _) = contract_with(|value| value | 0xf0);
    let error = born_under(&promising).unwrap_err();
    assert!(error.to_string().contains("ID_AA64ISAR0_EL1"), "{error}");
    assert!(error.findings().iter().all(Finding::is_bounded) && !error.findings().is_empty());
    let verdict = builder.judge(&MachineDescription { contract: promising.to_bytes(), ..offer });
    assert!(verdict.is_refusal());
    assert!(verdict.findings.iter().any(|finding| finding.subject.starts_with("ID_AA64ISAR0_EL1")));
}

/// The contract of a guest that has this beside the usual; none where this host does not offer it.
fn wished(wishes: &[Wish], vcpus: u32) -> Option<Contract> {
    let profile = ferry_kvm::probe::probe(&ferry_kvm::open().unwrap()).unwrap();
    let request = BirthRequest { vcpus, features: Features::Offered(wishes.to_vec()) };
    let contract = Contract::birth(&profile, &request);
    contract.inspect_err(|error| println!("left out: {error}")).ok()
}

#[test]
fn a_guest_with_a_performance_monitor_runs_and_moves() {
    if !kvm_is_here() {
        return;
    }
    let Some(contract) = wished(&[Wish::Pmu], 2) else { return };
    let birth = Birth { contract: Some(&contract), ..Birth::plain(1) };
    let config = GuestConfig { payload: Payload::Features, ..IDLE }.with_cpus(2);
    let mut guest = ferry_vmm::create_on_kvm(&config, birth, None).unwrap();
    guest.resume(custody()).unwrap();
    for _ in 0..2 {
        assert_eq!(guest.verify(PATIENCE).unwrap().faults, 0);
        guest = cross(guest);
    }
}

#[test]
fn a_contract_of_another_machine_is_refused_with_the_reason() {
    if !kvm_is_here() {
        return;
    }
    let own = born(&IDLE).description();
    let mut builder = KvmBuilder::new().unwrap();
    let mut refused = |contract: &Contract, reason: &str| {
        let error = born_under(contract).unwrap_err();
        assert!(error.findings().iter().any(|finding| finding.target.contains(reason)), "{error}");
        let verdict = builder.judge(&MachineDescription { contract: contract.to_bytes(), ..own.clone() });
        assert!(verdict.is_refusal());
        assert!(verdict.findings.iter().any(|finding| finding.target.contains(reason)), "{verdict:?}");
    };
    let bare = Arm64Contract { gic_version: None, ..offered() };
    refused(&bare.into(), "guests of this VMM have a GICv3");
    if let Some(nested) = wished(&[Wish::Pmu, Wish::Sve, Wish::El2], 1) {
        refused(&nested, "KVM gives nobody before Linux 6.17");
    }
}
