//! Many seeds, one after another, on as many threads as there are processors.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ferry_protocol::Rules;

use crate::invariants::Violation;
use crate::plan::Plan;
use crate::report::Tally;
use crate::story::Telling;

/// What many seeds came to.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Seeds that were run.
    pub seeds: u64,
    /// What happened in all of them.
    pub tally: Tally,
    /// The failing seed with the lowest number, if any failed.
    pub failing: Option<Failing>,
}

/// A seed that failed.
#[derive(Debug, Clone)]
pub struct Failing {
    /// The seed.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
}

/// Runs seeds from `first` on until one fails, or `count` of them are done.
pub fn search(first: u64, count: u64, rules: Rules, threads: usize) -> Batch {
    let next = AtomicU64::new(0);
    let stop_at = AtomicU64::new(count);
    let batch = Mutex::new(Batch::default());
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= stop_at.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = first.wrapping_add(number);
                    let report = crate::simulate(&Plan::of(seed), rules, Telling::Nothing);
                    let mut batch = batch.lock().unwrap_or_else(PoisonError::into_inner);
                    batch.seeds += 1;
                    batch.tally += report.tally;
                    let Some(violation) = report.violation else { continue };
                    stop_at.fetch_min(number, Ordering::Relaxed);
                    if batch
                        .failing
                        .as_ref()
                        .is_none_or(|failing| seed.wrapping_sub(first) < failing.seed.wrapping_sub(first))
                    {
                        batch.failing = Some(Failing { seed, violation });
                    }
                }
            });
        }
    });
    batch.into_inner().unwrap_or_else(PoisonError::into_inner)
}
