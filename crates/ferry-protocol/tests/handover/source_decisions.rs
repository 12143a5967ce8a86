//! Single decisions of the source that the table does not show.

use std::time::Duration;

use ferry_contract::Verdict;
use ferry_protocol::journal::{OfGuest, Record};
use ferry_protocol::message::{
    Known, OfEpoch, Reason, ReasonKind, Refused, RoundTaken, TargetHello, ToSource, ToTarget, Unknown,
};
use ferry_protocol::{
    Cause, Epoch, InstanceId, LinkFault, SessionId, Source, SourceAction, SourceConfig, SourceEvent,
    SourceOutcome, SourcePhase, Time,
};

use super::world::{description, guest};

const OF: OfEpoch = OfEpoch { session: SessionId(5), epoch: Epoch(2) };

fn source() -> Source {
    Source::new(SourceConfig::new(guest(), OF.session, OF.epoch, description("sim")))
}

fn step(source: &mut Source, events: impl IntoIterator<Item = SourceEvent>) -> Vec<SourceAction> {
    events.into_iter().map(|event| source.step(Time::ZERO, event)).last().unwrap()
}

fn target_hello(version: u16) -> SourceEvent {
    let program = "test".into();
    SourceEvent::Received(ToSource::Hello(TargetHello { version, instance: InstanceId(77), program }))
}

/// Up to the first round.
fn sending() -> Source {
    let mut source = source();
    let events = [
        SourceEvent::Connected,
        target_hello(1),
        SourceEvent::Received(ToSource::Verdict(Verdict::accept())),
        SourceEvent::Received(ToSource::Built),
        SourceEvent::Journaled,
        SourceEvent::LogStarted,
    ];
    step(&mut source, events);
    source
}

fn pausing() -> Source {
    let mut source = sending();
    let events = [
        SourceEvent::RoundSent { data_pages: 1, zero_pages: 0 },
        SourceEvent::Received(ToSource::RoundTaken(RoundTaken { round: 0 })),
        SourceEvent::Harvested { dirty_pages: 0 },
    ];
    assert_eq!(step(&mut source, events), [SourceAction::Pause]);
    source
}

fn given() -> Source {
    let mut source = pausing();
    let events = [
        SourceEvent::Paused,
        SourceEvent::ResourcesReleased,
        SourceEvent::Harvested { dirty_pages: 1 },
        SourceEvent::RoundSent { data_pages: 1, zero_pages: 0 },
        SourceEvent::StateSent { sections: 3 },
        SourceEvent::Received(ToSource::Ready),
    ];
    assert_eq!(step(&mut source, events), [SourceAction::Give(OF)]);
    source
}

fn refused(of: OfEpoch) -> SourceEvent {
    let reason = Reason::new(ReasonKind::Machine, "no");
    SourceEvent::Received(ToSource::Refused(Refused { of, reason }))
}

#[test]
fn a_version_that_the_source_does_not_speak_is_another_protocol() {
    let mut source = source();
    let actions = step(&mut source, [SourceEvent::Connected, target_hello(9)]);
    let Some(SourceAction::Finish(SourceOutcome::Kept { cause: Cause::OtherProtocol(text) })) =
        actions.last()
    else {
        panic!("{actions:?}")
    };
    assert!(text.contains("version 9") && text.contains("1 to 1"), "{text}");
}

#[test]
fn nothing_but_its_own_refusal_resumes_a_source_that_gave_custody() {
    let other_session = OfEpoch { session: SessionId(6), ..OF };
    let other_epoch = OfEpoch { epoch: Epoch(3), ..OF };
    let events = [
        refused(other_session),
        refused(other_epoch),
        SourceEvent::Received(ToSource::Running(other_epoch)),
        SourceEvent::Received(ToSource::Running(other_session)),
        SourceEvent::Received(ToSource::Abort(Reason::new(ReasonKind::Busy, "busy"))),
        SourceEvent::Received(ToSource::Unknown(Unknown { of: OF, known: Known::NoTrace })),
        SourceEvent::Received(ToSource::Ready),
        SourceEvent::LinkLost(LinkFault::Closed),
        SourceEvent::Failed("late".into()),
        SourceEvent::Cancel,
        SourceEvent::Tick,
    ];
    let mut asked = given();
    step(&mut asked, [SourceEvent::LinkLost(LinkFault::Closed), SourceEvent::Connected]);
    assert_eq!(asked.phase(), SourcePhase::Asking);
    for start in [given(), asked] {
        for event in &events {
            let mut source = start.clone();
            let actions = source.step(Time(u64::MAX), event.clone());
            let harmless = [SourceAction::Disconnect, SourceAction::Connect, SourceAction::NoteAmbiguous];
            assert!(actions.iter().all(|action| harmless.contains(action)), "{event:?}: {actions:?}");
            assert!(source.has_given());
        }
        let mut source = start;
        let actions = step(&mut source, [refused(OF)]);
        let back = SourceAction::TakeBack { raise_to: None };
        assert_eq!(actions, [back, SourceAction::Resume { take_resources: true }]);
    }
}

#[test]
fn that_the_guest_moved_is_noted_before_the_target_may_forget_it() {
    let mut source = given();
    let of = OfGuest { guest: guest(), epoch: OF.epoch };
    let expected = [
        SourceAction::ReleaseGuest,
        SourceAction::Note(Record::Moved(of)),
        SourceAction::Send(ToTarget::Release(OF)),
        SourceAction::Disconnect,
        SourceAction::Finish(SourceOutcome::Moved { epoch: OF.epoch }),
    ];
    assert_eq!(step(&mut source, [SourceEvent::Received(ToSource::Running(OF))]), expected);
}

#[test]
fn a_target_that_lives_and_has_not_written_what_became_of_it_is_asked_again() {
    let mut source = given();
    let events = [SourceEvent::LinkLost(LinkFault::Closed), SourceEvent::Connected];
    step(&mut source, events);
    let unknown = |known| SourceEvent::Received(ToSource::Unknown(Unknown { of: OF, known }));
    let actions = source.clone().step(Time::ZERO, unknown(Known::Lives));
    assert_eq!(actions, [SourceAction::Disconnect], "nobody is needed for that");
    let actions = source.step(Time::ZERO, unknown(Known::NoTrace));
    assert_eq!(actions, [SourceAction::NoteAmbiguous, SourceAction::Disconnect]);
}

#[test]
fn a_pause_waits_until_the_live_round_has_arrived() {
    let mut source = source();
    let sent = SourceEvent::RoundSent { data_pages: 1, zero_pages: 0 };
    let events = [
        SourceEvent::Connected,
        target_hello(1),
        SourceEvent::Received(ToSource::Verdict(Verdict::accept())),
        SourceEvent::Received(ToSource::Built),
        SourceEvent::Journaled,
        SourceEvent::LogStarted,
        sent,
    ];
    assert!(matches!(step(&mut source, events)[..], [SourceAction::Send(_)]), "nothing is harvested yet");
    let taken = |round| SourceEvent::Received(ToSource::RoundTaken(RoundTaken { round }));
    let wrong = source.clone().step(Time::ZERO, taken(1));
    assert!(matches!(wrong.last(), Some(SourceAction::Finish(_))), "another round's word is misbehaviour");
    assert_eq!(source.step(Time::ZERO, taken(0)), [SourceAction::Harvest { last: false }]);
}

#[test]
fn no_pause_comes_while_the_disks_are_behind() {
    let mut source = sending();
    let sync = Duration::from_secs(2);
    for round in 0..8 {
        let actions = step(
            &mut source,
            [
                SourceEvent::RoundSent { data_pages: 0, zero_pages: 0 },
                SourceEvent::Received(ToSource::RoundTaken(RoundTaken { round })),
                SourceEvent::DisksBehind { dirty_pages: 0, sync },
            ],
        );
        let sends = SourceAction::SendRound { round: round + 1, last: false };
        let stalls = SourceAction::NoteStalled(sync);
        assert_eq!(actions, if round < 4 { vec![sends] } else { vec![stalls, sends] });
    }
    let events = [
        SourceEvent::RoundSent { data_pages: 0, zero_pages: 0 },
        SourceEvent::Received(ToSource::RoundTaken(RoundTaken { round: 8 })),
        SourceEvent::Harvested { dirty_pages: 0 },
    ];
    assert_eq!(step(&mut source, events), [SourceAction::Pause]);
}

#[test]
fn a_guest_that_is_just_being_paused_goes_on() {
    for lost in [SourceEvent::Cancel, SourceEvent::LinkLost(LinkFault::Silent)] {
        let mut source = pausing();
        assert_eq!(step(&mut source, [lost]), []);
        assert_eq!(source.phase(), SourcePhase::Undo);
        let mut failing = source.clone();
        let resume = SourceAction::Resume { take_resources: false };
        assert_eq!(step(&mut source, [SourceEvent::Paused]), [resume]);
        let ended = step(&mut source, [SourceEvent::Resumed]);
        assert!(matches!(ended.last(), Some(SourceAction::Finish(SourceOutcome::Kept { .. }))));
        let ended = step(&mut failing, [SourceEvent::Failed("it did not pause".into())]);
        assert!(matches!(ended.last(), Some(SourceAction::Finish(SourceOutcome::Kept { .. }))));
    }
}

#[test]
fn a_guest_that_was_paused_in_vain_is_resumed_or_held() {
    let in_vain = || SourceEvent::PausedInVain("the disk is broken".into());
    for before in [None, Some(SourceEvent::Cancel)] {
        let mut source = pausing();
        let caused =
            if before.is_some() { Cause::Cancelled } else { Cause::Machine("the disk is broken".into()) };
        let actions = step(&mut source, before.into_iter().chain([in_vain()]));
        assert_eq!(actions, [SourceAction::Resume { take_resources: false }]);
        let mut held = source.clone();
        let ended = step(&mut source, [SourceEvent::Resumed]);
        let kept = SourceOutcome::Kept { cause: caused.clone() };
        assert_eq!(ended.last(), Some(&SourceAction::Finish(kept)));
        let obstacle = "a lock is gone".to_owned();
        let ended = step(&mut held, [SourceEvent::Failed(obstacle.clone())]);
        let outcome = SourceOutcome::Held { cause: caused, obstacle };
        assert_eq!(ended.last(), Some(&SourceAction::Finish(outcome)));
    }
}

#[test]
fn the_failure_of_an_earlier_job_is_not_that_of_the_resume() {
    let mut source = pausing();
    step(&mut source, [SourceEvent::Paused, SourceEvent::ResourcesReleased]);
    let actions = step(&mut source, [SourceEvent::Cancel]);
    assert_eq!(actions, [SourceAction::Resume { take_resources: true }]);
    assert_eq!(step(&mut source, [SourceEvent::Failed("the harvest".into())]), []);
    let mut held = source.clone();
    let ended = step(&mut source, [SourceEvent::Resumed]);
    assert!(matches!(ended.last(), Some(SourceAction::Finish(SourceOutcome::Kept { .. }))));
    let ended = step(&mut held, [SourceEvent::Failed("a lock is gone".into())]);
    assert!(matches!(ended.last(), Some(SourceAction::Finish(SourceOutcome::Held { .. }))));
}

#[test]
fn a_link_that_cannot_be_made_is_only_then_a_migration_that_did_not_begin() {
    let mut source = source();
    let ended = step(&mut source, [SourceEvent::ConnectFailed("nobody listens".into())]);
    let [SourceAction::Finish(outcome)] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!(outcome.exit_status(), 1);
    assert_eq!(step(&mut pausing(), [SourceEvent::ConnectFailed("late".into())]), []);
}
