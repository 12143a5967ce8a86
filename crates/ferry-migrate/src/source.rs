//! The source's pump: it carries out what [`Source`] decides, on one machine and one socket.
//!
//! One thread (the caller's) does all jobs in turn; one more reads the target's messages. Between
//! two chunks of a round the pump looks at messages, deadlines and the user's wishes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use ferry_memory::{GuestRam, PAGE_SIZE, PageSet};
use ferry_protocol::message::ToTarget;
use ferry_protocol::{
    Epoch, LinkFault, Pace, Source, SourceAction, SourceConfig, SourceEvent, SourceOutcome, SourcePhase,
};
use ferry_state::Resources;

use crate::custody::Given;
use crate::journal::Journal;
use crate::lane::Lanes;
use crate::link::Socket;
use crate::oneway::{OpenSink, Sink};
use crate::report::{Observer, Progress, Report};
use crate::send::{LaneSender, Round, Standing};
use crate::turn::Turn;
use crate::{Custody, DiskImage, Harvest, Machine, disk};

mod figures;
mod jobs;
mod options;
mod peer;
mod question;
mod resident;
mod steering;
mod syncs;
mod writing;

use figures::Figures;
pub(crate) use jobs::sentence;
pub use options::MigrateOptions;
use options::{Plan, Route};
use peer::Peer;
pub use question::{Asked, ask};
use steering::Slot;
pub use steering::{Canceller, Decider};
use syncs::Syncs;

/// Messages that may wait for the pump.
const QUEUE: usize = 64;

/// How long a peer that broke the link may still explain itself.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Rounds of at most so many pages go over lane 0 alone.
const FEW_PAGES: u64 = 512;

/// How long the pump waits for lanes that still send before it looks up.
const LOOK_UP: Duration = Duration::from_millis(20);

/// An event from outside the pump, and the link from which it came (0: none).
#[derive(Debug)]
struct Incoming {
    link: u64,
    event: SourceEvent,
}

/// Where the right to run the guest is.
#[derive(Debug)]
enum Holder {
    /// The machine runs under it.
    Machine,
    /// The guest is paused; it is here.
    Pump(Custody),
    /// It was given away.
    Target(Given),
    /// The target runs the guest.
    Gone,
}

/// A migration from this host, about to be made.
#[derive(Debug)]
pub struct Migration {
    options: Plan,
    events: Receiver<Incoming>,
    sender: Sender<Incoming>,
    doubtful: Slot,
}

impl Migration {
    /// A migration that [`run`](Self::run) will make.
    pub fn new(options: MigrateOptions) -> Self {
        let MigrateOptions { address, mut config, journal, witness } = options;
        config.address = address.to_string();
        config.instance = Some(journal.instance());
        Self::planned(Plan { route: Route::Link(address), config, journal, witness, with_disks: false })
    }

    /// A migration into a file or a descriptor, where nobody answers. Once custody was written the guest
    /// is gone from here.
    pub fn one_way(sink: Sink, mut config: SourceConfig, journal: Arc<dyn Journal>) -> Self {
        config.one_way = true;
        config.address = sink.place();
        config.instance = Some(journal.instance());
        let route = Route::OneWay(Some(sink));
        Self::planned(Plan { route, config, journal, witness: None, with_disks: false })
    }

    fn planned(options: Plan) -> Self {
        let (sender, events) = bounded(QUEUE);
        Self { options, events, sender, doubtful: Slot::default() }
    }

    /// The same, and the images of the guest's disks ([`Machine::disk_images`]) move with it; without this the target must
    /// see them where they are.
    #[must_use]
    pub fn with_disks(mut self) -> Self {
        self.options.with_disks = true;
        self
    }

    /// A handle to end it from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(self.sender.clone())
    }

    /// A handle by which a person decides what the two sides could not settle.
    pub fn decider(&self) -> Decider {
        Decider::new(self.sender.clone(), self.doubtful.clone())
    }

    /// Makes the migration and returns when it is over.
    ///
    /// While the outcome is ambiguous it does not return: it says so to the observer and goes on
    /// asking the target. Afterwards the guest runs here (or, with [`SourceOutcome::Held`], is paused
    /// here, and the custody comes back in the second value), or it is gone.
    pub fn run<M: Machine + ?Sized>(
        self,
        machine: &mut M,
        observer: &dyn Observer,
    ) -> (Report, Option<Custody>) {
        let mut options = self.options;
        let disks = machine.disk_images();
        let syncs = Syncs::new(disks.clone(), options.config.downtime_limit);
        let images = if options.with_disks { disks } else { Vec::new() };
        options.config.machine.disks = images.iter().map(|image| image.span()).collect();
        // Disks that cannot be beside the memory are none of a description that can be offered: the source says so.
        let ram = disk::beside(machine.ram(), &images).unwrap_or_else(|_| machine.ram());
        let dirty = PageSet::full(ram.layout());
        options.config.written = resident::written(&ram);
        let mut pump = Pump {
            machine,
            observer,
            source: Source::new(options.config.clone()),
            options,
            sink: None,
            events: self.events,
            sender: self.sender,
            pending: VecDeque::from([]),
            turn: Turn::default(),
            peer: None,
            links: 0,
            holder: Holder::Machine,
            ram,
            images,
            syncs,
            settling: None,
            dirty,
            round: None,
            lane: None,
            lanes: Lanes::default(),
            figures: Figures::new(),
            released: Resources::default(),
            raised: None,
            doubtful: self.doubtful,
            outcome: None,
        };
        pump.drive();
        pump.end()
    }
}

struct Pump<'a, M: Machine + ?Sized> {
    machine: &'a mut M,
    observer: &'a dyn Observer,
    source: Source,
    options: Plan,
    /// What a one-way migration writes to, while it is under way.
    sink: Option<OpenSink>,
    events: Receiver<Incoming>,
    sender: Sender<Incoming>,
    /// Events that this pump's own jobs gave.
    pending: VecDeque<SourceEvent>,
    turn: Turn,
    peer: Option<Peer>,
    /// Links made so far; events of earlier ones are not heard any more.
    links: u64,
    holder: Holder,
    ram: GuestRam,
    /// The images that move with the guest.
    images: Vec<Arc<DiskImage>>,
    /// All of them, on their way to the disk.
    syncs: Syncs,
    /// Until when a harvest waits for them.
    settling: Option<Instant>,
    /// The pages of the next round.
    dirty: PageSet,
    /// The round under way.
    round: Option<Arc<Round>>,
    /// Lane 0: pages over the session's own link.
    lane: Option<LaneSender>,
    /// Lanes with links of their own.
    lanes: Lanes,
    figures: Figures,
    /// What was let go of after the pause: the target is told, and this side takes it again.
    released: Resources,
    /// The higher epoch under which the guest came back.
    raised: Option<Epoch>,
    /// Where custody goes of which it is not known whether it was given.
    doubtful: Slot,
    outcome: Option<SourceOutcome>,
}

impl<M: Machine + ?Sized> Pump<'_, M> {
    fn drive(&mut self) {
        let mut phase = SourcePhase::Connect;
        // Told before the link is made, which may take long.
        self.observer.source_phase(phase);
        self.connect();
        while self.outcome.is_none() {
            let Some(event) = self.next_event() else { continue };
            tracing::trace!(?event, phase = phase.name(), "source");
            self.tell_word(&event);
            for action in self.source.step(self.figures.now(), event) {
                // The phase is told before its first job, so that an observer sees it begin.
                self.tell_phase(&mut phase);
                self.carry_out(action);
            }
            self.tell_phase(&mut phase);
        }
    }

    fn tell_phase(&mut self, told: &mut SourcePhase) {
        let phase = self.source.phase();
        if phase != *told {
            *told = phase;
            tracing::debug!(phase = phase.name(), "source");
            self.observer.source_phase(phase);
            self.tell_progress();
        }
    }

    /// The next event; none if there is none yet, or a chunk of the round under way was sent instead.
    fn next_event(&mut self) -> Option<SourceEvent> {
        if let Some(event) = self.pending.pop_front() {
            return Some(event);
        }
        if self.turn.is_the_deadlines(self.is_late(), self.events.len()) {
            return Some(SourceEvent::Tick);
        }
        if self.round.is_some() {
            return match self.events.try_recv() {
                Ok(incoming) => self.heard(incoming),
                Err(_) => self.go_on(),
            };
        }
        if let Some(until) = self.settling {
            return self.settle(until);
        }
        match self.source.deadline() {
            None => self.events.recv().ok().and_then(|incoming| self.heard(incoming)),
            // None: the deadline is over, or nearly.
            Some((at, _)) => self.listen(at.since(self.figures.now())),
        }
    }

    fn heard(&self, incoming: Incoming) -> Option<SourceEvent> {
        let is_present = self.peer.as_ref().is_some_and(|_| incoming.link == self.links);
        (incoming.link == 0 || is_present).then_some(incoming.event)
    }

    fn is_late(&self) -> bool {
        self.source.deadline().is_some_and(|(at, _)| self.figures.now() >= at)
    }

    fn carry_out(&mut self, action: SourceAction) {
        match action {
            SourceAction::Connect => self.connect(),
            SourceAction::Disconnect => self.disconnect(),
            SourceAction::Send(message) => self.send(&message),
            SourceAction::SendRound { round, last } => self.start_round(round, last),
            SourceAction::Give(of) => self.give(of),
            SourceAction::TakeBack { raise_to } => self.take_back(raise_to),
            SourceAction::ReleaseGuest => {
                self.figures.guest_runs();
                self.holder = Holder::Gone;
            }
            SourceAction::Journal(record) => self.journal(&record),
            SourceAction::Note(record) => self.note(&record),
            SourceAction::Claim(claim) => self.claim(&claim),
            SourceAction::NoteChoiceRefused(text) => self.observer.choice_refused(&text),
            SourceAction::NoteStalled(predicted) => self.observer.stalled(predicted),
            SourceAction::NoteAmbiguous => {
                tracing::warn!("nobody answers who runs the guest");
                self.observer.ambiguous();
            }
            SourceAction::Finish(outcome) => self.outcome = Some(outcome),
            job => self.do_job(&job),
        }
    }

    fn connect(&mut self) {
        self.links += 1;
        let timeouts = &self.options.config.timeouts;
        let made = match &mut self.options.route {
            Route::Link(address) => Socket::connect(address, timeouts.connect)
                .and_then(|socket| Peer::new(socket, self.links, timeouts.silence, self.sender.clone())),
            Route::OneWay(sink) => sink
                .take()
                .ok_or_else(|| "the sink was used already".to_owned())
                .and_then(|sink| sink.open(timeouts.silence))
                .and_then(|(sink, socket)| {
                    self.sink = Some(sink);
                    Peer::one_way(socket).map_err(|error| format!("the sink cannot be used: {error}"))
                }),
        };
        self.pending.push_back(match made {
            Ok((peer, lane)) => {
                (self.peer, self.lane) = (Some(peer), Some(lane));
                SourceEvent::Connected
            }
            Err(text) => SourceEvent::ConnectFailed(text),
        });
    }

    fn disconnect(&mut self) {
        self.drop_lanes();
        self.peer = None;
        // Without custody in it a file is of no use: it is removed.
        self.sink = None;
    }

    fn drop_lanes(&mut self) {
        if let Some(round) = self.round.take() {
            round.cancel();
        }
        self.lane = None;
        self.lanes = Lanes::default();
    }

    fn send(&mut self, message: &ToTarget) {
        let sent = self.peer.as_ref().map_or(Err(LinkFault::Closed), |peer| peer.send(message));
        if let Err(fault) = sent {
            self.lose_link(fault);
        }
    }

    /// A write failed. The peer may have said why before it closed: its message, if it comes, goes
    /// before the fault.
    fn lose_link(&mut self, fault: LinkFault) {
        let Some(peer) = self.peer.take() else { return };
        self.drop_lanes();
        let is_mute = fault == LinkFault::Silent || self.sink.is_some();
        let until = Instant::now() + if is_mute { Duration::ZERO } else { LAST_WORDS };
        while let Ok(incoming) = self.events.recv_deadline(until) {
            let is_present = incoming.link == self.links;
            if is_present && matches!(incoming.event, SourceEvent::LinkLost(_)) {
                break;
            }
            if is_present || incoming.link == 0 {
                self.pending.push_back(incoming.event);
            }
        }
        drop(peer);
        self.pending.push_back(SourceEvent::LinkLost(fault));
    }

    fn start_round(&mut self, number: u32, last: bool) {
        if self.peer.is_none() {
            return; // the link's loss is already on its way to the source
        }
        if number == 0 {
            self.leave_out_untouched();
        }
        if !last {
            self.syncs.begin();
        }
        self.figures.round_starts(last);
        let pace = self.options.config.bandwidth_limit.map(Pace::new);
        let round = Arc::new(Round::new(number, last, self.ram.clone(), &self.dirty, pace));
        // Waking other threads for a few pages costs more than sending them.
        if self.dirty.count() > FEW_PAGES {
            self.lanes.share(&round);
        }
        self.round = Some(round);
        self.dirty.clear();
    }

    /// Sends a chunk of the round under way, or sees that it is over.
    fn go_on(&mut self) -> Option<SourceEvent> {
        let (round, lane) = (self.round.as_ref()?, self.lane.as_mut()?);
        match round.standing() {
            Standing::Left => {
                round.send_chunk(lane);
                self.tell_progress();
                None
            }
            Standing::Resting(rest) => self.listen(rest.min(LOOK_UP)),
            Standing::Sending => {
                round.wait(LOOK_UP);
                None
            }
            Standing::Done(sent) => {
                self.tell_progress();
                self.figures.round_ends(sent);
                self.round = None;
                Some(SourceEvent::RoundSent { data_pages: sent.data_pages, zero_pages: sent.zero_pages })
            }
            Standing::Broken(fault) => {
                self.lose_link(fault);
                None
            }
        }
    }

    /// Waits for an event, but not for long.
    fn listen(&self, at_most: Duration) -> Option<SourceEvent> {
        self.events.recv_timeout(at_most).ok().and_then(|incoming| self.heard(incoming))
    }

    fn tell_progress(&self) {
        let (round, left, sent) = self.round.as_ref().map_or((self.figures.rounds(), 0, 0), |round| {
            let sent = round.sent();
            (round.number(), round.left_pages(), sent.data_pages + sent.zero_pages)
        });
        let totals = self.figures.totals(self.round.as_ref().map(|round| round.sent()));
        self.observer.progress(&Progress {
            phase: self.source.phase(),
            round,
            round_done_bytes: sent * PAGE_SIZE,
            round_left_bytes: left * PAGE_SIZE,
            data_bytes: totals.data_pages * PAGE_SIZE,
            zero_bytes: totals.zero_pages * PAGE_SIZE,
            throughput_bytes_per_second: self.figures.throughput(totals),
            dirty_bytes_per_second: self.figures.dirty_rate(),
            expected_downtime: self.figures.expected_downtime(),
        });
    }

    fn end(mut self) -> (Report, Option<Custody>) {
        self.disconnect();
        for image in &self.images {
            image.stop_tracking();
        }
        let outcome = self.outcome.take().unwrap_or(SourceOutcome::Kept {
            cause: ferry_protocol::Cause::Machine("the migration ended without an outcome".into()),
        });
        let is_doubtful = matches!(outcome, SourceOutcome::Doubtful { .. });
        let mut report =
            self.figures.report(outcome, self.source.verdict().cloned(), self.options.config.epoch);
        report.raised_to = self.raised;
        let custody = match self.holder {
            Holder::Pump(custody) => Some(custody),
            Holder::Target(given) if is_doubtful => {
                self.doubtful.keep(given, std::mem::take(&mut self.released));
                None
            }
            Holder::Machine | Holder::Target(_) | Holder::Gone => None,
        };
        (report, custody)
    }
}
