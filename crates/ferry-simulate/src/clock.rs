//! Virtual time: the world's, each host's own, and the list of what is due.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use ferry_protocol::Time;

/// A rate of one, in parts of a million.
pub(crate) const EVEN: u64 = 1_000_000;

/// A host's clock: another origin and another rate than the world's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    /// What it shows at the world's origin, in microseconds.
    pub(crate) origin: u64,
    /// Its microseconds in a million of the world's.
    pub(crate) rate: u64,
}

impl Clock {
    /// What it shows at a time of the world.
    pub(crate) fn shows(self, now: Time) -> Time {
        Time(self.origin.saturating_add(now.0.saturating_mul(self.rate) / EVEN))
    }

    /// The first time of the world at which it shows this or more.
    pub(crate) fn world(self, shown: Time) -> Time {
        let since = shown.0.saturating_sub(self.origin);
        Time(since.saturating_mul(EVEN).div_ceil(self.rate.max(1)))
    }
}

/// What is due at some time. Most are only hints: who is woken looks whether there is anything to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Something may arrive at the target's end of a link.
    Down(usize),
    /// Something may arrive at the source's end of a link.
    Up(usize),
    /// A process's oldest job as a source may be done.
    SourceJob(usize),
    /// The same as a target.
    TargetJob(usize),
    /// A fault of the plan strikes.
    Strike(usize),
    /// A process that was stopped goes on, or links are no longer held: everything is looked at.
    Stir,
    /// A new process listens on a host, if none does.
    Listen(usize),
    /// The user moves the guest, wherever it runs.
    Move,
    /// The user starts the guest again where this process died.
    Birth(usize),
    /// A person looks at what a process asks.
    Person(usize),
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    at: Time,
    number: u64,
    due: Due,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The list of what is due, in order of time, and of entry at equal times.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    entries: BinaryHeap<Entry>,
    entered: u64,
}

impl Agenda {
    pub(crate) fn enter(&mut self, at: Time, due: Due) {
        self.entered += 1;
        self.entries.push(Entry { at, number: self.entered, due });
    }

    /// When the next one is due.
    pub(crate) fn next_at(&self) -> Option<Time> {
        self.entries.peek().map(|entry| entry.at)
    }

    /// Takes the next one.
    pub(crate) fn take(&mut self) -> Option<Due> {
        self.entries.pop().map(|entry| entry.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_a_deadline_when_the_world_says_so() {
        for clock in [
            Clock { origin: 0, rate: EVEN },
            Clock { origin: 77, rate: 500_001 },
            Clock { origin: 5, rate: 3 * EVEN },
        ] {
            for at in [77, 78, 1000, 123_456_789] {
                let world = clock.world(Time(at));
                assert!(clock.shows(world) >= Time(at));
                assert!(world == Time::ZERO || clock.shows(Time(world.0 - 1)) < Time(at));
            }
        }
    }

    #[test]
    fn what_is_due_comes_in_order() {
        let mut agenda = Agenda::default();
        for (at, due) in [(5, Due::Stir), (3, Due::Down(1)), (3, Due::Down(0)), (9, Due::Move)] {
            agenda.enter(Time(at), due);
        }
        let order: Vec<_> = std::iter::from_fn(|| agenda.take()).collect();
        assert_eq!(order, [Due::Down(1), Due::Down(0), Due::Stir, Due::Move]);
    }
}
