//! Each rule of the protocol is needed: without it the checker finds a schedule that breaks a promise,
//! and prints it.

use ferry_protocol::{Rule, Rules};

use super::checker::{HEALED, HIGHEST, OVERRULED, TWO, search};
use super::world::{Left, Setup};

/// A wrong setup breaks that promise with at most so many faults.
fn breaks(what: &str, setup: Setup, faults: u8, promise: &'static str) {
    let searched = search(setup, Left { faults, retries: 0 }, 1, Some(promise));
    let Some((_, schedule)) = searched.broken else {
        panic!("{what}: nothing breaks in {} states", searched.states);
    };
    println!("{what} ({} states), this breaks: {promise}\n{schedule}", searched.states);
}

fn breaks_without(rule: Rule, faults: u8, promise: &'static str) {
    let witness = rule == Rule::WitnessDecides;
    let setup = Setup { rules: Rules::without(rule), witness, ..Setup::default() };
    breaks(&format!("without `{rule}`"), setup, faults, promise);
}

macro_rules! each {
    ($($name:ident: $rule:ident, $faults:expr, $promise:expr;)*) => {
        $(#[test]
        fn $name() {
            breaks_without(Rule::$rule, $faults, $promise);
        })*

        #[test]
        fn every_rule_has_its_test() {
            assert_eq!([$(Rule::$rule),*], Rule::ALL);
        }
    };
}

each! {
    refusal_before_resume: RefusalBeforeResume, 0, TWO;
    refusal_is_final: RefusalIsFinal, 1, TWO;
    taken_is_not_refused: TakenIsNotRefused, 0, TWO;
    only_that_process: OnlyThatProcess, 2, TWO;
    answer_after_start: AnswerAfterStart, 1, HEALED;
    may_run_on_disk: MayRunOnDisk, 1, HIGHEST;
    unknown_after_restart: UnknownAfterRestart, 1, HIGHEST;
    only_to_that_process: OnlyToThatProcess, 2, TWO;
    witness_decides: WitnessDecides, 0, TWO;
    person_above: PersonAbove, 1, HIGHEST;
}

/// A choice waits for the end of a question, and an answer that comes until then goes before it.
#[test]
fn a_choice_that_gives_way_to_an_answer() {
    breaks("with all rules", Setup::default(), 1, OVERRULED);
}

/// The source's "may be given": without it a person could start the guest anew beside the target's.
#[test]
fn a_source_that_forgets_what_it_may_have_given() {
    let setup = Setup { forgets: true, ..Setup::default() };
    breaks("with a source's journal that is lost", setup, 1, TWO);
}
