//! Wrong words on the command line: one sentence, the right status, nothing harmed.

use std::net::TcpListener;

use crate::support::house::{CHURN, House, IDLE};

on_both! {
    a_guest_that_is_not_here_is_said_so,
    an_address_where_nobody_listens_leaves_the_guest_running,
    a_guest_is_moved_once_at_a_time,
    a_receiver_for_another_guest_says_which,
    two_guests_of_one_name_are_not_had,
    of_two_that_are_born_at_once_one_is,
    a_guest_whose_name_is_taken_there_stays_here,
}

#[test]
fn a_wrong_command_line_is_status_2_and_one_sentence() {
    let house = House::new("sim");
    let run = ["run", "--backend=sim"];
    let with = |words: &[&'static str]| [&run[..], words].concat();
    for (words, told) in [
        (vec!["flyy"], vec!["flyy"]),
        (vec!["run", "--colour"], vec!["--colour"]),
        (vec!["migrate", "g"], vec!["--to"]),
        (vec!["receive"], vec!["--listen"]),
        (with(&["--memory=5000"]), vec!["5000", "multiple of 4096"]),
        (with(&["--memory=1K"]), vec!["1024", "multiple of 4096"]),
        (with(&["--memory=4K"]), vec!["4096", "at least 4M"]),
        (with(&["--memory=10P"]), vec!["10P", "K, M, G or T"]),
        (with(&["--memory=abc"]), vec!["abc", "K, M, G or T"]),
        (with(&["--memory=99999999T"]), vec!["99999999T", "64 bits"]),
        (with(&["--memory=999999T"]), vec!["at most"]),
        (with(&["--cpus=0"]), vec!["0 vCPUs", "give 1 to"]),
        (with(&["--cpus=999"]), vec!["999 vCPUs", "give 1 to"]),
        (with(&["--cpus=one"]), vec!["one", "--cpus"]),
        (with(&["--memory=16M", "--working-set=17M"]), vec!["17825792", "at most", "more memory"]),
        (with(&["--working-set=5000"]), vec!["5000", "multiple of 4096"]),
        (with(&["--rate=1"]), vec!["1 bytes a second", "from 4K"]),
        (with(&["--payload=dance"]), vec!["dance", "idle, churn"]),
        (vec!["run", "--backend=xen"], vec!["xen", "auto"]),
        (with(&["--id=../etc"]), vec!["../etc", "1 to 64 letters"]),
        (with(&["--id="]), vec!["--id", "1 to 64 letters"]),
        (vec!["receive", "--listen=nonsense"], vec!["nonsense", "HOST:PORT"]),
        (vec!["receive", "--listen=127.0.0.1:99999"], vec!["127.0.0.1:99999", "HOST:PORT"]),
        (vec!["receive", "--listen=unix:"], vec!["unix:", "unix:PATH"]),
        (vec!["migrate", "g", "--to=nonsense"], vec!["nonsense", "HOST:PORT"]),
        (vec!["migrate", "g", "--to=h:1", "--timeout=0"], vec!["--timeout", "seconds"]),
        (vec!["migrate", "g", "--to=h:1", "--downtime-limit=-1"], vec!["--downtime-limit"]),
        (vec!["demo", "--moves=0"], vec!["--moves", "1..=10000"]),
        (vec!["demo", "--memory=5000"], vec!["5000", "multiple of 4096"]),
    ] {
        let done = house.json(&words);
        assert!(done.output.is_empty(), "{done:?}");
        let message = done.failed(2, &told)["message"].clone();
        let text = house.ferry(&words);
        assert_eq!((text.status, text.output.as_str()), (2, ""), "{text:?}");
        assert_eq!(text.errors, format!("ferry: {}\n", message.as_str().unwrap()), "one sentence");
    }
    assert_eq!(house.ferry(&["--output=xml", "status"]).status, 2);
    assert_eq!(house.ferry(&[]).status, 2);
    assert_eq!(house.ferry(&["--help"]).status, 0);
}

#[test]
fn an_address_that_cannot_be_listened_on_is_status_1() {
    let house = House::new("sim");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    let other = house.receiver_at(&format!("unix:{}", house.path("busy").display()), &[]);
    let long = format!("unix:{}", house.path(&"x".repeat(200)).display());
    let nowhere = format!("unix:{}", house.path("no/such/folder").display());
    for (address, told) in [
        (busy.as_str(), vec!["in use", "choose another"]),
        (other.listen.as_str(), vec!["in use", "choose another"]),
        ("0.0.0.0:0", vec!["other machines", "--insecure"]),
        ("[::]:0", vec!["other machines", "--insecure"]),
        ("192.0.2.1:7000", vec!["other machines", "--insecure"]),
        (&long, vec!["xxx"]),
        (&nowhere, vec!["no/such/folder"]),
    ] {
        let done = house.json(&["receive", "--backend=sim", "--listen", address]);
        assert!(done.output.is_empty(), "{done:?}");
        done.failed(1, &[&[address][..], &told].concat());
    }
    house
        .json(&["receive", "--backend=sim", "--insecure", "--listen=192.0.2.1:7000"])
        .failed(1, &["does not have"]);
    drop(house.receiver_at("0.0.0.0:0", &["--insecure"]));
    other.await_state("waiting");
}

fn a_guest_that_is_not_here_is_said_so(on: &'static str) {
    let house = House::new(on);
    let guest = house.guest("here", IDLE);
    for words in [&["status", "there"][..], &["migrate", "there", "--to=127.0.0.1:1"]] {
        house.json(words).failed(1, &["`there`", "ferry status"]);
    }
    // Who waits for a guest of that name does not have it.
    let waits = house.receiver(&["--id=there"]);
    house.json(&["migrate", "there", "--to=127.0.0.1:1"]).failed(1, &["waiting"]);
    assert!(guest.check() > 0);
    waits.await_state("waiting");
}

fn an_address_where_nobody_listens_leaves_the_guest_running(on: &'static str) {
    let house = House::new(on);
    let source = house.guest("g", CHURN);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let file = house.path("file");
    std::fs::write(&file, "no socket").unwrap();
    let (file, missing) =
        (format!("unix:{}", file.display()), format!("unix:{}", house.path("none").display()));
    for address in [gone.as_str(), &missing, &file, "127.0.0.1:0"] {
        let error = house.migrate("g", address).failed(1, &["`g`", address, "still runs on this host"]);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("ferry receive"), "the remedy: {message}");
        assert!(source.check() > 0);
    }
    let target = house.receiver(&[]);
    let report = house.moves("g", source, &target);
    assert_eq!(report["epoch"], 6, "each attempt has an epoch of its own");
    house.runners();
}

fn a_guest_is_moved_once_at_a_time(on: &'static str) {
    let house = House::new(on);
    let source = house.guest("g", CHURN);
    let target = house.receiver(&["--stop-at=build"]);
    let other = house.receiver(&[]);
    let migrating = house.migrating("g", &target);
    target.await_stop();
    // A stopped process does not answer `ferry migrate`, which looks at all: ask the guest's own.
    let request = serde_json::json!({
        "command": "migrate", "to": other.listen, "downtime_limit_ms": 30, "timeout_ms": 10_000, "wait": true
    });
    let error = source.ask(&request)["error"].take();
    assert_eq!(error["kind"], "not_as_it_should");
    assert!(error["message"].as_str().unwrap().contains("is being moved already"), "{error}");
    let check = source.ask(&serde_json::json!({"command": "check"}));
    assert!(check["error"]["message"].as_str().unwrap().contains("while it is being moved"), "{check}");
    let status = source.status();
    assert_eq!((&status["state"], &status["phase"]), (&"migrating".into(), &"offer".into()), "{status}");
    target.resume();
    assert_eq!(migrating.end().document()["outcome"], "moved");
    assert_eq!(source.end().status, 0);
    assert!(target.check() > 0);
    assert_eq!(other.status()["state"], "waiting");
    assert_eq!(house.runners().len(), 2);
}

fn a_receiver_for_another_guest_says_which(on: &'static str) {
    let house = House::new(on);
    let source = house.guest("g", CHURN);
    let other = house.receiver(&["--id=h"]);
    house.migrate("g", &other.listen).failed(4, &["waits for the guest `h`, not for `g`", "still runs"]);
    assert!(source.check() > 0);
    other.await_state("waiting");
    // One that has a guest already wants no second one.
    let target = house.receiver(&[]);
    let listen = target.listen.clone();
    house.moves("g", source, &target);
    let second = house.guest_without_journal("h", CHURN);
    let failed = house.migrate("h", &listen);
    assert!(matches!(failed.status, 1 | 4), "{failed:?}");
    let report = house.moves("h", second, &other);
    assert_eq!(report["rounds"].as_u64().map(|rounds| rounds > 0), Some(true));
}

fn two_guests_of_one_name_are_not_had(on: &'static str) {
    let house = House::new(on);
    let guest = house.guest("g", IDLE);
    let pid = guest.pid().to_string();
    let second = house.json(&["run", "--id=g", "--backend", on, "--memory=16M"]);
    second.failed(1, &["`g`", &pid, "choose another --id"]);
    assert!(guest.check() > 0);
    // The longest name has a socket, too.
    let long = "x".repeat(64);
    assert!(house.guest_without_journal(&long, IDLE).socket.exists());
}

/// Neither sees the other's control socket in time, but the journals are looked at one after the other.
fn of_two_that_are_born_at_once_one_is(on: &'static str) {
    let house = House::new(on);
    let words = ["run", "--id=g", "--memory=16M", "--payload=idle", "--backend", on];
    let all: Vec<_> = (0..4)
        .map(|_| {
            let mut command = house.command(&words);
            command.args(["--output=json", "--die-with-parent"]);
            house.start(command)
        })
        .collect();
    let (mut born, mut refused) = (Vec::new(), 0);
    for process in all {
        if let Some(document) = process.first_word() {
            assert_eq!(document["running"]["id"], "g");
            born.push(process);
        } else {
            process.end().failed(1, &["`g`", "choose another --id"]);
            refused += 1;
        }
    }
    assert_eq!((born.len(), refused), (1, 3));
}

/// The other one is of another host: only the offer tells of its name.
fn a_guest_whose_name_is_taken_there_stays_here(on: &'static str) {
    let (here, there) = (House::new(on), House::new(on));
    let guest = here.guest("g", IDLE);
    let other = there.guest("g", IDLE);
    let receiver = there.receiver(&[]);
    here.migrate("g", &receiver.listen).failed(3, &["name", "has a guest of this name"]);
    assert!(guest.check() > 0 && other.check() > 0);
    assert_eq!(there.runners().len(), 1, "only its own");
    other.kill();
    receiver.await_state("waiting");
    here.migrate("g", &receiver.listen).document();
    assert!(receiver.check() > 0);
    assert_eq!(there.runners().len(), 2, "the other is gone");
}
