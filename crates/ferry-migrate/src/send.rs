//! One round on its way out: lanes take chunk after chunk of its pages, classify and send them.
//!
//! The pump sends on lane 0 itself, so that between two chunks it can hear the peer, the user and the
//! clock; further lanes have threads of their own ([`crate::lane`]). All of them share a [`Round`].

use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_memory::{Classified, GuestRam, PAGE_SIZE, PageRange, PageSet, send_pages_within};
use ferry_protocol::frame::{FrameKind, MAX_DATA_PAGES, MAX_RANGES, PageHead, WireRange, encode};
use ferry_protocol::{LinkFault, Pace, Time};

use crate::framing::{memory_fault, page_fault};
use crate::link::Socket;

/// One round of one migration, shared by its lanes.
#[derive(Debug)]
pub(crate) struct Round {
    number: u32,
    last: bool,
    ram: GuestRam,
    work: Mutex<Work>,
    changed: Condvar,
    /// The origin of the pace's time.
    began: Instant,
}

#[derive(Debug)]
struct Work {
    /// What no lane took yet, the next at the end.
    left: Vec<PageRange>,
    left_pages: u64,
    /// Lanes that have a chunk in hand.
    busy: u32,
    sent: Sent,
    fault: Option<LinkFault>,
    pace: Option<Pace>,
}

/// What a round has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) data_pages: u64,
    pub(crate) zero_pages: u64,
}

/// How far a round is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Pages are left that no lane took.
    Left,
    /// Pages are left, and the pace wants a rest of this long.
    Resting(Duration),
    /// Every page was taken; lanes still send.
    Sending,
    /// Everything was sent.
    Done(Sent),
    /// A lane could not send.
    Broken(LinkFault),
}

impl Round {
    /// A round of these pages; `pace` holds it back, unless it is the last one.
    pub(crate) fn new(number: u32, last: bool, ram: GuestRam, pages: &PageSet, pace: Option<Pace>) -> Self {
        let mut left: Vec<_> = pages.chunks(MAX_DATA_PAGES).collect();
        left.reverse();
        let work = Work {
            left,
            left_pages: pages.count(),
            busy: 0,
            sent: Sent::default(),
            fault: None,
            pace: pace.filter(|_| !last),
        };
        Self { number, last, ram, work: Mutex::new(work), changed: Condvar::new(), began: Instant::now() }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn left_pages(&self) -> u64 {
        self.work().left_pages
    }

    pub(crate) fn sent(&self) -> Sent {
        self.work().sent
    }

    pub(crate) fn standing(&self) -> Standing {
        let work = self.work();
        match &work.fault {
            Some(fault) => Standing::Broken(fault.clone()),
            None if !work.left.is_empty() => match self.rest(&work) {
                Duration::ZERO => Standing::Left,
                rest => Standing::Resting(rest),
            },
            None if work.busy > 0 => Standing::Sending,
            None => Standing::Done(work.sent),
        }
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.began.elapsed())
    }

    fn rest(&self, work: &Work) -> Duration {
        work.pace.map_or(Duration::ZERO, |pace| pace.free_at().since(self.now()))
    }

    /// Waits a little for lanes that still send.
    pub(crate) fn wait(&self, at_most: Duration) {
        let work = self.work();
        if work.busy > 0 && work.fault.is_none() {
            drop(self.changed.wait_timeout(work, at_most));
        }
    }

    /// Nothing more of this round is sent once the chunks in hand are.
    pub(crate) fn cancel(&self) {
        let mut work = self.work();
        work.left.clear();
        work.left_pages = 0;
    }

    /// Sends chunks until none is left; false if this lane could not send.
    pub(crate) fn send_all(&self, lane: &mut LaneSender) -> bool {
        loop {
            match self.standing() {
                Standing::Resting(rest) => {
                    let work = self.work();
                    drop(self.changed.wait_timeout(work, rest));
                }
                _ if self.send_chunk(lane) => {}
                standing => return !matches!(standing, Standing::Broken(_)) && self.work().fault.is_none(),
            }
        }
    }

    /// Sends the next chunk. False if there is none, or if a lane failed.
    pub(crate) fn send_chunk(&self, lane: &mut LaneSender) -> bool {
        let chunk = self.take(lane.chunk_size.pages());
        if chunk.is_empty() {
            return false;
        }
        let began = Instant::now();
        let sent = lane.send(self, &chunk);
        lane.chunk_size.took(began.elapsed());
        let mut work = self.work();
        work.busy -= 1;
        match sent {
            Ok(sent) => {
                work.sent.data_pages += sent.data_pages;
                work.sent.zero_pages += sent.zero_pages;
                let now = self.now();
                if let Some(pace) = &mut work.pace {
                    pace.spend(now, sent.data_pages * PAGE_SIZE);
                }
            }
            Err(fault) => {
                work.left.clear();
                work.fault.get_or_insert(fault);
            }
        }
        self.changed.notify_all();
        work.fault.is_none()
    }

    /// At most so many pages; nothing if nothing is left.
    fn take(&self, chunk_pages: u64) -> Vec<PageRange> {
        let mut work = self.work();
        if !self.rest(&work).is_zero() {
            return Vec::new();
        }
        let burst = work.pace.map_or(MAX_DATA_PAGES, |pace| pace.burst_bytes() / PAGE_SIZE);
        let mut room = chunk_pages.clamp(1, burst.clamp(1, MAX_DATA_PAGES));
        let mut chunk = Vec::new();
        while room > 0
            && let Some(PageRange { first, count }) = work.left.pop()
        {
            let here = PageRange { first, count: count.min(room) };
            if here.count < count {
                work.left.push(PageRange { first: first + here.count, count: count - here.count });
            }
            chunk.push(here);
            room -= here.count;
            work.left_pages -= here.count;
        }
        work.busy += u32::from(!chunk.is_empty());
        chunk
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn head(&self, kind: FrameKind, checksum: Option<u32>, runs: &[PageRange]) -> Vec<u8> {
        let ranges = runs.iter().map(|run| WireRange { first: run.first, count: run.count }).collect();
        encode(kind, &PageHead { round: self.number, checksum, ranges }.to_bytes())
    }
}

/// One lane's means to send: its socket, and what it keeps from chunk to chunk.
#[derive(Debug)]
pub(crate) struct LaneSender {
    socket: Socket,
    /// What is sent is kept: live pages get a checksum, too.
    lasting: bool,
    chunk_size: ChunkSize,
    classified: Classified,
}

impl LaneSender {
    pub(crate) fn new(socket: Socket) -> Self {
        let lasting = matches!(socket, Socket::Plain(..));
        Self { socket, lasting, chunk_size: ChunkSize::new(), classified: Classified::new() }
    }

    fn send(&mut self, round: &Round, chunk: &[PageRange]) -> Result<Sent, LinkFault> {
        self.classified.clear();
        for &range in chunk {
            round.ram.classify(range, &mut self.classified).map_err(|error| memory_fault(&error))?;
        }
        for runs in self.classified.zero_runs().chunks(MAX_RANGES) {
            let head = round.head(FrameKind::Zeros, None, runs);
            self.write(round, &head, &[], &[])?;
        }
        for runs in self.classified.data_runs().chunks(MAX_RANGES) {
            if !round.last && self.lasting {
                self.send_copy(round, runs)?;
                continue;
            }
            // In the last round nothing writes any more, so the data can be summed before it is sent.
            let checksum = if round.last { Some(round.ram.checksum(runs)) } else { None };
            let checksum = checksum.transpose().map_err(|error| memory_fault(&error))?;
            let head = round.head(FrameKind::Pages, checksum, runs);
            self.write(round, &head, runs, &[])?;
        }
        Ok(Sent { data_pages: self.classified.data_pages(), zero_pages: self.classified.zero_pages() })
    }

    /// The guest writes while it is read: what is to have a checksum is copied first.
    fn send_copy(&self, round: &Round, runs: &[PageRange]) -> Result<(), LinkFault> {
        let mut copy = Vec::new();
        for run in runs {
            let at = copy.len();
            let bytes = usize::try_from(run.count * PAGE_SIZE).unwrap_or(usize::MAX);
            copy.resize(at + bytes, 0);
            let into = copy.get_mut(at..).unwrap_or_default();
            round.ram.read(run.first * PAGE_SIZE, into).map_err(|error| memory_fault(&error))?;
        }
        let head = round.head(FrameKind::Pages, Some(crc32c::crc32c(&copy)), runs);
        self.write(round, &head, &[], &copy)
    }

    fn write(&self, round: &Round, head: &[u8], runs: &[PageRange], tail: &[u8]) -> Result<(), LinkFault> {
        let patience = self.socket.patience();
        send_pages_within(&round.ram, self.socket.as_fd(), head, runs, tail, patience).map_err(page_fault)
    }
}

/// How many pages go in one chunk: so many that a slow link, too, lets the pump look up often.
#[derive(Debug)]
struct ChunkSize {
    pages: u64,
}

impl ChunkSize {
    /// A chunk that takes less time than this is too small,
    const SHORT: Duration = Duration::from_millis(25);
    /// and one that takes longer than this is too large.
    const LONG: Duration = Duration::from_millis(100);
    const MIN_PAGES: u64 = 16;

    fn new() -> Self {
        Self { pages: MAX_DATA_PAGES / 4 }
    }

    fn pages(&self) -> u64 {
        self.pages
    }

    /// Learns from how long a chunk took.
    fn took(&mut self, time: Duration) {
        if time < Self::SHORT {
            self.pages = (self.pages * 2).min(MAX_DATA_PAGES);
        } else if time > Self::LONG {
            self.pages = (self.pages / 2).max(Self::MIN_PAGES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_memory::{Layout, Span};

    #[test]
    fn chunks_grow_on_a_fast_link_and_shrink_on_a_slow_one() {
        let mut size = ChunkSize::new();
        (0..10).for_each(|_| size.took(Duration::from_millis(1)));
        assert_eq!(size.pages(), MAX_DATA_PAGES);
        size.took(Duration::from_millis(50));
        assert_eq!(size.pages(), MAX_DATA_PAGES);
        (0..20).for_each(|_| size.took(Duration::from_secs(1)));
        assert_eq!(size.pages(), ChunkSize::MIN_PAGES);
    }

    fn round(pages: u64) -> Round {
        let layout = Layout::new(vec![Span { start: 0, length: pages * 4096 }]).unwrap();
        let ram = GuestRam::anonymous(&layout).unwrap();
        Round::new(0, false, ram, &PageSet::full(&layout), None)
    }

    #[test]
    fn lanes_share_a_round_without_gap_or_overlap() {
        let round = round(2500);
        let mut taken: Vec<PageRange> = Vec::new();
        while round.standing() == Standing::Left {
            taken.extend(round.take(600));
        }
        assert_eq!(round.standing(), Standing::Sending);
        taken.sort_by_key(|range| range.first);
        let mut next = 0;
        for range in taken {
            assert_eq!(range.first, next);
            next += range.count;
        }
        assert_eq!(next, 2500);
    }

    #[test]
    fn a_paced_round_rests_after_it_sent() {
        let mut round = round(64);
        round.work.get_mut().unwrap().pace = Some(Pace::new(1 << 20));
        assert!(round.take(64).len() == 1, "a burst of 50 ms");
        let now = round.now();
        round.work.get_mut().unwrap().pace.as_mut().unwrap().spend(now, 1 << 30);
        assert!(matches!(round.standing(), Standing::Resting(rest) if rest > Duration::from_secs(1000)));
        assert!(round.take(64).is_empty());
    }

    #[test]
    fn a_cancelled_round_gives_nothing_more() {
        let round = round(10);
        round.cancel();
        assert!(round.take(1).is_empty());
        assert_eq!(round.standing(), Standing::Done(Sent::default()));
    }
}
