//! Targets that are no targets, or bad ones: the source says why, and its guest runs on.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod engine_support;

use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use engine_support::{
    CHURN, Leaks, MIB, PATIENCE, Raw, RawListener, SHORT, TRANSPORTS, Transport, Waiting, alone, fail_with,
    frame, fresh_address, is_a_sentence, is_kept, is_undisturbed, move_to, running, target_hello, zeros,
};
use ferry_contract::Verdict;
use ferry_migrate::{Address, Machine};
use ferry_protocol::frame::FrameKind;
use ferry_protocol::message::{
    Known, Message, OfEpoch, Reason, ReasonKind, Refused, TargetHello, ToSource, ToTarget, Unknown,
};
use ferry_protocol::{Cause, Epoch, InstanceId, SessionId, Timeouts, TimerName};
use ferry_sim::{SimConfig, SimMachine, SimOptions, Workload};

/// What a bad target does on the one link that it takes.
type Deed = Box<dyn FnOnce(&mut Raw) + Send>;

/// One guest that survives every bad target.
struct Survivor {
    machine: SimMachine,
    epoch: u64,
    folder: tempfile::TempDir,
    transport: Transport,
}

impl Survivor {
    fn new(transport: Transport, config: SimConfig) -> Self {
        let machine = running(config, SimOptions::default());
        Self { machine, epoch: 1, folder: tempfile::tempdir().unwrap(), transport }
    }

    /// Why it did not move to this target.
    fn meets(&mut self, tune: impl FnOnce(&mut Timeouts), deed: Deed) -> Cause {
        let (listener, address) = RawListener::bind(&fresh_address(self.transport, self.folder.path()));
        let target = std::thread::spawn(move || {
            let mut peer = listener.accept().unwrap();
            deed(&mut peer);
            peer
        });
        self.epoch += 1;
        let cause = fail_with(&mut self.machine, &address, self.epoch, tune);
        drop(target.join().unwrap());
        is_a_sentence(&cause.to_string());
        is_kept(&mut self.machine);
        cause
    }

    /// After all of it it moves.
    fn moves(mut self) {
        let waiting = Waiting::plain(self.transport, self.folder.path());
        move_to(&mut self.machine, &waiting.address, self.epoch + 1);
        is_undisturbed(&mut waiting.arrived().machine);
    }
}

fn deed(deed: impl FnOnce(&mut Raw) + Send + 'static) -> Deed {
    Box::new(deed)
}

/// Greets, then says this.
fn after_hello(message: ToSource) -> Deed {
    deed(move |peer| {
        assert!(matches!(peer.listen(), Some(ToTarget::Hello(_))));
        peer.answer(&target_hello());
        assert!(matches!(peer.listen(), Some(ToTarget::Offer(_))));
        peer.answer(&message);
    })
}

/// Takes pages until the round that this says, then does this.
fn in_rounds(upto_last: bool, then: impl FnOnce(&mut Raw) + Send + 'static) -> Deed {
    deed(move |peer| {
        peer.accept_all();
        while let Some(ToTarget::RoundEnd(end)) = peer.listen() {
            if end.last || !upto_last {
                break;
            }
        }
        then(peer);
    })
}

const OF: OfEpoch = OfEpoch { session: SessionId(1), epoch: Epoch(99) };

#[test]
fn what_a_target_may_not_say_keeps_the_guest_and_is_named() {
    let _alone = alone();
    let leaks = Leaks::now();
    for transport in TRANSPORTS {
        let mut survivor = Survivor::new(transport, CHURN);
        let refused = |of| {
            ToSource::Refused(Refused { of, reason: Reason::new(ReasonKind::Machine, "no such luck here") })
        };
        let misdeeds: Vec<(&str, Deed)> = vec![
            ("verdict", deed(|peer| peer.answer(&ToSource::Verdict(Verdict::accept())))),
            ("built", deed(|peer| peer.answer(&ToSource::Built))),
            ("ready", deed(|peer| peer.answer(&ToSource::Ready))),
            ("running", deed(|peer| peer.answer(&ToSource::Running(OF)))),
            (
                "unknown",
                deed(|peer| peer.answer(&ToSource::Unknown(Unknown { of: OF, known: Known::NoTrace }))),
            ),
            ("refused", deed(move |peer| peer.answer(&refused(OF)))),
            ("hello", after_hello(target_hello())),
            ("ready", after_hello(ToSource::Ready)),
            ("running", after_hello(ToSource::Running(OF))),
            ("built", in_rounds(true, |peer| peer.answer(&ToSource::Built))),
            ("running", in_rounds(true, |peer| peer.answer(&ToSource::Running(OF)))),
            ("only a source sends", deed(|peer| peer.throw(&zeros(0, &[(0, 1)])))),
            ("cannot be read", deed(|peer| peer.throw(&frame(FrameKind::ToSource, &[0x80])))),
            ("cannot be read", deed(|peer| peer.throw(&frame(FrameKind::ToSource, &[])))),
            ("follow", deed(|peer| peer.throw(&frame(FrameKind::ToSource, &[0x82, 3, 0x80, 0])))),
        ];
        for (name, misdeed) in misdeeds {
            let cause = survivor.meets(|_| {}, misdeed);
            assert!(matches!(&cause, Cause::Misbehaved(text) if text.contains(name)), "{name}: {cause:?}");
        }
        survivor.moves();
    }
    leaks.none();
}

#[test]
fn another_protocol_is_called_so() {
    let _alone = alone();
    let mut survivor = Survivor::new(Transport::Tcp, CHURN);
    let cause = survivor.meets(|_| {}, deed(|peer| peer.throw(b"SSH-2.0-OpenSSH_9.9\r\n")));
    assert!(matches!(&cause, Cause::OtherProtocol(text) if text.contains("does not speak")), "{cause:?}");
    let hello = TargetHello { version: 2, instance: InstanceId(1), program: "t".into() };
    let cause = survivor.meets(|_| {}, deed(move |peer| peer.answer(&ToSource::Hello(hello))));
    assert!(matches!(&cause, Cause::OtherProtocol(text) if text.contains("version 2")), "{cause:?}");
    let cause = survivor.meets(
        |_| {},
        deed(|peer| {
            let reason = Reason::new(ReasonKind::Incompatible, "the source speaks the versions 1 to 1, I 2");
            peer.answer(&ToSource::Abort(reason));
        }),
    );
    assert!(matches!(&cause, Cause::OtherProtocol(text) if text.contains("versions")), "{cause:?}");
    survivor.moves();
}

#[test]
fn what_the_target_says_at_the_end_is_the_cause() {
    let _alone = alone();
    let mut survivor = Survivor::new(Transport::Unix, CHURN);
    let busy = || ToSource::Abort(Reason::new(ReasonKind::Busy, "this target has a guest already"));
    let at_once = deed(move |peer| peer.answer(&busy()));
    let cause = survivor.meets(|_| {}, at_once);
    assert!(matches!(&cause, Cause::Peer(reason) if reason.kind == ReasonKind::Busy), "{cause:?}");
    // Its last words are heard although the link breaks under the source's pages.
    let last_words = in_rounds(false, move |peer| {
        peer.answer(&busy());
        peer.close(Shutdown::Both);
    });
    let cause = survivor.meets(|_| {}, last_words);
    assert!(matches!(&cause, Cause::Peer(reason) if reason.kind == ReasonKind::Busy), "{cause:?}");
    let refusal = Verdict { findings: vec![finding()] };
    let cause = survivor.meets(|_| {}, after_hello(ToSource::Verdict(refusal.clone())));
    assert_eq!(cause, Cause::Refused(refusal));
    survivor.moves();
}

fn finding() -> ferry_contract::Finding {
    ferry_contract::Finding {
        kind: ferry_contract::FindingKind::Refusal,
        subject: "memory".into(),
        layer: ferry_contract::Layer::Machine,
        guest: "4 GiB".into(),
        target: "1 GiB".into(),
        effect: "it would be killed".into(),
        remedy: "choose another target".into(),
    }
}

#[test]
fn a_link_that_is_cut_anywhere_keeps_the_guest() {
    let _alone = alone();
    for transport in TRANSPORTS {
        let mut survivor = Survivor::new(transport, CHURN);
        let cuts: Vec<Deed> = vec![
            deed(|_| {}),
            deed(|peer| peer.throw(&[0x46])),
            deed(|peer| peer.throw(&frame(FrameKind::ToSource, &target_hello().to_bytes())[..15])),
            deed(|peer| peer.throw(&frame(FrameKind::ToSource, &target_hello().to_bytes())[..20])),
            deed(|peer| {
                peer.listen();
                peer.answer(&target_hello());
            }),
            after_hello(ToSource::Verdict(Verdict::accept())),
            deed(Raw::accept_all),
            in_rounds(false, |_| {}),
            in_rounds(true, |_| {}),
            in_rounds(
                true,
                |peer| while peer.listen().is_some_and(|m| !matches!(m, ToTarget::StateEnd(_))) {},
            ),
        ];
        for (index, cut) in cuts.into_iter().enumerate() {
            let cause = survivor.meets(
                |_| {},
                deed(move |peer| {
                    cut(peer);
                    peer.close(Shutdown::Both);
                }),
            );
            assert!(matches!(cause, Cause::LinkLost(_)), "{index}: {cause:?}");
        }
        survivor.moves();
    }
}

#[test]
fn silence_ends_each_wait_by_its_name() {
    let _alone = alone();
    let leaks = Leaks::now();
    let mut survivor = Survivor::new(Transport::Tcp, CHURN);
    let short = |timer| {
        move |timeouts: &mut Timeouts| match timer {
            TimerName::Hello => timeouts.hello = SHORT,
            TimerName::Verdict => timeouts.verdict = SHORT,
            TimerName::Build => timeouts.build = SHORT,
            TimerName::Ready => timeouts.ready = SHORT,
            _ => timeouts.silence = SHORT,
        }
    };
    let cases: Vec<(TimerName, Deed)> = vec![
        (TimerName::Hello, deed(|_| {})),
        (TimerName::Hello, deed(|peer| peer.throw(&[0x46, 0x45]))),
        (
            TimerName::Verdict,
            deed(|peer| {
                peer.listen();
                peer.answer(&target_hello());
            }),
        ),
        (TimerName::Build, after_hello(ToSource::Verdict(Verdict::accept()))),
        (TimerName::Ready, in_rounds(true, |_| {})),
    ];
    for (timer, begin) in cases {
        let listen_on = deed(move |peer| {
            begin(peer);
            // It says nothing any more, and hears the source's reason.
            loop {
                match peer.listen() {
                    Some(ToTarget::Abort(reason)) => {
                        assert_eq!(reason.kind, ReasonKind::TimedOut);
                        assert!(reason.text.contains(timer.name()), "{reason:?}");
                        return;
                    }
                    Some(_) => {}
                    None => panic!("the source did not say why it ended"),
                }
            }
        });
        assert_eq!(survivor.meets(short(timer), listen_on), Cause::TimedOut(timer));
    }
    survivor.moves();
    leaks.none();
}

#[test]
fn a_target_that_stops_reading_is_silent() {
    let _alone = alone();
    for transport in TRANSPORTS {
        // More than the sockets' buffers hold.
        let workload = Workload::Idle { patterned_bytes: 32 * MIB };
        let mut survivor = Survivor::new(transport, SimConfig { memory_bytes: 32 * MIB, workload, ..CHURN });
        let (over, done) = channel::<()>();
        let deaf = deed(move |peer| {
            peer.accept_all();
            assert!(done.recv_timeout(PATIENCE).is_err());
        });
        let began = Instant::now();
        // The source ends its wait while the target still holds the link open.
        std::thread::scope(|scope| {
            let ended = scope.spawn(move || over);
            let (listener, address) = RawListener::bind(&fresh_address(transport, survivor.folder.path()));
            let target = scope.spawn(move || deaf(&mut listener.accept().unwrap()));
            let cause = fail_with(&mut survivor.machine, &address, 2, |timeouts| timeouts.silence = SHORT);
            assert_eq!(cause, Cause::TimedOut(TimerName::Silence));
            assert!(began.elapsed() < Duration::from_secs(5));
            drop(ended.join().unwrap());
            target.join().unwrap();
        });
        survivor.epoch = 2;
        is_kept(&mut survivor.machine);
        survivor.moves();
    }
}

#[test]
fn an_address_where_nobody_listens_is_named() {
    let _alone = alone();
    let leaks = Leaks::now();
    let mut machine = running(CHURN, SimOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let nobody: Address = {
        let (listener, address) = RawListener::bind(&"127.0.0.1:0".parse().unwrap());
        drop(listener);
        address
    };
    let addresses = [nobody, Address::Unix(folder.path().join("none.sock"))];
    for address in addresses {
        let cause = fail_with(&mut machine, &address, 2, |_| {});
        is_a_sentence(&cause.to_string());
        let is_named = matches!(&cause, Cause::NotReached(text) if text.contains(&address.to_string()));
        assert!(is_named, "{cause:?}");
        is_undisturbed(&mut machine);
    }
    assert!(machine.pause().is_ok());
    drop(machine);
    leaks.none();
}
