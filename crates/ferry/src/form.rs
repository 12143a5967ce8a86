//! The JSON forms of what the program reports: stable names, units last. They are also what crosses
//! the control socket; `docs/control-socket.md` describes them.

use std::time::Duration;

use ferry_contract::{Finding, Verdict};
use ferry_memory::PAGE_SIZE;
use ferry_migrate::{Arrival, DowntimeParts, Progress, Report};
use ferry_protocol::{Cause, Epoch, SourceOutcome};
use ferry_vmm::DirtyKind;
use serde::{Deserialize, Serialize};

/// A process that has a guest, or waits for one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The guest's name; none while any guest is awaited.
    pub(crate) id: Option<String>,
    pub(crate) pid: u32,
    /// This life of the process, as its journal is named.
    pub(crate) instance: String,
    /// `kvm` or `sim`.
    pub(crate) backend: String,
    pub(crate) state: State,
    /// The phase of the migration under way.
    pub(crate) phase: Option<String>,
    /// Whether this process may run the guest.
    pub(crate) custody: bool,
    pub(crate) epoch: Option<u64>,
    /// Custody that was given away, while it is not known who runs the guest.
    pub(crate) doubt: Option<DoubtForm>,
    pub(crate) memory_bytes: Option<u64>,
    /// In which pages of this host it lies, and why in no huge ones.
    pub(crate) memory_pages: Option<String>,
    pub(crate) memory_pages_reason: Option<String>,
    pub(crate) cpus: Option<u32>,
    /// How KVM notes written pages, `log` or `ring`; none for the simulated machine.
    pub(crate) dirty_source: Option<String>,
    pub(crate) payload: Option<String>,
    /// Turns of the payload's loop since the guest's birth.
    pub(crate) progress: Option<u64>,
    pub(crate) pages_checked: Option<u64>,
    /// Pages that the guest found otherwise than it left them.
    pub(crate) faults: Option<u64>,
    pub(crate) first_fault: Option<String>,
    /// Why the guest ended by itself.
    pub(crate) stopped: Option<String>,
    /// Where this process waits for a guest, or did.
    pub(crate) listen: Option<String>,
    /// The last migration from here, however it ended.
    pub(crate) last_migration: Option<MigrationReport>,
    /// How the guest arrived here, if it was not born here.
    pub(crate) arrival: Option<ArrivalForm>,
}

/// Custody that was given away, or may have been.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DoubtForm {
    pub(crate) epoch: u64,
    pub(crate) to: String,
    /// What came of the last question who runs the guest.
    pub(crate) known: Option<String>,
}

impl DoubtForm {
    pub(crate) fn new(epoch: Epoch, to: &str) -> Self {
        Self { epoch: epoch.0, to: to.into(), known: None }
    }
}

/// A guest that arrived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ArrivalForm {
    pub(crate) rounds: u32,
    pub(crate) data_bytes: u64,
    pub(crate) zero_bytes: u64,
    pub(crate) total_ms: f64,
    pub(crate) build_ms: f64,
    /// Waiting for the journal, before the first page.
    pub(crate) journal_ms: f64,
    pub(crate) restore_ms: f64,
    pub(crate) resume_ms: f64,
    /// Processor time from the built machine to the running guest.
    pub(crate) cpu_ms: f64,
}

impl ArrivalForm {
    pub(crate) fn new(arrival: &Arrival) -> Self {
        Self {
            rounds: arrival.received.rounds,
            data_bytes: arrival.received.data_pages * PAGE_SIZE,
            zero_bytes: arrival.received.zero_pages * PAGE_SIZE,
            total_ms: millis(arrival.total),
            build_ms: millis(arrival.build),
            journal_ms: millis(arrival.journal),
            restore_ms: millis(arrival.restore),
            resume_ms: millis(arrival.resume),
            cpu_ms: millis(arrival.cpu),
        }
    }
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Waits for a guest.
    Waiting,
    /// A guest is arriving.
    Receiving,
    /// The guest runs.
    Running,
    /// The guest is being moved away.
    Migrating,
    /// Custody was given and nobody answers: a person is needed.
    Ambiguous,
    /// The guest is here and paused, because it could not be resumed.
    Held,
    /// The guest was moved away.
    Moved,
    /// The guest ended by itself.
    Ended,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Receiving => "receiving",
            Self::Running => "running",
            Self::Migrating => "migrating",
            Self::Ambiguous => "ambiguous",
            Self::Held => "held",
            Self::Moved => "moved",
            Self::Ended => "ended",
        }
    }
}

/// Where a migration is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProgressForm {
    pub(crate) phase: String,
    pub(crate) round: u32,
    pub(crate) round_done_bytes: u64,
    pub(crate) round_left_bytes: u64,
    pub(crate) data_bytes: u64,
    pub(crate) zero_bytes: u64,
    pub(crate) throughput_bytes_per_second: u64,
    pub(crate) dirty_bytes_per_second: Option<u64>,
    pub(crate) expected_downtime_ms: Option<f64>,
    pub(crate) time_left_ms: Option<f64>,
    pub(crate) stalled: bool,
}

impl ProgressForm {
    pub(crate) fn new(progress: &Progress, stalled: bool) -> Self {
        let rate = progress.throughput_bytes_per_second;
        let left_ms = |bytes: u64| (rate > 0).then(|| millis_of(bytes, rate));
        Self {
            phase: progress.phase.name().into(),
            round: progress.round,
            round_done_bytes: progress.round_done_bytes,
            round_left_bytes: progress.round_left_bytes,
            data_bytes: progress.data_bytes,
            zero_bytes: progress.zero_bytes,
            throughput_bytes_per_second: rate,
            dirty_bytes_per_second: progress.dirty_bytes_per_second,
            expected_downtime_ms: progress.expected_downtime.map(millis),
            time_left_ms: left_ms(progress.round_left_bytes),
            stalled,
        }
    }
}

/// A migration that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MigrationReport {
    pub(crate) id: String,
    pub(crate) backend: String,
    /// How KVM noted written pages, `log` or `ring`; none for the simulated machine.
    pub(crate) dirty_source: Option<String>,
    pub(crate) to: String,
    /// `moved`, `kept`, `held`, `doubtful` or `abandoned`.
    pub(crate) outcome: String,
    /// Who may run the guest now: `target`, `source`, `unknown` or `nobody`.
    pub(crate) custody: String,
    pub(crate) epoch: u64,
    /// The higher epoch under which the guest runs here again, where a person gave it back.
    pub(crate) raised_to: Option<u64>,
    /// `accept`, `accept_with_notices` or `refuse`; none if it never came.
    pub(crate) verdict: Option<String>,
    pub(crate) findings: Vec<Finding>,
    /// Why the guest did not move.
    pub(crate) reason: Option<String>,
    /// Whether the hashes of all memory were equal; none without `--verify`.
    pub(crate) hashes_equal: Option<bool>,
    pub(crate) total_ms: f64,
    pub(crate) setup_ms: f64,
    /// What of it was spent on waiting for the journal.
    pub(crate) journal_ms: f64,
    /// None if the guest was never paused.
    pub(crate) downtime_ms: Option<f64>,
    pub(crate) downtime_parts_ms: PartsForm,
    pub(crate) rounds: u32,
    pub(crate) data_bytes: u64,
    pub(crate) zero_bytes: u64,
    /// Bytes of the images of disks that were to move with the guest; the figures beside this count them as memory.
    pub(crate) disk_bytes: u64,
    /// Never written before the move, and so neither read nor sent.
    pub(crate) untouched_bytes: u64,
    pub(crate) throughput_bytes_per_second: u64,
    /// Processor time of the source's process from the first page on, the guest's own included.
    pub(crate) cpu_ms: f64,
    /// The status with which `ferry migrate --wait` ends.
    pub(crate) exit_status: u8,
}

/// What the downtime was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartsForm {
    pub(crate) pause: f64,
    pub(crate) release_resources: f64,
    pub(crate) harvest: f64,
    pub(crate) last_round: f64,
    pub(crate) verify: f64,
    pub(crate) state: f64,
    pub(crate) ready: f64,
    pub(crate) custody: f64,
}

impl PartsForm {
    fn new(parts: DowntimeParts) -> Self {
        Self {
            pause: millis(parts.pause),
            release_resources: millis(parts.release_resources),
            harvest: millis(parts.harvest),
            last_round: millis(parts.last_round),
            verify: millis(parts.verify),
            state: millis(parts.state),
            ready: millis(parts.ready),
            custody: millis(parts.custody),
        }
    }

    /// The parts with their names, in order.
    pub(crate) fn named(&self) -> [(&'static str, f64); 8] {
        [
            ("pause", self.pause),
            ("release resources", self.release_resources),
            ("harvest", self.harvest),
            ("last round", self.last_round),
            ("verify", self.verify),
            ("state", self.state),
            ("ready", self.ready),
            ("custody", self.custody),
        ]
    }
}

impl MigrationReport {
    /// Whether the guest is gone from here.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.outcome.as_str(), "moved" | "abandoned")
    }

    pub(crate) fn new(
        (id, backend, dirty): (&str, &str, Option<DirtyKind>),
        to: &str,
        verify: bool,
        report: &Report,
    ) -> Self {
        let (outcome, custody, reason) = match &report.outcome {
            SourceOutcome::Moved { .. } => ("moved", "target", None),
            SourceOutcome::Abandoned { .. } => ("abandoned", "nobody", None),
            SourceOutcome::Kept { cause } => ("kept", "source", Some(cause.to_string())),
            SourceOutcome::Doubtful { known, .. } => ("doubtful", "unknown", Some(known.clone())),
            SourceOutcome::Held { cause, obstacle } => {
                ("held", "source", Some(format!("{cause}; the guest stays paused here: {obstacle}")))
            }
        };
        let moved = matches!(report.outcome, SourceOutcome::Moved { .. });
        Self {
            id: id.into(),
            backend: backend.into(),
            dirty_source: dirty.map(|dirty| dirty.name().to_owned()),
            to: to.into(),
            outcome: outcome.into(),
            custody: custody.into(),
            epoch: report.epoch.0,
            raised_to: report.raised_to.map(|epoch| epoch.0),
            verdict: report.verdict.as_ref().map(|verdict| verdict.name().into()),
            findings: findings(report),
            reason,
            hashes_equal: (verify && moved).then_some(true),
            total_ms: millis(report.total),
            setup_ms: millis(report.setup),
            journal_ms: millis(report.journal),
            downtime_ms: report.downtime.map(millis),
            downtime_parts_ms: PartsForm::new(report.downtime_parts),
            rounds: report.rounds,
            data_bytes: report.data_bytes,
            zero_bytes: report.zero_bytes,
            disk_bytes: 0,
            untouched_bytes: report.untouched_bytes,
            throughput_bytes_per_second: report.throughput_bytes_per_second,
            cpu_ms: millis(report.cpu),
            exit_status: report.outcome.exit_status(),
        }
    }
}

fn findings(report: &Report) -> Vec<Finding> {
    match (&report.outcome, &report.verdict) {
        (SourceOutcome::Kept { cause: Cause::Refused(verdict) }, _) | (_, Some(verdict)) => {
            let Verdict { findings } = verdict.clone();
            findings
        }
        _ => Vec::new(),
    }
}

/// A duration in milliseconds, to the microsecond.
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[expect(clippy::cast_precision_loss, reason = "an estimate for people; 53 bits are plenty")]
fn millis_of(bytes: u64, bytes_per_second: u64) -> f64 {
    (bytes as f64 / bytes_per_second as f64 * 1e6).round() / 1e3
}
