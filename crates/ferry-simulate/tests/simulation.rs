//! A batch of seeds with all rules, one search for each rule that is taken away, and the plans that
//! once failed.

use std::time::{Duration, Instant};

use ferry_protocol::{Rule, Rules};
use ferry_simulate::{Plan, Tally, Telling, regressions, search, shrink, simulate};

/// How long the batch runs.
const BATCH: Duration = Duration::from_secs(8);

/// Seeds between two looks at the clock.
const AT_ONCE: u64 = 250;

/// In so many seeds each rule's loss must be noticed.
const NOTICED_WITHIN: u64 = 40_000;

/// All seeds of the batch are below these, which only `cargo xtask simulate` runs.
const MOST: u64 = 100_000;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

#[test]
fn nothing_is_broken_while_all_rules_are_kept() {
    let began = Instant::now();
    let mut first = 0;
    while began.elapsed() < BATCH && first < MOST {
        let batch = search(first, AT_ONCE, Rules::default(), threads());
        if let Some(failing) = batch.failing {
            let small = shrink(&Plan::of(failing.seed), Rules::default(), failing.violation.broken);
            let story = simulate(&small, Rules::default(), Telling::Story).story.join("\n");
            panic!("seed {}: {}\n{story}", failing.seed, failing.violation);
        }
        first += AT_ONCE;
    }
    assert!(first >= AT_ONCE, "not one batch was run");
}

/// Where a search from seed 0 finds the loss of each rule. When plans are drawn otherwise the test
/// searches from 0 again, and takes longer: put the new seeds here.
const NOTICED_AT: [(Rule, u64); 10] = [
    (Rule::RefusalBeforeResume, 21),
    (Rule::RefusalIsFinal, 28),
    (Rule::TakenIsNotRefused, 21),
    (Rule::OnlyThatProcess, 922),
    (Rule::AnswerAfterStart, 58),
    (Rule::MayRunOnDisk, 199),
    (Rule::UnknownAfterRestart, 170),
    (Rule::OnlyToThatProcess, 1726),
    (Rule::WitnessDecides, 154),
    (Rule::PersonAbove, 498),
];

#[test]
fn the_loss_of_each_rule_is_noticed() {
    for rule in Rule::ALL {
        let rules = Rules::without(rule);
        let known = NOTICED_AT.iter().find(|&&(noticed, _)| noticed == rule).map_or(0, |&(_, seed)| seed);
        let noticed = search(known, 1, rules, 1).failing.is_some()
            || search(0, NOTICED_WITHIN, rules, threads()).failing.is_some();
        assert!(noticed, "nobody notices that `{rule}` is missing");
    }
}

#[test]
fn in_a_batch_everything_happens() {
    let Tally { events, faults, births, moved, kept, others, asked, held, overruled, decided } =
        search(0, 800, Rules::default(), threads()).tally;
    for (count, what) in [
        (events, "events"),
        (faults, "faults"),
        (births - 800, "guests that are started again"),
        (moved, "moves"),
        (kept, "moves that fail"),
        (others, "guests held or abandoned"),
        (asked, "persons who are asked"),
        (held, "choices that wait for the end of a question"),
        (overruled, "choices that give way to an answer"),
        (decided, "persons who decide"),
    ] {
        assert!(count > 0, "no {what}");
    }
}

#[test]
fn what_was_broken_once_holds() {
    for regression in regressions() {
        let report = simulate(&regression.plan, Rules::default(), Telling::Story);
        let (name, was) = (regression.name, regression.was);
        assert_eq!(report.violation, None, "{name} ({was}):\n{}", report.story.join("\n"));
    }
}

#[test]
fn a_seed_tells_the_same_story_again() {
    for seed in 0..40 {
        let plan = Plan::of(seed);
        assert_eq!(plan, Plan::of(seed));
        let tell = || simulate(&plan, Rules::default(), Telling::Steps);
        let (one, other) = (tell(), tell());
        assert_eq!(one.story, other.story, "seed {seed}");
        assert!(!one.story.is_empty(), "seed {seed} tells nothing");
    }
}

#[test]
fn a_failing_plan_shrinks_to_one_that_fails_alike() {
    let rules = Rules::without(Rule::UnknownAfterRestart);
    let failing = search(0, NOTICED_WITHIN, rules, threads()).failing.unwrap();
    let plan = Plan::of(failing.seed);
    let small = shrink(&plan, rules, failing.violation.broken);
    assert!(small.faults.len() <= plan.faults.len());
    let report = simulate(&small, rules, Telling::Story);
    assert_eq!(report.violation.map(|violation| violation.broken), Some(failing.violation.broken));
    for number in 0..small.faults.len() {
        let mut fewer = small.clone();
        fewer.faults.remove(number);
        let broken = simulate(&fewer, rules, Telling::Nothing).violation.map(|violation| violation.broken);
        assert_ne!(broken, Some(failing.violation.broken), "{} is not needed", small.faults[number]);
    }
}
