//! What arrives on a target's link besides messages: pages go into guest memory, sections are kept
//! until the state is complete.
//!
//! The link's reader thread works here alone; the pump opens the intake when the machine is built and
//! fetches the sections at the end. Everything that comes is held against the bounds and against
//! what the source says that it sent.

use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ferry_memory::{GuestRam, Layout, PageRange, PageSet, receive_pages_within};
use ferry_protocol::LinkFault;
use ferry_protocol::frame::{FrameKind, PageHead};
use ferry_protocol::message::RoundEnd;
use ferry_state::{MAX_SECTIONS, MachineState, Part, Resources, Section, StateError};

use crate::device::PREFIX;
use crate::framing::{garbled, memory_fault, page_fault};
use crate::link::Socket;

/// The most bytes of all sections together: 4096 vCPUs hold about 64 MiB.
pub(crate) const MAX_STATE_BYTES: usize = 256 * 1024 * 1024;

/// Pages that are received at once: at 26 kB a second a piece still comes in ten seconds.
const PIECE_PAGES: u64 = 64;

/// Where pages and sections of one session go. Closed until the machine stands.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    state: Mutex<Taking>,
    /// A frame was taken, a round ended, or the intake was closed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Taking {
    open: Option<Open>,
    /// Pages come over several links: a round may end on one before all of it came on the others.
    several: bool,
    /// The session is over: readers that wait give up.
    closed: bool,
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

/// A complete state.
#[derive(Debug)]
pub(crate) struct ArrivedState {
    /// What goes to the vCPUs and the VM.
    pub(crate) machine: MachineState,
    /// What goes to the devices.
    pub(crate) devices: MachineState,
    /// What the source let go of.
    pub(crate) resources: Resources,
}

impl Intake {
    /// The machine stands: its pages may come.
    pub(crate) fn open(&self, ram: GuestRam) {
        let written = PageSet::empty(ram.layout());
        self.lock().open = Some(Open {
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

    /// One more link brings pages.
    pub(crate) fn add_lane(&self) {
        self.lock().several = true;
    }

    /// The session is over: whoever waits here for other lanes does so no more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Takes what a frame carries that is no message. `tell` is called whenever some of it came.
    pub(crate) fn take(
        &self,
        kind: FrameKind,
        head: &[u8],
        socket: &Socket,
        tell: &mut dyn FnMut(),
    ) -> Result<(), LinkFault> {
        tell();
        match kind {
            FrameKind::Section => {
                let mut state = self.lock();
                state.opened("a section came before the machine was built")?.take_section(head)
            }
            FrameKind::Pages => self.take_pages(&parse(kind, head)?, socket, tell),
            FrameKind::Zeros => {
                let head = parse(kind, head)?;
                self.await_round(head.round)?.opened("the machine was not built")?.take_zeros(&head)?;
                self.changed.notify_all();
                Ok(())
            }
            FrameKind::ToTarget | FrameKind::ToSource => Err(not_now("a message came as data")),
        }
    }

    /// The data goes into guest memory without the lock, so that lanes do not wait for each other.
    fn take_pages(&self, head: &PageHead, socket: &Socket, tell: &mut dyn FnMut()) -> Result<(), LinkFault> {
        let (ram, runs) = {
            let mut round = self.await_round(head.round)?;
            let open = round.opened("pages came before the machine was built")?;
            (open.ram.clone(), open.runs(head)?)
        };
        // Piece by piece: on a slow link a whole frame takes longer than a source may be silent.
        for piece in pieces(&runs) {
            receive_pages_within(&ram, socket.as_fd(), &piece, socket.patience()).map_err(page_fault)?;
            tell();
        }
        if let Some(expected) = head.checksum {
            check_data(&ram, &runs, expected)?;
        }
        let mut state = self.lock();
        let open = state.opened("pages came before the machine was built")?;
        open.without_checksum |= head.checksum.is_none();
        for &run in &runs {
            open.written.insert(run);
            open.data_pages += run.count;
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until every page of a round has come, over whatever lane, and holds its totals against
    /// what arrived.
    pub(crate) fn end_round(&self, end: &RoundEnd) -> Result<(), LinkFault> {
        let mut state = self.lock();
        loop {
            let may_wait = state.several && !state.closed;
            let open = state.opened("a round ended before it began")?;
            let is_short = open.data_pages < end.data_pages || open.zero_pages < end.zero_pages;
            if !(may_wait && is_short) {
                open.end_round(end)?;
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until a round is under way: a lane may be ahead of the others.
    fn await_round(&self, round: u32) -> Result<MutexGuard<'_, Taking>, LinkFault> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(not_now("the session is over"));
            }
            let ahead = u32::from(state.several);
            let open = state.opened("pages came before the machine was built")?;
            if open.last_round_done || !(open.round..=open.round.saturating_add(ahead)).contains(&round) {
                return Err(not_now("pages of another round came"));
            }
            if round == open.round {
                return Ok(state);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The complete state, by whom it is for.
    pub(crate) fn state(&self, sections: u32) -> Result<ArrivedState, String> {
        let mut state = self.lock();
        let open = state.open.as_mut().ok_or("no state came")?;
        let all = std::mem::take(&mut open.sections);
        if u32::try_from(all.len()) != Ok(sections) {
            return Err(format!("the state has {sections} sections, {} arrived", all.len()));
        }
        let (resources, rest): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|section: &Section| (section.name.as_str(), section.index) == (Resources::NAME, 0));
        let (devices, machine) = rest.into_iter().partition(|section| section.name.starts_with(PREFIX));
        let state = |sections| MachineState::from_sections(sections).map_err(|error| error.to_string());
        let resources = state(resources)?.require(0).map_err(|error| error.to_string())?;
        Ok(ArrivedState { machine: state(machine)?, devices: state(devices)?, resources })
    }

    pub(crate) fn received(&self) -> Received {
        self.lock().open.as_ref().map(|open| open.received).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Taking> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taking {
    fn opened(&mut self, otherwise: &str) -> Result<&mut Open, LinkFault> {
        self.open.as_mut().ok_or_else(|| not_now(otherwise))
    }
}

impl Open {
    fn end_round(&mut self, end: &RoundEnd) -> Result<(), LinkFault> {
        if (end.data_pages, end.zero_pages) != (self.data_pages, self.zero_pages) {
            return Err(LinkFault::Garbled(format!(
                "round {} has {} pages of data and {} of zeros, {} and {} arrived",
                end.round, end.data_pages, end.zero_pages, self.data_pages, self.zero_pages
            )));
        }
        if std::mem::take(&mut self.without_checksum) && end.last {
            return Err(LinkFault::Garbled("pages of the last round came without a checksum".into()));
        }
        self.received.data_pages += self.data_pages;
        self.received.zero_pages += self.zero_pages;
        self.received.rounds += 1;
        self.round = self.round.saturating_add(1);
        (self.data_pages, self.zero_pages) = (0, 0);
        self.last_round_done = end.last;
        Ok(())
    }

    fn take_zeros(&mut self, head: &PageHead) -> Result<(), LinkFault> {
        for run in self.runs(head)? {
            self.zero_pages += run.count;
            let pages = run.first..run.first + run.count;
            let mut written = pages.filter(|&page| self.written.contains(page)).peekable();
            while let Some(first) = written.next() {
                let mut zeros = PageRange { first, count: 1 };
                while written.next_if(|&page| zeros.end() == Some(page)).is_some() {
                    zeros.count += 1;
                }
                self.ram.zero(zeros).map_err(|error| memory_fault(&error))?;
            }
        }
        Ok(())
    }

    /// The frame's ranges, each inside one region of memory.
    fn runs(&self, head: &PageHead) -> Result<Vec<PageRange>, LinkFault> {
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

fn check_data(ram: &GuestRam, runs: &[PageRange], expected: u32) -> Result<(), LinkFault> {
    let found = ram.checksum(runs).map_err(|error| memory_fault(&error))?;
    if found == expected {
        return Ok(());
    }
    let first = runs.first().map_or(0, |range| range.first);
    Err(LinkFault::Garbled(format!(
        "pages from frame {first:#x} on arrived with checksum {found:08x}, not {expected:08x}"
    )))
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
