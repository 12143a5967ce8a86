//! What each kind of work counted: turns, faults, the first fault in words, and largest values.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// One kind of work; its threads share it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    name: &'static str,
    done: AtomicU64,
    faults: AtomicU64,
    first: Mutex<Option<String>>,
    figures: Mutex<BTreeMap<&'static str, u64>>,
}

impl Tally {
    /// One more turn whose result was as it must be.
    pub(crate) fn done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Something was not as it must be; the first one is kept in words.
    pub(crate) fn fault(&self, what: impl Into<String>) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| what.into());
    }

    /// Counts a turn or a fault.
    pub(crate) fn judge(&self, result: Result<(), String>) {
        match result {
            Ok(()) => self.done(),
            Err(fault) => self.fault(fault),
        }
    }

    /// Keeps the largest value of that name; names carry their unit last.
    pub(crate) fn largest(&self, name: &'static str, value: u64) {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = figures.entry(name).or_default();
        *kept = value.max(*kept);
    }

    /// A line of the report.
    pub(crate) fn report(&self) -> Value {
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "check": self.name,
            "done": self.done.load(Ordering::Relaxed),
            "faults": self.faults.load(Ordering::Relaxed),
            "first_fault": *self.first.lock().unwrap_or_else(PoisonError::into_inner),
            "figures": *figures,
        })
    }
}

/// All kinds of work.
#[derive(Debug, Default)]
pub(crate) struct Board(Vec<Arc<Tally>>);

impl Board {
    /// The tally of that name, made if it is not there.
    pub(crate) fn tally(&mut self, name: &'static str) -> Arc<Tally> {
        if let Some(tally) = self.0.iter().find(|tally| tally.name == name) {
            return Arc::clone(tally);
        }
        let tally = Arc::new(Tally { name, ..Tally::default() });
        self.0.push(Arc::clone(&tally));
        tally
    }

    /// A fault of the work of that name.
    pub(crate) fn fault(&self, name: &str, what: &str) {
        if let Some(tally) = self.0.iter().find(|tally| tally.name == name) {
            tally.fault(what);
        }
    }

    /// The report: a line for each.
    pub(crate) fn report(&self) -> String {
        self.0.iter().fold(String::new(), |text, tally| text + &tally.report().to_string() + "\n")
    }
}

/// The word to stop, and a clock that ends with it.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    set: AtomicBool,
    lock: Mutex<()>,
    told: Condvar,
}

impl Stop {
    /// Tells everybody.
    pub(crate) fn set(&self) {
        let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.set.store(true, Ordering::SeqCst);
        self.told.notify_all();
    }

    /// Whether the word was said.
    pub(crate) fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// Waits for that time or the word, whichever comes first; answers whether it was the time.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let _held = self.told.wait_timeout_while(held, time, |()| !self.is_set());
        !self.is_set()
    }
}

/// Numbers that follow from a seed, all alike likely (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_first_fault_and_the_largest_value() {
        let mut board = Board::default();
        let tally = board.tally("files");
        board.tally("files").done();
        tally.judge(Err("first".to_owned()));
        tally.fault("second");
        tally.largest("gap_ms", 5);
        tally.largest("gap_ms", 3);
        let report: Value = serde_json::from_str(&board.report()).unwrap();
        let expected = json!({"check": "files", "done": 1, "faults": 2, "first_fault": "first", "figures": {"gap_ms": 5}});
        assert_eq!(report, expected);
    }

    #[test]
    fn a_pause_ends_with_the_word() {
        let stop = Stop::default();
        assert!(stop.pause(Duration::from_millis(1)));
        stop.set();
        assert!(!stop.pause(Duration::from_secs(600)));
    }
}
