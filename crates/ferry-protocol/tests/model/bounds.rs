//! The searches: every schedule within these bounds keeps every promise.
//!
//! A wider search by hand, with the number of faults, further attempts, links, and after them what else
//! is wanted of `witness` and `slow`:
//! `FERRY_MODEL=3,1,2,witness cargo test --release -p ferry-protocol --test model -- --ignored --nocapture`.

use std::num::NonZeroUsize;

use super::checker::search;
use super::world::{Left, Setup};

/// How many states a search must at least see: a model that lost its moves would find nothing.
const MANY: usize = 20_000;

fn keeps_the_promises(setup: Setup, faults: u8, retries: u8) {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let searched = search(setup, Left { faults, retries }, threads, None);
    println!(
        "faults {faults}, further attempts {retries}, links {}, witness {}, slow {}: {} states, {} steps, depth {}, {:.1} s",
        setup.links,
        setup.witness,
        setup.slow,
        searched.states,
        searched.steps,
        searched.depth,
        searched.took.as_secs_f64()
    );
    if let Some((name, schedule)) = searched.broken {
        panic!("broken: {name}\n{schedule}");
    }
    assert!(searched.states > MANY, "only {} states", searched.states);
}

#[test]
fn one_attempt_with_any_three_faults() {
    keeps_the_promises(Setup::default(), 3, 0);
}

#[test]
fn one_attempt_with_one_fault_and_late_links() {
    keeps_the_promises(Setup { links: 3, ..Setup::default() }, 1, 0);
}

#[test]
fn one_attempt_with_any_two_faults_and_slow_jobs() {
    keeps_the_promises(Setup { slow: true, ..Setup::default() }, 2, 0);
}

#[test]
fn two_attempts_with_any_one_fault() {
    keeps_the_promises(Setup::default(), 1, 1);
}

#[test]
fn with_a_witness_any_two_faults() {
    keeps_the_promises(Setup { witness: true, ..Setup::default() }, 2, 0);
}

#[test]
#[ignore = "a search of its own size, by hand"]
fn as_wide_as_is_asked() {
    let wish = std::env::var("FERRY_MODEL").expect("FERRY_MODEL=FAULTS,ATTEMPTS,LINKS,…");
    let mut words = wish.split(',');
    let mut number = || words.next().expect("three numbers").parse().expect("a number");
    let (faults, retries, links) = (number(), number(), number());
    let rest: Vec<_> = words.collect();
    let (witness, slow) = (rest.contains(&"witness"), rest.contains(&"slow"));
    keeps_the_promises(Setup { witness, links, slow, ..Setup::default() }, faults, retries);
}
