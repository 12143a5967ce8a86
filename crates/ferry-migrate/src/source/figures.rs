//! The clock and the figures of one migration.

use std::time::{Duration, Instant};

use ferry_contract::Verdict;
use ferry_memory::PAGE_SIZE;
use ferry_protocol::{Epoch, SourceAction, SourceOutcome, Time};

use crate::report::{DowntimeParts, Report, cpu_time};
use crate::send::Sent;

/// What the pump measures while it works.
#[derive(Debug)]
pub(super) struct Figures {
    began: Instant,
    first_page: Option<Instant>,
    cpu_at_first_page: Duration,
    paused: Option<Instant>,
    runs_again: Option<Instant>,
    state_sent: Option<Instant>,
    given: Option<Instant>,
    round_began: Option<Instant>,
    round_is_last: bool,
    /// Time spent on sending rounds.
    sending: Duration,
    sent: Sent,
    rounds: u32,
    last_harvest: Option<Instant>,
    dirty_pages: Option<(u64, Duration)>,
    untouched_pages: u64,
    journal: Duration,
    parts: DowntimeParts,
}

impl Figures {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            first_page: None,
            cpu_at_first_page: Duration::ZERO,
            paused: None,
            runs_again: None,
            state_sent: None,
            given: None,
            round_began: None,
            round_is_last: false,
            sending: Duration::ZERO,
            sent: Sent::default(),
            rounds: 0,
            last_harvest: None,
            dirty_pages: None,
            untouched_pages: 0,
            journal: Duration::ZERO,
            parts: DowntimeParts::default(),
        }
    }

    /// Microseconds since the migration began: the time that the source's decisions see.
    pub(super) fn now(&self) -> Time {
        Time::ZERO.after(self.began.elapsed())
    }

    pub(super) fn rounds(&self) -> u32 {
        self.rounds
    }

    pub(super) fn round_starts(&mut self, last: bool) {
        let now = Instant::now();
        if self.first_page.is_none() {
            self.first_page = Some(now);
            self.cpu_at_first_page = cpu_time();
        }
        self.last_harvest.get_or_insert(now);
        self.round_began = Some(now);
        self.round_is_last = last;
    }

    pub(super) fn round_ends(&mut self, sent: Sent) {
        let took = self.round_began.take().map_or(Duration::ZERO, |began| began.elapsed());
        self.sending += took;
        if self.round_is_last {
            self.parts.last_round = took;
        }
        self.rounds += 1;
        self.sent.data_pages += sent.data_pages;
        self.sent.zero_pages += sent.zero_pages;
    }

    pub(super) fn harvested(&mut self, dirty_pages: u64) {
        let now = Instant::now();
        if let Some(before) = self.last_harvest.replace(now) {
            self.dirty_pages = Some((dirty_pages, now - before));
        }
    }

    /// Pages that were never written, and so are not sent.
    pub(super) fn untouched(&mut self, pages: u64) {
        self.untouched_pages = pages;
    }

    /// Waited for the journal.
    pub(super) fn journaled(&mut self, took: Duration) {
        self.journal += took;
    }

    pub(super) fn pause_ordered(&mut self) {
        self.paused = Some(Instant::now());
    }

    pub(super) fn custody_given(&mut self) {
        let now = Instant::now();
        self.given = Some(now);
        self.parts.ready = self.state_sent.map_or(Duration::ZERO, |at| now - at);
    }

    /// The guest runs again: on the target, or here after a failure.
    pub(super) fn guest_runs(&mut self) {
        let now = Instant::now();
        self.runs_again = Some(now);
        self.parts.custody = self.given.map_or(Duration::ZERO, |at| now - at);
    }

    pub(super) fn job_took(&mut self, job: &SourceAction, took: Duration) {
        match job {
            SourceAction::Pause => self.parts.pause = took,
            SourceAction::ReleaseResources => self.parts.release_resources = took,
            SourceAction::Harvest { last: true } => self.parts.harvest = took,
            SourceAction::HashMemory => self.parts.verify = took,
            SourceAction::SendState => {
                self.parts.state = took;
                self.state_sent = Some(Instant::now());
            }
            _ => {}
        }
    }

    /// What all rounds sent, with the one under way.
    pub(super) fn totals(&self, under_way: Option<Sent>) -> Sent {
        let more = under_way.unwrap_or_default();
        Sent {
            data_pages: self.sent.data_pages + more.data_pages,
            zero_pages: self.sent.zero_pages + more.zero_pages,
        }
    }

    /// Data bytes a second while rounds were sent.
    pub(super) fn throughput(&self, totals: Sent) -> u64 {
        let under_way = self.round_began.map_or(Duration::ZERO, |began| began.elapsed());
        per_second(totals.data_pages, self.sending + under_way)
    }

    pub(super) fn dirty_rate(&self) -> Option<u64> {
        self.dirty_pages.map(|(pages, during)| per_second(pages, during))
    }

    pub(super) fn expected_downtime(&self) -> Option<Duration> {
        let (pages, _) = self.dirty_pages?;
        let rate = self.throughput(self.sent);
        let micros = pages.saturating_mul(PAGE_SIZE).saturating_mul(1_000_000).checked_div(rate)?;
        Some(Duration::from_micros(micros))
    }

    pub(super) fn report(&self, outcome: SourceOutcome, verdict: Option<Verdict>, epoch: Epoch) -> Report {
        let downtime = self.paused.and_then(|paused| Some(self.runs_again? - paused));
        Report {
            outcome,
            verdict,
            epoch,
            raised_to: None,
            total: self.began.elapsed(),
            setup: self.first_page.map_or_else(|| self.began.elapsed(), |at| at - self.began),
            journal: self.journal,
            downtime,
            downtime_parts: self.parts,
            rounds: self.rounds,
            data_bytes: self.sent.data_pages * PAGE_SIZE,
            zero_bytes: self.sent.zero_pages * PAGE_SIZE,
            untouched_bytes: self.untouched_pages * PAGE_SIZE,
            throughput_bytes_per_second: per_second(self.sent.data_pages, self.sending),
            cpu: self
                .first_page
                .map_or(Duration::ZERO, |_| cpu_time().saturating_sub(self.cpu_at_first_page)),
        }
    }
}

fn per_second(pages: u64, during: Duration) -> u64 {
    let micros = u64::try_from(during.as_micros()).unwrap_or(u64::MAX).max(1);
    pages.saturating_mul(PAGE_SIZE).saturating_mul(1_000_000) / micros
}
