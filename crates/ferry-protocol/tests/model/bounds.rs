//! The searches: every schedule within these bounds keeps every promise.
//!
//! A wider search by hand, with the number of faults, further attempts, links and a witness (0 or 1):
//! `FERRY_MODEL=3,1,2,0 cargo test --release -p ferry-protocol --test model -- --ignored --nocapture`.

use std::num::NonZeroUsize;

use ferry_protocol::Rules;

use super::checker::search;
use super::world::{Left, Setup};

fn keeps_the_promises(faults: u8, retries: u8, links: u8, witness: bool) -> usize {
    let setup = Setup { rules: Rules::default(), witness, links, forgets: false };
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let searched = search(setup, Left { faults, retries }, threads, None);
    println!(
        "faults {faults}, further attempts {retries}, links {links}, witness {witness}: {} states, {} steps, depth {}, {:.1} s",
        searched.states,
        searched.steps,
        searched.depth,
        searched.took.as_secs_f64()
    );
    if let Some((name, schedule)) = searched.broken {
        panic!("broken: {name}\n{schedule}");
    }
    searched.states
}

/// How many states a search must at least see: a model that lost its moves would find nothing.
const MANY: usize = 20_000;

#[test]
fn one_attempt_with_any_two_faults() {
    assert!(keeps_the_promises(2, 0, 2, false) > MANY);
}

#[test]
fn one_attempt_with_one_fault_and_late_links() {
    assert!(keeps_the_promises(1, 0, 3, false) > MANY);
}

#[test]
fn two_attempts_with_any_one_fault() {
    assert!(keeps_the_promises(1, 1, 2, false) > MANY);
}

#[test]
fn with_a_witness_any_two_faults() {
    assert!(keeps_the_promises(2, 0, 2, true) > MANY);
}

#[test]
#[ignore = "a search of its own size, by hand"]
fn as_wide_as_is_asked() {
    let wish = std::env::var("FERRY_MODEL").expect("FERRY_MODEL=FAULTS,ATTEMPTS,LINKS,WITNESS");
    let numbers: Vec<u8> = wish.split(',').map(|n| n.parse().expect("a number")).collect();
    let [faults, retries, links, witness] = numbers[..] else { panic!("four numbers, not `{wish}`") };
    keeps_the_promises(faults, retries, links, witness > 0);
}
