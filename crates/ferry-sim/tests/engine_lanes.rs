//! Pages over several lanes: whole moves, lanes that lag behind, and links that only pretend.

#![forbid(unsafe_code)]

mod engine_support;

use engine_support::{
    MIB, Raw, TRANSPORTS, Transport, Victim, Waiting, alone, data, hello, is_undisturbed, options, pages,
    quick, round_end, running, to_target, transfer, zeros,
};
use ferry_memory::PAGE_SIZE;
use ferry_migrate::{Machine, Migration};
use ferry_protocol::message::{Lane, OfEpoch, Offer, StateEnd, ToSource, ToTarget};
use ferry_protocol::{Cause, Epoch, SessionId, SourceOutcome};
use ferry_sim::{SimConfig, SimOptions, Workload};

const BUSY: SimConfig = SimConfig {
    seed: 5,
    memory_bytes: 64 * MIB,
    workload: Workload::Churn { working_set_bytes: 24 * MIB, rate_bytes_per_second: 64 * MIB },
};

#[test]
fn a_busy_guest_moves_over_any_number_of_lanes() {
    let _alone = alone();
    for (lanes, transport) in [2, 4, 16].into_iter().zip(TRANSPORTS.into_iter().cycle()) {
        let folder = tempfile::tempdir().unwrap();
        let mut source = running(BUSY, SimOptions::default());
        let waiting = Waiting::plain(transport, folder.path());
        let mut how = options(&source, &waiting.address, 2);
        how.config.lanes = lanes;
        how.config.verify = true;
        let (report, _) = Migration::new(how).run(&mut source, &());
        assert_eq!(report.outcome, SourceOutcome::Moved { epoch: Epoch(2) }, "{lanes} lanes");
        let mut arrived = waiting.arrived();
        assert_eq!(arrived.arrival.received.data_pages * PAGE_SIZE, report.data_bytes);
        is_undisturbed(&mut arrived.machine);
    }
}

/// A session that has offered two lanes, its machine built.
fn with_two_lanes(victim: &mut Victim) -> Raw {
    let mut peer = victim.greeted();
    let offer = Offer { verify: true, lanes: 2, ..Offer::plain(victim.guest.description()) };
    peer.tell(&ToTarget::Offer(offer));
    assert!(matches!(peer.hear(), Some(ToSource::Verdict(_))));
    assert_eq!(peer.hear(), Some(ToSource::Built));
    peer
}

/// A link that wants to be a lane of the victim's present session.
fn lane(victim: &Victim, change: impl FnOnce(&mut Lane)) -> Raw {
    let of = hello("guest", victim.epoch);
    let mut lane = Lane { of: OfEpoch { session: of.session, epoch: of.epoch }, number: 1 };
    change(&mut lane);
    let mut peer = victim.connect();
    peer.tell(&ToTarget::Lane(lane));
    peer
}

#[test]
fn who_pretends_to_be_a_lane_is_turned_away_and_disturbs_nobody() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Tcp, quick());
    let mut early = lane(&victim, |_| {});
    assert!(matches!(early.hear(), Some(ToSource::Abort(_))), "there is no session");
    let mut session = with_two_lanes(&mut victim);
    let pretenders: [fn(&mut Lane); 4] = [
        |lane| lane.of.session = SessionId(lane.of.session.0 ^ 1),
        |lane| lane.of.epoch = Epoch(lane.of.epoch.0 + 1),
        |lane| lane.number = 0,
        |lane| lane.number = 2,
    ];
    for pretend in pretenders {
        assert!(matches!(lane(&victim, pretend).hear(), Some(ToSource::Abort(_))));
    }
    let mut real = lane(&victim, |_| {});
    assert_eq!(real.hear(), Some(ToSource::LaneTaken));
    assert!(matches!(lane(&victim, |_| {}).hear(), Some(ToSource::Abort(_))), "lane 1 is taken");
    session.send(&transfer(&mut victim.guest).concat());
    assert_eq!(session.hear(), Some(ToSource::Ready));
    assert_eq!(real.hear(), None, "the last round is over");
    drop((session, early, real));
    victim.takes_a_guest();
}

#[test]
fn a_round_is_over_when_every_lane_brought_its_part() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Unix, quick());
    let content = data(3);
    victim.guest.ram().write(PAGE_SIZE, &content).unwrap();
    let mut session = with_two_lanes(&mut victim);
    let mut slow = lane(&victim, |_| {});
    assert_eq!(slow.hear(), Some(ToSource::LaneTaken));
    // Lane 0 is done with round 0 and begins round 1 while lane 1 still has pages of round 0 to bring:
    // page 1 of round 1 must win.
    session.send(&zeros(0, &[(0, 1), (4, 4)]));
    session.send(&round_end(0, 3, 5, false));
    session.send(&pages(1, &[(1, 1)], &content[..4096], true));
    session.send(&round_end(1, 1, 0, true));
    let stale = [&vec![7; 4096][..], &content[4096..]].concat();
    slow.send(&pages(0, &[(1, 3)], &stale, false));
    let frames = transfer(&mut victim.guest);
    session.send(&frames[frames.len() - 5..].concat());
    assert_eq!(session.hear(), Some(ToSource::Ready), "the hash is that of the source's memory");
    drop((session, slow));
    victim.takes_a_guest();
}

#[test]
fn a_lane_that_ends_or_speaks_ends_the_session() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Tcp, quick());
    let cause = victim.cause(|victim| {
        let session = with_two_lanes(victim);
        let mut gone = lane(victim, |_| {});
        assert_eq!(gone.hear(), Some(ToSource::LaneTaken));
        drop(gone);
        session
    });
    assert_eq!(cause, Cause::LinkLost("a lane ended in the middle of the rounds".into()));
    let cause = victim.cause(|victim| {
        let session = with_two_lanes(victim);
        let mut talking = lane(victim, |_| {});
        assert_eq!(talking.hear(), Some(ToSource::LaneTaken));
        talking.send(&to_target(&ToTarget::StateEnd(StateEnd { sections: 0 })));
        session
    });
    assert!(matches!(&cause, Cause::Misbehaved(text) if text.contains("on a lane")), "{cause:?}");
    victim.takes_a_guest();
}
