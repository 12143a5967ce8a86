//! Everything that Ferry needs of the mini-VMM, which knows nothing of it: how its vCPUs stop and
//! go on, what its device holds, how its machine is built; then [`send`] and [`receive`].

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use ferry_contract::{Finding, FindingKind, Layer, Verdict};
use ferry_kvm::{Devices, HostLimits, KvmMachine, MemorySlots, UseVcpu, Vcpus};
use ferry_memory::PageSet;
use ferry_migrate::journal::Volatile;
use ferry_migrate::{
    Address, Arrived, Builder, Listener, Machine, MachineError, MigrateOptions, Migration, ReceiveOptions,
    Reception, Report,
};
use ferry_protocol::{Epoch, GuestId, InstanceId, MachineDescription, RegionSpan, SessionId, SourceConfig};
use ferry_state::{Fields, MachineState, Part, Section};

use crate::vmm::{CPUS, CounterPort, Counts, Crew, MEMORY_BYTES, Vmm};

/// The mini-VMM's guest, movable.
pub(crate) type Movable = KvmMachine<Crew, PortDevice>;

/// Makes a guest movable whose vCPUs stand still and have no program yet.
pub(crate) fn movable(vmm: Vmm) -> Result<Movable, MachineError> {
    let Vmm { kvm, vm, crew, port, memory } = vmm;
    let slots = MemorySlots::register(Arc::new(vm), memory)
        .map_err(|error| MachineError::with_source("the memory cannot be tracked", error))?;
    KvmMachine::new(&kvm, slots, crew, PortDevice(port))
}

impl Vcpus for Crew {
    fn count(&self) -> u32 {
        u32::try_from(CPUS).unwrap_or(u32::MAX)
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.stand_still().map_err(MachineError::new)
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.go_on().map_err(MachineError::new)
    }

    fn with_vcpu(&mut self, index: u32, use_vcpu: &mut UseVcpu<'_>) -> Result<(), MachineError> {
        let vcpu = self.vcpu(index as usize);
        use_vcpu(&*vcpu.ok_or_else(|| MachineError::new(format!("vCPU {index} does not stand still")))?)
    }
}

/// The mini-VMM's device.
pub(crate) struct PortDevice(pub(crate) Arc<CounterPort>);

/// What crosses of it.
#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct PortState {
    #[n(0)]
    last: [u32; CPUS],
    #[n(1)]
    faults: u32,
}

impl Part for PortState {
    const NAME: &'static str = "device/counter-port";
    const FIELDS: Fields = Fields::These(&[0, 1]);
}

impl Devices for PortDevice {
    fn capture(&mut self) -> Result<MachineState, MachineError> {
        let Counts { last, faults } = self.0.counts();
        let section = Section::of(&PortState { last, faults }, 0, None)
            .map_err(|error| MachineError::with_source("the port's state cannot be written", error))?;
        Ok(MachineState { sections: vec![section] })
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let read = state.refuse_unknown(&[PortState::NAME]).and_then(|()| state.require::<PortState>(0));
        let PortState { last, faults } =
            read.map_err(|error| MachineError::with_source("the port's state cannot be read", error))?;
        self.0.set(Counts { last, faults });
        Ok(())
    }

    fn harvest_dirty(&mut self, _into: &mut PageSet) -> Result<(), MachineError> {
        Ok(()) // the port writes no guest memory
    }
}

/// Builds the machine on the target.
struct MiniBuilder;

impl Builder for MiniBuilder {
    type Machine = Movable;

    fn judge(&mut self, machine: &MachineDescription) -> Verdict {
        let mut findings = match ferry_kvm::open() {
            Ok(kvm) => ferry_kvm::judge(&HostLimits::probe(&kvm), machine),
            Err(error) => vec![refusal("a host with KVM", &error.to_string())],
        };
        let memory = [RegionSpan { start: 0, length: MEMORY_BYTES }];
        if machine.vcpus as usize != CPUS || machine.regions != memory || !machine.config.is_empty() {
            findings.push(refusal("another machine", "builds 2 vCPUs, 16 MiB and one port"));
        }
        Verdict { findings }
    }

    fn build(&mut self, _judged: &MachineDescription) -> Result<Movable, MachineError> {
        movable(Vmm::new().map_err(|error| MachineError::with_source("the machine cannot be built", error))?)
    }
}

fn refusal(guest: &str, target: &str) -> Finding {
    Finding {
        kind: FindingKind::Refusal,
        subject: "mini-VMM".to_owned(),
        layer: Layer::Vmm,
        guest: guest.to_owned(),
        target: target.to_owned(),
        effect: "the machine would not be the guest's".to_owned(),
        remedy: "move the guest to a host that runs the same program".to_owned(),
    }
}

/// Moves a running guest away, as the first attempt of its life.
pub(crate) fn send(machine: &mut Movable, guest: GuestId, address: Address) -> Report {
    let epoch = Epoch::BIRTH.next();
    let config = SourceConfig::new(guest, SessionId(random()), epoch, machine.description());
    let options = MigrateOptions::new(address, config, journal());
    let (report, _held) = Migration::new(options).run(machine, &());
    report
}

/// Waits for a guest until it runs here.
pub(crate) fn receive(listener: Listener) -> Result<Arrived<Movable>, MachineError> {
    let reception = Reception::new(listener, ReceiveOptions::new(journal()))?;
    reception.wait(&mut MiniBuilder, &())
}

/// Whose guest matters opens a `StateFolder` and begins a `FileJournal` there. This one forgets with its
/// process what it may have given away or run.
fn journal() -> Arc<Volatile> {
    Arc::new(Volatile::new(InstanceId(random())))
}

/// A number that no other process has chosen; the standard library takes it from the kernel.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
