//! Single decisions of the target that the table does not show.

use std::collections::VecDeque;

use ferry_contract::Verdict;
use ferry_protocol::journal::{Living, MayRun, OfGuest, Past, Record};
use ferry_protocol::message::{
    Ask, Hello, Known, MemoryHash, OfEpoch, Offer, Reason, ReasonKind, Refused, RoundEnd, StateEnd,
    TargetHello, ToSource, ToTarget, Unknown, VERSIONS,
};
use ferry_protocol::{
    Epoch, GuestId, InstanceId, LinkFault, LinkId, SessionId, Target, TargetAction, TargetEvent,
    TargetOutcome, TargetPhase, Time, Timeouts,
};

use super::world::{description, guest};

const INSTANCE: InstanceId = InstanceId(77);
const OF: OfEpoch = OfEpoch { session: SessionId(5), epoch: Epoch(2) };
const LINK: LinkId = LinkId(1);
const OTHER_LINK: LinkId = LinkId(2);
const HASH: [u8; 32] = [7; 32];

fn hello(guest: &GuestId, of: OfEpoch) -> Hello {
    let program = "test".into();
    Hello {
        version_min: 1,
        version_max: 1,
        session: of.session,
        guest: guest.clone(),
        epoch: of.epoch,
        program,
    }
}

fn target() -> Target {
    Target::new(INSTANCE, None, Timeouts::default())
}

/// One step, and those of the records that it has to write; the journal's own actions are left out.
fn act(target: &mut Target, event: TargetEvent) -> Vec<TargetAction> {
    let (mut done, mut left) = (Vec::new(), VecDeque::from(target.step(Time::ZERO, event)));
    while let Some(action) = left.pop_front() {
        match action {
            TargetAction::Journal(_) => {
                left.extend(target.step(Time::ZERO, TargetEvent::JournalDone(Ok(()))));
            }
            TargetAction::Note(_) => {}
            other => done.push(other),
        }
    }
    done
}

/// Opens a link and says the first message on it.
fn say(target: &mut Target, link: LinkId, message: ToTarget) -> Vec<TargetAction> {
    target.step(Time::ZERO, TargetEvent::Opened(link));
    act(target, TargetEvent::Received(link, message))
}

fn feed(target: &mut Target, events: impl IntoIterator<Item = TargetEvent>) -> Vec<TargetAction> {
    events.into_iter().map(|event| act(target, event)).last().unwrap()
}

fn on_link(message: ToTarget) -> TargetEvent {
    TargetEvent::Received(LINK, message)
}

fn round(number: u32, last: bool) -> TargetEvent {
    on_link(ToTarget::RoundEnd(RoundEnd { round: number, data_pages: 1, zero_pages: 0, last }))
}

fn state_end() -> TargetEvent {
    on_link(ToTarget::StateEnd(StateEnd { sections: 3 }))
}

/// A target whose machine is built and to which pages may come.
fn receiving(verify: bool) -> Target {
    let mut target = target();
    say(&mut target, LINK, ToTarget::Hello(hello(&guest(), OF)));
    let offer = Offer { verify, ..Offer::plain(description("sim")) };
    let events =
        [on_link(ToTarget::Offer(offer)), TargetEvent::Judged(Verdict::accept()), TargetEvent::Built];
    feed(&mut target, events);
    assert_eq!(target.phase(), TargetPhase::Receive);
    target
}

fn ready() -> Target {
    let mut target = receiving(false);
    feed(&mut target, [round(0, false), round(1, true), state_end(), TargetEvent::Restored]);
    assert_eq!(target.phase(), TargetPhase::Ready);
    target
}

fn running() -> Target {
    let mut target = ready();
    feed(&mut target, [on_link(ToTarget::Custody(OF)), TargetEvent::GuestRuns]);
    assert_eq!(target.phase(), TargetPhase::Running);
    target
}

fn ask(of: OfEpoch) -> ToTarget {
    ToTarget::Ask(Ask { guest: guest(), of, instance: INSTANCE })
}

fn message(action: &TargetAction) -> Option<&ToSource> {
    if let TargetAction::Send(_, message) = action { Some(message) } else { None }
}

fn sent(actions: &[TargetAction]) -> Vec<&ToSource> {
    actions.iter().filter_map(message).collect()
}

/// The one reason with which the target turned a source away or refused. Where the refusal goes to disk
/// first, the end of the session is said before it.
fn reason(actions: &[TargetAction]) -> &Reason {
    match sent(actions)[..] {
        [ToSource::Abort(end), ToSource::Refused(Refused { reason, .. })] if end == reason => reason,
        [ToSource::Abort(reason) | ToSource::Refused(Refused { reason, .. })] => reason,
        ref other => panic!("{other:?}"),
    }
}

fn refuses(actions: &[TargetAction], kind: ReasonKind) {
    assert!(matches!(sent(actions).last(), Some(ToSource::Refused(_))), "{actions:?}");
    assert_eq!(reason(actions).kind, kind);
    assert!(actions.iter().any(|action| matches!(action, TargetAction::Discard)));
}

#[test]
fn a_version_that_the_target_does_not_speak_names_both_ranges() {
    let newest = *VERSIONS.end();
    for (min, max) in [(newest + 1, newest + 4), (0, 0), (9, 2)] {
        let wanted = Hello { version_min: min, version_max: max, ..hello(&guest(), OF) };
        let mut target = target();
        let actions = say(&mut target, LINK, ToTarget::Hello(wanted));
        let reason = reason(&actions);
        assert_eq!(reason.kind, ReasonKind::Incompatible);
        for range in [format!("{min} to {max}"), format!("{} to {newest}", VERSIONS.start())] {
            assert!(reason.text.contains(&range), "{}", reason.text);
        }
        assert_eq!(target.phase(), TargetPhase::Waiting);
        assert!(actions.contains(&TargetAction::Close(LINK)));
    }
    let wide = Hello { version_min: 0, version_max: u16::MAX, ..hello(&guest(), OF) };
    let actions = say(&mut target(), LINK, ToTarget::Hello(wide));
    assert!(matches!(sent(&actions)[..], [ToSource::Hello(TargetHello { version: 1, .. })]));
}

#[test]
fn a_busy_target_and_one_that_waits_for_another_guest_say_so() {
    let other: GuestId = "db-1".parse().unwrap();
    let mut taking = receiving(false);
    let mut waiting = Target::new(INSTANCE, Some(other), Timeouts::default());
    for (target, words) in
        [(&mut taking, "`web-1`"), (&mut running(), "already has"), (&mut waiting, "`db-1`")]
    {
        let before = target.phase();
        let of = OfEpoch { session: SessionId(6), epoch: Epoch(3) };
        let actions = say(target, OTHER_LINK, ToTarget::Hello(hello(&guest(), of)));
        assert_eq!(reason(&actions).kind, ReasonKind::Busy);
        assert!(reason(&actions).text.contains(words), "{}", reason(&actions).text);
        assert_eq!(target.phase(), before);
        assert!(matches!(sent(&actions)[..], [ToSource::Abort(_)]), "an epoch was refused");
    }
}

#[test]
fn an_epoch_that_was_refused_is_not_offered_again() {
    let mut target = target();
    say(&mut target, LINK, ask(OF));
    let actions = say(&mut target, OTHER_LINK, ToTarget::Hello(hello(&guest(), OF)));
    assert!(matches!(sent(&actions)[..], [ToSource::Refused(_)]));
    assert_eq!(reason(&actions).kind, ReasonKind::OldEpoch);
    let next = OfEpoch { session: SessionId(6), epoch: OF.epoch.next() };
    let actions = say(&mut target, LinkId(3), ToTarget::Hello(hello(&guest(), next)));
    assert!(matches!(sent(&actions)[..], [ToSource::Hello(_)]));
}

#[test]
fn custody_counts_once_and_only_when_the_target_is_ready() {
    let mut target = ready();
    let actions = feed(&mut target, [on_link(ToTarget::Custody(OF))]);
    assert_eq!(actions, [TargetAction::RunGuest { guest: guest(), epoch: OF.epoch }]);
    assert_eq!(feed(&mut target, [on_link(ToTarget::Custody(OF))]), []);
    feed(&mut target, [TargetEvent::GuestRuns]);
    assert_eq!(feed(&mut target, [on_link(ToTarget::Custody(OF))]), []);

    for events in [vec![], vec![round(0, true), state_end()]] {
        let mut target = receiving(false);
        let early = feed(&mut target, events.into_iter().chain([on_link(ToTarget::Custody(OF))]));
        refuses(&early, ReasonKind::Misbehaved);
    }
    let stale = OfEpoch { session: SessionId(4), ..OF };
    let wrong = feed(&mut ready(), [on_link(ToTarget::Custody(stale))]);
    refuses(&wrong, ReasonKind::Misbehaved);
}

#[test]
fn custody_that_comes_after_the_refusal_is_not_taken() {
    let mut target = ready();
    let actions = say(&mut target, OTHER_LINK, ask(OF));
    let refused = actions.iter().filter_map(|action| match action {
        TargetAction::Send(link, ToSource::Refused(_)) => Some(*link),
        _ => None,
    });
    assert_eq!(refused.collect::<Vec<_>>(), [LINK, OTHER_LINK], "who asked, and who gave custody");
    assert_eq!(feed(&mut target, [on_link(ToTarget::Custody(OF))]), []);
    assert_eq!(target.phase(), TargetPhase::Waiting);
}

#[test]
fn memory_that_differs_is_refused_before_anything_is_restored() {
    let hash = on_link(ToTarget::MemoryHash(MemoryHash { blake3: HASH }));
    for state_first in [false, true] {
        let mut target = receiving(true);
        feed(&mut target, [round(0, true), hash.clone()]);
        if state_first {
            assert_eq!(feed(&mut target, [state_end()]), []);
        }
        refuses(&feed(&mut target, [TargetEvent::Hashed([8; 32])]), ReasonKind::Misbehaved);
    }
    let mut target = receiving(true);
    feed(&mut target, [round(0, true), hash, state_end()]);
    let actions = feed(&mut target, [TargetEvent::Hashed(HASH)]);
    assert_eq!(actions, [TargetAction::Restore { sections: 3 }]);
}

#[test]
fn what_comes_out_of_order_is_refused() {
    let hash = || on_link(ToTarget::MemoryHash(MemoryHash { blake3: HASH }));
    let cases: [(bool, Vec<TargetEvent>); 8] = [
        (false, vec![state_end()]),
        (false, vec![round(0, false), state_end()]),
        (false, vec![round(1, false)]),
        (false, vec![round(0, true), round(1, true)]),
        (false, vec![round(0, true), hash()]),
        (true, vec![round(0, true), state_end()]),
        (true, vec![hash()]),
        (true, vec![round(0, true), hash(), state_end(), state_end()]),
    ];
    for (verify, events) in cases {
        let mut target = receiving(verify);
        refuses(&feed(&mut target, events.clone()), ReasonKind::Misbehaved);
        assert!(!target.ledger().may_take(&guest(), OF.epoch), "{events:?}");
    }
}

#[test]
fn a_question_while_the_guest_is_started_is_answered_when_that_is_known() {
    let mut target = ready();
    feed(&mut target, [on_link(ToTarget::Custody(OF))]);
    assert_eq!(say(&mut target, OTHER_LINK, ask(OF)), []);
    let mut failing = target.clone();
    let actions = feed(&mut target, [TargetEvent::GuestRuns]);
    assert!(actions.contains(&TargetAction::Send(OTHER_LINK, ToSource::Running(OF))));
    let actions = feed(&mut failing, [TargetEvent::Failed("no vCPU ran".into())]);
    assert!(sent(&actions).iter().all(|message| matches!(message, ToSource::Refused(_))));
    assert_eq!(sent(&actions).len(), 2, "the session's link and the question's");
}

#[test]
fn a_source_lets_go_on_the_link_on_which_it_asked() {
    let mut target = running();
    feed(&mut target, [TargetEvent::LinkLost(LINK, LinkFault::Closed)]);
    let stranger = say(&mut target, LinkId(3), ToTarget::Release(OF));
    assert!(!stranger.iter().any(|action| matches!(action, TargetAction::Finish(_))), "{stranger:?}");
    assert_eq!(
        say(&mut target, OTHER_LINK, ask(OF)),
        [TargetAction::Send(OTHER_LINK, ToSource::Running(OF))]
    );
    let actions = feed(&mut target, [TargetEvent::Received(OTHER_LINK, ToTarget::Release(OF))]);
    let outcome = TargetOutcome::Runs { guest: guest(), epoch: OF.epoch, released: true };
    assert_eq!(actions, [TargetAction::Close(OTHER_LINK), TargetAction::Finish(outcome)]);
}

#[test]
fn a_guest_that_runs_is_refused_to_nobody() {
    let mut target = running();
    let events = [
        TargetEvent::Failed("a late failure".into()),
        TargetEvent::Cancel,
        on_link(ToTarget::Abort(Reason::new(ReasonKind::Cancelled, "too late"))),
    ];
    for event in events {
        assert_eq!(feed(&mut target, [event]), []);
    }
    let other = Ask { guest: guest(), of: OF, instance: InstanceId(78) };
    let actions = say(&mut target, OTHER_LINK, ToTarget::Ask(other));
    let unknown = ToSource::Unknown(Unknown { of: OF, known: Known::NoTrace });
    assert_eq!(sent(&actions), [&unknown], "only that very instance can answer");
}

/// Its address is free once its source let go, and a source whose process died in that moment is asked
/// for by a person who finds another process there.
#[test]
fn for_another_process_that_lives_only_what_it_wrote_is_answered() {
    let may = Record::MayRun(MayRun { guest: guest(), of: OF });
    let of = OfGuest { guest: guest(), epoch: OF.epoch };
    let (runs, refused) = (Record::Runs(of.clone()), Record::Refused(of.clone()));
    let lives = ToSource::Unknown(Unknown { of: OF, known: Known::Lives });
    let reads = |records: &[Record]| {
        let mut past = Past::default();
        past.add_living(InstanceId(78), Living::of(records));
        let mut target = target().with_past(past);
        let ask = Ask { guest: guest(), of: OF, instance: InstanceId(78) };
        let actions = say(&mut target, LINK, ToTarget::Ask(ask));
        assert!(actions.contains(&TargetAction::Close(LINK)), "{actions:?}");
        sent(&actions)[0].clone()
    };
    assert_eq!(reads(&[]), lives, "what it has not written it may still do");
    assert_eq!(reads(std::slice::from_ref(&may)), lives);
    assert_eq!(reads(&[may.clone(), runs.clone()]), ToSource::Running(OF));
    let went_on = [may.clone(), runs.clone(), Record::Moved(of)];
    assert_eq!(reads(&went_on), ToSource::Running(OF));
    assert!(matches!(reads(&[may, refused]), ToSource::Refused(_)));
    assert_eq!(reads(&[runs]), lives, "it did not come to it as a target");
}

#[test]
fn idle_links_are_bounded_and_end() {
    let mut target = target();
    for number in 1..=16 {
        assert_eq!(target.step(Time::ZERO, TargetEvent::Opened(LinkId(number))), []);
    }
    let closed = target.step(Time::ZERO, TargetEvent::Opened(LinkId(17)));
    assert_eq!(closed, [TargetAction::Close(LinkId(1))], "the one that is silent longest makes room");
    let (late, _) = target.deadline().unwrap();
    assert_eq!(late, Time::ZERO.after(Timeouts::default().hello));
    let closed = target.step(late, TargetEvent::Tick);
    assert_eq!(closed, (2..=17).map(|number| TargetAction::Close(LinkId(number))).collect::<Vec<_>>());
    assert_eq!(target.deadline(), None);
}

#[test]
fn answers_of_an_ended_session_are_not_those_of_the_next() {
    let mut target = target();
    say(&mut target, LINK, ToTarget::Hello(hello(&guest(), OF)));
    let offer = || ToTarget::Offer(Offer::plain(description("sim")));
    feed(&mut target, [on_link(offer()), TargetEvent::LinkLost(LINK, LinkFault::Closed)]);
    let next = OfEpoch { session: SessionId(6), epoch: OF.epoch.next() };
    say(&mut target, OTHER_LINK, ToTarget::Hello(hello(&guest(), next)));
    feed(&mut target, [TargetEvent::Received(OTHER_LINK, offer())]);
    assert_eq!(feed(&mut target, [TargetEvent::Failed("of the first session".into())]), []);
    let actions = feed(&mut target, [TargetEvent::Judged(Verdict::accept())]);
    assert!(matches!(actions[..], [TargetAction::Send(OTHER_LINK, _), TargetAction::Build { .. }]));
}

#[test]
fn jobs_of_ended_sessions_do_not_pile_up() {
    let mut target = target();
    let offer = || ToTarget::Offer(Offer::plain(description("sim")));
    let busy = (1..100).find(|&number| {
        let of = OfEpoch { session: SessionId(number), epoch: Epoch(number) };
        let link = LinkId(number);
        let actions = say(&mut target, link, ToTarget::Hello(hello(&guest(), of)));
        let lost = TargetEvent::LinkLost(link, LinkFault::Closed);
        feed(&mut target, [TargetEvent::Received(link, offer()), lost]);
        matches!(sent(&actions)[..], [ToSource::Abort(Reason { kind: ReasonKind::Busy, .. })])
    });
    assert_eq!(busy, Some(5), "four may be under way");
    feed(&mut target, [TargetEvent::Judged(Verdict::accept())]);
    let of = OfEpoch { session: SessionId(9), epoch: Epoch(9) };
    let actions = say(&mut target, LinkId(9), ToTarget::Hello(hello(&guest(), of)));
    assert!(matches!(sent(&actions)[..], [ToSource::Hello(_)]), "the listener is free again");
}

#[test]
fn a_garbled_stream_is_told_to_who_sent_it() {
    let garbled = || LinkFault::Garbled("a checksum differs".into());
    let mut session = receiving(false);
    let actions = feed(&mut session, [TargetEvent::LinkLost(LINK, garbled())]);
    refuses(&actions, ReasonKind::Misbehaved);
    assert!(reason(&actions).text.contains("checksum") && actions.contains(&TargetAction::Close(LINK)));
    let mut waiting = target();
    waiting.step(Time::ZERO, TargetEvent::Opened(LINK));
    let actions = feed(&mut waiting, [TargetEvent::LinkLost(LINK, garbled())]);
    assert_eq!(reason(&actions).kind, ReasonKind::Misbehaved);
    assert_eq!(feed(&mut running(), [TargetEvent::LinkLost(LINK, garbled())]).len(), 1, "the guest runs on");
}
