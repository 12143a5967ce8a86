//! A target's links: accepting them, reading them, closing them, and the decisions fed by them.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use ferry_contract::Finding;
use ferry_memory::GuestRam;
use ferry_protocol::frame::FrameKind;
use ferry_protocol::message::{ToSource, ToTarget};
use ferry_protocol::{
    GuestId, InstanceId, LinkFault, LinkId, Target, TargetAction, TargetEvent, TargetPhase, Time,
};

use super::Books;
use crate::MachineError;
use crate::framing::{parse_message, read_frame, send_message};
use crate::intake::{ArrivedState, Intake, Received};
use crate::link::{Listener, Socket};
use crate::source::sentence;
use crate::turn::Turn;

/// Events that may wait for the pump; readers wait when it is full.
const QUEUE: usize = 64;

/// How long a small message to the source may take to be written.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a closed link may linger, so that the last message reaches a source that still sends.
const LINGER: Duration = Duration::from_secs(1);

/// How long the acceptor waits after a link that could not be accepted.
const BETWEEN_ACCEPTS: Duration = Duration::from_millis(20);

/// How often the journals of earlier processes are read for a question, at the most.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// How often a reader says that page data comes, at most.
const HEARD_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Incoming {
    Accepted(Socket),
    Event(TargetEvent),
    /// The listener does not accept any more.
    Broken(std::io::Error),
}

#[derive(Debug)]
struct Link {
    socket: Arc<Socket>,
    intake: IntakeSlot,
    closing: Arc<AtomicBool>,
}

/// Where a link's data goes: an intake of its own, until it becomes a lane of the session.
type IntakeSlot = Arc<Mutex<Arc<Intake>>>;

/// The links of one target, and its decisions.
#[derive(Debug)]
pub(super) struct Doors {
    target: Target,
    books: Books,
    /// When the journals of earlier processes were read last.
    past_read: Instant,
    began: Instant,
    listener: Arc<Listener>,
    /// Nobody is let in any more.
    over: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
    events: Receiver<Incoming>,
    sender: Sender<Incoming>,
    turn: Turn,
    links: BTreeMap<LinkId, Link>,
    made: u64,
    /// How often a reader says that page data comes.
    heard_every: Duration,
    /// Links that were closed and linger.
    closing: Vec<(Instant, Arc<Socket>)>,
    /// The intake of the session that built a machine last.
    intake: Option<Arc<Intake>>,
}

impl Doors {
    /// Opens them. `silence` is how long a source may be silent while pages cross.
    pub(super) fn open(
        listener: Listener,
        target: Target,
        books: Books,
        silence: Duration,
    ) -> std::io::Result<Self> {
        let (sender, events) = bounded(QUEUE);
        let listener = Arc::new(listener);
        let over = Arc::new(AtomicBool::new(false));
        let (accepting, to_pump, ends) = (Arc::clone(&listener), sender.clone(), Arc::clone(&over));
        let acceptor = std::thread::Builder::new()
            .name("ferry-accept".into())
            .spawn(move || accept_all(&accepting, &to_pump, &ends))?;
        Ok(Self {
            target,
            books,
            past_read: Instant::now(),
            began: Instant::now(),
            listener,
            over,
            acceptor: Some(acceptor),
            events,
            sender,
            turn: Turn::default(),
            links: BTreeMap::new(),
            made: 0,
            heard_every: HEARD_EVERY.min(silence / 4),
            closing: Vec::new(),
            intake: None,
        })
    }

    pub(super) fn phase(&self) -> TargetPhase {
        self.target.phase()
    }

    pub(super) fn step(&mut self, event: TargetEvent) -> Vec<TargetAction> {
        let lost = match &event {
            TargetEvent::LinkLost(link, _) => Some(*link),
            _ => None,
        };
        if let TargetEvent::Received(_, ToTarget::Ask(ask)) = &event {
            self.look_up(ask.instance);
        }
        let now = self.now();
        let actions = self.target.step(now, event);
        // A link that is whole still gets the reason why it ends, and is closed after that: once the refusal is written.
        let is_used = |link| {
            let uses = |action: &TargetAction| matches!(action, TargetAction::Send(on, _) | TargetAction::Close(on) if *on == link);
            actions.iter().any(uses)
        };
        if let Some(link) = lost.filter(|&link| !is_used(link)) {
            self.links.remove(&link);
        }
        actions
    }

    pub(super) fn books(&self) -> &Books {
        &self.books
    }

    /// A question about a process that may have died since this one started: its journal says what
    /// became of it.
    fn look_up(&mut self, instance: InstanceId) {
        let is_own = instance == self.books.journal.instance();
        if is_own || self.past_read.elapsed() < BETWEEN_LOOKS {
            return;
        }
        self.past_read = Instant::now();
        match self.books.journal.past() {
            Ok(past) => self.target = self.target.clone().with_past(past),
            Err(error) => tracing::warn!(error = sentence(&error), "the journals of earlier processes"),
        }
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.began.elapsed())
    }

    /// The next event: a message, a lost link, or a deadline that is over.
    pub(super) fn next_event(&mut self) -> Result<TargetEvent, MachineError> {
        let event = self.next_event_or(&never())?;
        event.ok_or_else(|| MachineError::new("the reception was stopped"))
    }

    /// The same, or nothing when the other side of `stopped` is gone.
    pub(super) fn next_event_or(
        &mut self,
        stopped: &Receiver<()>,
    ) -> Result<Option<TargetEvent>, MachineError> {
        loop {
            let wait = self.reap();
            let is_late = self.target.deadline().is_some_and(|(at, _)| self.now() >= at);
            if self.turn.is_the_deadlines(is_late, self.events.len()) {
                return Ok(Some(TargetEvent::Tick));
            }
            let incoming = select! {
                recv(self.events) -> incoming => incoming.ok(),
                recv(stopped) -> _ => return Ok(None),
                default(wait) => None,
            };
            match incoming {
                Some(Incoming::Event(event)) => return Ok(Some(event)),
                Some(Incoming::Accepted(socket)) => {
                    if let Some(event) = self.admit(socket) {
                        return Ok(Some(event));
                    }
                }
                Some(Incoming::Broken(error)) => {
                    return Err(MachineError::with_source("the listener is broken", error));
                }
                None => {}
            }
        }
    }

    /// Ends links that lingered long enough; gives how long to wait for the next deadline.
    fn reap(&mut self) -> Duration {
        let now = Instant::now();
        self.closing.retain(|(since, socket)| {
            let lingers = now.duration_since(*since) < LINGER;
            if !lingers {
                socket.shutdown(Shutdown::Both);
            }
            lingers
        });
        let deadline = self.target.deadline().map(|(at, _)| at.since(self.now()));
        let lingering = self.closing.first().map(|_| LINGER);
        [deadline, lingering].into_iter().flatten().min().unwrap_or(Duration::from_secs(3600))
    }

    fn admit(&mut self, socket: Socket) -> Option<TargetEvent> {
        self.made += 1;
        let id = LinkId(self.made);
        let link = Link {
            socket: Arc::new(socket),
            intake: IntakeSlot::default(),
            closing: Arc::new(AtomicBool::new(false)),
        };
        let reader = Reader {
            link: id,
            socket: Arc::clone(&link.socket),
            intake: Arc::clone(&link.intake),
            closing: Arc::clone(&link.closing),
            events: self.sender.clone(),
            heard: Instant::now(),
            heard_every: self.heard_every,
        };
        let prepared = link.socket.set_write_timeout(SEND_TIMEOUT);
        let spawned = prepared.and_then(|()| {
            std::thread::Builder::new().name("ferry-target-reader".into()).spawn(move || reader.run())
        });
        match spawned {
            Ok(_) => {
                self.links.insert(id, link);
                Some(TargetEvent::Opened(id))
            }
            Err(error) => {
                tracing::warn!(%error, "a link could not be served");
                None
            }
        }
    }

    pub(super) fn send(&mut self, link: LinkId, message: &ToSource) {
        let Some(Link { socket, .. }) = self.links.get(&link) else { return };
        if let Err(fault) = send_message(socket, FrameKind::ToSource, message) {
            // The reader of the same socket reports the loss.
            tracing::debug!(?fault, message = message.name(), "a message could not be sent");
            socket.shutdown(Shutdown::Both);
        }
    }

    /// Closes a link. What it still sends is read and dropped for a while: closing a socket with
    /// unread bytes would reset it, and the source could miss the last message.
    pub(super) fn close(&mut self, link: LinkId) {
        if let Some(link) = self.links.remove(&link) {
            link.closing.store(true, Ordering::Release);
            link.socket.shutdown(Shutdown::Write);
            self.closing.push((Instant::now(), link.socket));
        }
    }

    /// Carries out an action of a target that has its guest already.
    pub(super) fn answer(&mut self, action: TargetAction) -> Option<TargetEvent> {
        match action {
            TargetAction::Send(link, message) => self.send(link, &message),
            TargetAction::Close(link) => self.close(link),
            TargetAction::Note(record) => self.books.note(&record),
            TargetAction::Journal(record) => {
                let written = self.books.write(&record, self.source()).map_err(|error| sentence(&error));
                return Some(TargetEvent::JournalDone(written));
            }
            other => tracing::error!(?other, "a target that has its guest was asked for a job"),
        }
        None
    }

    /// The session's machine stands: pages may come on its link.
    pub(super) fn open_intake(&mut self, ram: GuestRam) {
        let link = self.target.session_link().and_then(|link| self.links.get(&link));
        self.intake = link.map(|link| intake_of(&link.intake));
        if let Some(intake) = &self.intake {
            intake.open(ram);
        }
    }

    /// The link's pages are those of the session from now on.
    pub(super) fn take_lane(&mut self, link: LinkId) {
        if let (Some(link), Some(intake)) = (self.links.get(&link), &self.intake) {
            intake.add_lane();
            *link.intake.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(intake);
        }
    }

    /// The session's machine is discarded: its memory is let go of.
    pub(super) fn drop_intake(&mut self) {
        if let Some(intake) = self.intake.take() {
            intake.close();
        }
    }

    /// The guest of the present session.
    pub(super) fn guest(&self) -> Option<GuestId> {
        self.target.session_guest().cloned()
    }

    /// Why the guest of the present session cannot be taken under its name.
    pub(super) fn objection(&self) -> Option<Finding> {
        self.books.objection(self.target.session_guest()?, self.source())
    }

    /// The source's process, as the offer of the present session names it.
    pub(super) fn source(&self) -> Option<InstanceId> {
        self.target.session_source()
    }

    pub(super) fn state(&self, sections: u32) -> Result<ArrivedState, String> {
        self.intake.as_ref().ok_or("no state came")?.state(sections)
    }

    pub(super) fn received(&self) -> Received {
        self.intake.as_ref().map(|intake| intake.received()).unwrap_or_default()
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.listener.close();
        let lingering = self.closing.iter().map(|(_, socket)| socket);
        for socket in self.links.values().map(|link| &link.socket).chain(lingering) {
            socket.shutdown(Shutdown::Both);
        }
        // The acceptor may wait for room in the queue: make some until it is gone.
        if let Some(acceptor) = self.acceptor.take() {
            while !acceptor.is_finished() {
                let _ = self.events.recv_timeout(Duration::from_millis(1));
            }
            if acceptor.join().is_err() {
                tracing::error!("the acceptor panicked");
            }
        }
    }
}

fn accept_all(listener: &Listener, events: &Sender<Incoming>, ends: &AtomicBool) {
    // Without a free descriptor a closed listener does not say that it is closed.
    while !ends.load(Ordering::Acquire) {
        let (incoming, over) = match listener.accept() {
            Ok(socket) => (Incoming::Accepted(socket), false),
            Err(error) if is_final(&error) => (Incoming::Broken(error), true),
            Err(error) => {
                // Of one connection, or for want of descriptors or memory: others may have better luck
                // in a moment.
                tracing::warn!(%error, "a link could not be accepted");
                let _ = never::<()>().recv_timeout(BETWEEN_ACCEPTS);
                continue;
            }
        };
        if events.send(incoming).is_err() || over {
            return;
        }
    }
}

/// Errors of the listener itself (`accept(2)`: it does not listen any more), not of one connection.
fn is_final(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::INVAL | Errno::BADF | Errno::NOTSOCK | Errno::OPNOTSUPP))
}

/// Reads one link until it ends.
struct Reader {
    link: LinkId,
    socket: Arc<Socket>,
    intake: IntakeSlot,
    closing: Arc<AtomicBool>,
    events: Sender<Incoming>,
    /// When it last said that page data comes.
    heard: Instant,
    heard_every: Duration,
}

impl Reader {
    fn run(mut self) {
        loop {
            let read = self.read_one();
            if self.closing.load(Ordering::Acquire) {
                let Self { socket, .. } = self; // the guest's memory is not kept for this
                return drain(&socket);
            }
            let event = match read {
                Ok(Some(message)) => TargetEvent::Received(self.link, message),
                Ok(None) => continue,
                Err(fault) => TargetEvent::LinkLost(self.link, fault),
            };
            let over = matches!(event, TargetEvent::LinkLost(..));
            // The link itself is whole, and the source is to hear why it ends.
            let lingers =
                matches!(event, TargetEvent::LinkLost(_, LinkFault::Garbled(_) | LinkFault::Machine(_)));
            let told = self.events.send(Incoming::Event(event)).is_ok();
            if told && lingers {
                let Self { socket, .. } = self;
                return drain(&socket);
            }
            if over || !told {
                return;
            }
        }
    }

    /// A message, or none when data was taken.
    fn read_one(&mut self) -> Result<Option<ToTarget>, LinkFault> {
        let (kind, head) = read_frame(&self.socket)?;
        if kind != FrameKind::ToTarget {
            let intake = intake_of(&self.intake);
            let socket = Arc::clone(&self.socket);
            return intake.take(kind, &head, &socket, &mut || self.tell_heard()).map(|()| None);
        }
        let message = parse_message::<ToTarget>(&head)?;
        if let ToTarget::RoundEnd(end) = &message {
            intake_of(&self.intake).end_round(end)?;
        }
        Ok(Some(message))
    }

    /// Says now and then that data comes. A pump that is gone is found out at the next message.
    fn tell_heard(&mut self) {
        if self.heard.elapsed() >= self.heard_every {
            self.heard = Instant::now();
            let _ = self.events.send(Incoming::Event(TargetEvent::Heard(self.link)));
        }
    }
}

fn intake_of(slot: &IntakeSlot) -> Arc<Intake> {
    Arc::clone(&slot.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Reads and drops what still comes on a closed link; the pump ends it for good.
fn drain(mut socket: &Socket) {
    let mut dropped = [0; 16 * 1024];
    let began = Instant::now();
    while began.elapsed() < LINGER && socket.read(&mut dropped).is_ok_and(|read| read > 0) {}
}

#[cfg(test)]
mod tests {
    use ferry_protocol::Timeouts;

    use super::*;
    use crate::journal::Volatile;

    #[test]
    fn a_deadline_has_its_turn_however_much_comes() {
        let instance = InstanceId(1);
        let target = Target::new(instance, None, Timeouts { hello: Duration::ZERO, ..Timeouts::default() });
        let books = Books { journal: Arc::new(Volatile::new(instance)), witness: None };
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap(), false).unwrap();
        let mut doors = Doors::open(listener, target, books, Duration::from_secs(1)).unwrap();
        doors.step(TargetEvent::Opened(LinkId(7)));
        let come = |doors: &Doors| {
            doors.sender.send(Incoming::Event(TargetEvent::Heard(LinkId(9)))).unwrap();
        };
        for _ in 0..QUEUE / 2 {
            come(&doors);
        }
        let heard_first = (0..QUEUE).take_while(|_| {
            come(&doors);
            doors.next_event().unwrap() != TargetEvent::Tick
        });
        assert_eq!(heard_first.count(), QUEUE / 2 + 1, "what had come, and no more");
    }
}
