//! A person's choice where the outcome is open: when it is heard, what goes before it, and what is on disk.

use ferry_protocol::journal::{Choice, Decided, History, MayBeGiven, MayRun, OfGuest, Record};
use ferry_protocol::message::{Ask, Known, Reason, ReasonKind, Refused, ToSource, ToTarget, Unknown};
use ferry_protocol::{
    Cause, ClaimAnswer, Epoch, InstanceId, LinkFault, MAX_REASON_BYTES, PersonsChoice, Source, SourceAction,
    SourceConfig, SourceEvent, SourceOutcome, SourcePhase, Time, Timeouts, TimerName,
};

use super::settling::{OF, asking};
use super::world::{description, guest};

const CHOICES: [Choice; 3] = [Choice::SourceRuns, Choice::TargetRuns, Choice::Abandon];

/// A source that is making a link for its next question, after it was said that a person must decide.
fn ambiguous() -> Source {
    let (mut source, _) = asking(None);
    source.step(Time::ZERO, SourceEvent::ConnectFailed("nobody".into()));
    assert!(is_refused(&decide(&mut source, Choice::SourceRuns)), "the target may answer yet");
    let settle = Time::ZERO.after(Timeouts::default().settle);
    let actions = source.step(settle, SourceEvent::Tick);
    assert!(actions.contains(&SourceAction::NoteAmbiguous), "{actions:?}");
    assert_eq!(actions.last(), Some(&SourceAction::Connect));
    source
}

/// The same, and its question is asked.
fn asked() -> Source {
    let mut source = ambiguous();
    let ask = Ask { guest: guest(), of: OF, instance: InstanceId(77) };
    assert_eq!(source.step(Time::ZERO, SourceEvent::Connected), [SourceAction::Send(ToTarget::Ask(ask))]);
    source
}

pub(super) fn decide(source: &mut Source, choice: Choice) -> Vec<SourceAction> {
    let decision = PersonsChoice::new(choice, "seen by hand", 9).unwrap();
    source.step(Time::ZERO, SourceEvent::Decide(decision))
}

pub(super) fn is_refused(actions: &[SourceAction]) -> bool {
    matches!(actions, [SourceAction::NoteChoiceRefused(_)])
}

fn unlinked(source: &mut Source) -> Vec<SourceAction> {
    source.step(Time::ZERO, SourceEvent::ConnectFailed("nobody".into()))
}

fn received(source: &mut Source, message: ToSource) -> Vec<SourceAction> {
    source.step(Time::ZERO, SourceEvent::Received(message))
}

fn refused() -> ToSource {
    ToSource::Refused(Refused { of: OF, reason: Reason::new(ReasonKind::Asked, "it was not taken") })
}

fn known(known: Known) -> ToSource {
    ToSource::Unknown(Unknown { of: OF, known })
}

/// A choice that is on its way to the disk, with the question's link still there or not.
fn deciding(choice: Choice, linked: bool) -> Source {
    let mut source = if linked { asked() } else { ambiguous() };
    assert_eq!(decide(&mut source, choice), []);
    let (at, timer) = source.deadline().map_or((Time::ZERO, TimerName::Ask), |deadline| deadline);
    let actions = if linked {
        assert_eq!(timer, TimerName::Ask);
        source.step(at, SourceEvent::Tick)
    } else {
        unlinked(&mut source)
    };
    assert!(matches!(actions[..], [SourceAction::Journal(Record::Decided(_))]), "{actions:?}");
    assert_eq!((source.choice(), source.phase()), (Some(choice), SourcePhase::Asking));
    source
}

#[test]
fn a_choice_waits_for_the_end_of_a_question_and_is_journaled_and_then_followed() {
    for (choice, first) in [
        (Choice::SourceRuns, SourceAction::TakeBack { raise_to: Some(Epoch(3)) }),
        (Choice::TargetRuns, SourceAction::ReleaseGuest),
        (Choice::Abandon, SourceAction::ReleaseGuest),
    ] {
        let mut source = ambiguous();
        assert_eq!(decide(&mut source, choice), []);
        assert!(is_refused(&decide(&mut source, Choice::SourceRuns)), "one choice is followed at a time");
        let actions = unlinked(&mut source);
        let [SourceAction::Journal(Record::Decided(decided))] = &actions[..] else { panic!("{actions:?}") };
        let reason = "seen by hand".to_owned();
        let expected = Decided { guest: guest(), epoch: OF.epoch, choice, reason, unix_seconds: 9 };
        assert_eq!(*decided, expected);
        assert!(is_refused(&decide(&mut source, Choice::SourceRuns)), "nor two at once");
        let actions = source.step(Time::ZERO, SourceEvent::Journaled);
        assert_eq!(actions[0], first);
        match choice {
            Choice::SourceRuns => {
                assert_eq!(actions[1], SourceAction::Resume { take_resources: true });
                let actions = source.step(Time::ZERO, SourceEvent::Resumed);
                // No disk is waited for in between.
                let runs = Record::Runs(OfGuest { guest: guest(), epoch: Epoch(3) });
                assert!(actions.contains(&SourceAction::Note(runs)), "{actions:?}");
            }
            Choice::TargetRuns => {
                assert_eq!(actions[1], SourceAction::Finish(SourceOutcome::Moved { epoch: OF.epoch }));
            }
            Choice::Abandon => {
                assert_eq!(actions[1], SourceAction::Finish(SourceOutcome::Abandoned { epoch: OF.epoch }));
            }
        }
        assert_eq!(source.phase(), SourcePhase::Done);
    }
}

#[test]
fn a_choice_made_between_two_questions_has_the_next_one_asked_at_once() {
    let mut source = ambiguous();
    unlinked(&mut source);
    assert_eq!(decide(&mut source, Choice::Abandon), [SourceAction::Connect]);
    assert!(matches!(source.step(Time::ZERO, SourceEvent::Connected)[..], [SourceAction::Send(_)]));
    let actions = source.step(Time::ZERO, SourceEvent::LinkLost(LinkFault::Closed));
    assert!(matches!(actions[..], [SourceAction::Journal(_)]), "{actions:?}");
}

/// It lay in the queue, or was on its way, when the choice came.
#[test]
fn an_answer_that_comes_before_a_choice_is_on_disk_is_what_counts() {
    for choice in CHOICES {
        let states = [
            {
                let mut source = asked();
                assert_eq!(decide(&mut source, choice), []);
                source
            },
            deciding(choice, true),
            deciding(choice, false),
        ];
        for start in states {
            for (answer, does) in [
                (ToSource::Running(OF), SourceAction::ReleaseGuest),
                (refused(), SourceAction::TakeBack { raise_to: None }),
            ] {
                let mut source = start.clone();
                let mut actions = received(&mut source, answer.clone());
                if actions.is_empty() {
                    // The record is under way: it is waited for, and what follows it in the journal is true.
                    let mut failing = source.clone();
                    let failed = failing.step(Time::ZERO, SourceEvent::Failed("the disk is full".into()));
                    actions = source.step(Time::ZERO, SourceEvent::Journaled);
                    assert_eq!(failed, actions);
                }
                assert!(is_refused(&actions[..1]), "{choice}, {answer:?}: {actions:?}");
                assert_eq!(actions[1], does, "{choice}, {answer:?}: {actions:?}");
                assert_eq!(source.choice(), None);
            }
        }
    }
}

#[test]
fn an_answer_that_comes_after_a_choice_is_on_disk_changes_nothing() {
    let mut source = deciding(Choice::SourceRuns, true);
    let actions = source.step(Time::ZERO, SourceEvent::Journaled);
    let back = SourceAction::TakeBack { raise_to: Some(Epoch(3)) };
    assert_eq!(actions[..2], [SourceAction::Disconnect, back]);
    assert_eq!(received(&mut source, ToSource::Running(OF)), []);
    let ended = source.step(Time::ZERO, SourceEvent::Resumed);
    let kept = SourceOutcome::Kept { cause: Cause::Decided(Choice::SourceRuns) };
    assert_eq!(ended.last(), Some(&SourceAction::Finish(kept)));
}

#[test]
fn a_choice_that_cannot_be_journaled_is_not_followed() {
    for linked in [true, false] {
        let mut source = deciding(Choice::SourceRuns, linked);
        let actions = source.step(Time::ZERO, SourceEvent::Failed("the disk is full".into()));
        assert!(is_refused(&actions[usize::from(linked)..]), "{actions:?}");
        assert!(source.has_given() && source.choice().is_none());
        assert!(source.deadline().is_some(), "it goes on asking");
    }
}

#[test]
fn a_choice_that_is_seen_to_be_wrong_is_refused() {
    let config = SourceConfig::new(guest(), OF.session, OF.epoch, description("sim"));
    assert!(is_refused(&decide(&mut Source::new(config), Choice::SourceRuns)), "custody was not given");

    let (mut source, _) = asking(None);
    source.step(Time::ZERO, SourceEvent::Connected);
    received(&mut source, known(Known::MayHaveRun));
    assert!(is_refused(&decide(&mut source, Choice::TargetRuns)), "the target's guest is gone");
    assert_eq!(decide(&mut source, Choice::SourceRuns), [SourceAction::Connect]);
}

#[test]
fn what_the_question_brings_to_light_is_held_against_a_choice() {
    let mut source = asked();
    assert_eq!(decide(&mut source, Choice::TargetRuns), []);
    let mut right = source.clone();
    let actions = received(&mut source, known(Known::MayHaveRun));
    assert_eq!(actions[0], SourceAction::Disconnect);
    assert!(is_refused(&actions[1..]), "{actions:?}");
    assert!(source.has_given() && source.deadline().is_some(), "it goes on asking");
    let actions = received(&mut right, known(Known::NoTrace));
    assert!(matches!(actions[..], [SourceAction::Disconnect, SourceAction::Journal(_)]), "{actions:?}");

    let mut source = deciding(Choice::TargetRuns, true);
    assert_eq!(received(&mut source, known(Known::MayHaveRun)), []);
    let actions = source.step(Time::ZERO, SourceEvent::Journaled);
    assert!(is_refused(&actions[1..]) && source.has_given(), "{actions:?}");
}

#[test]
fn a_choice_against_a_refusal_that_waits_for_the_witness_is_refused() {
    let (mut source, _) = asking(Some(Epoch(1)));
    source.step(Time::ZERO, SourceEvent::Claimed(ClaimAnswer::Unreached("no route".into())));
    let (at, _) = source.deadline().unwrap();
    source.step(at, SourceEvent::Tick);
    source.step(at, SourceEvent::Connected);
    let settle = Time::ZERO.after(Timeouts::default().settle);
    source.step(settle, SourceEvent::Tick);
    received(&mut source, refused());
    source.step(settle, SourceEvent::Claimed(ClaimAnswer::Unreached("no route".into())));
    assert!(is_refused(&decide(&mut source, Choice::TargetRuns)), "it has refused");
}

#[test]
fn who_reads_a_choice_that_was_not_followed_sees_what_became_of_the_guest() {
    let of = |epoch| OfGuest { guest: guest(), epoch: Epoch(epoch) };
    let to = Some(InstanceId(77));
    let given = MayBeGiven { guest: guest(), of: OF, to, address: "there".into() };
    let decided = PersonsChoice::new(Choice::TargetRuns, "seen by hand", 9).unwrap();
    let decided = Record::Decided(decided.decided(guest(), OF.epoch));
    for end in [Record::Kept(of(2)), Record::Moved(of(2))] {
        let records = [Record::MayBeGiven(given.clone()), decided.clone(), end.clone()];
        let history = History::of(&records);
        assert_eq!(history.guest(&guest()).unwrap().end_of_given, Some(end));
    }
    // The process still has the guest that it took, of which its own source may yet have to hear.
    let mut taken = OF;
    taken.epoch = Epoch(1);
    let taking = [
        Record::MayRun(MayRun { guest: guest(), of: taken }),
        Record::Runs(of(1)),
        Record::MayBeGiven(given),
        decided,
    ];
    let mut history = History::of(&taking);
    assert_eq!(history.guest(&guest()).unwrap().open_taking(), None, "the guest is let go");
    history.add(&Record::Kept(of(2)));
    assert_eq!(history.guest(&guest()).unwrap().open_taking(), Some(Epoch(1)), "it was not");
}

#[test]
fn a_choice_has_a_reason_that_a_journal_takes() {
    let new = |reason: &str| PersonsChoice::new(Choice::Abandon, reason, 0);
    assert!(new("").is_err() && new(" \n").is_err() && new(&"x".repeat(MAX_REASON_BYTES + 1)).is_err());
    let longest = new(&"x".repeat(MAX_REASON_BYTES)).unwrap();
    assert!(Record::Decided(longest.decided(guest(), OF.epoch)).is_bounded());
}
