//! Locks that go with a guest, and what becomes of it when somebody else has one; serial output.

use crate::support::house::{CHURN, House, IDLE};

on_both! {
    the_locks_go_with_the_guest,
    a_lock_that_somebody_took_during_the_move_keeps_the_guest_paused,
    a_target_without_the_lock_file_leaves_the_guest_where_it_is,
    files_that_are_no_locks_are_refused_at_birth,
    serial_output_has_a_place_or_a_reason,
}

/// Who holds a lock, as its file says.
fn holder(house: &House, name: &str) -> String {
    std::fs::read_to_string(house.path(name)).unwrap().lines().nth(1).unwrap_or("nobody").to_owned()
}

/// The flags with the locks of two disks.
fn with_locks(house: &House, flags: &[&str]) -> Vec<String> {
    let locks = ["disk.lock", "data.lock"].map(|name| format!("--lock={}", house.path(name).display()));
    flags.iter().map(|flag| (*flag).to_owned()).chain(locks).collect()
}

fn words(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

fn the_locks_go_with_the_guest(on: &'static str) {
    let house = House::new(on);
    let mut from = house.guest("g", &words(&with_locks(&house, CHURN)));
    for _ in 0..2 {
        let to = house.receiver(&[]);
        assert!(holder(&house, "data.lock").starts_with(&format!("guest `g`, process {} on ", from.pid())));
        house.moves("g", from, &to);
        for name in ["disk.lock", "data.lock"] {
            let told = holder(&house, name);
            assert!(told.starts_with(&format!("guest `g`, process {} on ", to.pid())), "{told}");
        }
        from = to;
    }
    let lock = format!("--lock={}", house.path("data.lock").display());
    let other = house.json(&["run", "--id=other", "--backend", on, "--memory=16M", &lock]);
    other.failed(1, &["data.lock is held by guest `g`, process ", &from.pid().to_string()]);
    // A killed process holds nothing, whatever the file says.
    from.kill();
    drop(house.guest_without_journal("other", &[IDLE, &[&lock]].concat()));
}

fn a_lock_that_somebody_took_during_the_move_keeps_the_guest_paused(on: &'static str) {
    let house = House::new(on);
    let from = house.guest("g", &words(&with_locks(&house, &[CHURN, &["--stop-at=state"]].concat())));
    let to = house.receiver(&[]);
    let migration = house.migrating("g", &to);
    from.await_stop();
    let lock = format!("--lock={}", house.path("data.lock").display());
    let thief = house.guest_without_journal("thief", &[IDLE, &[&lock]].concat());
    from.resume();
    let done = migration.end();
    let named = format!("data.lock is held by guest `thief`, process {} on ", thief.pid());
    done.failed(4, &[&named, "paused"]);
    from.await_state("held");
    assert_eq!(from.status()["custody"], true);
    // The target let go of the one that it had taken.
    assert_eq!(holder(&house, "disk.lock"), "nobody");
    assert!(holder(&house, "data.lock").starts_with("guest `thief`"));
}

fn a_target_without_the_lock_file_leaves_the_guest_where_it_is(on: &'static str) {
    let house = House::new(on);
    let from = house.guest("g", &words(&with_locks(&house, &[CHURN, &["--stop-at=state"]].concat())));
    let to = house.receiver(&[]);
    let migration = house.migrating("g", &to);
    from.await_stop();
    std::fs::rename(house.path("data.lock"), house.path("elsewhere")).unwrap();
    from.resume();
    // As on a target that does not have the storage: it makes no lock of its own.
    to.await_error("data.lock cannot be used; does it lie on storage that both hosts share?");
    assert!(!house.path("data.lock").exists());
    std::fs::rename(house.path("elsewhere"), house.path("data.lock")).unwrap();
    migration.end().failed(4, &["data.lock cannot be used"]);
    from.await_state("running");
    assert!(from.check() > 0);
    assert!(holder(&house, "disk.lock").contains(&format!("process {} ", from.pid())));
}

fn files_that_are_no_locks_are_refused_at_birth(on: &'static str) {
    let house = House::new(on);
    std::fs::write(house.path("precious"), "data").unwrap();
    let run = |lock: &str| house.json(&["run", "--backend", on, "--memory=16M", "--lock", lock]);
    let path = house.path("precious").display().to_string();
    run(&path).failed(1, &["precious is no lock file of ferry"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    let nowhere = house.path("none/disk.lock").display().to_string();
    run(&nowhere).failed(1, &["none/disk.lock cannot be used", "No such file"]);
}

fn serial_output_has_a_place_or_a_reason(on: &'static str) {
    let house = House::new(on);
    let out = format!("--serial={}", house.path("serial").display());
    if on == "sim" {
        let done = house.json(&["run", "--backend=sim", "--memory=16M", &out]);
        done.failed(1, &["has no serial port"]);
        return;
    }
    let done = house.json(&["run", "--backend", on, "--memory=16M", "--serial=-"]);
    done.failed(2, &["would mix"]);
    std::fs::write(house.path("serial"), "before\n").unwrap();
    let from = house.guest("g", &[CHURN, &[&out]].concat());
    let to = house.receiver(&[&out]);
    house.moves("g", from, &to);
    // The built-in payloads print nothing; what was there is kept.
    assert_eq!(std::fs::read_to_string(house.path("serial")).unwrap(), "before\n");
}
