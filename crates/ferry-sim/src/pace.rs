//! How many steps are due: the workload's rate against the time that has passed.
//!
//! A value; the caller says what time it is.

use std::time::Duration;

/// The longest wait between two looks at the time while steps are due at a high rate.
const TICK: Duration = Duration::from_millis(1);

/// How far a workload may fall behind before what it missed is forgotten: a guest that could not
/// keep its rate must not run at full speed for ever after.
const MAX_BACKLOG: Duration = Duration::from_millis(50);

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The pace of one stretch of running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pace {
    steps_per_second: u64,
    /// From when steps are counted, on the caller's clock.
    since: Duration,
    /// Steps done since then.
    done: u64,
}

impl Pace {
    pub(crate) fn new(steps_per_second: u64, now: Duration) -> Self {
        Self { steps_per_second: steps_per_second.max(1), since: now, done: 0 }
    }

    /// Steps that should have been done by now and were not.
    pub(crate) fn due(&mut self, now: Duration) -> u64 {
        let due = self.steps_in(now.saturating_sub(self.since)).saturating_sub(self.done);
        if due > self.steps_in(MAX_BACKLOG).max(1) {
            *self = Self::new(self.steps_per_second, now.saturating_sub(MAX_BACKLOG));
            return self.steps_in(MAX_BACKLOG).max(1);
        }
        due
    }

    /// Notes steps as done.
    pub(crate) fn did(&mut self, steps: u64) {
        self.done = self.done.saturating_add(steps);
    }

    /// How long nothing is due; at least a tick, so that a fast workload writes in small bursts.
    pub(crate) fn rest(&self, now: Duration) -> Duration {
        let next = (u128::from(self.done) + 1) * NANOS_PER_SECOND / u128::from(self.steps_per_second);
        let next = self.since + Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX));
        next.saturating_sub(now).max(TICK)
    }

    fn steps_in(&self, time: Duration) -> u64 {
        let steps = time.as_nanos() * u128::from(self.steps_per_second) / NANOS_PER_SECOND;
        u64::try_from(steps).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_rate_is_kept_over_a_second_of_ticks() {
        for rate in [1, 7, 100, 12_345, 262_144] {
            let mut pace = Pace::new(rate, ms(500));
            let mut total = 0;
            for tick in 500..=1500 {
                let due = pace.due(ms(tick));
                pace.did(due);
                total += due;
            }
            assert_eq!(total, rate);
        }
    }

    #[test]
    fn a_slow_workload_rests_until_its_next_step() {
        let mut pace = Pace::new(100, ms(0));
        assert_eq!(pace.due(ms(9)), 0);
        assert_eq!(pace.rest(ms(3)), ms(7));
        assert_eq!(pace.due(ms(10)), 1);
        pace.did(1);
        assert_eq!(pace.rest(ms(10)), ms(10));
        assert_eq!(Pace::new(1 << 20, ms(0)).rest(ms(0)), TICK);
    }

    #[test]
    fn what_was_missed_for_long_is_forgotten() {
        let mut pace = Pace::new(1000, ms(0));
        assert_eq!(pace.due(ms(10_000)), 50);
        pace.did(50);
        assert_eq!(pace.due(ms(10_000)), 0);
        assert_eq!(pace.due(ms(10_010)), 10);
        // A step every ten seconds is one step behind after an hour, not none.
        assert_eq!(Pace::new(1, ms(0)).due(ms(3_600_000)), 1);
    }
}
