//! A source that writes to where nobody answers: the one-way table of `docs/guarantees.md`, from walks
//! through every phase with every fault.

use ferry_protocol::message::{MAX_LANES, OfEpoch, ToTarget};
use ferry_protocol::{
    Epoch, LinkFault, SessionId, Source, SourceAction, SourceConfig, SourceEvent, SourceOutcome, SourcePhase,
    Time, TimerName,
};

use super::guarantees::{check_or_bless, rendered};
use super::world::{description, guest};

const OF: OfEpoch = OfEpoch { session: SessionId(5), epoch: Epoch(2) };

fn source(verify: bool) -> Source {
    let mut config = SourceConfig::new(guest(), OF.session, OF.epoch, description("sim"));
    (config.one_way, config.verify, config.lanes) = (true, verify, MAX_LANES);
    Source::new(config)
}

/// What a world in which all goes well answers; nothing to what is no job.
fn answer(action: &SourceAction) -> Option<SourceEvent> {
    Some(match action {
        SourceAction::Journal(_) => SourceEvent::Journaled,
        SourceAction::StartLog => SourceEvent::LogStarted,
        SourceAction::SendRound { .. } => SourceEvent::RoundSent { data_pages: 9, zero_pages: 1 },
        SourceAction::Harvest { .. } => SourceEvent::Harvested { dirty_pages: 0 },
        SourceAction::Pause => SourceEvent::Paused,
        SourceAction::ReleaseResources => SourceEvent::ResourcesReleased,
        SourceAction::HashMemory => SourceEvent::Hashed([1; 32]),
        SourceAction::SendState => SourceEvent::StateSent { sections: 2 },
        SourceAction::Seal => SourceEvent::Sealed,
        SourceAction::Give(_) => SourceEvent::Delivered,
        SourceAction::Resume { .. } => SourceEvent::Resumed,
        _ => return None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Write,
    Job,
    Cancel,
    Late,
    CustodyCut,
    CustodyDoubtful,
}

const FAULTS: [(Fault, &str); 6] = [
    (Fault::Write, "a write fails"),
    (Fault::Job, "the source's next job fails"),
    (Fault::Cancel, "user cancels"),
    (Fault::Late, "it takes too long"),
    (Fault::CustodyCut, "custody is not written whole (descriptor)"),
    (Fault::CustodyDoubtful, "an error as custody is written (file)"),
];

/// The event of a fault, and whether it answers the job under way.
fn event(fault: Fault) -> (SourceEvent, bool) {
    match fault {
        Fault::Write => (SourceEvent::LinkLost(LinkFault::Failed("disk full".into())), false),
        Fault::Job => (SourceEvent::Failed("it failed".into()), true),
        Fault::Cancel => (SourceEvent::Cancel, false),
        Fault::Late => (SourceEvent::Tick, false),
        Fault::CustodyCut => (SourceEvent::Undelivered("cut".into()), true),
        Fault::CustodyDoubtful => (SourceEvent::Doubtful("who knows".into()), true),
    }
}

/// Whether the guest runs here, what it said, and what it did, when this fault strikes as `phase` begins.
fn walk(verify: bool, strike: Option<(SourcePhase, Fault)>) -> (bool, SourceOutcome, Vec<SourceAction>) {
    let mut source = source(verify);
    let (mut runs, mut given, mut struck) = (true, false, strike.is_none());
    let mut done = Vec::new();
    let mut events = std::collections::VecDeque::from([SourceEvent::Connected]);
    let mut now = Time::ZERO;
    while let Some(event_now) = events.pop_front() {
        for action in source.step(now, event_now) {
            match &action {
                SourceAction::Finish(outcome) => return (runs, outcome.clone(), done),
                SourceAction::Pause => runs = false,
                SourceAction::Give(of) => {
                    assert!(!runs && !given && *of == OF && done.contains(&SourceAction::Seal));
                    given = true;
                }
                SourceAction::TakeBack { .. } => given = false,
                SourceAction::Resume { take_resources } => {
                    let released = done.contains(&SourceAction::ReleaseResources);
                    assert!(!runs && !given && (released || !take_resources));
                    runs = true;
                }
                SourceAction::OpenLanes { .. } | SourceAction::Connect => panic!("{action:?} one way"),
                _ => {}
            }
            let is_jobs = answer(&action);
            done.push(action);
            events.extend(is_jobs);
        }
        if let Some((phase, fault)) = strike
            && !struck
            && source.phase() == phase
        {
            struck = true;
            let (fault_event, is_answer) = event(fault);
            if is_answer {
                events.pop_front();
            }
            if (phase, fault) == (SourcePhase::Pause, Fault::Job) {
                runs = true; // a pause that fails pauses nothing
            }
            if fault == Fault::Late {
                now = Time(u64::MAX / 2);
            }
            events.push_front(fault_event);
        }
    }
    panic!("the source is stuck: {source:?}");
}

#[test]
fn it_waits_for_nobody_and_gives_custody_after_everything_lasts() {
    for verify in [false, true] {
        let (runs, outcome, done) = walk(verify, None);
        assert_eq!((runs, outcome), (false, SourceOutcome::Moved { epoch: Epoch(2) }));
        let at = |wanted: &SourceAction| done.iter().position(|action| action == wanted).unwrap();
        assert!(at(&SourceAction::Seal) < at(&SourceAction::Give(OF)));
        let last = |action: &SourceAction| matches!(action, SourceAction::Send(ToTarget::StateEnd(_)));
        assert_eq!(done.iter().rposition(last).unwrap() + 1, at(&SourceAction::Seal));
        assert_eq!(done.contains(&SourceAction::HashMemory), verify);
        let offers_one_lane =
            |action: &SourceAction| matches!(action, SourceAction::Send(ToTarget::Offer(o)) if o.lanes == 1);
        assert!(done.iter().any(offers_one_lane));
    }
}

#[test]
fn the_document_says_what_becomes_of_the_guest() {
    let phases = [
        SourcePhase::Rounds,
        SourcePhase::Pause,
        SourcePhase::LastRound,
        SourcePhase::State,
        SourcePhase::Ready,
        SourcePhase::Given,
    ];
    let mut rows = vec![vec!["phase \\ fault".to_owned()]];
    rows[0].extend(FAULTS.iter().map(|(_, name)| (*name).to_owned()));
    for phase in phases {
        let mut row = vec![format!("`{}`", phase.name())];
        for (fault, _) in FAULTS {
            let of_custody = matches!(fault, Fault::CustodyCut | Fault::CustodyDoubtful);
            let impossible = of_custody != (phase == SourcePhase::Given)
                && !(phase == SourcePhase::Given && matches!(fault, Fault::Cancel | Fault::Late));
            if impossible {
                row.push("–".into());
                continue;
            }
            let (runs, outcome, _) = walk(false, Some((phase, fault)));
            let who = match (&outcome, runs) {
                (SourceOutcome::Kept { .. }, true) => "source runs",
                (SourceOutcome::Moved { .. }, false) => "whoever reads it",
                (SourceOutcome::Doubtful { .. }, false) => "paused on the source, a person is asked",
                other => panic!("{phase:?} {fault:?}: {other:?}"),
            };
            row.push(format!("{who} · {}", outcome.exit_status()));
        }
        rows.push(row);
    }
    check_or_bless("one-way", &rendered(&rows));
}

#[test]
fn a_pause_that_lasts_too_long_ends_before_custody() {
    let mut source = source(false);
    let mut last = source.step(Time::ZERO, SourceEvent::Connected);
    while source.phase() != SourcePhase::Ready {
        let next = last.iter().find_map(answer).unwrap();
        last = source.step(Time::ZERO, next);
    }
    assert_eq!(source.deadline().map(|(_, name)| name), Some(TimerName::Paused));
}
