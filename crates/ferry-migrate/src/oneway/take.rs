//! The target of a one-way migration: reads a file or a stream, checks all of it, and takes custody.
//!
//! The decisions are those of a target that answers ([`ferry_protocol::Target`]), but a frame is read only once
//! everything before it was dealt with, and the answers go nowhere.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_contract::{Finding, Verdict};
use ferry_memory::GuestRam;
use ferry_protocol::frame::FrameKind;
use ferry_protocol::journal::{GuestHistory, OfGuest, Record};
use ferry_protocol::message::{Hello, OfEpoch, Reason, ReasonKind, Taken, ToSource, ToTarget};
use ferry_protocol::{
    Cause, Claim, ClaimAnswer, Epoch, GuestId, LinkFault, LinkId, Target, TargetAction, TargetEvent,
    TargetOutcome, TargetPhase, Time, Timeouts,
};
use rustix::event::PollFlags;
use rustix::fs::FlockOperation;

use super::claim;
use super::descriptor::Stream;
use super::reader::{Damage, Next, Reader};
use super::survey::survey_file;
use crate::framing::parse_message;
use crate::intake::{ArrivedState, Intake, Received};
use crate::journal::{Journal, JournalError};
use crate::link::{Socket, is_ready};
use crate::source::sentence;
use crate::target::{Answering, Arrived, Books, Desk, Pump};
use crate::{Builder, Custody, MachineError, Observer};

/// The one link that there is.
const LINK: LinkId = LinkId(1);

/// Where a guest comes from.
#[derive(Debug)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// A pipe or stream socket; what it is called in messages.
    Stream(Stream, String),
}

/// How a guest is taken.
#[derive(Debug, Clone)]
pub struct TakeOptions {
    /// Where this process writes what it must not forget.
    pub journal: Arc<dyn Journal>,
    /// The only guest that is taken; any, if none is named.
    pub expected: Option<GuestId>,
    /// Makes a copy that is born here: the custody stays in the file.
    pub copy: Option<FileCopy>,
    /// How long each wait of a stream may last.
    pub timeouts: Timeouts,
}

/// The copy of a guest: another one, with a name of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCopy {
    /// Its name.
    pub guest: GuestId,
    /// The epoch at which it is born, above any that a guest of this name had.
    pub epoch: Epoch,
}

/// Why no guest was taken. But for [`TakeError::Lost`] the file's custody is where it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The file cannot be opened; to take its custody it must be writable.
    #[error("{} cannot be read: {source}; taking its guest also writes a mark into it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The descriptor cannot be used.
    #[error("{place} cannot be read")]
    Descriptor {
        /// Which one.
        place: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another process has the file's lock.
    #[error("another process is taking the guest of {} just now", .0.display())]
    Busy(PathBuf),
    /// Its custody was taken before.
    #[error(
        "the guest of {} was taken already, by process {} on host `{}` at {} s after 1970: take a copy with \
         --clone, if you want a second guest",
        path.display(), taken.pid, taken.host, taken.unix_seconds
    )]
    Taken {
        /// The file.
        path: PathBuf,
        /// Who took it.
        taken: Taken,
    },
    /// A guest of this name ran on this host under its epoch or a higher one: that of another copy of the
    /// file, or a later one.
    #[error(
        "the guest `{guest}` of {place} has epoch {epoch}, and one of its name had epoch {highest} on this host \
         already: take a copy with --clone and another --id, if you want it all the same"
    )]
    Used {
        /// The file, or what else is read.
        place: String,
        /// The guest.
        guest: GuestId,
        /// Its epoch.
        epoch: Epoch,
        /// The epoch that was used.
        highest: Epoch,
    },
    /// It is cut, garbled, or holds what it should not.
    #[error(transparent)]
    Damaged(Damage),
    /// This host does not take such a guest.
    #[error("{0}")]
    Refused(Cause, Verdict),
    /// It speaks another version of the protocol.
    #[error("{0}")]
    Incompatible(String),
    /// Something else, before custody was taken.
    #[error("the guest was not taken: {0}")]
    NotTaken(String),
    /// A copy of a stream would leave its guest without a holder of its custody.
    #[error("a copy can be made of a file only: a stream can be read once")]
    CloneOfStream,
    /// Custody was taken and the guest does not run: a person decides.
    #[error("custody was taken and the guest does not run: {0}")]
    Lost(String),
}

/// Takes a guest and runs it.
pub fn take<B: Builder>(
    origin: Origin,
    options: TakeOptions,
    builder: &mut B,
    observer: &dyn Observer,
) -> Result<Arrived<B::Machine>, TakeError> {
    let table = Table::open(origin, options)?;
    Pump::new(table, builder, observer).drive().map_err(|(table, error)| table.why(&error))
}

/// A file or stream on the reader's table.
struct Table {
    reader: Reader,
    /// The file, locked, whose custody is to be taken.
    file: Option<File>,
    is_stream: bool,
    copy: Option<FileCopy>,
    books: Books,
    target: Target,
    began: Instant,
    intake: Intake,
    /// The session's end, for the reader's own use.
    next: VecDeque<TargetEvent>,
    opened: bool,
    /// Where the mark is, once it was written.
    marked: Option<u64>,
    end: Option<TakeError>,
}

impl Table {
    fn open(origin: Origin, options: TakeOptions) -> Result<Self, TakeError> {
        let (socket, place, file, is_stream) = match origin {
            Origin::File(path) => {
                let file = open_file(&path, options.copy.is_some())?;
                let failed = |source| TakeError::Open { path: path.clone(), source };
                let reading = file.try_clone().map_err(failed)?;
                let file = options.copy.is_none().then_some(file);
                (Socket::Plain(reading, Duration::ZERO), path.display().to_string(), file, false)
            }
            Origin::Stream(..) if options.copy.is_some() => return Err(TakeError::CloneOfStream),
            Origin::Stream(stream, place) => {
                let socket = stream.into_socket(options.timeouts.silence);
                let failed = |source| TakeError::Descriptor { place: place.clone(), source };
                (socket.map_err(failed)?, place, None, true)
            }
        };
        Ok(Self {
            reader: Reader::new(socket, place),
            file,
            is_stream,
            copy: options.copy,
            target: Target::new(options.journal.instance(), options.expected, options.timeouts),
            books: Books { journal: options.journal, witness: None },
            began: Instant::now(),
            intake: Intake::default(),
            next: VecDeque::new(),
            opened: false,
            marked: None,
            end: None,
        })
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.began.elapsed())
    }

    /// Waits for a stream's next frame: the first as long as it takes, later ones until a deadline.
    fn is_there(&self) -> bool {
        if !self.is_stream {
            return true;
        }
        let forever = Duration::from_secs(60 * 60);
        loop {
            let until = self.target.deadline().filter(|_| self.opened).map(|(at, _)| at.since(self.now()));
            match is_ready(&self.reader.socket, PollFlags::IN, until.unwrap_or(forever)) {
                Ok(false) if until.is_none() => {}
                Ok(ready) => return ready,
                // Reading says what is wrong.
                Err(_) => return true,
            }
        }
    }

    fn read(&mut self) -> Result<TargetEvent, Damage> {
        match self.reader.next()? {
            Next::Frame(FrameKind::ToTarget, head) => {
                let message: ToTarget = parse_message(&head).map_err(|fault| self.reader.fault(&fault))?;
                match &message {
                    ToTarget::RoundEnd(end) => {
                        self.intake.end_round(end).map_err(|fault| self.reader.fault(&fault))?;
                    }
                    ToTarget::Hello(hello) if self.copy.is_none() => self.check_past(hello)?,
                    _ => {}
                }
                if let ToTarget::Custody(of) = message
                    && self.target.phase() == TargetPhase::Ready
                {
                    self.claim(of)?;
                }
                Ok(TargetEvent::Received(LINK, message))
            }
            Next::Frame(kind, head) => {
                let taken = self.intake.take(kind, &head, &self.reader.socket, &mut || ());
                taken.map_err(|fault| self.reader.fault(&fault))?;
                Ok(TargetEvent::Heard(LINK))
            }
            Next::End | Next::Unfinished => {
                Err(self.reader.damage("it ends here, before its custody: it was never finished"))
            }
        }
    }

    /// Whether its epoch can still be taken, by the journals of this host. The process that wrote it, and
    /// those that would have taken it, mention it as well; of a file those that did so marked it.
    fn check_past(&mut self, hello: &Hello) -> Result<(), Damage> {
        let (guest, epoch) = (&hello.guest, hello.epoch);
        let past = match self.books.journal.past() {
            Ok(past) => past,
            Err(error) => {
                self.end.get_or_insert(TakeError::NotTaken(sentence(&error)));
                return Err(self.reader.damage("earlier processes are not known"));
            }
        };
        let may_have = |of: &GuestHistory| self.is_stream && of.may_have_run.contains(&epoch);
        let mut others = past.lives().filter_map(|(_, life)| life.guest(guest));
        let ran = others.any(|of| of.ran >= Some(epoch) || may_have(of)).then_some(epoch);
        let highest = past.floor(guest).filter(|&floor| floor > epoch).or(ran);
        let Some(highest) = highest else { return Ok(()) };
        let place = self.reader.place().to_owned();
        self.end.get_or_insert(TakeError::Used { place, guest: guest.clone(), epoch, highest });
        Err(self.reader.damage("its epoch was used"))
    }

    /// Everything was checked: the mark goes onto the disk before anything runs.
    fn claim(&mut self, of: OfEpoch) -> Result<(), Damage> {
        let Some(file) = &self.file else { return Ok(()) };
        let at = self.reader.end();
        let failed = |error: io::Error| self.reader.damage(format!("it cannot be marked as taken: {error}"));
        if file.metadata().map_err(failed)?.len() != at {
            return Err(self.reader.damage("something follows the custody that begins here"));
        }
        let written = claim::write(file, at, claim::mark(of, self.books.journal.instance()));
        if let Err(error) = written {
            let removed = claim::remove(file, at);
            let also =
                removed.err().map(|error| format!(", and what of it is there cannot be removed: {error}"));
            return Err(self
                .reader
                .damage(format!("it cannot be marked as taken: {error}{}", also.unwrap_or_default())));
        }
        self.marked = Some(at);
        Ok(())
    }

    /// The guest was not taken after all.
    fn not_taken(&mut self, cause: &Cause) {
        let error = match cause {
            Cause::Refused(verdict) => TakeError::Refused(cause.clone(), verdict.clone()),
            Cause::OtherProtocol(text) => TakeError::Incompatible(text.clone()),
            Cause::Misbehaved(text) | Cause::LinkLost(text) => TakeError::Damaged(self.reader.damage(text)),
            Cause::Peer(reason) => TakeError::NotTaken(format!("the source ended the migration: {reason}")),
            other => TakeError::NotTaken(other.to_string()),
        };
        let unmarked = match (self.marked.take(), &self.file) {
            (Some(at), Some(file)) => claim::remove(file, at).map_err(|error| {
                format!("{cause}; the mark in {} cannot be removed: {error}", self.reader.place())
            }),
            _ => Ok(()),
        };
        self.end.get_or_insert(unmarked.map_or_else(TakeError::Lost, |()| error));
    }

    fn why(self, error: &MachineError) -> TakeError {
        self.end.unwrap_or_else(|| TakeError::NotTaken(error.to_string()))
    }
}

impl Desk for Table {
    fn phase(&self) -> TargetPhase {
        self.target.phase()
    }

    fn step(&mut self, event: TargetEvent) -> Vec<TargetAction> {
        let takes = self.target.phase() == TargetPhase::Taking;
        let now = self.now();
        let mut actions = self.target.step(now, event);
        for action in &mut actions {
            match action {
                TargetAction::Finish(TargetOutcome::NotTaken { cause, .. }) => {
                    if takes && self.is_stream {
                        // What the stream brought is in nobody's hands any more.
                        self.end.get_or_insert(TakeError::Lost(cause.to_string()));
                    }
                    self.not_taken(&cause.clone());
                }
                TargetAction::Finish(TargetOutcome::Runs { guest, epoch, .. }) => {
                    if let Some(copy) = &self.copy {
                        (*guest, *epoch) = (copy.guest.clone(), copy.epoch);
                    }
                }
                _ => {}
            }
        }
        actions
    }

    fn next_event(&mut self) -> Result<TargetEvent, MachineError> {
        if self.end.is_some() {
            return Err(MachineError::new("nothing more is read"));
        }
        if let Some(event) = self.next.pop_front() {
            return Ok(event);
        }
        if self.target.phase() == TargetPhase::Running {
            // Nobody lets the guest go: it was, when custody was written.
            return Ok(TargetEvent::LinkLost(LINK, LinkFault::Closed));
        }
        if !self.is_there() {
            return Ok(TargetEvent::Tick);
        }
        if !std::mem::replace(&mut self.opened, true) {
            return Ok(TargetEvent::Opened(LINK));
        }
        match self.read() {
            Ok(event) => Ok(event),
            Err(damage) => {
                let what = damage.what.clone();
                self.end.get_or_insert(TakeError::Damaged(damage));
                Ok(TargetEvent::LinkLost(LINK, LinkFault::Failed(what)))
            }
        }
    }

    /// Nobody hears it. A source that is turned away at its first message leaves no session to end.
    fn send(&mut self, _: LinkId, message: &ToSource) {
        let ended = match message {
            ToSource::Abort(Reason { kind: ReasonKind::Incompatible, text }) => {
                TakeError::Incompatible(text.clone())
            }
            ToSource::Abort(Reason { kind: ReasonKind::Misbehaved, text }) => {
                TakeError::Damaged(self.reader.damage(text))
            }
            ToSource::Abort(reason) => TakeError::NotTaken(reason.text.clone()),
            _ => return,
        };
        self.end.get_or_insert(ended);
    }

    fn close(&mut self, _: LinkId) {}

    fn take_lane(&mut self, _: LinkId) {}

    fn open_intake(&mut self, ram: GuestRam) {
        self.intake.open(ram);
    }

    fn drop_intake(&mut self) {
        self.intake.close();
    }

    fn guest(&self) -> Option<GuestId> {
        self.copy.as_ref().map(|copy| copy.guest.clone()).or_else(|| self.target.session_guest().cloned())
    }

    fn objection(&self) -> Option<Finding> {
        self.books.objection(&self.guest()?, self.target.session_source())
    }

    fn state(&self, sections: u32) -> Result<ArrivedState, String> {
        self.intake.state(sections)
    }

    fn received(&self) -> Received {
        self.intake.received()
    }

    /// Nobody waits for a word: who wrote this has let the guest go, or hears of a broken stream. So
    /// nothing stays open if this process dies. A copy is born.
    fn write(&mut self, record: &Record) -> Result<(), JournalError> {
        let source = self.target.session_source();
        match (&self.copy, record) {
            (Some(copy), Record::MayRun(_)) => {
                let FileCopy { guest, epoch } = copy.clone();
                self.books.write(&Record::Born(OfGuest { guest, epoch }), source)
            }
            (Some(_), _) => Ok(()),
            (None, Record::MayRun(may)) => {
                let of = OfGuest { guest: may.guest.clone(), epoch: may.of.epoch };
                self.books.note(&Record::Released(of));
                self.books.write(record, source)
            }
            (None, _) => self.books.write(record, source),
        }
    }

    /// That it ran lasts: another copy of the file may carry no mark.
    fn note(&mut self, record: &Record) {
        if self.copy.is_none()
            && let Record::Runs(_) = record
            && let Err(error) = self.books.write(record, None)
        {
            tracing::warn!(%error, "the epoch of a guest that was taken");
        }
    }

    fn claim(&mut self, claim: &Claim) -> ClaimAnswer {
        self.books.claim(claim)
    }

    fn custody(&self, guest: GuestId, epoch: Epoch) -> Custody {
        match &self.copy {
            Some(copy) => Custody::born_at(copy.guest.clone(), copy.epoch),
            None => Custody::taken(guest, epoch),
        }
    }

    fn answering(self) -> Result<Option<Answering>, MachineError> {
        Ok(None)
    }
}

/// Opens a file, locks it unless only a copy is wanted, and sees at once whether it can be taken at
/// all: a machine is built only for a file that is whole.
fn open_file(path: &Path, copy: bool) -> Result<File, TakeError> {
    let failed = |source| TakeError::Open { path: path.into(), source };
    let file = OpenOptions::new().read(true).write(!copy).open(path).map_err(failed)?;
    if !copy {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(TakeError::Busy(path.into())),
            other => other.map_err(|errno| failed(errno.into()))?,
        }
    }
    let found = survey_file(&file, path).map_err(failed)?;
    match (found.damage, found.taken) {
        (Some(damage), _) => return Err(TakeError::Damaged(damage)),
        (None, Some(taken)) if !copy => return Err(TakeError::Taken { path: path.into(), taken }),
        _ => {}
    }
    (&file).seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file)
}
