//! Peers that are no Ferry, another version of it, or another machine.

use std::time::Duration;

use ferry_protocol::message::{ReasonKind, ToSource};

use crate::support::house::{CHURN, House};
use crate::support::kvm_is_here;
use crate::support::peers::{Caller, Manner, garbled, other_version, server, wrong_hello};

on_both! {
    a_target_that_is_no_ferry_leaves_the_guest_running,
    a_receiver_outlives_sources_that_are_none,
    the_whole_time_of_a_migration_is_bounded,
}

fn a_target_that_is_no_ferry_leaves_the_guest_running(on: &'static str) {
    let house = House::hasty(on, Duration::from_secs(1));
    let source = house.guest("g", CHURN);
    for (manner, status, told) in [
        (Manner::Closes, 4, "closed"),
        (Manner::Silent, 7, "`hello` timed out"),
        (Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), 3, "does not speak Ferry's protocol"),
        (Manner::Says(garbled()), 4, "garbled"),
        (Manner::Says(wrong_hello()), 3, "version"),
        (Manner::Says(other_version()), 3, "versions 8 to 9"),
        (Manner::Says(vec![0; 8]), 7, "`hello` timed out"),
    ] {
        let address = server(manner.clone());
        let error = house.migrate("g", &address).failed(status, &[&address, "`g`", told, "still runs"]);
        assert_eq!(error["findings"], serde_json::json!([]), "{manner:?}");
        let told = source.status();
        assert_eq!((&told["state"], &told["custody"]), (&"running".into(), &true.into()), "{manner:?}");
        assert!(source.check() > 0);
    }
    let target = house.receiver(&[]);
    house.moves("g", source, &target);
    assert_eq!(house.runners().len(), 2);
}

fn a_receiver_outlives_sources_that_are_none(on: &'static str) {
    let house = House::hasty(on, Duration::from_millis(1500));
    let target = house.receiver(&[]);
    let mut silent = Caller::connect(&target.listen);
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &garbled(), b"FERY"] {
        let mut caller = Caller::connect(&target.listen);
        caller.say(bytes);
        caller.await_end();
    }
    let mut newer = Caller::connect(&target.listen);
    newer.hello((8, 9), "g", 2);
    let ToSource::Abort(reason) = newer.hear() else { panic!("another version was taken") };
    assert_eq!(reason.kind, ReasonKind::Incompatible);
    assert!(reason.text.contains("8 to 9"), "{reason}");
    let mut toaster = Caller::connect(&target.listen);
    toaster.hello((1, 1), "g", 2);
    assert!(matches!(toaster.hear(), ToSource::Hello(_)));
    toaster.offer_nonsense();
    let ToSource::Verdict(verdict) = toaster.hear() else { panic!("no verdict") };
    assert!(verdict.is_refusal());
    // One that has begun and says no more keeps nobody out for ever.
    let mut mute = Caller::connect(&target.listen);
    mute.hello((1, 1), "g", 3);
    assert!(matches!(mute.hear(), ToSource::Hello(_)));
    let source = house.guest_without_journal("h", CHURN);
    house.migrate("h", &target.listen).failed(4, &["is taking the guest `g`", "try again later"]);
    assert!(matches!(mute.hear(), ToSource::Refused(_)));
    target.await_state("waiting");
    house.moves("h", source, &target);
    silent.await_end();
}

fn the_whole_time_of_a_migration_is_bounded(on: &'static str) {
    let house = House::new(on);
    let source = house.guest("g", CHURN);
    let address = server(Manner::Silent);
    let done = house.json(&["migrate", "g", "--to", &address, "--wait", "--timeout=0.3"]);
    done.failed(7, &["`total` timed out", "still runs"]);
    assert!(source.check() > 0);
}

#[test]
fn a_guest_is_refused_by_the_other_backend() {
    if !kvm_is_here() {
        return;
    }
    for (has, takes) in [("kvm", "sim"), ("sim", "kvm")] {
        let (house, elsewhere) = (House::new(has), House::new(takes));
        let source = house.guest("g", CHURN);
        let target = elsewhere.receiver(&[]);
        let done = house.migrate("g", &target.listen);
        let error = done.failed(3, &["`g`", "still runs on this host"]);
        let finding = &error["findings"][0];
        assert_eq!(finding["kind"], "refusal", "{error}");
        for field in ["subject", "guest", "target", "effect", "remedy"] {
            assert!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {finding}");
        }
        let remedy = finding["remedy"].as_str().unwrap();
        assert!(error["message"].as_str().unwrap().contains(remedy), "{error}");
        let last = source.status()["last_migration"].take();
        assert_eq!((&last["verdict"], &last["exit_status"]), (&"refuse".into(), &3.into()), "{last}");
        assert!(last["downtime_ms"].is_null(), "it was not paused: {last}");
        assert!(source.check() > 0);
        target.await_state("waiting");
        let good = house.receiver(&[]);
        house.moves("g", source, &good);
    }
}
