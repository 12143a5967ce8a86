//! What a migration tells while it runs and at its end.

use std::fmt;
use std::time::Duration;

use ferry_contract::Verdict;
use ferry_protocol::{Epoch, SourceOutcome, SourcePhase, TargetOutcome, TargetPhase};

use crate::intake::Received;

/// Told what happens in a migration. Called from the engine's thread: be quick.
pub trait Observer: Send + Sync {
    /// The source entered a phase.
    fn source_phase(&self, _phase: SourcePhase) {}
    /// The target entered a phase.
    fn target_phase(&self, _phase: TargetPhase) {}
    /// Where the source is; called after each chunk and each change.
    fn progress(&self, _progress: &Progress) {}
    /// The guest dirties memory faster than the link carries it; the downtime if it were paused now.
    fn stalled(&self, _predicted: Duration) {}
    /// Nobody answered who runs the guest: a person is needed, though the source goes on asking.
    fn ambiguous(&self) {}
    /// What came of a question who runs the guest, as long as that is not known.
    fn word(&self, _word: &Word) {}
    /// A person's choice is not followed, and why.
    fn choice_refused(&self, _why: &str) {}
    /// A session ended on the target.
    fn target_finished(&self, _outcome: &TargetOutcome) {}
}

/// An observer that does not care.
impl Observer for () {}

/// What came of a question who runs the guest that did not settle it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// The question could not be asked, or its link was lost; why.
    NoLink(String),
    /// Another process listens there, and knows nothing of the one that was given custody.
    NoTrace,
    /// Another process listens there: the one that was given custody may have run the guest, and is
    /// gone with it.
    MayHaveRun,
    /// Another process listens there: the one that was given custody lives, and has not written what
    /// became of it.
    Lives,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLink(why) => write!(f, "the target cannot be asked: {why}"),
            Self::NoTrace => f.write_str(
                "another process listens there now, which has no journal of the one that was given custody",
            ),
            Self::MayHaveRun => f.write_str(
                "the target's process is gone; by its journal it may have run the guest, which is gone with it",
            ),
            Self::Lives => f.write_str(
                "the target's process lives, and has not written yet what became of the guest; another listens there now",
            ),
        }
    }
}

/// Where a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The phase.
    pub phase: SourcePhase,
    /// The round under way, from 0.
    pub round: u32,
    /// Bytes of guest memory in this round that were dealt with.
    pub round_done_bytes: u64,
    /// Bytes of guest memory left in this round.
    pub round_left_bytes: u64,
    /// Bytes of page data sent in all rounds.
    pub data_bytes: u64,
    /// Bytes of guest memory that were sent as zeros.
    pub zero_bytes: u64,
    /// Data bytes a second, over all rounds.
    pub throughput_bytes_per_second: u64,
    /// Bytes a second that the guest dirtied, as the last harvest saw it.
    pub dirty_bytes_per_second: Option<u64>,
    /// The downtime if the guest were paused now.
    pub expected_downtime: Option<Duration>,
}

/// A finished migration, as the source saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub outcome: SourceOutcome,
    /// The target's verdict, if it came so far.
    pub verdict: Option<Verdict>,
    /// The epoch that was offered.
    pub epoch: Epoch,
    /// The higher epoch under which the guest runs here again, where a person or the witness gave it
    /// back.
    pub raised_to: Option<Epoch>,
    /// From the first connection attempt to the end.
    pub total: Duration,
    /// From the first connection attempt to the first page.
    pub setup: Duration,
    /// What of it was spent on waiting for the journal.
    pub journal: Duration,
    /// From the order to pause to the target's word that the guest runs; if it did not move, to the
    /// guest running here again. None if it was never paused.
    pub downtime: Option<Duration>,
    /// What the downtime was spent on.
    pub downtime_parts: DowntimeParts,
    /// Live rounds and the last one.
    pub rounds: u32,
    /// Bytes of page data sent.
    pub data_bytes: u64,
    /// Bytes of guest memory sent as zeros.
    pub zero_bytes: u64,
    /// Bytes of guest memory that were never written before the move, and so neither read nor sent.
    pub untouched_bytes: u64,
    /// Data bytes a second while rounds were sent.
    pub throughput_bytes_per_second: u64,
    /// Processor time of this process from the first page to the end, the guest's own included.
    pub cpu: Duration,
}

/// What the downtime was spent on, in order; the rest of it is between the parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DowntimeParts {
    /// Stopping the vCPUs and completing their exits.
    pub pause: Duration,
    /// Releasing locks and the like.
    pub release_resources: Duration,
    /// The last harvest of dirty pages.
    pub harvest: Duration,
    /// Sending the last pages.
    pub last_round: Duration,
    /// Hashing all memory, with `--verify`.
    pub verify: Duration,
    /// Capturing the state and sending it.
    pub state: Duration,
    /// The target's restoring and checking, as the source waits for it.
    pub ready: Duration,
    /// From giving custody to the target's word that the guest runs.
    pub custody: Duration,
}

/// A guest that arrived, as the target saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// What came over the lanes.
    pub received: Received,
    /// From the source's hello to the running guest.
    pub total: Duration,
    /// Building the machine with its memory.
    pub build: Duration,
    /// Waiting for the journal, before the first page.
    pub journal: Duration,
    /// Restoring and checking.
    pub restore: Duration,
    /// Starting the vCPUs, after custody came.
    pub resume: Duration,
    /// Processor time of this process from the built machine to the running guest.
    pub cpu: Duration,
}

/// Processor time that this process has used so far.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}
