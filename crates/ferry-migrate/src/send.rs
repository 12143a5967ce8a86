//! One round on its way out: pages are classified and sent a chunk at a time, so that between two
//! chunks the pump can hear the peer, the user and the clock.

use ferry_memory::{Classified, GuestRam, PageRange, PageSet, send_pages};
use ferry_protocol::LinkFault;
use ferry_protocol::frame::{FrameKind, MAX_DATA_PAGES, MAX_RANGES, PageHead, WireRange, encode};
use std::os::fd::AsFd;

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

    /// Sends the next chunk: at most [`MAX_DATA_PAGES`] pages. False when nothing is left.
    pub(crate) fn send_chunk(&mut self, ram: &GuestRam, socket: &Socket) -> Result<bool, LinkFault> {
        self.classified.clear();
        let mut pages = 0;
        while let Some(range) = self.left.pop() {
            if pages + range.count > MAX_DATA_PAGES {
                self.left.push(range);
                break;
            }
            ram.classify(range, &mut self.classified)
                .map_err(|error| LinkFault::Failed(error.to_string()))?;
            pages += range.count;
        }
        self.left_pages -= pages;
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
