//! Guests that move as they should, and what the program says of it.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::house::{CHURN, House, IDLE};
use crate::support::process::Process;
use crate::support::wait_until;

on_both! {
    the_demo_tells_all_in_one_document,
    the_demo_reads_well,
    guests_move_over_tcp_and_unix_sockets,
    a_guest_moves_along_three_hosts_and_back,
    migrate_without_wait_returns_at_once,
    status_tells_of_one_and_of_all,
    control_sockets_are_the_users_own_and_go_with_their_process,
}

const SMALL: [&str; 4] = ["--memory=32M", "--rate=16M", "--working-set=4M", "--moves=3"];

fn the_demo_tells_all_in_one_document(on: &'static str) {
    let house = House::new(on);
    let words = [&["demo", "--backend", on, "--verify"][..], &SMALL].concat();
    let document = house.json(&words).document();
    assert_eq!(document["backend"], on);
    let verdict = document["verdict"].as_str().unwrap();
    assert!(verdict.starts_with("accept"), "{verdict}");
    assert_eq!(document["verified"], true);
    assert_eq!(document["hashes_equal"], true);
    assert_eq!(document["outcome"], "moved");
    let moves = document["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 3);
    for of in moves.iter().chain([&document]) {
        assert_eq!(of["verified"], true, "{of}");
        assert!(of["total_ms"].as_f64().unwrap() > 0.0, "{of}");
        assert!(of["rounds"].as_u64().unwrap() >= 2, "{of}");
        assert!(of["throughput_bytes_per_second"].as_u64().unwrap() > 0, "{of}");
    }
    for (number, of) in moves.iter().enumerate() {
        assert_eq!(of["epoch"], number + 2);
        let parts = of["downtime_parts_ms"].as_object().unwrap();
        let names =
            ["pause", "release_resources", "harvest", "last_round", "verify", "state", "ready", "custody"];
        assert!(names.iter().all(|name| parts[*name].is_number()) && parts.len() == names.len(), "{of}");
        let sum: f64 = parts.values().filter_map(Value::as_f64).sum();
        let downtime = of["downtime_ms"].as_f64().unwrap();
        assert!(sum > 0.0 && sum <= downtime + 0.01, "the parts of {downtime} ms: {of}");
    }
    let progress = &document["guest_progress"];
    assert!(progress["after"].as_u64() > progress["before"].as_u64(), "{progress}");
    assert!(std::fs::read_dir(house.sockets()).unwrap().next().is_none(), "sockets are left");
}

fn the_demo_reads_well(on: &'static str) {
    let house = House::new(on);
    let done = house.ferry(&["demo", "--backend", on, "--memory=32M", "--payload=idle"]);
    assert_eq!(done.status, 0, "{done:?}");
    for words in ["moved to 127.0.0.1:", "verdict     accept", "downtime    ", "no fault", "nothing lost"] {
        assert!(done.output.contains(words), "`{words}` is not in {done:?}");
    }
    assert_eq!(done.output.contains("tracking    by KVM's dirty log"), on == "kvm", "{done:?}");
    assert!(!done.output.contains('\u{1b}'), "colours are for terminals: {done:?}");
}

fn guests_move_over_tcp_and_unix_sockets(on: &'static str) {
    for (payload, verify) in [(CHURN, true), (IDLE, false), (CHURN, false), (IDLE, true)] {
        let house = House::new(on);
        let socket = format!("unix:{}", house.path("target").display());
        let addresses = if verify { ["127.0.0.1:0", &socket] } else { [&socket, "[::1]:0"] };
        let mut from = house.guest("g", payload);
        for address in addresses {
            let to = house.receiver_at(address, &["--id=g"]);
            let flags: &[&str] = if verify { &["--verify"] } else { &[] };
            let words = [&["migrate", "g", "--to", &to.listen, "--wait"], flags].concat();
            let report = house.json(&words).document();
            assert_eq!(report["verified"], true, "{report}");
            assert_eq!(report["hashes_equal"], if verify { true.into() } else { Value::Null });
            assert_eq!(report["to"], to.listen.as_str());
            assert_eq!(report["exit_status"], 0);
            assert_eq!(from.document()["moved"]["epoch"], report["epoch"]);
            assert_eq!(from.end().status, 0);
            assert_eq!(to.document()["arrived"]["epoch"], report["epoch"]);
            assert!(to.check() > 0);
            from = to;
        }
        assert_eq!(house.runners().len(), 3);
        assert!(!house.path("target").exists(), "the listener's socket file is left");
    }
}

fn a_guest_moves_along_three_hosts_and_back(on: &'static str) {
    let house = House::new(on);
    let mut at = house.guest("g", CHURN);
    let mut turns = 0;
    for _ in 0..4 {
        let to = house.receiver(&[]);
        house.moves("g", at, &to);
        let status = to.status();
        assert!(status["progress"].as_u64().unwrap() >= turns, "{status}");
        turns = status["progress"].as_u64().unwrap();
        at = to;
    }
    wait_until("the guest works on", || at.status()["progress"].as_u64().unwrap() > turns);
    assert_eq!(house.runners().len(), 5);
}

fn migrate_without_wait_returns_at_once(on: &'static str) {
    let house = House::new(on);
    let (from, to) = (house.guest("g", CHURN), house.receiver(&[]));
    let started = house.json(&["migrate", "g", "--to", &to.listen]).document();
    assert_eq!((&started["started"]["id"], &started["started"]["epoch"]), (&"g".into(), &2.into()));
    wait_until("the guest is there", || {
        let status = house.json(&["status", "g"]).document();
        status["pid"] == to.pid() && status["state"] == "running"
    });
    assert_eq!(from.end().status, 0);
    let text = house.receiver(&[]);
    let done = house.ferry(&["migrate", "g", "--to", &text.listen]);
    assert!(done.status == 0 && done.output.contains("under epoch 3"), "{done:?}");
    assert_eq!(to.end().status, 0);
    text.await_state("running");
    assert!(text.check() > 0);
}

fn status_tells_of_one_and_of_all(on: &'static str) {
    let house = House::new(on);
    assert_eq!(house.json(&["status"]).document()["guests"], Value::Array(Vec::new()));
    assert_eq!(house.ferry(&["status"]).output, "no guest runs here and none is awaited\n");
    let (a, b) = (house.guest("a", CHURN), house.guest_without_journal("b", IDLE));
    let awaited = house.receiver(&["--id=c"]);
    let guests = house.json(&["status"]).document()["guests"].take();
    let facts: Vec<_> =
        guests.as_array().unwrap().iter().map(|of| (&of["id"], &of["pid"], &of["state"])).collect();
    let expected = [(&a, "a", "running"), (&b, "b", "running"), (&awaited, "c", "waiting")];
    let expected =
        expected.map(|(of, id, state)| (Value::from(id), Value::from(of.pid()), Value::from(state)));
    assert_eq!(facts, expected.each_ref().map(|(id, pid, state)| (id, pid, state)));
    let one = house.json(&["status", "a"]).document();
    assert_eq!((&one["memory_bytes"], &one["cpus"]), (&(16 << 20).into(), &1.into()));
    assert_eq!((&one["payload"], &one["faults"], &one["epoch"]), (&"churn".into(), &0.into(), &1.into()));
    assert_eq!((&one["custody"], &one["backend"]), (&true.into(), &on.into()));
    let table = house.ferry(&["status"]).output;
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["GUEST", "STATE", "BACKEND", "EPOCH", "MEMORY", "PAYLOAD", "FAULTS", "PID"]);
    assert_eq!(table.lines().count(), 4, "{table}");
    let details = house.ferry(&["status", "a"]).output;
    for words in ["guest         a", "state         running", "custody       here", "payload       churn"] {
        assert!(details.contains(words), "`{words}` is not in {details}");
    }
    // A move that fails is told afterwards.
    let nobody = house.migrate("a", "127.0.0.1:1");
    assert_eq!(nobody.status, 1, "{nobody:?}");
    assert_eq!(house.json(&["status", "a"]).document()["last_migration"]["outcome"], "kept");
    assert!(house.ferry(&["status", "a"]).output.contains("nobody listens on 127.0.0.1:1"));
}

fn control_sockets_are_the_users_own_and_go_with_their_process(on: &'static str) {
    let house = House::new(on);
    let (guest, awaited) = (house.guest("g", IDLE), house.receiver(&[]));
    let mode = std::fs::metadata(house.sockets()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(guest.socket, house.sockets().join(format!("g.{}.sock", guest.pid())));
    assert_eq!(awaited.socket, house.sockets().join(format!("receive.{}.sock", awaited.pid())));
    let sockets = [guest.socket.clone(), awaited.socket.clone()];
    assert_eq!(guest.ask(&serde_json::json!({"command": "stop"})), serde_json::json!("stopped"));
    let done = guest.end();
    assert!(done.status == 0 && done.output.contains(r#"{"stopped":{"id":"g"}}"#), "{done:?}");
    ended_by_signal(awaited);
    assert!(sockets.iter().all(|socket| !socket.exists()));
}

fn ended_by_signal(process: Process) {
    process.signal(rustix::process::Signal::TERM);
    let done = process.end();
    assert_eq!(done.status, 0, "{done:?}");
}
