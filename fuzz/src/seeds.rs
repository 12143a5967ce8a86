//! Seeds: small valid inputs, so that a fuzzer need not guess its way to the first good one.
//!
//! They lie in `corpus/BODY/NAME`. When a wire form gains something, write the new seeds with
//! `FERRY_BLESS=1 cargo test -p ferry-fuzz`; old ones stay useful as inputs from an older build.

mod programs;

use ferry_contract::arm64::RegisterId;
use ferry_contract::{
    BirthRequest, Contract, Features, Finding, FindingKind, Layer, Profile, Verdict, X86Contract,
};
use ferry_migrate::journal::Content;
use ferry_protocol::frame::{FrameKind, PageHead, WireRange, encode};
use ferry_protocol::journal::{Choice, Decided, MayBeGiven, MayRun, OfGuest, Record, Waived};
use ferry_protocol::message::{
    Ask, Hello, Known, MemoryHash, Message, OfEpoch, Offer, Reason, ReasonKind, Refused, RoundEnd, StateEnd,
    Taken, TargetHello, ToSource, ToTarget, Unknown,
};
use ferry_protocol::{DiskSpan, Epoch, GuestId, InstanceId, MachineDescription, RegionSpan, SessionId};
use ferry_sim::{SimConfig, Workload};
use ferry_state::{GuestTime, Part, Pause, ResourceName, Resources, Section, arm64, device, x86};
use ferry_vmm::{Board, DeviceSpec, GuestConfig, Linux, MachineConfig, Payload};

/// One seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The body that reads it.
    pub body: &'static str,
    /// Its file's name.
    pub name: String,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// All seeds.
pub fn all() -> Vec<Seed> {
    let mut seeds = protocol();
    seeds.extend(contracts());
    seeds.extend(guests());
    seeds.extend(journals());
    seeds.extend(state());
    seeds.extend(files());
    seeds.extend(drivers());
    seeds.extend(programs::all());
    seeds
}

fn seed(body: &'static str, name: &str, bytes: &[u8]) -> Seed {
    Seed { body, name: name.to_owned(), bytes: bytes.to_vec() }
}

/// A profile with two entries a list, and the contract of a guest born there.
fn contracts() -> Vec<Seed> {
    let Ok(Profile::X86(mut profile)) = Profile::from_json(PROFILE) else { return Vec::new() };
    profile.capabilities.truncate(2);
    profile.msrs.listed.truncate(2);
    profile.xsave.components.truncate(2);
    for list in [&mut profile.cpuid.supported, &mut profile.cpuid.emulated, &mut profile.probe_guest.cpuid] {
        list.truncate(2);
    }
    let file = Profile::X86(profile.clone()).to_json();
    let mut seeds = vec![seed("profile", "kvm_pvm", file.as_bytes()), seed("profile", "arm64", ARM64)];
    seeds.push(seed("import_kvm_registers", "dump", DUMP));
    let request = BirthRequest { vcpus: 2, features: Features::Offered(Vec::new()) };
    let born = |profile| Contract::birth(&profile, &request);
    if let Ok(Contract::X86(contract)) = born(Profile::X86(profile)) {
        let plain = X86Contract { kvm_cpuid: None, ..X86Contract::clone(&contract) };
        let contract = Contract::X86(contract);
        seeds.push(seed("contract", "kvm_pvm", &contract.to_bytes()));
        seeds.push(seed("contract_json", "kvm_pvm", contract.to_json().as_bytes()));
        seeds.push(seed("contract", "plain", &Contract::from(plain).to_bytes()));
    }
    if let Ok(contract) = Profile::from_json(ARM64).map_err(drop).and_then(|it| born(it).map_err(drop)) {
        seeds.push(seed("contract", "arm64", &contract.to_bytes()));
        seeds.push(seed("contract_json", "arm64", contract.to_json().as_bytes()));
    }
    seeds
}

/// A dump of an arm64 host, with a register of each kind.
const DUMP: &[u8] = include_bytes!("../../crates/ferry-contract/tests/data/kvm-registers.json");

/// An arm64 host's profile with a register of each kind.
pub(crate) const ARM64: &[u8] = include_bytes!("../../crates/ferry-contract/tests/data/arm64.profile.json");

/// What `ferry probe` wrote on a real host.
pub(crate) const PROFILE: &[u8] =
    include_bytes!("../../crates/ferry-contract/tests/data/kvm_pvm.profile.json");

fn guests() -> Vec<Seed> {
    let (working_set_bytes, rate_bytes_per_second) = (1 << 20, 4 << 20);
    let churn = Payload::Churn { rate_bytes_per_second, working_set_bytes };
    let of = |guest: GuestConfig| MachineConfig::from(guest).to_bytes();
    let vmm = |payload| of(GuestConfig { memory_bytes: 16 << 20, cpus: 1, payload, low_bytes: None });
    let sim = |workload| SimConfig { seed: 7, memory_bytes: 4 << 20, workload }.to_bytes();
    let split =
        GuestConfig { memory_bytes: 16 << 20, cpus: 2, payload: Payload::Idle, low_bytes: Some(8 << 20) };
    vec![
        seed("vmm_config", "split", &of(split)),
        seed("vmm_config", "linux", &linux()),
        seed("vmm_config", "idle", &vmm(Payload::Idle)),
        seed("vmm_config", "churn", &vmm(churn)),
        seed("sim_config", "idle", &sim(Workload::Idle { patterned_bytes: 1 << 20 })),
        seed("sim_config", "churn", &sim(Workload::Churn { working_set_bytes, rate_bytes_per_second })),
    ]
}

/// The machine of a Linux guest with a device of each kind.
fn linux() -> Vec<u8> {
    let kernel = Linux {
        kernel: "/boot/vmlinuz".to_owned(),
        initramfs: Some("/boot/initrd.img".to_owned()),
        command_line: "console=ttyS0".to_owned(),
    };
    let devices = vec![
        DeviceSpec::Disk { path: "/srv/a.img".to_owned(), read_only: false },
        DeviceSpec::Net { tap: "tap0".to_owned(), mac: [2, 0, 0, 0, 0, 1] },
        DeviceSpec::Entropy,
        DeviceSpec::Console,
    ];
    let guest = GuestConfig { memory_bytes: 256 << 20, cpus: 2, payload: Payload::Linux, low_bytes: None };
    MachineConfig { guest, board: Board { linux: Some(kernel), devices } }.to_bytes()
}

/// A source's journal and a target's, and one whose last write did not come to its end.
fn journals() -> Vec<Seed> {
    let Some(guest) = guest() else { return Vec::new() };
    let of = |epoch| OfGuest { guest: guest.clone(), epoch: Epoch(epoch) };
    let attempt = |epoch| OfEpoch { session: SessionId(7), epoch: Epoch(epoch) };
    let given = MayBeGiven {
        guest: guest.clone(),
        of: attempt(2),
        to: Some(InstanceId(5)),
        address: "10.0.0.2:7000".to_owned(),
    };
    let reason = "the other host burned (user 0 `root`)".to_owned();
    let choice = Choice::SourceRuns;
    let decided =
        Decided { guest: guest.clone(), epoch: Epoch(2), choice, reason, unix_seconds: 1_700_000_000 };
    let waived = Waived {
        guest: guest.clone(),
        epoch: Epoch(0),
        instance: InstanceId(9),
        choice: Choice::Abandon,
        reason: "its disk was bad (user 0 `root`)".to_owned(),
        unix_seconds: 1_700_000_000,
    };
    let source = [
        Record::Born(of(1)),
        Record::MayBeGiven(given),
        Record::Decided(decided),
        Record::Runs(of(3)),
        Record::Kept(of(2)),
        Record::Ended(of(3)),
        Record::Waived(waived),
    ];
    let may_run = |epoch| Record::MayRun(MayRun { guest: guest.clone(), of: attempt(epoch) });
    let target = [
        Record::Floor(of(1)),
        may_run(2),
        Record::Refused(of(2)),
        may_run(3),
        Record::Runs(of(3)),
        Record::Released(of(3)),
        Record::Moved(of(4)),
    ];
    let target = Content::encode(InstanceId(5), &target);
    vec![
        seed("journal", "source", &Content::encode(InstanceId(1), &source)),
        seed("journal", "torn", target.get(..target.len() - 3).unwrap_or_default()),
        seed("journal", "target", &target),
    ]
}

fn protocol() -> Vec<Seed> {
    let mut seeds = vec![seed("guest_id", "text", b"web-1"), seed("guest_id", "cbor", b"\x65web-1")];
    for message in to_target() {
        seeds.extend(framed("to_target", message.name(), FrameKind::ToTarget, &message.to_bytes()));
    }
    for message in to_source() {
        seeds.extend(framed("to_source", message.name(), FrameKind::ToSource, &message.to_bytes()));
    }
    let ranges = vec![WireRange { first: 0, count: 2 }, WireRange { first: 16, count: 1 }];
    let live = PageHead { round: 1, checksum: None, ranges };
    let last = PageHead { checksum: Some(7), ..live.clone() };
    seeds.extend(framed("page_head", "zeros", FrameKind::Zeros, &live.to_bytes()));
    seeds.extend(framed("page_head", "pages", FrameKind::Pages, &last.to_bytes()));
    seeds
}

/// One message of each kind.
fn to_target() -> Vec<ToTarget> {
    let Some(guest) = guest() else { return Vec::new() };
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        session: SessionId(7),
        guest: guest.clone(),
        epoch: Epoch::BIRTH.next(),
        program: "ferry".to_owned(),
    };
    let regions = vec![RegionSpan { start: 0, length: 1 << 20 }];
    let machine = MachineDescription {
        kind: "sim".to_owned(),
        vcpus: 1,
        regions,
        config: vec![0xa0],
        contract: vec![],
        disks: vec![DiskSpan { disk: 0, bytes: 1 << 30, allocated_bytes: 1 << 20 }],
    };
    vec![
        ToTarget::Hello(hello),
        ToTarget::Offer(Offer { verify: true, ..Offer::plain(machine) }),
        ToTarget::RoundEnd(RoundEnd { round: 1, data_pages: 2, zero_pages: 3, last: false }),
        ToTarget::MemoryHash(MemoryHash { blake3: [9; 32] }),
        ToTarget::StateEnd(StateEnd { sections: 12 }),
        ToTarget::Custody(of_epoch()),
        ToTarget::Release(of_epoch()),
        ToTarget::Abort(reason()),
        ToTarget::Taken(taken()),
        ToTarget::Ask(Ask { guest, of: of_epoch(), instance: InstanceId(5) }),
    ]
}

/// One message of each kind.
fn to_source() -> Vec<ToSource> {
    vec![
        ToSource::Hello(TargetHello { version: 1, instance: InstanceId(5), program: "ferry".to_owned() }),
        ToSource::Verdict(Verdict { findings: vec![finding()] }),
        ToSource::Built,
        ToSource::Ready,
        ToSource::Running(of_epoch()),
        ToSource::Refused(Refused { of: of_epoch(), reason: reason() }),
        ToSource::Unknown(Unknown { of: of_epoch(), known: Known::NoTrace }),
        ToSource::Abort(reason()),
    ]
}

fn guest() -> Option<GuestId> {
    "web-1".parse().ok()
}

fn of_epoch() -> OfEpoch {
    OfEpoch { session: SessionId(7), epoch: Epoch::BIRTH.next() }
}

fn taken() -> Taken {
    let host = "host-b".to_owned();
    Taken { of: of_epoch(), instance: InstanceId(5), pid: 42, host, unix_seconds: 1_700_000_000 }
}

/// A guest in a file: without its custody, with it, and taken.
fn files() -> Vec<Seed> {
    let mut file = Vec::new();
    for message in to_target().iter().take(2) {
        file.extend(encode(FrameKind::ToTarget, &message.to_bytes()));
    }
    let zeros = PageHead { round: 1, checksum: None, ranges: vec![WireRange { first: 1, count: 255 }] };
    file.extend(encode(FrameKind::Zeros, &zeros.to_bytes()));
    let data = PageHead { round: 1, checksum: Some(7), ranges: vec![WireRange { first: 0, count: 1 }] };
    file.extend(encode(FrameKind::Pages, &data.to_bytes()));
    file.extend([0xa5; 4096]);
    let section = Section::of(&device::Serial::default(), 0, None).map(|section| section.to_bytes());
    let end = |message: ToTarget| encode(FrameKind::ToTarget, &message.to_bytes());
    file.extend(end(ToTarget::RoundEnd(RoundEnd { round: 1, data_pages: 1, zero_pages: 255, last: true })));
    file.extend(end(ToTarget::MemoryHash(MemoryHash { blake3: [9; 32] })));
    file.extend(section.map_or_else(|_| Vec::new(), |section| encode(FrameKind::Section, &section)));
    file.extend(end(ToTarget::StateEnd(StateEnd { sections: 1 })));
    let custody = end(ToTarget::Custody(of_epoch()));
    let room = [&file[..], &vec![0; custody.len()]].concat();
    file.extend(custody);
    let taken = [&file[..], &end(ToTarget::Taken(taken()))].concat();
    [("without_custody", room), ("whole", file), ("taken", taken)]
        .map(|(name, bytes)| seed("one_way_file", name, &bytes))
        .into()
}

fn reason() -> Reason {
    Reason::new(ReasonKind::Cancelled, "asked to stop")
}

fn finding() -> Finding {
    Finding {
        kind: FindingKind::Refusal,
        subject: "vcpus".to_owned(),
        layer: Layer::Machine,
        guest: "4".to_owned(),
        target: "2".to_owned(),
        effect: "two processors would be gone".to_owned(),
        remedy: "choose another target".to_owned(),
    }
}

/// What a body reads, and the frame around it for the body of streams.
fn framed(body: &'static str, name: &str, kind: FrameKind, bytes: &[u8]) -> [Seed; 2] {
    [seed(body, name, bytes), seed("frame", &format!("{body}-{name}"), &encode(kind, bytes))]
}

fn state() -> Vec<Seed> {
    let lock = ResourceName { kind: "file-lock".to_owned(), name: "/disks/web-1.lock".to_owned() };
    let xsave = x86::Xsave { region: vec![0; x86::MIN_XSAVE_BYTES] };
    let msrs = x86::Msrs { values: [(0x10, 1), (0xc000_0080, 0xd01)].into() };
    let xcrs = x86::Xcrs { xcrs: vec![x86::Xcr { xcr: 0, value: 7 }], ..x86::Xcrs::default() };
    [
        of_part("x86_regs", &x86::Regs::default()),
        of_part("x86_sregs", &x86::Sregs::default()),
        of_part("x86_vcpu_events", &x86::VcpuEvents::default()),
        of_part("x86_mp_state", &x86::MpState::default()),
        of_part("x86_xcrs", &xcrs),
        of_part("x86_xsave", &xsave),
        of_part("x86_lapic", &x86::Lapic::default()),
        of_part("x86_debug_regs", &x86::DebugRegs::default()),
        of_nested(),
        of_part("x86_msrs", &msrs),
        of_part("x86_tsc_frequency", &x86::TscFrequency::default()),
        of_part("x86_tsc_offset", &x86::TscOffset { from_first: 7 }),
        of_part("x86_irqchip", &x86::Irqchip::default()),
        of_part("x86_pit", &x86::Pit::default()),
        of_part("x86_clock", &x86::Clock::default()),
        of_part("device_serial", &device::Serial { input: b"echo".to_vec(), ..device::Serial::default() }),
        of_part("device_virtio_block", &device::VirtioBlock { transport: transport(), capacity_sectors: 64 }),
        of_part(
            "device_virtio_net",
            &device::VirtioNet { transport: transport(), mac: [2, 0, 0, 0, 0, 1], status: 1 },
        ),
        of_part("device_virtio_entropy", &device::VirtioEntropy { transport: transport() }),
        of_part("device_virtio_console", &device::VirtioConsole { transport: transport() }),
        of_part("machine_pause", &Pause { guest_time: GuestTime::CatchesUp, realtime_ns: 7 }),
        of_part("machine_resources", &Resources { released: vec![lock] }),
    ]
    .into_iter()
    .flatten()
    .chain(arm64_state())
    .collect()
}

/// The registers of a virtio device in use.
fn transport() -> device::VirtioTransport {
    let queue = device::VirtioQueue {
        size_max: 256,
        size: 16,
        is_ready: true,
        descriptors: 0x1000,
        available: 0x1100,
        used: 0x2000,
        next_available: 1,
        next_used: 1,
    };
    let features = 1 << 32;
    device::VirtioTransport {
        status: 15,
        offered_features: features,
        accepted_features: features,
        queues: vec![queue],
        ..device::VirtioTransport::default()
    }
}

/// Scripts of a driver: one that reads a sector and moves the device, one whose chain is a loop, one that arrives.
fn drivers() -> Vec<Seed> {
    const START: u8 = 4;
    const TURN: u8 = 5;
    const TRAVEL: u8 = 6;
    let describe = |at: u8, flags: u8, next: u8, length: u16, offset: u16| {
        let [low, high] = length.to_le_bytes();
        let [offset_low, offset_high] = offset.to_le_bytes();
        [2, at, flags, next, low, high, offset_low, offset_high, 0]
    };
    let publish = [3, 0, 0];
    let read = [
        &[START][..],
        &describe(0, 1, 1, 16, 0x4000),
        &describe(1, 3, 2, 512, 0x5000),
        &describe(2, 2, 0, 1, 0x6000),
        &publish,
        &[TURN, TRAVEL],
        &publish,
        &[TURN, TRAVEL],
    ]
    .concat();
    let circle = [
        &[START][..],
        &describe(0, 1, 1, 16, 0x4000),
        &describe(1, 1, 0, 16, 0x4000),
        &publish,
        &[TURN, TRAVEL, START, TURN],
    ]
    .concat();
    let arrive = [7, 15, 0, 1, 16, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x11, 0, 0, 0x20, 0, TURN, TRAVEL, TURN];
    [("read", &read[..]), ("circle", &circle), ("arrive", &arrive)]
        .map(|(name, script)| seed("virtio_queue", name, script))
        .into()
}

fn arm64_state() -> Vec<Seed> {
    let mut registers = arm64::Registers::default();
    for (key, bytes) in [(0x10_0054, 16), (0x10_00d5, 4), (0x13_c000, 8)] {
        let value = arm64::RegisterValue::new(vec![1; bytes]);
        if let (Some(id), Some(value)) = (RegisterId::from_key(key, bytes), value) {
            // It has as many bytes as the register.
            let _infallible = registers.set(id, value);
        }
    }
    let counter = arm64::Counter { value: 5, frequency_hz: 62_500_000 };
    [
        of_part("arm64_mp_state", &arm64::MpState::default()),
        of_part("arm64_vcpu_events", &arm64::VcpuEvents::default()),
        of_part("arm64_registers", &registers),
        of_part("arm64_gic_cpu_interface", &arm64::GicCpuInterface { values: [(0xc230, 0xf0)].into() }),
        of_part("arm64_gic_redistributor", &arm64::GicRedistributor { values: [(0x10100, 1)].into() }),
        of_part("arm64_gic_lines", &arm64::GicLines { values: [(32, 1)].into() }),
        of_part("arm64_gic_distributor", &arm64::GicDistributor { values: [(0, 2), (8, 0x43b)].into() }),
        of_part("arm64_gic_its", &arm64::GicIts { values: [(0, 1), (0x80, 1 << 63)].into() }),
        of_part("arm64_counter", &counter),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// VMX operation without a current VMCS: a header alone.
fn of_nested() -> Vec<Seed> {
    let mut header = vec![0; x86::NESTED_HEADER_BYTES];
    for (byte, value) in header.iter_mut().skip(4).zip([128, 0, 0, 0, 0, 0x10]) {
        *byte = value;
    }
    x86::Nested::from_bytes(header).map_or_else(Vec::new, |nested| of_part("x86_nested", &nested))
}

/// A part's bytes for its own body, and the section around it for the bodies of sections and streams.
fn of_part<T: Part>(body: &'static str, value: &T) -> Vec<Seed> {
    let Ok(section) = Section::of(value, 0, None) else { return Vec::new() };
    let mut seeds = vec![seed(body, "value", &section.body)];
    seeds.extend(framed("section", body, FrameKind::Section, &section.to_bytes()));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_seeds_are_what_they_are_called() {
        for seed in files() {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            std::io::Write::write_all(&mut file, &seed.bytes).unwrap();
            let found = ferry_migrate::oneway::survey(file.path()).unwrap();
            assert_eq!(found.damage.is_some(), seed.name == "without_custody", "{:?}", found.damage);
            assert_eq!(found.taken.is_some(), seed.name == "taken");
            assert_eq!((found.data_pages, found.zero_pages, found.sections.len()), (1, 255, 1));
        }
    }

    #[test]
    fn every_part_seed_is_a_section_that_decodes() {
        let sections: Vec<Seed> = all().into_iter().filter(|seed| seed.body == "section").collect();
        let known = [x86::KNOWN_SECTIONS, arm64::KNOWN_SECTIONS, ferry_state::MACHINE_SECTIONS].concat();
        assert_eq!(sections.len(), known.len());
        for seed in sections {
            let section = Section::from_bytes(&seed.bytes).unwrap();
            ferry_state::decode_known(&section).unwrap();
        }
    }
}
