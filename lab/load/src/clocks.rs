//! Clocks that must not go back: `CLOCK_MONOTONIC` and `CLOCK_REALTIME`, read by all threads.
//!
//! A thread reads what the others saw last before it reads the clock itself, so a vCPU whose clock is behind another's is found, too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::tally::{Stop, Tally};

/// The latest time that any thread saw, of each clock.
#[derive(Debug)]
pub(crate) struct Seen {
    clocks: [Clock; 2],
    step_limit_ms: u64,
}

#[derive(Debug)]
struct Clock {
    id: ClockId,
    name: &'static str,
    step: &'static str,
    latest_ns: AtomicU64,
}

impl Clock {
    const fn new(id: ClockId, name: &'static str, step: &'static str) -> Self {
        Self { id, name, step, latest_ns: AtomicU64::new(0) }
    }
}

impl Seen {
    /// A step between two readings of any threads that is larger than the limit is a fault; 0 is no limit.
    pub(crate) const fn new(step_limit_ms: u64) -> Self {
        Self {
            clocks: [
                Clock::new(ClockId::Monotonic, "CLOCK_MONOTONIC", "monotonic_step_us"),
                Clock::new(ClockId::Realtime, "CLOCK_REALTIME", "realtime_step_us"),
            ],
            step_limit_ms,
        }
    }
}

/// Reads both clocks each period until the word to stop, and as fast as it can for a moment now and then.
pub(crate) fn run(seen: &Seen, period: Duration, stop: &Stop, tally: &Tally) {
    while stop.pause(period) {
        for _ in 0..64 {
            for clock in &seen.clocks {
                tally.judge(look(clock, seen.step_limit_ms, tally));
            }
        }
    }
}

fn look(clock: &Clock, step_limit_ms: u64, tally: &Tally) -> Result<(), String> {
    let latest = clock.latest_ns.load(Ordering::SeqCst);
    let now = nanoseconds(clock_gettime(clock.id));
    clock.latest_ns.fetch_max(now, Ordering::SeqCst);
    judge(clock, latest, now, step_limit_ms, tally)
}

fn judge(clock: &Clock, latest: u64, now: u64, step_limit_ms: u64, tally: &Tally) -> Result<(), String> {
    if latest == 0 {
        return Ok(());
    }
    let Some(step) = now.checked_sub(latest) else {
        return Err(format!("{} went back by {} ns from {latest} ns", clock.name, latest - now));
    };
    // Small steps are all of them but a few, and keeping the largest costs a lock.
    if step > 10_000_000 {
        tally.largest(clock.step, step / 1000);
    }
    if step_limit_ms > 0 && step > step_limit_ms * 1_000_000 {
        return Err(format!("{} stepped by {} ms", clock.name, step / 1_000_000));
    }
    Ok(())
}

fn nanoseconds(time: Timespec) -> u64 {
    u64::try_from(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_back_or_too_far_is_found() {
        let (seen, tally) = (Seen::new(0), Tally::default());
        let look = |latest, now, limit| judge(&seen.clocks[0], latest, now, limit, &tally);
        assert!(look(0, 5, 1).is_ok() && look(5, 5, 0).is_ok());
        assert!(look(6, 5, 0).unwrap_err().contains("CLOCK_MONOTONIC went back by 1 ns"));
        let second = 1_000_000_000;
        assert!(look(1, second, 0).is_ok() && look(1, second, 1000).is_ok());
        assert!(look(1, 2 * second, 1000).unwrap_err().contains("stepped by 1999 ms"));
    }
}
