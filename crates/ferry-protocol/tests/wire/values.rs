//! Arbitrary messages, and one of each kind.

use ferry_contract::{Finding, FindingKind, Layer, Verdict};
use ferry_protocol::message::{
    Ask, Hello, Known, Lane, MemoryHash, OfEpoch, Offer, Reason, ReasonKind, Refused, RoundEnd, RoundTaken,
    StateEnd, Taken, TargetHello, ToSource, ToTarget, Unknown,
};
use ferry_protocol::{
    DiskSpan, Epoch, GuestId, InstanceId, MAX_DISK_BYTES, MachineDescription, RegionSpan, SessionId,
};
use proptest::prelude::*;

pub(crate) fn of() -> OfEpoch {
    OfEpoch { session: SessionId(0x0123_4567_89ab_cdef), epoch: Epoch(2) }
}

pub(crate) fn machine() -> MachineDescription {
    let region = |start, length| RegionSpan { start, length };
    let regions = vec![region(0, 0xc000_0000), region(0x1_0000_0000, 0x4000_0000)];
    MachineDescription {
        kind: "kvm-x86_64".into(),
        vcpus: 2,
        regions,
        config: b"{}".to_vec(),
        contract: vec![0xa0],
        disks: vec![DiskSpan { disk: 1, bytes: 0x8_0000_0200, allocated_bytes: 0x1_2000 }],
    }
}

fn guest() -> GuestId {
    "web-1".parse().unwrap()
}

fn verdict() -> Verdict {
    let finding = Finding {
        kind: FindingKind::Refusal,
        subject: "vcpus".into(),
        layer: Layer::Kernel,
        guest: "8".into(),
        target: "4".into(),
        effect: "four vCPUs would be missing".into(),
        remedy: "choose a host that offers 8 vCPUs".into(),
    };
    Verdict { findings: vec![finding] }
}

/// One of each message to the target.
pub(crate) fn to_target() -> Vec<ToTarget> {
    let program = "ferry 0.1.0".into();
    let OfEpoch { session, epoch } = of();
    vec![
        ToTarget::Hello(Hello { version_min: 1, version_max: 1, session, guest: guest(), epoch, program }),
        ToTarget::Offer(Offer {
            machine: machine(),
            verify: true,
            lanes: 1,
            written: Vec::new(),
            witness: Some(Epoch(1)),
            to: Some(InstanceId(0x0123_4567_89ab_cdef)),
            from: Some(InstanceId(8)),
        }),
        ToTarget::RoundEnd(RoundEnd { round: 3, data_pages: 1000, zero_pages: 70_000, last: true }),
        ToTarget::MemoryHash(MemoryHash { blake3: [0xa5; 32] }),
        ToTarget::StateEnd(StateEnd { sections: 12 }),
        ToTarget::Custody(of()),
        ToTarget::Release(of()),
        ToTarget::Abort(Reason::new(ReasonKind::Cancelled, "the migration was cancelled")),
        ToTarget::Ask(Ask { guest: guest(), of: of(), instance: InstanceId(7) }),
        ToTarget::Lane(Lane { of: of(), number: 3 }),
        ToTarget::Taken(Taken {
            of: of(),
            instance: InstanceId(7),
            pid: 4711,
            host: "host-a".into(),
            unix_seconds: 1_760_000_000,
        }),
    ]
}

/// One of each message to the source.
pub(crate) fn to_source() -> Vec<ToSource> {
    let program = "ferry 0.1.0".into();
    let reason = Reason::new(ReasonKind::Machine, "the host has no memory left");
    vec![
        ToSource::Hello(TargetHello { version: 1, instance: InstanceId(7), program }),
        ToSource::Verdict(verdict()),
        ToSource::Built,
        ToSource::Ready,
        ToSource::Running(of()),
        ToSource::Refused(Refused { of: of(), reason }),
        ToSource::Unknown(Unknown { of: of(), known: Known::MayHaveRun }),
        ToSource::Abort(Reason::new(ReasonKind::Busy, "this target is taking the guest `db-1`")),
        ToSource::LaneTaken,
        ToSource::RoundTaken(RoundTaken { round: 3 }),
    ]
}

fn any_of() -> impl Strategy<Value = OfEpoch> {
    any::<(u64, u64)>()
        .prop_map(|(session, epoch)| OfEpoch { session: SessionId(session), epoch: Epoch(epoch) })
}

fn any_guest() -> impl Strategy<Value = GuestId> {
    proptest::string::string_regex("[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
        .unwrap()
        .prop_map(|name| name.parse().unwrap())
}

fn any_reason() -> impl Strategy<Value = Reason> {
    let kinds = [
        ReasonKind::Cancelled,
        ReasonKind::TimedOut,
        ReasonKind::Machine,
        ReasonKind::Incompatible,
        ReasonKind::Misbehaved,
        ReasonKind::Busy,
        ReasonKind::OldEpoch,
        ReasonKind::LinkLost,
        ReasonKind::Asked,
        ReasonKind::Verdict,
    ];
    (prop::sample::select(kinds.to_vec()), any::<String>()).prop_map(|(kind, text)| Reason::new(kind, text))
}

fn any_machine() -> impl Strategy<Value = MachineDescription> {
    let regions = prop::collection::vec((0..4_u64, 1..1_u64 << 20), 1..9);
    let disks = prop::collection::vec((1..=MAX_DISK_BYTES, any::<u64>(), any::<bool>()), 0..5);
    let disk = |(number, (bytes, allocated_bytes, moves))| {
        let disk = DiskSpan { disk: number, bytes, allocated_bytes };
        Some(disk).filter(|_| moves)
    };
    ("[!-~]{1,64}", 1..=4096_u32, regions, any::<[Vec<u8>; 2]>(), disks).prop_map(
        move |(kind, vcpus, gaps, [config, contract], disks)| {
            let mut free_from = 0;
            let region = |(gap, pages)| {
                let start = free_from + gap * 4096;
                free_from = start + pages * 4096;
                RegionSpan { start, length: pages * 4096 }
            };
            MachineDescription {
                kind,
                vcpus,
                regions: gaps.into_iter().map(region).collect(),
                config,
                contract,
                disks: (0..).zip(disks).filter_map(disk).collect(),
            }
        },
    )
}

fn any_finding() -> impl Strategy<Value = Finding> {
    let layers = [Layer::Machine, Layer::Processor, Layer::Kernel, Layer::Vmm];
    (prop::sample::select(layers.to_vec()), any::<bool>(), any::<[String; 5]>()).prop_map(
        |(layer, refusal, [subject, guest, target, effect, remedy])| {
            let kind = if refusal { FindingKind::Refusal } else { FindingKind::Notice };
            Finding { kind, subject, layer, guest, target, effect, remedy }
        },
    )
}

pub(crate) fn any_to_target() -> impl Strategy<Value = ToTarget> {
    let hello = (any::<(u16, u16, String)>(), any_of(), any_guest()).prop_map(
        |((version_min, version_max, program), OfEpoch { session, epoch }, guest)| {
            ToTarget::Hello(Hello { version_min, version_max, session, guest, epoch, program })
        },
    );
    let round_end = any::<(u32, u64, u64, bool)>().prop_map(|(round, data_pages, zero_pages, last)| {
        ToTarget::RoundEnd(RoundEnd { round, data_pages, zero_pages, last })
    });
    prop_oneof![
        hello,
        (any_machine(), any::<bool>(), 1..=16_u8, any::<[Option<u64>; 2]>()).prop_map(
            |(machine, verify, lanes, [witness, to])| {
                let (witness, to) = (witness.map(Epoch), to.map(InstanceId));
                ToTarget::Offer(Offer { machine, verify, lanes, written: Vec::new(), witness, to, from: to })
            }
        ),
        (any_of(), any::<u8>()).prop_map(|(of, number)| ToTarget::Lane(Lane { of, number })),
        round_end,
        any::<[u8; 32]>().prop_map(|blake3| ToTarget::MemoryHash(MemoryHash { blake3 })),
        any::<u32>().prop_map(|sections| ToTarget::StateEnd(StateEnd { sections })),
        any_of().prop_map(ToTarget::Custody),
        any_of().prop_map(ToTarget::Release),
        any_reason().prop_map(ToTarget::Abort),
        (any_guest(), any_of(), any::<u64>()).prop_map(|(guest, of, n)| ToTarget::Ask(Ask {
            guest,
            of,
            instance: InstanceId(n)
        })),
    ]
}

pub(crate) fn any_to_source() -> impl Strategy<Value = ToSource> {
    prop_oneof![
        any::<(u16, u64, String)>().prop_map(|(version, n, program)| {
            ToSource::Hello(TargetHello { version, instance: InstanceId(n), program })
        }),
        prop::collection::vec(any_finding(), 0..5)
            .prop_map(|findings| ToSource::Verdict(Verdict { findings })),
        Just(ToSource::Built),
        Just(ToSource::Ready),
        any_of().prop_map(ToSource::Running),
        (any_of(), any_reason()).prop_map(|(of, reason)| ToSource::Refused(Refused { of, reason })),
        (any_of(), any_known()).prop_map(|(of, known)| ToSource::Unknown(Unknown { of, known })),
        any_reason().prop_map(ToSource::Abort),
        Just(ToSource::LaneTaken),
        any::<u32>().prop_map(|round| ToSource::RoundTaken(RoundTaken { round })),
    ]
}

fn any_known() -> impl Strategy<Value = Known> {
    prop::sample::select(vec![Known::NoTrace, Known::MayHaveRun, Known::Lives])
}
