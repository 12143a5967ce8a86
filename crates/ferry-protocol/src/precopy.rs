//! When to stop pre-copy: after a round, go on or pause.
//!
//! The downtime that a pause would cost now is predicted from the pages that are dirty and the
//! throughput of the rounds so far. It is paused as soon as that is within the limit.

use std::time::Duration;

/// Bytes of a page, for predictions.
const PAGE_BYTES: u64 = 4096;

/// Rounds smaller than this say little about throughput.
const TELLING_BYTES: u64 = 1 << 20;

/// Rounds in a row without a smaller dirty set than ever before, after which a migration stalls.
const STALLED_ROUNDS: u32 = 5;

/// What pre-copy knows and wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Precopy {
    downtime_limit: Duration,
    bytes_per_second: Option<u64>,
    least_dirty_pages: u64,
    rounds_since_least: u32,
}

/// What one finished round was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoundFigures {
    /// Bytes of page data that were sent.
    pub bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Pause: the rest fits into the downtime limit.
    Pause {
        /// The predicted time to send the rest.
        predicted: Duration,
    },
    /// Send another live round.
    GoOn {
        /// The predicted downtime if it were paused now.
        predicted: Duration,
        /// Whether the dirty set stopped shrinking.
        stalled: bool,
    },
}

impl Precopy {
    /// Pre-copy that pauses when the rest takes at most `downtime_limit`.
    pub fn new(downtime_limit: Duration) -> Self {
        Self { downtime_limit, bytes_per_second: None, least_dirty_pages: u64::MAX, rounds_since_least: 0 }
    }

    /// The throughput of the last telling round, in bytes a second.
    pub fn bytes_per_second(&self) -> Option<u64> {
        self.bytes_per_second
    }

    /// Decides after a round and the harvest that followed it.
    pub fn after_round(&mut self, round: RoundFigures, dirty_pages: u64) -> Decision {
        self.measure(round);
        let predicted = self.predict(dirty_pages);
        if predicted <= self.downtime_limit {
            return Decision::Pause { predicted };
        }
        if dirty_pages < self.least_dirty_pages {
            self.least_dirty_pages = dirty_pages;
            self.rounds_since_least = 0;
        } else {
            self.rounds_since_least = self.rounds_since_least.saturating_add(1);
        }
        Decision::GoOn { predicted, stalled: self.rounds_since_least >= STALLED_ROUNDS }
    }

    /// The same where a pause would have to wait for the host's disk, which has been at work for so long: then it must
    /// not come, whatever is dirty. A guest that goes on writing faster than its disk takes it stalls.
    pub fn disks_behind(&mut self, round: RoundFigures, dirty_pages: u64, sync: Duration) -> Decision {
        self.measure(round);
        self.rounds_since_least = self.rounds_since_least.saturating_add(1);
        let predicted = self.predict(dirty_pages).saturating_add(sync);
        Decision::GoOn { predicted, stalled: self.rounds_since_least >= STALLED_ROUNDS }
    }

    fn measure(&mut self, round: RoundFigures) {
        if round.bytes >= TELLING_BYTES || self.bytes_per_second.is_none() {
            let micros = u64::try_from(round.duration.as_micros()).unwrap_or(u64::MAX).max(1);
            let measured = round.bytes.saturating_mul(1_000_000) / micros;
            self.bytes_per_second = Some(measured).filter(|&rate| rate > 0).or(self.bytes_per_second);
        }
    }

    fn predict(&self, dirty_pages: u64) -> Duration {
        let bytes = dirty_pages.saturating_mul(PAGE_BYTES);
        match self.bytes_per_second {
            _ if bytes == 0 => Duration::ZERO,
            // Nothing telling was sent yet: as many bytes as a telling round has are taken for cheap.
            None if bytes <= TELLING_BYTES => Duration::ZERO,
            None => Duration::MAX,
            Some(rate) => Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn round(bytes: u64, duration: Duration) -> RoundFigures {
        RoundFigures { bytes, duration }
    }

    #[test]
    fn pauses_when_the_rest_fits() {
        let mut precopy = Precopy::new(Duration::from_millis(10));
        let decision = precopy.after_round(round(1 << 30, SECOND), 2560);
        assert_eq!(decision, Decision::Pause { predicted: Duration::from_micros(9765) });
    }

    #[test]
    fn an_idle_guest_pauses_after_the_first_round() {
        let mut precopy = Precopy::new(Duration::from_millis(1));
        assert_eq!(
            precopy.after_round(round(0, Duration::from_micros(3)), 0),
            Decision::Pause { predicted: Duration::ZERO }
        );
    }

    #[test]
    fn goes_on_while_the_rest_is_too_much_and_says_when_it_stalls() {
        let mut precopy = Precopy::new(Duration::from_millis(10));
        let mut stalled_at = None;
        for n in 0..10 {
            match precopy.after_round(round(1 << 30, SECOND), 100_000) {
                Decision::GoOn { stalled: true, .. } => {
                    stalled_at = Some(n);
                    break;
                }
                Decision::GoOn { .. } => {}
                Decision::Pause { .. } => panic!("400 MB do not fit into 10 ms"),
            }
        }
        assert_eq!(stalled_at, Some(5));
    }

    #[test]
    fn never_pauses_while_the_disks_are_behind() {
        let mut precopy = Precopy::new(Duration::from_millis(10));
        let sync = SECOND * 3;
        let behind = |precopy: &mut Precopy| precopy.disks_behind(round(1 << 30, SECOND), 0, sync);
        for _ in 0..4 {
            assert_eq!(behind(&mut precopy), Decision::GoOn { predicted: sync, stalled: false });
        }
        assert_eq!(behind(&mut precopy), Decision::GoOn { predicted: sync, stalled: true });
        assert!(matches!(precopy.after_round(round(0, SECOND), 0), Decision::Pause { .. }));
    }

    #[test]
    fn a_tiny_round_does_not_spoil_the_estimate() {
        let mut precopy = Precopy::new(Duration::from_millis(10));
        precopy.after_round(round(1 << 30, SECOND), 100_000);
        precopy.after_round(round(4096, Duration::from_millis(100)), 100_000);
        assert_eq!(precopy.bytes_per_second(), Some(1 << 30));
    }
}
