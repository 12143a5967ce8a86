//! Warnings that a guest can provoke at will: one now and then, with how many were not said.

use std::time::{Duration, Instant};

/// The least time between two.
const INTERVAL: Duration = Duration::from_secs(10);

/// When the last warning of a kind was said.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    /// Whether to say this one; then, how many were not said since the last.
    pub(super) fn may_say(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_said_once_and_counted() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        assert_eq!(complaints.may_say(start), Some(0));
        for _ in 0..1000 {
            assert_eq!(complaints.may_say(start + INTERVAL / 2), None);
        }
        assert_eq!(complaints.may_say(start + INTERVAL), Some(1000));
    }
}
