//! One round on its way out: pages are classified and sent a chunk at a time, so that between two
//! chunks the pump can hear the peer, the user and the clock.

use ferry_memory::{Classified, GuestRam, PageRange, PageSet, send_pages};
use ferry_protocol::LinkFault;
use ferry_protocol::frame::{FrameKind, MAX_DATA_PAGES, MAX_RANGES, PageHead, WireRange, encode};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::framing::page_fault;
use crate::link::Socket;

/// One round of one migration.
#[derive(Debug)]
pub(crate) struct Round {
    number: u32,
    last: bool,
    /// What is still to be sent, the next at the end.
    left: Vec<PageRange>,
    left_pages: u64,
    sent: Sent,
    classified: Classified,
}

/// How many pages go in one chunk: so many that a slow link, too, lets the pump look up often.
#[derive(Debug)]
pub(crate) struct ChunkSize {
    pages: u64,
}

impl ChunkSize {
    /// A chunk that takes less time than this is too small,
    const SHORT: Duration = Duration::from_millis(25);
    /// and one that takes longer than this is too large.
    const LONG: Duration = Duration::from_millis(100);
    const MIN_PAGES: u64 = 16;

    pub(crate) fn new() -> Self {
        Self { pages: MAX_DATA_PAGES / 4 }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Learns from how long a chunk took.
    pub(crate) fn took(&mut self, time: Duration) {
        if time < Self::SHORT {
            self.pages = (self.pages * 2).min(MAX_DATA_PAGES);
        } else if time > Self::LONG {
            self.pages = (self.pages / 2).max(Self::MIN_PAGES);
        }
    }
}

/// What a round has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) data_pages: u64,
    pub(crate) zero_pages: u64,
}

impl Round {
    pub(crate) fn new(number: u32, last: bool, pages: &PageSet) -> Self {
        let mut left: Vec<_> = pages.chunks(MAX_DATA_PAGES).collect();
        left.reverse();
        let left_pages = pages.count();
        Self { number, last, left, left_pages, sent: Sent::default(), classified: Classified::new() }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn left_pages(&self) -> u64 {
        self.left_pages
    }

    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }

    /// Sends the next chunk: at most so many pages, [`MAX_DATA_PAGES`] the most. False when nothing is
    /// left.
    pub(crate) fn send_chunk(
        &mut self,
        ram: &GuestRam,
        socket: &Socket,
        chunk_pages: u64,
    ) -> Result<bool, LinkFault> {
        self.classified.clear();
        let mut room = chunk_pages.clamp(1, MAX_DATA_PAGES);
        while room > 0
            && let Some(PageRange { first, count }) = self.left.pop()
        {
            let here = PageRange { first, count: count.min(room) };
            if here.count < count {
                self.left.push(PageRange { first: first + here.count, count: count - here.count });
            }
            ram.classify(here, &mut self.classified).map_err(|error| LinkFault::Failed(error.to_string()))?;
            room -= here.count;
            self.left_pages -= here.count;
        }
        self.send_zeros(ram, socket)?;
        for runs in self.classified.data_runs().chunks(MAX_RANGES) {
            // In the last round nothing writes any more, so the data can be summed before it is sent.
            let checksum = if self.last { Some(ram.checksum(runs)) } else { None };
            let checksum = checksum.transpose().map_err(|error| LinkFault::Failed(error.to_string()))?;
            let head = self.head(FrameKind::Pages, checksum, runs);
            send_pages(ram, socket.as_fd(), &head, runs, &[]).map_err(page_fault)?;
        }
        self.sent.data_pages += self.classified.data_pages();
        self.sent.zero_pages += self.classified.zero_pages();
        Ok(!self.left.is_empty())
    }

    fn send_zeros(&self, ram: &GuestRam, socket: &Socket) -> Result<(), LinkFault> {
        for runs in self.classified.zero_runs().chunks(MAX_RANGES) {
            let head = self.head(FrameKind::Zeros, None, runs);
            send_pages(ram, socket.as_fd(), &head, &[], &[]).map_err(page_fault)?;
        }
        Ok(())
    }

    fn head(&self, kind: FrameKind, checksum: Option<u32>, runs: &[PageRange]) -> Vec<u8> {
        let ranges = runs.iter().map(|run| WireRange { first: run.first, count: run.count }).collect();
        encode(kind, &PageHead { round: self.number, checksum, ranges }.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
