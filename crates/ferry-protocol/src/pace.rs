//! Pacing: how fast live rounds may send.

use std::time::Duration;

use crate::Time;

/// A bound on bytes a second, kept by letting the sender rest after what it sent.
///
/// It looks at averages over tens of milliseconds: what is sent at once should take no longer at the
/// bound ([`Pace::burst_bytes`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pace {
    bytes_per_second: u64,
    free_at: Time,
}

impl Pace {
    /// What is sent at once lasts this long at the bound.
    const BURST: Duration = Duration::from_millis(50);

    /// A pace of at most so many bytes a second, at least one.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: Time::ZERO }
    }

    /// When the next bytes may be sent; not later than now if at once.
    pub fn free_at(&self) -> Time {
        self.free_at
    }

    /// How many bytes should be sent at once at the most.
    pub fn burst_bytes(&self) -> u64 {
        let millis = u64::try_from(Self::BURST.as_millis()).unwrap_or(1);
        (self.bytes_per_second / 1000).saturating_mul(millis).max(1)
    }

    /// Notes what was sent. Time that passed unused is not saved up.
    pub fn spend(&mut self, now: Time, bytes: u64) {
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second);
        let rest = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        self.free_at = self.free_at.max(now).after(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_keeps_to_the_bound() {
        let mut pace = Pace::new(1_000_000);
        let mut now = Time::ZERO;
        for _ in 0..100 {
            now = now.max(pace.free_at());
            pace.spend(now, 20_000);
        }
        assert_eq!(pace.free_at(), Time(2_000_000), "two megabytes take two seconds");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut pace = Pace::new(1000);
        pace.spend(Time(5_000_000), 1000);
        assert_eq!(pace.free_at(), Time(6_000_000));
        assert_eq!(Pace::new(0).burst_bytes(), 1);
    }
}
