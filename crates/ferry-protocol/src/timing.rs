//! Time as the machines see it, and the name and default of every wait.

use std::fmt;
use std::time::Duration;

/// A point in time: microseconds since an origin that the caller chose.
///
/// The machines compare and add; what clock it is, monotonic or a simulation's, they do not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// This time and a duration later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// The name of a wait that can time out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimerName {
    /// Source: the link to the target is being made.
    Connect,
    /// Source: the target's hello; target: the first message on a new link.
    Hello,
    /// Target: the offer after its hello.
    Offer,
    /// Source: the target's verdict.
    Verdict,
    /// Source: the target builds the machine with its memory.
    Build,
    /// Both: nothing could be sent, or nothing came, while pages cross.
    Silence,
    /// Target: the whole state, after the last round.
    State,
    /// Source: everything from the pause to giving custody: a bound on what a failing link can cost.
    Paused,
    /// Source: the target's word that it is ready.
    Ready,
    /// Target: custody, after it said ready.
    Custody,
    /// Source: the target's word that the guest runs, after custody was given.
    Running,
    /// Source: the answer to one question who runs the guest.
    Ask,
    /// Source: from the first question to calling the outcome ambiguous.
    Settle,
    /// Target: the source's word that it let the guest go.
    Release,
    /// Source: the whole migration up to custody.
    Total,
}

impl TimerName {
    /// The wait's stable name, as in configuration and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Hello => "hello",
            Self::Offer => "offer",
            Self::Verdict => "verdict",
            Self::Build => "build",
            Self::Silence => "silence",
            Self::State => "state",
            Self::Paused => "paused",
            Self::Ready => "ready",
            Self::Custody => "custody",
            Self::Running => "running",
            Self::Ask => "ask",
            Self::Settle => "settle",
            Self::Release => "release",
            Self::Total => "total",
        }
    }
}

impl fmt::Display for TimerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long each wait may last.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// [`TimerName::Connect`].
    pub connect: Duration,
    /// [`TimerName::Hello`].
    pub hello: Duration,
    /// [`TimerName::Offer`].
    pub offer: Duration,
    /// [`TimerName::Verdict`].
    pub verdict: Duration,
    /// [`TimerName::Build`]: memory of the guest's size is made here.
    pub build: Duration,
    /// [`TimerName::Silence`].
    pub silence: Duration,
    /// [`TimerName::State`]; with `--verify`, [`Timeouts::hash_allowance`] is added.
    pub state: Duration,
    /// [`TimerName::Paused`].
    pub paused: Duration,
    /// [`TimerName::Ready`].
    pub ready: Duration,
    /// [`TimerName::Custody`].
    pub custody: Duration,
    /// [`TimerName::Running`].
    pub running: Duration,
    /// [`TimerName::Ask`].
    pub ask: Duration,
    /// Pause between two questions.
    pub ask_interval: Duration,
    /// [`TimerName::Settle`].
    pub settle: Duration,
    /// [`TimerName::Release`].
    pub release: Duration,
    /// [`TimerName::Total`].
    pub total: Duration,
}

/// What a host hashes in a second at the very least; it only bounds waits.
const HASHED_BYTES_PER_SECOND: u64 = 128 << 20;

impl Timeouts {
    /// How much longer waits may last in which all memory is hashed.
    pub fn hash_allowance(memory_bytes: u64) -> Duration {
        Duration::from_secs(memory_bytes / HASHED_BYTES_PER_SECOND)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            hello: Duration::from_secs(5),
            offer: Duration::from_secs(10),
            verdict: Duration::from_secs(30),
            build: Duration::from_secs(120),
            silence: Duration::from_secs(10),
            state: Duration::from_secs(60),
            paused: Duration::from_secs(60),
            ready: Duration::from_secs(30),
            custody: Duration::from_secs(30),
            running: Duration::from_secs(10),
            ask: Duration::from_secs(5),
            ask_interval: Duration::from_secs(1),
            settle: Duration::from_secs(15),
            release: Duration::from_secs(10),
            total: Duration::from_secs(600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_overflows_nor_runs_back() {
        assert_eq!(Time(u64::MAX).after(Duration::from_secs(1)), Time(u64::MAX));
        assert_eq!(Time(3).since(Time(5)), Duration::ZERO);
        assert_eq!(Time::ZERO.after(Duration::from_millis(2)), Time(2000));
    }
}
