//! Clients of the control socket that do not behave, and folders that are not what they should be.

use std::os::unix::fs::symlink;

use serde_json::json;

use crate::support::house::{CHURN, House, IDLE};
use crate::support::process::Client;
use crate::support::wait_until;

on_both! {
    a_client_that_talks_nonsense_harms_nobody,
    clients_that_hang_harm_nobody,
    a_client_that_leaves_does_not_end_its_migration,
    sockets_of_killed_processes_are_cleaned_away,
}

fn a_client_that_talks_nonsense_harms_nobody(on: &'static str) {
    let house = House::new(on);
    let guest = house.guest("g", CHURN);
    let mut client = Client::connect(&guest.socket);
    for (line, told) in [
        ("hello", "no request"),
        ("[1,2]", "no request"),
        (r#"{"command":"fly"}"#, "unknown variant `fly`"),
        (r#"{"command":"stop","now":1}"#, "now"),
        (r#"{"command":"migrate","to":"x"}"#, "downtime_limit_ms"),
        (r#"{"command":"migrate","to":"x","downtime_limit_ms":1,"timeout_ms":1}"#, "`x` is no place"),
        (r#"{"command":"migrate","to":"h:1","downtime_limit_ms":-1,"timeout_ms":1}"#, "above 0"),
        (r#"{"command":"migrate","to":"h:1","downtime_limit_ms":1,"timeout_ms":1e99}"#, "at most a year"),
        ("", "no request"),
        (&"[".repeat(100_000), "no request"),
    ] {
        let error = client.ask(line)["error"].take();
        assert_eq!(error["kind"], "usage", "{line}");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
    }
    client.say(b"\xff\xfe\n");
    assert_eq!(client.hear().unwrap()["error"]["kind"], "usage");
    assert_eq!(client.ask(r#"{"command":"status"}"#)["status"]["state"], "running", "it still answers");
    // An endless line ends the connection, with a word.
    let mut endless = Client::connect(&guest.socket);
    endless.say(&vec![b'x'; 1 << 20]);
    assert_eq!(endless.hear().unwrap()["error"]["kind"], "usage");
    assert_eq!(endless.hear(), None);
    assert!(guest.check() > 0);
    house.ferry(&["status"]);
}

fn clients_that_hang_harm_nobody(on: &'static str) {
    let house = House::new(on);
    let guest = house.guest("g", CHURN);
    let hanging: Vec<_> = (0..20)
        .map(|_| {
            let mut client = Client::connect(&guest.socket);
            client.say(br#"{"command":"#);
            client
        })
        .collect();
    assert_eq!(house.json(&["status", "g"]).document()["state"], "running");
    // One too many is told so.
    let more: Vec<_> = (0..12).map(|_| Client::connect(&guest.socket)).collect();
    let mut refused = None;
    wait_until("a client is one too many", || {
        let mut client = Client::connect(&guest.socket);
        client.stream.get_ref().set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        let mut line = String::new();
        let heard = std::io::BufRead::read_line(&mut client.stream, &mut line);
        refused = heard.is_ok_and(|read| read > 0).then_some(line);
        refused.is_some()
    });
    assert!(refused.unwrap().contains("32 clients"));
    drop((hanging, more));
    wait_until("the guest answers again", || house.ferry(&["status", "g"]).status == 0);
    let target = house.receiver(&[]);
    house.moves("g", guest, &target);
}

fn a_client_that_leaves_does_not_end_its_migration(on: &'static str) {
    let house = House::new(on);
    let guest = house.guest("g", CHURN);
    let target = house.receiver(&[]);
    let mut client = Client::connect(&guest.socket);
    let request = json!({"command": "migrate", "to": target.listen, "downtime_limit_ms": 30,
        "timeout_ms": 10_000, "wait": true});
    assert_eq!(client.ask(&request.to_string())["started"]["epoch"], 2);
    drop(client);
    assert_eq!(guest.end().status, 0);
    target.await_state("running");
    assert!(target.check() > 0);
    // A client that never asked is no obstacle to the end, either.
    let idle = Client::connect(&target.socket);
    assert_eq!(target.ask(&json!({"command": "stop"})), json!("stopped"));
    assert_eq!(target.end().status, 0);
    drop(idle);
}

fn sockets_of_killed_processes_are_cleaned_away(on: &'static str) {
    let house = House::new(on);
    let (dead, alive) = (house.guest("dead", IDLE), house.guest_without_journal("alive", IDLE));
    let socket = dead.socket.clone();
    dead.kill();
    assert!(socket.exists());
    let guests = house.json(&["status"]).document()["guests"].take();
    assert_eq!(guests.as_array().unwrap().len(), 1);
    assert_eq!(guests[0]["id"], "alive");
    assert!(!socket.exists() && alive.socket.exists());
    // Its name is free again.
    drop(house.guest_without_journal("dead", IDLE));
}

#[test]
fn a_process_that_does_not_answer_is_named_and_passed_over() {
    let house = House::new("sim");
    let (mute, alive) = (house.guest("mute", IDLE), house.guest_without_journal("alive", IDLE));
    mute.signal(rustix::process::Signal::STOP);
    mute.await_stop();
    let done = house.json(&["status"]);
    let guests = done.document()["guests"].take();
    assert_eq!((guests.as_array().unwrap().len(), &guests[0]["id"]), (1, &"alive".into()));
    for words in [mute.socket.to_str().unwrap(), "does not answer", "is it stopped?"] {
        assert!(done.errors.contains(words), "`{words}` is not in {done:?}");
    }
    assert!(mute.socket.exists() && alive.check() > 0);
    mute.resume();
    assert!(mute.check() > 0);
}

#[test]
fn a_folder_of_control_sockets_must_be_a_folder() {
    let run: [&str; 4] = ["run", "--backend=sim", "--memory=16M", "--id=g"];
    let house = House::new("sim");
    let elsewhere = house.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, house.sockets()).unwrap();
    for words in [&run[..], &["status"], &["receive", "--backend=sim", "--listen=127.0.0.1:0"]] {
        house.json(words).failed(1, &["run/ferry is not a folder of yours", "XDG_RUNTIME_DIR"]);
    }
    assert!(std::fs::read_dir(&elsewhere).unwrap().next().is_none(), "nothing goes where the link points");
    std::fs::remove_file(house.sockets()).unwrap();
    std::fs::write(house.sockets(), "").unwrap();
    house.json(&run).failed(1, &["is not a folder of yours"]);
    std::fs::remove_file(house.sockets()).unwrap();
    let mut command = house.command(&run);
    command.args(["--output=json"]).env("XDG_RUNTIME_DIR", house.path("no/such/folder"));
    house.start(command).end().failed(1, &["no/such/folder/ferry", "XDG_RUNTIME_DIR"]);
    let long = house.path(&"x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let mut command = house.command(&run);
    command.args(["--output=json"]).env("XDG_RUNTIME_DIR", &long);
    house.start(command).end().failed(1, &["control socket", "cannot be made"]);
    drop(house.guest("g", IDLE));
}
