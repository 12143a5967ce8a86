//! Guests whose pages cross on several connections, and a side that dies while they do.

use std::time::Duration;

use crate::support::each;
use crate::support::house::{CHURN, House};

on_both! {
    pages_cross_on_as_many_lanes_as_asked_for,
    a_side_that_dies_while_pages_cross_on_lanes_is_noticed,
}

fn pages_cross_on_as_many_lanes_as_asked_for(on: &'static str) {
    each(&[("127.0.0.1:0", 4), ("unix", 4), ("127.0.0.1:0", 16)], |&(address, lanes)| {
        let house = House::new(on);
        let socket = format!("unix:{}", house.path("target").display());
        let source = house.guest("g", &[CHURN, &["--stop-at=pause"]].concat());
        let to = house.receiver_at(if address == "unix" { &socket } else { address }, &["--stop-at=ready"]);
        let sockets = |of: u32| {
            let open = std::fs::read_dir(format!("/proc/{of}/fd")).unwrap().flatten();
            let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
            // A socket counts once, however many descriptors it has.
            let sockets = links.filter(|link| link.to_string_lossy().starts_with("socket:"));
            sockets.collect::<std::collections::BTreeSet<_>>().len()
        };
        let before = (sockets(source.pid()), sockets(to.pid()));
        let migrating = house.migrating_to("g", &to.listen, &["--verify", &format!("--lanes={lanes}")]);
        source.await_stop();
        // Lane 0 is the session's own link; the source also has a client, `migrate`, which waits, and may
        // still have had the test itself as a client before.
        let links = (sockets(source.pid()) - before.0, sockets(to.pid()) - before.1);
        assert!((lanes..=lanes + 1).contains(&links.0) && links.1 == lanes, "{lanes} lanes: {links:?}");
        source.resume();
        to.await_stop();
        to.resume();
        let report = migrating.end().document();
        assert_eq!((&report["outcome"], &report["hashes_equal"]), (&"moved".into(), &true.into()));
        assert_eq!(source.end().status, 0);
        to.await_state("running");
        assert!(to.check() > 0);
        assert_eq!(house.runners().len(), 2);
    });
}

fn a_side_that_dies_while_pages_cross_on_lanes_is_noticed(on: &'static str) {
    each(&["rounds", "last-round"], |&phase| {
        let house = House::hasty(on, Duration::from_secs(2));
        let source = house.guest("g", &[CHURN, &["--stop-at", phase]].concat());
        let to = house.receiver(&[]);
        let migrating = house.migrating_to("g", &to.listen, &["--lanes=4"]);
        source.await_stop();
        to.kill();
        source.resume();
        migrating.end().failed(4, &["`g` was not moved", "still runs on this host"]);
        assert!(source.check() > 0);
        // The source's death, this time, while it sends on lanes to another.
        let to = house.receiver(&[]);
        let migrating = house.migrating_to("g", &to.listen, &["--lanes=4", "--max-bandwidth=512K"]);
        to.await_state("receiving");
        source.kill();
        migrating.end().failed(1, &["closed the connection"]);
        to.await_state("waiting");
        assert_eq!(house.runners().len(), 1);
    });
}
