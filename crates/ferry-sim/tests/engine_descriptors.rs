//! A process that runs out of descriptors goes on waiting for its guest. Alone in its program: the
//! limit is the process's.

#![forbid(unsafe_code)]

mod engine_support;

use engine_support::{CHURN, Raw, Transport, Waiting, is_undisturbed, move_to, running, until};
use ferry_sim::SimOptions;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn a_want_of_descriptors_ends_no_reception() {
    let folder = tempfile::tempdir().unwrap();
    let waiting = Waiting::plain(Transport::Tcp, folder.path());
    let mut machine = running(CHURN, SimOptions::default());
    let limit = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // Room for three more peers; each takes one descriptor here and wants one of the target.
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 4), ..limit }).unwrap();
    let mut peers = Vec::new();
    until("the end of the descriptors", || match Raw::try_connect(&waiting.address) {
        Some(peer) => {
            peers.push(peer);
            false
        }
        None => true,
    });
    assert!(!peers.is_empty() && !waiting.is_over());
    drop(peers);
    setrlimit(Resource::Nofile, limit).unwrap();
    move_to(&mut machine, &waiting.address, 2);
    is_undisturbed(&mut waiting.arrived().machine);
}
