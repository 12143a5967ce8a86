//! `ferry watch` and `ferry cancel` beside the `ferry migrate` that they are about.

use crate::support::house::{CHURN, House};
use crate::support::process::Process;
use crate::support::{let_pass, wait_until};

on_both! {
    a_migration_is_watched_and_cancelled_by_others,
    whoever_watches_sees_the_end,
}

/// So slow that the guest writes faster than its pages cross: it never ends by itself.
const SLOW: &[&str] = &["--max-bandwidth=512K", "--downtime-limit=1"];

fn watching(house: &House, format: &str) -> Process {
    house.start(house.command(&["watch", "g", "--output", format]))
}

fn in_rounds(source: &Process) {
    wait_until("pages cross", || source.status()["phase"] == "rounds");
}

fn a_migration_is_watched_and_cancelled_by_others(on: &'static str) {
    let house = House::new(on);
    let source = house.guest("g", CHURN);
    let cancel = || house.json(&["cancel", "g"]);
    cancel().failed(1, &["no migration"]);
    for lanes in ["--lanes=1", "--lanes=3"] {
        let to = house.receiver(&[]);
        let migrating = house.migrating_to("g", &to.listen, &[SLOW, &[lanes]].concat());
        in_rounds(&source);
        let (json, text) = (watching(&house, "json"), watching(&house, "text"));
        text.await_error("round");
        assert_eq!(cancel().document()["cancelling"]["id"], "g");
        for done in [migrating.end(), json.end()] {
            done.failed(5, &["`g` was not moved", "still runs on this host"]);
        }
        assert_eq!(text.end().status, 5);
        to.await_error("was offered and not taken");
        to.await_state("waiting");
        source.await_state("running");
        assert!(source.check() > 0);
        assert_eq!(source.status()["last_migration"]["outcome"], "kept");
    }
    // Of a migration that is over the report is shown.
    house.json(&["watch", "g"]).failed(5, &["`g` was not moved"]);
    let to = house.receiver(&[]);
    let report = house.moves("g", source, &to);
    assert_eq!(report["epoch"], 4, "a cancelled epoch is not used again");
    assert_eq!(house.runners().len(), 2);
    house.json(&["watch", "g"]).failed(1, &["no migration"]);
}

/// The source's process ends with the move; those who watch have its report all the same.
fn whoever_watches_sees_the_end(on: &'static str) {
    let house = House::new(on);
    // A target that stops before it says ready keeps the migration under way.
    let (source, to) = (house.guest("g", CHURN), house.receiver(&["--stop-at=ready"]));
    let migrating = house.migrating_to("g", &to.listen, &[]);
    to.await_stop();
    let watchers = [watching(&house, "json"), watching(&house, "json"), watching(&house, "text")];
    let client_threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", source.pid())).unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim() == "ferry-client").count()
    };
    wait_until("the source has four clients", || client_threads() == 4);
    // They are connected; what they ask comes right after.
    let_pass(std::time::Duration::from_millis(200));
    to.resume();
    let told = migrating.end().document();
    assert_eq!((&told["outcome"], &told["epoch"]), (&"moved".into(), &2.into()));
    let [one, other, text] = watchers.map(Process::end);
    assert_eq!((one.document(), other.document()), (told.clone(), told));
    assert!(text.status == 0 && text.output.contains("guest       g moved to"), "{text:?}");
    assert_eq!(source.end().status, 0);
    assert!(to.check() > 0);
}
