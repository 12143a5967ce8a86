//! What a guest's clocks do about a pause, and by how much they move where they catch up.
//!
//! The wish is the operator's, and the target carries it out: it alone knows how long the pause was. So it
//! travels with the state in the section `machine.pause`, beside the source's wall clock at the capture.
//! [`MachineState::catch_up`](crate::MachineState::catch_up) moves all clocks of a captured machine on.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use minicbor::{Decode, Encode};

use crate::{Fields, Part, Section, StateError};

/// What a guest's clocks do about the time for which it was paused.
///
/// The default asks nothing of the wall clocks of two hosts, and a guest that was put aside for a week finds no timer
/// a week late; its `CLOCK_REALTIME` is behind by the pause until something inside sets it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum GuestTime {
    /// They stand still: the guest sees nothing of the pause.
    #[default]
    #[n(0)]
    Stops,
    /// They go on by as long as it lasted, by the hosts' wall clocks: the guest sees that it did not run.
    #[n(1)]
    CatchesUp,
}

impl GuestTime {
    /// Its name: `stops` or `catches-up`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stops => "stops",
            Self::CatchesUp => "catches-up",
        }
    }
}

impl fmt::Display for GuestTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names nothing that time could do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a guest's time does no such thing: use `stops` or `catches-up`")]
pub struct GuestTimeError;

impl FromStr for GuestTime {
    type Err = GuestTimeError;

    fn from_str(text: &str) -> Result<Self, GuestTimeError> {
        let known = [Self::Stops, Self::CatchesUp].into_iter().find(|time| time.name() == text);
        known.ok_or(GuestTimeError)
    }
}

/// When a guest was captured, and what its clocks do about the time from then on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pause {
    /// What they do.
    #[n(0)]
    pub guest_time: GuestTime,
    /// The source's `CLOCK_REALTIME` when its clocks were read, in nanoseconds.
    #[n(1)]
    pub realtime_ns: u64,
}

impl Part for Pause {
    const NAME: &'static str = "machine.pause";
    const FIELDS: Fields = Fields::These(&[0, 1]);
}

impl Pause {
    /// The section, needed where the target has something to do.
    pub fn section(&self) -> Result<Section, StateError> {
        Section::of(self, 0, (self.guest_time == GuestTime::Stops).then_some(self))
    }
}

/// How long a pause was, by the wall clocks of two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// So long.
    Time(Duration),
    /// The target's clock is behind the source's at the capture, by so much: nobody knows how long.
    Behind(Duration),
}

impl Passed {
    /// From the source's wall clock at the capture to the target's at the restore, both in nanoseconds.
    pub fn between(captured_ns: u64, restored_ns: u64) -> Self {
        match restored_ns.checked_sub(captured_ns) {
            Some(passed) => Self::Time(Duration::from_nanos(passed)),
            None => Self::Behind(Duration::from_nanos(captured_ns - restored_ns)),
        }
    }

    /// By how much the guest's clocks go on: never back.
    pub fn advance(self) -> Duration {
        match self {
            Self::Time(passed) => passed,
            Self::Behind(_) => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_that_is_to_catch_up_is_needed() {
        let pause = Pause { guest_time: GuestTime::Stops, realtime_ns: 7 };
        let section = pause.section().unwrap();
        assert!(section.needed.is_empty());
        assert_eq!(section.read::<Pause>().unwrap(), pause);
        let pause = Pause { guest_time: GuestTime::CatchesUp, ..pause };
        let section = pause.section().unwrap();
        assert_eq!(section.needed, [0, 1]);
        assert_eq!(section.read::<Pause>().unwrap(), pause);
        // {0: 2}: a third thing that time could do.
        let third = Section { body: vec![0xa2, 0, 2, 1, 7], ..section };
        assert!(third.read::<Pause>().is_err());
    }

    #[test]
    fn names_are_read_back() {
        for time in [GuestTime::Stops, GuestTime::CatchesUp] {
            assert_eq!(time.to_string().parse(), Ok(time));
        }
        assert_eq!("flies".parse::<GuestTime>(), Err(GuestTimeError));
    }

    #[test]
    fn a_wall_clock_that_is_behind_moves_nothing() {
        assert_eq!(Passed::between(5, 9), Passed::Time(Duration::from_nanos(4)));
        assert_eq!(Passed::between(9, 5), Passed::Behind(Duration::from_nanos(4)));
        assert_eq!(Passed::between(9, 5).advance(), Duration::ZERO);
        assert_eq!(Passed::between(0, u64::MAX).advance(), Duration::from_nanos(u64::MAX));
    }
}
