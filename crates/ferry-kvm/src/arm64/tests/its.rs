//! An interrupt translation service: what the guest told it, and LPIs that wait, move with guest memory.

use std::sync::{Arc, Mutex};

use ferry_memory::{PAGE_SIZE, PageSet};
use ferry_migrate::{Custody, DeviceSet, Harvest, Machine};
use ferry_protocol::RegionSpan;
use ferry_state::arm64::GicIts;
use kvm_bindings::{KVM_MSI_VALID_DEVID, kvm_msi};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::gic::{Affinity, GICD_CTLR, GICR_CTLR};
use super::super::its::GITS_CTLR;
use super::*;
use crate::{DirtyRing, KvmMachine, MemorySlots, allocate};

const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 0x10_0000;

/// Where the guest has its code, the ITS's commands and tables, and what is known of LPIs. All of the GIC's
/// tables are on boundaries of 64 KiB.
const CODE: u64 = RAM;
const COMMANDS: u64 = RAM + 0x1_0000;
const DEVICES: u64 = RAM + 0x2_0000;
const COLLECTIONS: u64 = RAM + 0x3_0000;
const TRANSLATIONS: u64 = RAM + 0x4_0000;
const PROPERTIES: u64 = RAM + 0x5_0000;
const PENDING: [u64; 2] = [RAM + 0x7_0000, RAM + 0x8_0000];

/// The guest's device, its events, and the LPI and vCPU of each.
const DEVICE: u32 = 7;
const EVENTS: [(u32, u32, u64); 3] = [(3, 8195, 0), (5, 8197, 1), (6, 8200, 0)];

/// Nothing waits that may be signalled now (Arm's IHI 0069, 2.2.1).
const SPURIOUS: u32 = 1023;

/// `again: mrs x0, ICC_IAR1_EL1; msr ICC_EOIR1_EL1, x0; str w0, [x1]; b again`: says which interrupt it
/// acknowledged and ended, by a word written to where there is no memory.
const ACKNOWLEDGE: [u32; 4] = [0xd538_cc00, 0xd518_cc20, 0xb900_0020, 0x17ff_fffd];
const NO_MEMORY: u64 = 0x900_0000;

/// Whole pages that saving the tables writes to.
const TABLES: [u64; 5] = [DEVICES, COLLECTIONS, TRANSLATIONS, PENDING[0], PENDING[1]];

const VALID: u64 = 1 << 63;

struct Guest {
    vm: Arc<VmFd>,
    gic: Gic,
    ram: GuestMemoryMmap,
    words: Arc<Mutex<Words>>,
    machine: KvmMachine<Steps, DeviceSet>,
}

impl Guest {
    fn new(kvm: &Kvm, its: bool) -> Self {
        Self::with_tracking(kvm, its, false)
    }

    /// With dirty rings instead of the log, if wanted.
    fn with_tracking(kvm: &Kvm, its: bool, ring: bool) -> Self {
        let (vm, like) = (Arc::new(kvm.create_vm().unwrap()), Like { its, ..Like::default() });
        let ram = allocate(&[RegionSpan { start: RAM, length: RAM_BYTES }]).unwrap();
        let ring = ring.then(|| DirtyRing::enable(&vm, DirtyRing::ENTRIES).unwrap());
        let mut memory = MemorySlots::register(Arc::clone(&vm), ram.clone()).unwrap();
        if let Some(ring) = &ring {
            memory.use_dirty_ring(ring).unwrap();
        }
        let vcpus = vcpus(&vm, &like);
        let (gic, words) = (gic(&vm, &like).0, Arc::clone(&vcpus.words));
        let machine = KvmMachine::new(kvm, memory, vcpus, DeviceSet::new()).unwrap();
        let machine = machine.with_gic(gic.clone()).unwrap();
        Self { vm, gic, ram, words, machine }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(RAM_BYTES).unwrap()];
        self.ram.read_slice(&mut bytes, GuestAddress(RAM)).unwrap();
        bytes
    }

    fn set_its(&self, offset: u32, value: u64) {
        self.gic.its()[0].set(offset, value).unwrap();
    }

    /// Does what a guest's kernel does: LPIs on, tables for the ITS, a device with its events on both vCPUs.
    fn set_up(&mut self) {
        let code: Vec<u8> = ACKNOWLEDGE.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(CODE, &code);
        for (_, lpi, _) in EVENTS {
            // Priority 0xa0, enabled.
            self.write(PROPERTIES + u64::from(lpi) - 8192, &[0xa1]);
        }
        self.gic.set_distributor(GICD_CTLR, 2).unwrap();
        let gic = self.gic.clone();
        for (index, pending) in (0..).zip(PENDING) {
            self.machine
                .with_vcpu(index, &mut |vcpu| {
                    lpis_on(&gic, vcpu, pending);
                    registers::write(vcpu, core(64, 8), &CODE.into()).unwrap();
                    registers::write(vcpu, core(2, 8), &NO_MEMORY.into()).unwrap();
                    Ok(())
                })
                .unwrap();
        }
        // GITS_CBASER: one page of 4 KiB; GITS_BASER0 and 1: one of 64 KiB each.
        for (offset, value) in [(0x80, COMMANDS), (0x100, DEVICES), (0x108, COLLECTIONS)] {
            self.set_its(offset, VALID | value);
        }
        self.set_its(GITS_CTLR, 1);
        self.command(&commands());
    }

    /// Gives the ITS commands, from the queue's start on; what is behind earlier ones is no command.
    fn command(&self, commands: &[[u64; 4]]) {
        let bytes: Vec<u8> = commands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        self.write(COMMANDS, &bytes);
        self.set_its(0x88, bytes.len() as u64);
        let its = self.gic.its()[0].registers().unwrap();
        assert_eq!(its.values[&0x90], bytes.len() as u64, "the ITS has taken them");
    }

    /// A device's write of an event to the ITS; whether it went through.
    fn signal(&self, device: u32, event: u32) -> bool {
        let msi = kvm_msi {
            address_lo: DOORBELL,
            data: event,
            flags: KVM_MSI_VALID_DEVID,
            devid: device,
            ..kvm_msi::default()
        };
        self.vm.signal_msi(msi).unwrap() == 1
    }

    /// Lets the first vCPU run until it has acknowledged so many interrupts, and pauses it.
    fn acknowledged(&mut self, custody: Custody, count: usize) -> (Vec<u32>, Custody) {
        self.words.lock().unwrap().wanted = count;
        self.machine.resume(custody).unwrap();
        let heard = std::mem::take(&mut self.words.lock().unwrap().heard);
        (heard, self.machine.pause().unwrap())
    }

    fn is_pending(&self, lpi: u32, table: u64) -> bool {
        let mut byte = [0];
        self.ram.read_slice(&mut byte, GuestAddress(table + u64::from(lpi / 8))).unwrap();
        byte[0] >> (lpi % 8) & 1 != 0
    }
}

/// Tells a vCPU's redistributor and CPU interface to take LPIs.
fn lpis_on(gic: &Gic, vcpu: &VcpuFd, pending: u64) {
    let affinity = Affinity::of(vcpu).unwrap();
    let low = |address: u64| u32::try_from(address).unwrap();
    // Ids of 16 bits.
    for (offset, value) in [(0x70, low(PROPERTIES) | 15), (0x78, low(pending)), (GICR_CTLR, 1)] {
        gic.set_redistributor(affinity, offset, value).unwrap();
    }
    let number = |crn, crm, op2| SystemRegister::new(3, 0, crn, crm, op2).bits().into();
    gic.set_cpu_interface(affinity, number(4, 6, 0), 0xf0).unwrap();
    gic.set_cpu_interface(affinity, number(12, 12, 7), 1).unwrap();
}

/// MAPC for each vCPU, MAPD, MAPTI and INV for each event (Arm's IHI 0069, 5.3).
fn commands() -> Vec<[u64; 4]> {
    let device = u64::from(DEVICE) << 32;
    let mut commands = vec![[9, 0, VALID, 0], [9, 0, VALID | 1 << 16 | 1, 0]];
    commands.push([8 | device, 4, VALID | TRANSLATIONS, 0]);
    for (event, lpi, collection) in EVENTS {
        commands.push([0xa | device, u64::from(event) | u64::from(lpi) << 32, collection, 0]);
        commands.push([0xc | device, event.into(), 0, 0]);
    }
    commands
}

/// The interrupt controller's sections, in the order of capture.
fn of_gic(state: &MachineState) -> Vec<&ferry_state::Section> {
    state.sections.iter().filter(|section| section.name.starts_with("arm64.gic_")).collect()
}

/// A guest with LPIs that wait, paused; with what was captured of it and its memory, and the pages that
/// the last harvest found.
fn captured(kvm: &Kvm, ring: bool) -> (Guest, Custody, MachineState, Vec<u8>, PageSet) {
    let mut guest = Guest::with_tracking(kvm, true, ring);
    guest.set_up();
    guest.machine.resume(Custody::born("guest".parse().unwrap())).unwrap();
    guest.machine.start_dirty_tracking().unwrap();
    let mut pages = PageSet::empty(guest.machine.ram().layout());
    guest.machine.harvest_dirty(Harvest::Live, &mut pages).unwrap();
    pages.clear();
    assert!(guest.signal(DEVICE, 3) && guest.signal(DEVICE, 5));
    let custody = guest.machine.pause().unwrap();
    guest.machine.harvest_dirty(Harvest::Paused, &mut pages).unwrap();
    let before = guest.memory();
    let state = guest.machine.capture().unwrap();
    guest.machine.capture_devices().unwrap();
    assert!(
        guest.memory() == before,
        "the tables were written before the last harvest, and nothing after it"
    );
    (guest, custody, state, before, pages)
}

fn numbers(pages: &PageSet) -> Vec<u64> {
    pages.ranges().flat_map(|it| it.first..it.first + it.count).collect()
}

#[test]
fn the_tables_are_harvested_beside_dirty_rings_too() {
    let Some(kvm) = kvm() else { return };
    if let Err(error) = DirtyRing::is_offered(&kvm) {
        println!("left out: {error}");
        return;
    }
    let pages = captured(&kvm, true).4;
    assert_eq!(numbers(&pages), TABLES.map(|address| address / PAGE_SIZE));
}

#[test]
fn mappings_and_lpis_that_wait_are_there_in_another_machine() {
    let Some(kvm) = kvm() else { return };
    let (source, custody, state, memory, pages) = captured(&kvm, false);
    assert_eq!(numbers(&pages), TABLES.map(|address| address / PAGE_SIZE));
    assert!(source.is_pending(8195, PENDING[0]) && source.is_pending(8197, PENDING[1]));
    assert!(!source.is_pending(8200, PENDING[0]));
    let its: GicIts = part(&state, 0);
    assert_eq!(its.values[&GITS_CTLR] & 1, 1);
    let needed = &state.section("arm64.gic_its", 0).unwrap().unwrap().needed;
    assert_eq!(needed, &[GITS_CTLR, 0x80, 0x88, 0x90, 0x100, 0x108]);

    let mut target = Guest::new(&kvm, true);
    target.write(RAM, &memory);
    target.machine.restore(&state).unwrap();
    assert!(!target.is_pending(8195, PENDING[0]), "KVM takes them out of the table");
    target.machine.resume(custody).unwrap();
    let custody = target.machine.pause().unwrap();
    let again = target.machine.capture().unwrap();
    assert_eq!(of_gic(&again), of_gic(&state));
    assert!(target.memory() == memory, "the tables are as they were");

    // The guest gets the one that waited for this vCPU, once, and from the same device the next one.
    let (heard, custody) = target.acknowledged(custody, 2);
    assert_eq!(heard, [8195, SPURIOUS]);
    assert!(!target.is_pending(8195, PENDING[0]) && target.is_pending(8197, PENDING[1]));
    assert!(target.signal(DEVICE, 6));
    assert_eq!(target.acknowledged(custody, 2).0, [8200, SPURIOUS]);
}

#[test]
fn a_guest_that_runs_on_after_a_capture_finds_nothing_changed() {
    let Some(kvm) = kvm() else { return };
    let (mut source, custody, ..) = captured(&kvm, false);
    let (heard, _) = source.acknowledged(custody, 3);
    assert_eq!(heard, [8195, SPURIOUS, SPURIOUS]);
    assert!(source.is_pending(8197, PENDING[1]) && !source.is_pending(8195, PENDING[0]));
}

#[test]
fn machines_with_and_without_its_are_unlike() {
    let Some(kvm) = kvm() else { return };
    // Used or not: the guest was told that it is there.
    let mut unused = Guest::new(&kvm, true);
    unused.machine.resume(Custody::born("guest".parse().unwrap())).unwrap();
    let _custody = unused.machine.pause().unwrap();
    let with = unused.machine.capture().unwrap();
    assert!(with.section("arm64.gic_its", 0).unwrap().unwrap().needed.is_empty());
    let refused = format!("{:?}", Guest::new(&kvm, false).machine.restore(&with).unwrap_err());
    assert!(refused.contains("NoIts"), "{refused}");
    let without = Guest::new(&kvm, false).machine.capture().unwrap();
    let refused = format!("{:?}", Guest::new(&kvm, true).machine.restore(&without).unwrap_err());
    assert!(refused.contains("MissingSection") && refused.contains("arm64.gic_its"), "{refused}");
}

#[test]
fn a_guest_whose_tables_cannot_be_written_runs_on() {
    let Some(kvm) = kvm() else { return };
    let (mut guest, custody, ..) = captured(&kvm, false);
    // The guest has another device with an event, whose table it has put where there is no memory.
    let other = u64::from(DEVICE + 1) << 32;
    guest.command(&[[8 | other, 4, VALID | NO_MEMORY, 0], [0xa | other, 8201 << 32, 0, 0]]);
    guest.machine.resume(custody).unwrap();
    if !guest.signal(DEVICE + 1, 0) {
        println!("left out: this KVM maps no event whose table is nowhere");
        let _custody = guest.machine.pause().unwrap();
        return;
    }
    guest.words.lock().unwrap().wanted = 1;
    let refused = format!("{:?}", guest.machine.pause().unwrap_err());
    assert!(refused.contains("ItsTablesUnwritten"), "{refused}");
    assert!(guest.machine.runs());
    assert_eq!(guest.words.lock().unwrap().heard, [8195]);
}

#[test]
fn tables_that_are_none_are_refused() {
    let Some(kvm) = kvm() else { return };
    let (_, _, mut state, memory, _) = captured(&kvm, false);
    let mut target = Guest::new(&kvm, true);
    target.write(RAM, &memory);
    // A collection of a vCPU that is not there.
    target.write(COLLECTIONS, &(VALID | 99 << 16).to_le_bytes());
    let refused = format!("{:?}", target.machine.restore(&state).unwrap_err());
    assert!(refused.contains("ItsTablesUnread"), "{refused}");

    // A device table that is not there: KVM would leave the ITS off without a word.
    let section = state.sections.iter_mut().find(|section| section.name == "arm64.gic_its").unwrap();
    let mut its: GicIts = section.read().unwrap();
    its.values.insert(0x100, its.values[&0x100] & !VALID);
    section.body = ferry_state::Section::of(&its, 0, None).unwrap().body;
    let mut target = Guest::new(&kvm, true);
    target.write(RAM, &memory);
    let refused = format!("{:?}", target.machine.restore(&state).unwrap_err());
    assert!(refused.contains("ItsNotKept"), "{refused}");
}
