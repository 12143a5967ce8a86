//! What settles a hand-over that the two sides alone cannot: journals, a witness.

use ferry_contract::Verdict;
use ferry_protocol::journal::{Choice, History, MayRun, OfGuest, Past, Record};
use ferry_protocol::message::{
    Ask, Hello, Known, OfEpoch, Offer, Reason, ReasonKind, Refused, RoundEnd, RoundTaken, StateEnd,
    TargetHello, ToSource, ToTarget, Unknown,
};
use ferry_protocol::{
    Claim, ClaimAnswer, Epoch, InstanceId, LinkFault, LinkId, SessionId, Source, SourceAction, SourceConfig,
    SourceEvent, SourcePhase, Target, TargetAction, TargetEvent, TargetPhase, Time, Timeouts,
};

use super::choosing::{decide, is_refused};
use super::world::{description, guest};

pub(super) const OF: OfEpoch = OfEpoch { session: SessionId(5), epoch: Epoch(2) };
const LINK: LinkId = LinkId(1);

fn of_guest(epoch: u64) -> OfGuest {
    OfGuest { guest: guest(), epoch: Epoch(epoch) }
}

/// A source that gave custody.
fn given() -> Source {
    given_with(None)
}

fn given_with(witness: Option<Epoch>) -> Source {
    let mut config = SourceConfig::new(guest(), OF.session, OF.epoch, description("sim"));
    config.witness = witness;
    let mut source = Source::new(config);
    let hello = TargetHello { version: 1, instance: InstanceId(77), program: String::new() };
    let events = [
        SourceEvent::Connected,
        SourceEvent::Received(ToSource::Hello(hello)),
        SourceEvent::Received(ToSource::Verdict(Verdict::accept())),
        SourceEvent::Received(ToSource::Built),
        SourceEvent::Journaled,
        SourceEvent::LogStarted,
        SourceEvent::RoundSent { data_pages: 1, zero_pages: 0 },
        SourceEvent::Received(ToSource::RoundTaken(RoundTaken { round: 0 })),
        SourceEvent::Harvested { dirty_pages: 0 },
        SourceEvent::Paused,
        SourceEvent::ResourcesReleased,
        SourceEvent::Harvested { dirty_pages: 1 },
        SourceEvent::RoundSent { data_pages: 1, zero_pages: 0 },
        SourceEvent::StateSent { sections: 3 },
        SourceEvent::Received(ToSource::Ready),
    ];
    for event in events {
        source.step(Time::ZERO, event);
    }
    assert_eq!(source.phase(), SourcePhase::Given);
    source
}

/// A source that gave custody and whose link is gone.
pub(super) fn asking(witness: Option<Epoch>) -> (Source, Vec<SourceAction>) {
    let mut source = given_with(witness);
    let actions = source.step(Time::ZERO, SourceEvent::LinkLost(LinkFault::Closed));
    assert_eq!(source.phase(), SourcePhase::Asking);
    (source, actions)
}

#[test]
fn with_a_witness_the_source_claims_and_does_what_the_claim_says() {
    let (source, actions) = asking(Some(Epoch(1)));
    let claim = Claim { guest: guest(), from: Epoch(1), to: Epoch(3) };
    assert_eq!(actions.last(), Some(&SourceAction::Claim(claim)));
    let answer = |answer| source.clone().step(Time::ZERO, SourceEvent::Claimed(answer));
    assert_eq!(answer(ClaimAnswer::Won)[0], SourceAction::TakeBack { raise_to: Some(Epoch(3)) });
    assert_eq!(answer(ClaimAnswer::Lost), [SourceAction::Connect], "the target may still fail to run it");
    assert_eq!(answer(ClaimAnswer::Unreached("no route".into())), []);
    assert!(is_refused(&decide(&mut source.clone(), Choice::SourceRuns)), "the witness decides");
}

/// A target that cannot be linked to cannot answer: then only the witness settles it, once it can be asked.
#[test]
fn a_source_whose_target_is_gone_asks_the_witness_again() {
    let (mut source, _) = asking(Some(Epoch(1)));
    source.step(Time::ZERO, SourceEvent::Claimed(ClaimAnswer::Unreached("no route".into())));
    let (at, _) = source.deadline().unwrap();
    assert_eq!(source.step(at, SourceEvent::Tick), [SourceAction::Connect]);
    let actions = source.step(at, SourceEvent::ConnectFailed("nobody".into()));
    assert!(matches!(actions[..], [SourceAction::Claim(_)]), "{actions:?}");
}

/// Found by the model: the target wins its claim, and cannot start the guest.
#[test]
fn a_guest_that_the_witness_gave_to_the_target_comes_back_if_it_cannot_run_there() {
    let (mut source, _) = asking(Some(Epoch(1)));
    source.step(Time::ZERO, SourceEvent::Claimed(ClaimAnswer::Lost));
    source.step(Time::ZERO, SourceEvent::Connected);
    let reason = Reason::new(ReasonKind::Machine, "it cannot be started");
    let refused = ToSource::Refused(Refused { of: OF, reason });
    let actions = source.step(Time::ZERO, SourceEvent::Received(refused));
    let claim = Claim { guest: guest(), from: OF.epoch, to: Epoch(3) };
    assert_eq!(actions, [SourceAction::Disconnect, SourceAction::Claim(claim)], "the record is the target's");
    let actions = source.step(Time::ZERO, SourceEvent::Claimed(ClaimAnswer::Won));
    assert_eq!(actions[0], SourceAction::TakeBack { raise_to: Some(Epoch(3)) });
}

/// Found by the model: somebody repeats a session to a process that has no trace of the one that took it.
#[test]
fn an_offer_that_was_made_to_another_process_is_refused() {
    let (made_to, other) = (InstanceId(77), InstanceId(78));
    for (instance, taken) in [(made_to, true), (other, false)] {
        let mut target = Target::new(instance, None, Timeouts::default());
        target.step(Time::ZERO, TargetEvent::Opened(LINK));
        let mut actions = Vec::new();
        for message in session(None).into_iter().take(2) {
            let message = match message {
                ToTarget::Offer(offer) => ToTarget::Offer(Offer { to: Some(made_to), ..offer }),
                other => other,
            };
            actions = target.step(Time::ZERO, TargetEvent::Received(LINK, message));
        }
        let judged = matches!(actions[..], [TargetAction::Judge(_)]);
        let told = |action: &TargetAction| matches!(action, TargetAction::Send(_, ToSource::Refused(_)));
        assert_eq!((judged, actions.iter().any(told)), (taken, !taken), "{actions:?}");
    }
}

#[test]
fn a_claim_that_failed_may_have_been_carried_out() {
    let (mut source, _) = asking(Some(Epoch(1)));
    assert_eq!(source.step(Time::ZERO, SourceEvent::Failed("no route".into())), []);
    assert!(source.deadline().is_some(), "it asks again");
    assert_eq!(source.phase(), SourcePhase::Asking);
}

/// Every message of a session up to custody, so that a later process can be sent them again.
fn session(witness: Option<Epoch>) -> Vec<ToTarget> {
    let (session, epoch) = (OF.session, OF.epoch);
    let program = String::new();
    let hello = Hello { version_min: 1, version_max: 1, session, guest: guest(), epoch, program };
    let offer = Offer { witness, ..Offer::plain(description("sim")) };
    let end = RoundEnd { round: 0, data_pages: 1, zero_pages: 0, last: true };
    let messages = [ToTarget::Hello(hello), ToTarget::Offer(offer), ToTarget::RoundEnd(end)];
    messages
        .into_iter()
        .chain([ToTarget::StateEnd(StateEnd { sections: 1 }), ToTarget::Custody(OF)])
        .collect()
}

/// Sends a session and answers every job; gives every action but those of the journal, and the records.
fn play(
    target: &mut Target,
    messages: Vec<ToTarget>,
    claim: &ClaimAnswer,
) -> (Vec<TargetAction>, Vec<Record>) {
    let mut events: std::collections::VecDeque<_> = [TargetEvent::Opened(LINK)].into();
    let mut messages = messages.into_iter();
    let (mut done, mut records) = (Vec::new(), Vec::new());
    while let Some(event) =
        events.pop_front().or_else(|| messages.next().map(|message| TargetEvent::Received(LINK, message)))
    {
        for action in target.step(Time::ZERO, event) {
            match action {
                TargetAction::Journal(record) => {
                    records.push(record);
                    events.push_back(TargetEvent::JournalDone(Ok(())));
                }
                TargetAction::Note(record) => records.push(record),
                other => {
                    events.extend(match other {
                        TargetAction::Judge(_) => Some(TargetEvent::Judged(Verdict::accept())),
                        TargetAction::Build { .. } => Some(TargetEvent::Built),
                        TargetAction::Restore { .. } => Some(TargetEvent::Restored),
                        TargetAction::Claim(_) => Some(TargetEvent::Claimed(claim.clone())),
                        TargetAction::RunGuest { .. } => Some(TargetEvent::GuestRuns),
                        _ => None,
                    });
                    done.push(other);
                }
            }
        }
    }
    (done, records)
}

fn sent(actions: &[TargetAction]) -> Vec<&ToSource> {
    let mut messages = Vec::new();
    for action in actions {
        if let TargetAction::Send(_, message) = action {
            messages.push(message);
        }
    }
    messages
}

fn target() -> Target {
    Target::new(InstanceId(77), None, Timeouts::default())
}

#[test]
fn may_run_is_written_before_the_source_hears_that_the_machine_stands() {
    let mut target = target();
    let (actions, records) = play(&mut target, session(None)[..2].to_vec(), &ClaimAnswer::Lost);
    assert_eq!(records, [Record::MayRun(MayRun { guest: guest(), of: OF })]);
    assert_eq!(sent(&actions).last(), Some(&&ToSource::Built));

    let mut target = self::target();
    for event in [TargetEvent::Opened(LINK)]
        .into_iter()
        .chain(session(None)[..2].iter().map(|message| TargetEvent::Received(LINK, message.clone())))
        .chain([TargetEvent::Judged(Verdict::accept())])
    {
        target.step(Time::ZERO, event);
    }
    let actions = target.step(Time::ZERO, TargetEvent::Built);
    assert!(matches!(actions[..], [TargetAction::Journal(_)]), "{actions:?}");
    let actions = target.step(Time::ZERO, TargetEvent::JournalDone(Err("the disk is full".into())));
    let [ToSource::Refused(refused)] = sent(&actions)[..] else { panic!("{actions:?}") };
    assert!(refused.reason.text.contains("the disk is full"));
}

#[test]
fn what_cannot_be_written_is_not_said() {
    let mut target = target();
    play(&mut target, session(None)[..2].to_vec(), &ClaimAnswer::Lost);
    let actions = target.step(Time::ZERO, TargetEvent::Cancel);
    assert!(matches!(sent(&actions)[..], [ToSource::Abort(_)]), "{actions:?}");
    let actions = target.step(Time::ZERO, TargetEvent::JournalDone(Err("the disk is full".into())));
    assert_eq!(actions, [TargetAction::Close(LINK)]);
    // The question tries again, and the epoch is refused all the same.
    target.step(Time::ZERO, TargetEvent::Opened(LinkId(2)));
    let ask = ToTarget::Ask(Ask { guest: guest(), of: OF, instance: InstanceId(77) });
    let actions = target.step(Time::ZERO, TargetEvent::Received(LinkId(2), ask));
    assert_eq!(actions, [TargetAction::Journal(Record::Refused(of_guest(2)))]);
    let actions = target.step(Time::ZERO, TargetEvent::JournalDone(Ok(())));
    assert!(matches!(sent(&actions)[..], [ToSource::Refused(_)]));
}

/// The source's guest is paused by then, and it has not given custody: it waits neither for the disk nor
/// for what the machine had taken.
#[test]
fn a_session_that_ends_before_custody_holds_up_no_paused_guest() {
    let mut target = target();
    play(&mut target, session(None)[..4].to_vec(), &ClaimAnswer::Lost);
    assert_eq!(target.phase(), TargetPhase::Ready);
    let mut gone = target.clone();
    let actions = target.step(Time::ZERO, TargetEvent::Cancel);
    let [abort, TargetAction::Discard, TargetAction::Journal(record), TargetAction::Finish(_)] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert!(matches!(abort, TargetAction::Send(LINK, ToSource::Abort(_))), "{abort:?}");
    assert_eq!(*record, Record::Refused(of_guest(2)));
    // Custody may have crossed that word: the refusal follows on the same link.
    let actions = target.step(Time::ZERO, TargetEvent::JournalDone(Ok(())));
    assert!(matches!(sent(&actions)[..], [ToSource::Refused(_)]), "{actions:?}");
    assert_eq!(actions.last(), Some(&TargetAction::Close(LINK)));

    let actions = gone.step(Time::ZERO, TargetEvent::LinkLost(LINK, LinkFault::Closed));
    let order = [TargetAction::Discard, TargetAction::Journal(Record::Refused(of_guest(2)))];
    assert_eq!(actions[..2], order, "a source that resumes takes its locks again");
}

#[test]
fn a_source_that_gave_custody_waits_for_the_refusal_behind_the_end_of_the_session() {
    let mut source = given();
    let end = Reason::new(ReasonKind::Cancelled, "cancelled");
    assert_eq!(source.step(Time::ZERO, SourceEvent::Received(ToSource::Abort(end.clone()))), []);
    assert_eq!(source.phase(), SourcePhase::Given);
    let refused = ToSource::Refused(Refused { of: OF, reason: end });
    let actions = source.step(Time::ZERO, SourceEvent::Received(refused));
    assert_eq!(actions[0], SourceAction::TakeBack { raise_to: None });
}

/// What a process that follows another says of the other's epoch, and to the old session played again.
fn follower(records: &[Record]) -> (ToSource, ToSource) {
    let mut past = Past::default();
    past.add(InstanceId(77), History::of(records));
    let follower = Target::new(InstanceId(78), None, Timeouts::default()).with_past(past);
    let ask = ToTarget::Ask(Ask { guest: guest(), of: OF, instance: InstanceId(77) });
    let say = |message| {
        let mut target = follower.clone();
        target.step(Time::ZERO, TargetEvent::Opened(LINK));
        sent(&target.step(Time::ZERO, TargetEvent::Received(LINK, message)))[0].clone()
    };
    (say(ask), say(session(None).remove(0)))
}

#[test]
fn a_process_that_follows_another_refuses_only_what_that_one_never_ran() {
    let may_run = Record::MayRun(MayRun { guest: guest(), of: OF });
    let (answer, replayed) = follower(std::slice::from_ref(&may_run));
    assert_eq!(answer, ToSource::Unknown(Unknown { of: OF, known: Known::MayHaveRun }));
    let ToSource::Abort(reason) = replayed else { panic!("{replayed:?}") };
    assert_eq!(reason.kind, ReasonKind::OldEpoch);

    let (answer, replayed) = follower(&[may_run, Record::Refused(of_guest(2))]);
    assert!(matches!(answer, ToSource::Refused(_)));
    assert!(matches!(replayed, ToSource::Abort(_)), "a refused epoch is not taken by a later process");
}

/// Whoever has it now has it from there: told that it may have run, a person could run it twice.
#[test]
fn a_process_that_follows_one_that_handed_its_guest_on_lets_the_source_let_go() {
    let may = Record::MayRun(MayRun { guest: guest(), of: OF });
    let (answer, _) = follower(&[may, Record::Runs(of_guest(2)), Record::Moved(of_guest(3))]);
    assert_eq!(answer, ToSource::Running(OF));
}

#[test]
fn with_a_witness_the_target_runs_only_what_it_won() {
    let mut won = target().with_witness();
    let (actions, records) = play(&mut won, session(Some(Epoch(1))), &ClaimAnswer::Won);
    let claim = Claim { guest: guest(), from: Epoch(1), to: Epoch(2) };
    let at = |wanted: &TargetAction| actions.iter().position(|action| action == wanted);
    let run = TargetAction::RunGuest { guest: guest(), epoch: OF.epoch };
    assert!(at(&TargetAction::Claim(claim)).unwrap() < at(&run).unwrap());
    assert!(records.contains(&Record::Runs(of_guest(2))));

    let mut lost = target().with_witness();
    let (actions, records) = play(&mut lost, session(Some(Epoch(1))), &ClaimAnswer::Lost);
    assert!(!actions.contains(&run) && records.contains(&Record::Refused(of_guest(2))));
    assert_eq!(lost.phase(), TargetPhase::Waiting);

    let mut unreached = target().with_witness();
    play(&mut unreached, session(Some(Epoch(1))), &ClaimAnswer::Unreached("no route".into()));
    let (at, _) = unreached.deadline().expect("it claims again");
    let again = unreached.step(at, TargetEvent::Tick);
    assert!(matches!(again[..], [TargetAction::Claim(_)]), "{again:?}");

    let mut equal = target().with_witness();
    let (actions, _) = play(&mut equal, session(Some(OF.epoch)), &ClaimAnswer::Won);
    assert!(!actions.contains(&run), "a claim that changes nothing could be won by both");

    let mut without = target();
    let (actions, _) = play(&mut without, session(Some(Epoch(1))), &ClaimAnswer::Won);
    assert!(!actions.contains(&run), "a target without a witness takes no guest that has one");
}
