//! Sources that are no sources, or bad ones: the target says why, frees everything, and takes the
//! next guest.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::net::Shutdown;

use engine_support::{
    Leaks, Raw, SHORT, TINY, TRANSPORTS, Transport, Victim, alone, data, frame, hello, is_a_sentence, pages,
    quick, released, round_end, to_target, transfer, zeros,
};
use ferry_memory::PAGE_SIZE;
use ferry_migrate::Machine;
use ferry_protocol::frame::{FrameKind, HEADER_BYTES};
use ferry_protocol::message::{
    Hello, MemoryHash, OfEpoch, Offer, Reason, ReasonKind, StateEnd, ToSource, ToTarget,
};
use ferry_protocol::{Cause, Epoch, MachineDescription, SessionId, Timeouts, TimerName};
use ferry_sim::{SimConfig, SimMachine};
use ferry_state::Section;

#[test]
fn a_stream_that_is_cut_anywhere_is_a_lost_link() {
    let _alone = alone();
    for transport in TRANSPORTS {
        let mut victim = Victim::new(transport, quick());
        let frames = transfer(&mut victim.guest);
        let stream = frames.concat();
        let mut cuts = Vec::new();
        let mut start = 0;
        for frame in &frames {
            let inside = [0, 1, 4, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, frame.len() - 1];
            cuts.extend(inside.map(|at| start + at));
            cuts.extend([frame.len() / 2, frame.len().saturating_sub(4096)].map(|at| start + at));
            start += frame.len();
        }
        cuts.sort_unstable();
        cuts.dedup();
        for cut in cuts {
            let cause = victim.cause(|victim| {
                let mut peer = victim.built(true);
                assert!(peer.send(&stream[..cut]));
                peer.close(Shutdown::Write);
                peer
            });
            assert!(matches!(cause, Cause::LinkLost(_)), "cut at {cut}: {cause:?}");
        }
        // In the handshake, too: at the hello there is no session yet.
        let greeting = to_target(&ToTarget::Hello(hello("guest", 999)));
        for cut in [0, 1, 15, 16, greeting.len() - 1] {
            victim.connect().send(&greeting[..cut]);
        }
        let offer = Offer::plain(victim.guest.description());
        let offer = to_target(&ToTarget::Offer(offer));
        for cut in [0, 1, 15, 16, 17, offer.len() - 1] {
            let cause = victim.cause(|victim| {
                let mut peer = victim.greeted();
                peer.send(&offer[..cut]);
                peer.close(Shutdown::Both);
                peer
            });
            assert!(matches!(cause, Cause::LinkLost(_)), "cut at {cut}: {cause:?}");
        }
        victim.takes_a_guest();
    }
}

#[test]
fn the_whole_stream_is_good_and_ready_is_said() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Tcp, quick());
    let frames = transfer(&mut victim.guest);
    let cause = victim.cause(|victim| {
        let mut peer = victim.built(true);
        peer.send(&frames.concat());
        assert_eq!(peer.hear(), Some(ToSource::Ready));
        peer.tell(&ToTarget::Abort(Reason::new(ReasonKind::Cancelled, "the user changed their mind")));
        peer
    });
    assert!(matches!(&cause, Cause::Peer(reason) if reason.kind == ReasonKind::Cancelled), "{cause:?}");
    victim.takes_a_guest();
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Unix, quick());
    let frames = transfer(&mut victim.guest);
    let stream = frames.concat();
    // Every byte of what is no page data, and some of what is.
    let mut at = 0;
    let mut places = Vec::new();
    for frame in &frames {
        let is_data = |offset: usize| frame.len() > 4096 && offset > 128;
        places.extend((0..frame.len()).filter(|o| !is_data(*o) || o % 1021 == 0).map(|offset| at + offset));
        at += frame.len();
    }
    for (index, place) in places.into_iter().enumerate() {
        let mut garbled = stream.clone();
        garbled[place] ^= 1 << (index % 8);
        let cause = victim.cause(|victim| {
            let mut peer = victim.built(true);
            peer.send(&garbled);
            peer.close(Shutdown::Write);
            peer
        });
        let fits = matches!(cause, Cause::Misbehaved(_) | Cause::OtherProtocol(_))
            // A length that grew waits for bytes that do not come.
            || (matches!(cause, Cause::LinkLost(_)));
        assert!(fits, "at {place}: {cause:?}");
    }
    victim.takes_a_guest();
}

#[test]
fn garbled_pages_of_the_last_round_fail_their_checksum() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Tcp, quick());
    let mut frames = transfer(&mut victim.guest);
    *frames[3].last_mut().unwrap() ^= 0x10;
    let cause = victim.cause(|victim| {
        let mut peer = victim.built(false);
        peer.send(&frames[..4].concat());
        peer
    });
    assert!(matches!(&cause, Cause::Misbehaved(text) if text.contains("checksum")), "{cause:?}");
    // Of a live round only the hash of all memory finds it.
    let mut frames = transfer(&mut victim.guest);
    frames[1][8000] ^= 0x10;
    let cause = victim.cause(|victim| {
        let mut peer = victim.built(true);
        peer.send(&frames.concat());
        peer
    });
    assert!(matches!(&cause, Cause::Misbehaved(text) if text.contains("hashes")), "{cause:?}");
    victim.takes_a_guest();
}

/// What a source may not send once the machine stands, and a word of the target's complaint.
fn misdeeds(guest: &mut SimMachine) -> Vec<(&'static str, Vec<Vec<u8>>, &'static str)> {
    let state = guest.capture().unwrap();
    let section = frame(FrameKind::Section, &state.sections[0].to_bytes());
    let unknown = Section { name: "sim.soul".into(), index: 0, needed: vec![1], body: vec![0xa1, 1, 1] };
    let unknown = frame(FrameKind::Section, &unknown.to_bytes());
    let ends = |sections| to_target(&ToTarget::StateEnd(StateEnd { sections }));
    let all = || vec![zeros(0, &[(0, 8)]), round_end(0, 0, 8, true)];
    let then = |more: Vec<Vec<u8>>| [all(), more].concat();
    let device = guest.capture_devices().unwrap().sections;
    let device = frame(FrameKind::Section, &device[0].to_bytes());
    let with = |more: Vec<Vec<u8>>| then([vec![released(&[])], more].concat());
    let needs = |kind: &str, name: &str| {
        then(vec![released(&[(kind, name)]), section.clone(), device.clone(), ends(3)])
    };
    let of = OfEpoch { session: SessionId(1), epoch: Epoch(1) };
    let one = data(1);
    vec![
        ("outside", vec![pages(0, &[(8, 1)], &one, false)], "outside guest memory"),
        ("across the end", vec![zeros(0, &[(7, 2)])], "outside guest memory"),
        ("at the end of all", vec![zeros(0, &[(u64::MAX, 1)])], "overflows"),
        ("far away", vec![zeros(0, &[(1 << 50, 1 << 20)])], "outside guest memory"),
        ("unsorted", vec![pages(0, &[(3, 1), (1, 1)], &data(2), false)], "unsorted"),
        ("overlapping", vec![pages(0, &[(1, 2), (2, 1)], &data(3), false)], "overlap"),
        ("empty", vec![zeros(0, &[(1, 0)])], "empty"),
        ("no range", vec![zeros(0, &[])], "number of ranges"),
        ("too many ranges", vec![zeros(0, &(0..513).map(|at| (at * 2, 1)).collect::<Vec<_>>())], "bytes"),
        ("too many pages", vec![pages(0, &[(0, 1025)], &[], false)], "more pages"),
        ("a round ahead", vec![zeros(1, &[(0, 8)])], "another round"),
        (
            "a round behind",
            vec![zeros(0, &[(0, 8)]), round_end(0, 0, 8, false), zeros(0, &[(0, 1)])],
            "another round",
        ),
        ("after the last", then(vec![zeros(1, &[(0, 1)])]), "another round"),
        ("too few", vec![pages(0, &[(1, 1)], &one, false), round_end(0, 2, 0, false)], "arrived"),
        ("too many", vec![zeros(0, &[(0, 8)]), round_end(0, 0, 7, false)], "arrived"),
        ("another end", vec![round_end(3, 0, 0, false)], "round-end"),
        ("an end too much", then(vec![round_end(1, 0, 0, true)]), "round-end"),
        ("no checksum", vec![pages(0, &[(1, 1)], &one, false), round_end(0, 1, 0, true)], "checksum"),
        ("a section too early", vec![section.clone()], "too early"),
        ("no section", vec![frame(FrameKind::Section, b"xyz")], "too early"),
        ("a bad section", then(vec![frame(FrameKind::Section, b"xyz")]), "section"),
        ("too few sections", then(vec![section.clone(), ends(2)]), "2 sections, 1 arrived"),
        ("too many sections", then(vec![section.clone(), device.clone(), ends(1)]), "1 sections, 2 arrived"),
        ("a section twice", with(vec![section.clone(), section.clone(), device.clone(), ends(4)]), "twice"),
        ("a needed section", with(vec![section.clone(), device.clone(), unknown, ends(4)]), "sim.soul"),
        ("no device", with(vec![section.clone(), ends(2)]), "device"),
        ("no processor", with(vec![device.clone(), ends(2)]), "sim.core"),
        ("no state", with(vec![ends(1)]), "sim.core"),
        ("no word of resources", then(vec![section.clone(), device.clone(), ends(2)]), "machine.resources"),
        ("resources twice", with(vec![released(&[]), section.clone(), ends(3)]), "twice"),
        ("a strange resource", needs("lease", "/a"), "does not know resources of the kind `lease`"),
        ("a nameless resource", needs("file-lock", ""), "resource 0 is empty"),
        (
            "a lock that is not there",
            needs("file-lock", "/nonexistent/lock"),
            "/nonexistent/lock cannot be used",
        ),
        ("a lock that is a device", needs("file-lock", "/dev/null"), "no lock file of ferry"),
        ("a lock from here on", needs("file-lock", "disk.lock"), "use an absolute path"),
        ("an early state", vec![ends(0)], "state-end"),
        (
            "a hash for nothing",
            vec![to_target(&ToTarget::MemoryHash(MemoryHash { blake3: [0; 32] }))],
            "memory-hash",
        ),
        ("custody too early", vec![to_target(&ToTarget::Custody(of))], "custody"),
        ("a release", vec![to_target(&ToTarget::Release(of))], "release"),
        ("another hello", vec![to_target(&ToTarget::Hello(hello("guest", 5000)))], "hello"),
        ("what a target sends", vec![frame(FrameKind::ToSource, &[0x81, 3])], "message"),
        ("an unknown message", vec![frame(FrameKind::ToTarget, &[0x82, 0x18, 99, 0xa0])], "message"),
        ("an empty message", vec![frame(FrameKind::ToTarget, &[])], "message"),
    ]
}

#[test]
fn every_misdeed_ends_the_session_with_its_name() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Unix, quick());
    for (name, frames, complaint) in misdeeds(&mut victim.guest) {
        let cause = victim.cause(|victim| {
            let mut peer = victim.built(false);
            for frame in &frames {
                peer.send(frame);
            }
            peer
        });
        let text = cause.to_string();
        // A state that the machine refuses is the machine's complaint, the rest the peer's misbehaviour.
        assert!(matches!(cause, Cause::Misbehaved(_) | Cause::Machine(_)), "{name}: {cause:?}");
        assert!(text.contains(complaint), "{name}: {text}");
    }
    victim.takes_a_guest();
}

#[test]
fn what_is_no_session_is_turned_away_with_the_reason() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Tcp, quick());
    // Another protocol gets no word of ours, Ferry's own gets the reason.
    for bytes in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), vec![0; 4096]] {
        let mut peer = victim.connect();
        peer.throw(&bytes);
        assert_eq!(peer.hear(), None);
    }
    for bytes in [zeros(0, &[(0, 1)]), frame(FrameKind::ToTarget, b"xyz")] {
        let mut peer = victim.connect();
        peer.throw(&bytes);
        let Some(ToSource::Abort(reason)) = peer.hear() else { panic!("{bytes:?}") };
        assert_eq!(reason.kind, ReasonKind::Misbehaved, "{reason:?}");
        assert_eq!(peer.hear(), None);
    }
    let strange =
        |min, max| ToTarget::Hello(Hello { version_min: min, version_max: max, ..hello("guest", 7) });
    for (message, kind) in [
        (strange(2, 9), ReasonKind::Incompatible),
        (strange(0, 0), ReasonKind::Incompatible),
        (strange(9, 1), ReasonKind::Incompatible),
        (ToTarget::StateEnd(StateEnd { sections: 0 }), ReasonKind::Misbehaved),
        (ToTarget::Release(OfEpoch { session: SessionId(1), epoch: Epoch(1) }), ReasonKind::Misbehaved),
    ] {
        let mut peer = victim.connect();
        peer.tell(&message);
        let Some(ToSource::Abort(reason)) = peer.hear() else { panic!("{message:?}") };
        is_a_sentence(&reason.text);
        assert_eq!(reason.kind, kind, "{message:?}: {reason:?}");
        assert_eq!(peer.hear(), None, "the link is closed");
    }
    assert_eq!(victim.waiting.seen.sessions(), 0, "nothing of it was a session");

    // A second hello while a session is live.
    let mut first = victim.built(false);
    let mut second = victim.connect();
    second.tell(&ToTarget::Hello(hello("other", 50)));
    let Some(ToSource::Abort(reason)) = second.hear() else { panic!("a second session began") };
    assert_eq!(reason.kind, ReasonKind::Busy);
    assert!(reason.text.contains("`guest`"), "{reason:?}");
    first.send(&zeros(0, &[(0, 8)]));
    first.close(Shutdown::Both);
    assert!(matches!(victim.waiting.seen.not_taken(0), Cause::LinkLost(_)));
    // An epoch that was refused is refused for ever.
    let mut again = victim.connect();
    again.tell(&ToTarget::Hello(hello("guest", victim.epoch)));
    let Some(ToSource::Refused(refused)) = again.hear() else { panic!("an epoch was used twice") };
    assert_eq!(refused.reason.kind, ReasonKind::OldEpoch);
    drop((first, second, again));
    victim.takes_a_guest();
}

#[test]
fn an_offer_that_cannot_be_taken_is_refused_before_anything_is_built() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Unix, quick());
    let good = victim.guest.description();
    let offers = [
        (MachineDescription { kind: "vax".into(), ..good.clone() }, true),
        (MachineDescription { vcpus: 2, ..good.clone() }, true),
        (MachineDescription { config: vec![0xff; 60_000], ..good.clone() }, true),
        (MachineDescription { kind: "x".repeat(65), ..good.clone() }, false),
        (MachineDescription { vcpus: u32::MAX, ..good.clone() }, false),
        (MachineDescription { regions: Vec::new(), ..good }, false),
    ];
    for (machine, is_judged) in offers {
        let offer = ToTarget::Offer(Offer::plain(machine));
        let cause = victim.cause(|victim| {
            let mut peer = victim.greeted();
            peer.tell(&offer);
            peer
        });
        let is_fitting = if is_judged {
            matches!(cause, Cause::Refused(_))
        } else {
            matches!(cause, Cause::Misbehaved(_))
        };
        assert!(is_fitting, "{cause:?}");
    }
    victim.takes_a_guest();
}

/// Begins a session and says no more.
type Silence = fn(&mut Victim) -> Raw;

#[test]
fn silence_ends_each_wait_by_its_name() {
    let _alone = alone();
    let cases: [(TimerName, Silence); 6] = [
        (TimerName::Offer, Victim::greeted),
        (TimerName::Silence, |victim| victim.built(false)),
        (TimerName::Silence, |victim| victim.upto(1)),
        (TimerName::Silence, |victim| victim.upto(3)),
        (TimerName::State, |victim| victim.upto(7)),
        (TimerName::Custody, |victim| {
            let mut peer = victim.upto(10);
            assert_eq!(peer.hear(), Some(ToSource::Ready));
            peer
        }),
    ];
    for (timer, silence) in cases {
        let mut timeouts = quick();
        match timer {
            TimerName::Offer => timeouts.offer = SHORT,
            TimerName::Silence => timeouts.silence = 2 * SHORT,
            TimerName::State => timeouts.state = SHORT,
            _ => timeouts.custody = SHORT,
        }
        let mut victim = Victim::new(Transport::Tcp, timeouts);
        let mut told = Vec::new();
        let cause = victim.cause(|victim| {
            let mut peer = silence(victim);
            told = std::iter::from_fn(|| peer.hear()).collect();
            peer
        });
        assert_eq!(cause, Cause::TimedOut(timer));
        // Once "may run" is on disk, the refusal goes there as well before it is told.
        let refused = match &told[..] {
            [ToSource::Refused(refused)] if timer == TimerName::Offer => refused,
            [ToSource::Abort(end), ToSource::Refused(refused)] if *end == refused.reason => refused,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused.reason.kind, ReasonKind::TimedOut);
        assert!(refused.reason.text.contains(timer.name()), "{refused:?}");
        victim.takes_a_guest();
    }
}

impl Victim {
    /// A session in which so many frames of a whole transfer were sent.
    fn upto(&mut self, frames: usize) -> Raw {
        let all = transfer(&mut self.guest);
        let mut peer = self.built(true);
        peer.send(&all[..frames].concat());
        peer
    }
}

#[test]
fn pages_that_come_slowly_are_not_silence() {
    let _alone = alone();
    let mut victim = Victim::new(Transport::Unix, Timeouts { silence: SHORT, ..quick() });
    let machine = SimConfig { memory_bytes: 512 * PAGE_SIZE, ..TINY }.description().unwrap();
    let mut peer = victim.greeted();
    peer.tell(&ToTarget::Offer(Offer::plain(machine)));
    assert!(matches!(peer.hear(), Some(ToSource::Verdict(_))));
    assert_eq!(peer.hear(), Some(ToSource::Built));
    // One frame that takes three times as long as a source may be silent.
    let frame = pages(0, &[(0, 512)], &data(512), false);
    let (_never, nothing) = std::sync::mpsc::channel::<()>();
    for piece in frame.chunks(frame.len() / 12) {
        assert!(peer.send(piece), "{:?}", victim.waiting.seen);
        assert!(nothing.recv_timeout(SHORT / 4).is_err());
    }
    peer.send(&round_end(0, 512, 0, false));
    peer.close(Shutdown::Write);
    let cause = victim.waiting.seen.not_taken(0);
    assert!(matches!(cause, Cause::LinkLost(_)), "{cause:?}");
    drop(peer);
    victim.takes_a_guest();
}

#[test]
fn peers_that_connect_and_say_nothing_do_not_keep_a_guest_out() {
    let _alone = alone();
    for transport in TRANSPORTS {
        let mut victim = Victim::new(transport, Timeouts { hello: SHORT, ..quick() });
        // While a session is live they do not touch it.
        let mut session = victim.built(true);
        let silent: Vec<_> = (0..20).map(|_| victim.connect()).collect();
        session.send(&transfer(&mut victim.guest).concat());
        assert_eq!(session.hear(), Some(ToSource::Ready));
        drop(session);
        assert!(matches!(victim.waiting.seen.not_taken(0), Cause::LinkLost(_)));
        // And each is closed in its time.
        for mut peer in silent {
            assert_eq!(peer.hear(), None);
        }
        victim.takes_a_guest();
    }
}

#[test]
fn a_peer_that_was_turned_away_and_lingers_leaves_nothing_behind() {
    let _alone = alone();
    let victim = Victim::new(Transport::Tcp, quick());
    let mut turned_away = victim.connect();
    turned_away.tell(&ToTarget::StateEnd(StateEnd { sections: 0 }));
    assert!(matches!(turned_away.hear(), Some(ToSource::Abort(_))));
    // It never closes its end, and the reception is over long before it would be made to.
    let leaks = Leaks { sockets: victim.leaks.sockets + 1, ..victim.leaks.clone() };
    Victim { leaks, ..victim }.takes_a_guest();
    drop(turned_away);
}
