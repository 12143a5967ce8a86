//! What arrives on a target's link besides messages: pages go into guest memory, sections are kept
//! until the state is complete.
//!
//! The link's reader thread works here alone; the pump opens the intake when the machine is built and
//! fetches the sections at the end. Everything that comes is held against the bounds and against
//! what the source says that it sent.

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use ferry_memory::{GuestRam, Layout, PageRange, PageSet, receive_pages};
use ferry_protocol::LinkFault;
use ferry_protocol::frame::{FrameKind, PageHead};
use ferry_protocol::message::RoundEnd;
use ferry_state::{MAX_SECTIONS, MachineState, Section, StateError};

use crate::framing::{garbled, page_fault};
use crate::link::Socket;

/// The most bytes of all sections together: 4096 vCPUs hold about 64 MiB.
const MAX_STATE_BYTES: usize = 256 * 1024 * 1024;

/// Pages that are received at once: at 26 kB a second a piece still comes in ten seconds.
const PIECE_PAGES: u64 = 64;

/// Where pages and sections of one link go. Closed until the machine stands.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    ram: GuestRam,
    /// Pages that ever held data: only these need zeroing when a range of zeros comes.
    written: PageSet,
    round: u32,
    data_pages: u64,
    zero_pages: u64,
    /// Pages of this round came without a checksum.
    without_checksum: bool,
    last_round_done: bool,
    sections: Vec<Section>,
    state_bytes: usize,
    received: Received,
}

/// Totals of what arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Pages whose data came.
    pub data_pages: u64,
    /// Pages that came as zeros.
    pub zero_pages: u64,
    /// Rounds, the last one included.
    pub rounds: u32,
}

impl Intake {
    /// The machine stands: its pages may come.
    pub(crate) fn open(&self, ram: GuestRam) {
        let written = PageSet::empty(ram.layout());
        *self.lock() = Some(Open {
            ram,
            written,
            round: 0,
            data_pages: 0,
            zero_pages: 0,
            without_checksum: false,
            last_round_done: false,
            sections: Vec::new(),
            state_bytes: 0,
            received: Received::default(),
        });
    }

    /// Takes what a frame carries that is no message. `tell` is called whenever some of it came.
    pub(crate) fn take(
        &self,
        kind: FrameKind,
        head: &[u8],
        socket: &Socket,
        tell: &mut dyn FnMut(),
    ) -> Result<(), LinkFault> {
        let mut guard = self.lock();
        let open =
            guard.as_mut().ok_or_else(|| not_now("pages or state came before the machine was built"))?;
        tell();
        match kind {
            FrameKind::Section => open.take_section(head),
            FrameKind::Pages => open.take_pages(&parse(kind, head)?, socket, tell),
            FrameKind::Zeros => open.take_zeros(&parse(kind, head)?),
            FrameKind::ToTarget | FrameKind::ToSource => Err(not_now("a message came as data")),
        }
    }

    /// Holds a round's totals against what arrived.
    pub(crate) fn end_round(&self, end: &RoundEnd) -> Result<(), LinkFault> {
        let mut guard = self.lock();
        let open = guard.as_mut().ok_or_else(|| not_now("a round ended before it began"))?;
        if (end.data_pages, end.zero_pages) != (open.data_pages, open.zero_pages) {
            return Err(LinkFault::Garbled(format!(
                "round {} has {} pages of data and {} of zeros, {} and {} arrived",
                end.round, end.data_pages, end.zero_pages, open.data_pages, open.zero_pages
            )));
        }
        if std::mem::take(&mut open.without_checksum) && end.last {
            return Err(LinkFault::Garbled("pages of the last round came without a checksum".into()));
        }
        open.received.data_pages += open.data_pages;
        open.received.zero_pages += open.zero_pages;
        open.received.rounds += 1;
        open.round = open.round.saturating_add(1);
        (open.data_pages, open.zero_pages) = (0, 0);
        open.last_round_done = end.last;
        Ok(())
    }

    /// The complete state: what goes to the VM, and what to its devices.
    pub(crate) fn state(&self, sections: u32) -> Result<(MachineState, MachineState), String> {
        let mut guard = self.lock();
        let open = guard.as_mut().ok_or("no state came")?;
        let all = std::mem::take(&mut open.sections);
        if u32::try_from(all.len()) != Ok(sections) {
            return Err(format!("the state has {sections} sections, {} arrived", all.len()));
        }
        let (devices, machine) =
            all.into_iter().partition(|section: &Section| section.name.starts_with("device/"));
        let state = |sections| MachineState::from_sections(sections).map_err(|error| error.to_string());
        Ok((state(machine)?, state(devices)?))
    }

    pub(crate) fn received(&self) -> Received {
        self.lock().as_ref().map(|open| open.received).unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn take_pages(
        &mut self,
        head: &PageHead,
        socket: &Socket,
        tell: &mut dyn FnMut(),
    ) -> Result<(), LinkFault> {
        let runs = self.runs(head)?;
        // Piece by piece: on a slow link a whole frame takes longer than a source may be silent.
        for piece in pieces(&runs) {
            receive_pages(&self.ram, socket.as_fd(), &piece).map_err(page_fault)?;
            tell();
        }
        if head.checksum.is_none() {
            self.without_checksum = true;
        }
        if let Some(expected) = head.checksum {
            let found = self.ram.checksum(&runs).map_err(|error| LinkFault::Garbled(error.to_string()))?;
            if found != expected {
                let first = head.ranges.first().map_or(0, |range| range.first);
                return Err(LinkFault::Garbled(format!(
                    "pages from frame {first:#x} on arrived with checksum {found:08x}, not {expected:08x}"
                )));
            }
        }
        for &run in &runs {
            self.written.insert(run);
            self.data_pages += run.count;
        }
        Ok(())
    }

    fn take_zeros(&mut self, head: &PageHead) -> Result<(), LinkFault> {
        for run in self.runs(head)? {
            self.zero_pages += run.count;
            for page in run.first..run.first + run.count {
                if self.written.contains(page) {
                    let page = PageRange { first: page, count: 1 };
                    self.ram.zero(page).map_err(|error| LinkFault::Garbled(error.to_string()))?;
                }
            }
        }
        Ok(())
    }

    /// The frame's ranges, each inside one region of memory, of the round that is under way.
    fn runs(&self, head: &PageHead) -> Result<Vec<PageRange>, LinkFault> {
        if self.last_round_done || head.round != self.round {
            return Err(not_now("pages of another round came"));
        }
        let layout: &Layout = self.ram.layout();
        let run = |range: &ferry_protocol::frame::WireRange| {
            let run = PageRange { first: range.first, count: range.count };
            let outside = || {
                LinkFault::Garbled(format!(
                    "{} pages from frame {:#x} on lie outside guest memory",
                    run.count, run.first
                ))
            };
            if layout.contains(run) { Ok(run) } else { Err(outside()) }
        };
        head.ranges.iter().map(run).collect()
    }

    fn take_section(&mut self, head: &[u8]) -> Result<(), LinkFault> {
        self.state_bytes += head.len();
        if !self.last_round_done || self.sections.len() >= MAX_SECTIONS || self.state_bytes > MAX_STATE_BYTES
        {
            return Err(not_now("a section of the state came too early, or too many came"));
        }
        let section =
            Section::from_bytes(head).map_err(|error: StateError| LinkFault::Garbled(error.to_string()))?;
        self.sections.push(section);
        Ok(())
    }
}

/// The runs cut into pieces of at most [`PIECE_PAGES`] pages, in order.
fn pieces(runs: &[PageRange]) -> Vec<Vec<PageRange>> {
    let mut pieces = Vec::new();
    let (mut piece, mut room) = (Vec::new(), PIECE_PAGES);
    for &PageRange { mut first, mut count } in runs {
        while count > 0 {
            let here = count.min(room);
            piece.push(PageRange { first, count: here });
            (first, count, room) = (first + here, count - here, room - here);
            if room == 0 {
                pieces.push(std::mem::take(&mut piece));
                room = PIECE_PAGES;
            }
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

fn parse(kind: FrameKind, head: &[u8]) -> Result<PageHead, LinkFault> {
    PageHead::parse(kind, head).map_err(|error| garbled(&error))
}

fn not_now(text: &str) -> LinkFault {
    LinkFault::Garbled(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_the_same_pages_in_the_same_order() {
        let run = |first, count| PageRange { first, count };
        assert!(pieces(&[]).is_empty());
        assert_eq!(pieces(&[run(5, 3), run(9, 1)]), [[run(5, 3), run(9, 1)]]);
        let cut = pieces(&[run(0, 50), run(300, 250)]);
        let sizes: Vec<u64> = cut.iter().map(|piece| piece.iter().map(|run| run.count).sum()).collect();
        assert_eq!(sizes, [64, 64, 64, 64, 44]);
        let pages = |runs: &[PageRange]| -> Vec<u64> {
            runs.iter().flat_map(|run| run.first..run.first + run.count).collect()
        };
        let all: Vec<PageRange> = cut.concat();
        assert_eq!(pages(&all), pages(&[run(0, 50), run(300, 250)]));
    }
}
