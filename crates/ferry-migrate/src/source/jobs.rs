//! The source's jobs on its machine, each answered by one event.

use std::time::{Duration, Instant};

use crossbeam_channel::never;
use ferry_memory::PageSet;
use ferry_protocol::frame::{FrameKind, encode};
use ferry_protocol::message::OfEpoch;
use ferry_protocol::{LinkFault, SourceAction, SourceEvent};
use ferry_state::{MachineState, Part, Resources, Section};

use super::syncs::Standing;
use super::{Custody, Harvest, Holder, LOOK_UP, Machine, Pump, Route};
use crate::MachineError;
use crate::device::PREFIX;
use crate::framing::io_fault;
use crate::lane::{LaneTerms, Lanes};

/// How long a target may take to let go of the resources of a guest that it does not get.
const LETTING_GO: Duration = Duration::from_secs(2);

/// How long a source waits before it tries again to take them.
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

impl<M: Machine + ?Sized> Pump<'_, M> {
    pub(super) fn do_job(&mut self, job: &SourceAction) {
        let began = Instant::now();
        let done = match job {
            SourceAction::OpenLanes { lanes } => Ok(self.open_lanes(*lanes)),
            SourceAction::StartLog => {
                for image in &self.images {
                    image.start_tracking();
                }
                self.machine.start_dirty_tracking().map(|()| Some(SourceEvent::LogStarted))
            }
            SourceAction::StopLog => {
                for image in &self.images {
                    image.stop_tracking();
                }
                if let Err(error) = self.machine.stop_dirty_tracking() {
                    tracing::warn!(error = sentence(&error), "dirty tracking could not be ended");
                }
                Ok(None)
            }
            SourceAction::Harvest { last: true } => self.harvest_all(true).map(harvested).map(Some),
            SourceAction::Harvest { last: false } => self.harvest(),
            SourceAction::Pause => self.pause(),
            SourceAction::ReleaseResources => self.machine.release_resources().map(|released| {
                self.released = released;
                Some(SourceEvent::ResourcesReleased)
            }),
            SourceAction::HashMemory => self.hash_memory(),
            SourceAction::SendState => self.send_state(),
            SourceAction::Seal => self.seal(),
            SourceAction::Resume { take_resources } => self.resume(*take_resources),
            // Carried out by the pump itself.
            _ => Ok(None),
        };
        self.figures.job_took(job, began.elapsed());
        match done {
            Ok(event) => self.pending.extend(event),
            Err(error) => {
                tracing::warn!(?job, error = sentence(&error), "a job failed");
                self.pending.push_back(SourceEvent::Failed(sentence(&error)));
            }
        }
    }

    fn open_lanes(&mut self, lanes: u8) -> Option<SourceEvent> {
        let config = &self.options.config;
        let Route::Link(address) = &self.options.route else {
            return Some(SourceEvent::Failed("a one-way migration has one lane".into()));
        };
        let terms = LaneTerms {
            address,
            of: OfEpoch { session: config.session, epoch: config.epoch },
            connect: config.timeouts.connect,
            hello: config.timeouts.hello,
            silence: config.timeouts.silence,
        };
        match Lanes::open(lanes, &terms) {
            Ok(lanes) => {
                self.lanes = lanes;
                Some(SourceEvent::LanesOpen)
            }
            Err(fault) => {
                self.lose_link(fault);
                None
            }
        }
    }

    /// While the guest runs a harvest waits for the disks, for the pause may come after it; but not so long that the
    /// target takes this source for dead.
    fn harvest(&mut self) -> Result<Option<SourceEvent>, MachineError> {
        if self.syncs.are_none() {
            return self.harvest_all(false).map(harvested).map(Some);
        }
        self.syncs.begin();
        self.settling = Some(Instant::now() + self.options.config.timeouts.silence / 4);
        Ok(None)
    }

    /// Harvests once the disks have what the guest wrote, or when it was waited for long enough. None if something else
    /// comes first.
    pub(super) fn settle(&mut self, until: Instant) -> Option<SourceEvent> {
        let done = match self.syncs.standing() {
            Standing::Failed(error) => Err(error),
            Standing::Done { is_fresh: true } => self.harvest_all(false).map(harvested),
            _ if Instant::now() >= until => {
                let sync = self.syncs.for_how_long();
                self.harvest_all(false).map(|dirty_pages| SourceEvent::DisksBehind { dirty_pages, sync })
            }
            standing => {
                if let Standing::Done { .. } = standing {
                    self.syncs.begin();
                }
                return self.listen_and_sync(until);
            }
        };
        self.settling = None;
        Some(done.unwrap_or_else(|error| {
            tracing::warn!(error = sentence(&error), "a job failed");
            SourceEvent::Failed(sentence(&error))
        }))
    }

    /// Waits for an event, or for the disks, but not for ever.
    fn listen_and_sync(&mut self, until: Instant) -> Option<SourceEvent> {
        let at_most = until.saturating_duration_since(Instant::now()).min(LOOK_UP);
        crossbeam_channel::select! {
            recv(self.events) -> incoming => incoming.ok().and_then(|incoming| self.heard(incoming)),
            recv(self.syncs.answers()) -> answer => {
                if let Ok(answer) = answer {
                    self.syncs.heard(answer);
                }
                None
            }
            default(at_most) => None,
        }
    }

    /// Harvests memory and the images that move; how many pages are dirty then.
    fn harvest_all(&mut self, last: bool) -> Result<u64, MachineError> {
        if let Some(sink) = self.sink.as_ref().filter(|_| !last) {
            sink.flush().map_err(MachineError::new)?;
        }
        let when = if last { Harvest::Paused } else { Harvest::Live };
        // Pages of a round that could not be sent stay in the set: nothing is forgotten.
        if self.images.is_empty() {
            self.machine.harvest_dirty(when, &mut self.dirty)?;
        } else {
            // The machine knows of memory alone.
            let mut memory = PageSet::empty(self.machine.ram().layout());
            self.machine.harvest_dirty(when, &mut memory)?;
            if !self.dirty.union(&memory) {
                return Err(MachineError::new("the machine's memory is not what it was at the offer"));
            }
            for image in &self.images {
                image.harvest(&mut self.dirty);
            }
        }
        let dirty_pages = self.dirty.count();
        self.figures.harvested(dirty_pages);
        Ok(dirty_pages)
    }

    /// If it fails the guest goes on: by itself, or by the resume that follows.
    fn pause(&mut self) -> Result<Option<SourceEvent>, MachineError> {
        self.figures.pause_ordered();
        let custody = self.machine.pause()?;
        let at_most = self.syncs.longest_wait(&self.options.config.timeouts);
        let ready = self.may_be_given(&custody).and_then(|()| self.syncs.finish(at_most));
        self.holder = Holder::Pump(custody);
        // What resumes it after any other failure does so now, and knows what to do if that fails as well.
        Ok(Some(ready.map_or_else(
            |error| {
                tracing::warn!(error = sentence(&error), "the paused guest cannot be given away");
                SourceEvent::PausedInVain(sentence(&error))
            },
            |()| SourceEvent::Paused,
        )))
    }

    /// The caller's mistake would hand over an epoch that was used already.
    fn may_be_given(&self, custody: &Custody) -> Result<(), MachineError> {
        let (runs, offered) = (custody.epoch(), self.options.config.epoch);
        if offered > runs {
            return Ok(());
        }
        Err(MachineError::new(format!(
            "epoch {offered} was offered for a guest that runs under epoch {runs}: offer a higher one"
        )))
    }

    /// On an abort before custody: the locks first, then the guest.
    fn resume(&mut self, take_resources: bool) -> Result<Option<SourceEvent>, MachineError> {
        if take_resources {
            self.retake_resources()?;
        }
        match std::mem::replace(&mut self.holder, Holder::Gone) {
            Holder::Pump(custody) => match self.machine.resume(custody) {
                Ok(()) => {
                    self.holder = Holder::Machine;
                    self.figures.guest_runs();
                    Ok(Some(SourceEvent::Resumed))
                }
                Err(error) => {
                    self.holder = Holder::Pump(error.custody);
                    Err(error.source)
                }
            },
            other => {
                self.holder = other;
                Err(MachineError::new("this side has no custody of the guest"))
            }
        }
    }

    /// The target took the resources before it said ready, and may not have heard yet that nothing
    /// becomes of it: the end of the stream tells it, and it lets go of them within moments.
    fn retake_resources(&mut self) -> Result<(), MachineError> {
        let until = Instant::now() + LETTING_GO;
        loop {
            let taken = self.machine.take_resources(&self.options.config.guest, &self.released);
            let Err(error) = taken else { return Ok(()) };
            if let Some(peer) = &self.peer {
                peer.end_stream();
            }
            if Instant::now() >= until {
                return Err(error);
            }
            // The events wait: nothing that comes now changes what is to be done.
            let _ = never::<()>().recv_timeout(BETWEEN_TRIES);
        }
    }

    fn hash_memory(&self) -> Result<Option<SourceEvent>, MachineError> {
        let hashed = self.ram.hash().map(|hash| Some(SourceEvent::Hashed(hash)));
        hashed.map_err(|error| MachineError::with_source("the guest cannot be hashed", error))
    }

    fn seal(&mut self) -> Result<Option<SourceEvent>, MachineError> {
        let config = &self.options.config;
        let of = OfEpoch { session: config.session, epoch: config.epoch };
        match (&mut self.sink, &self.peer) {
            (Some(sink), Some(_)) => {
                sink.seal(of).map(|()| Some(SourceEvent::Sealed)).map_err(MachineError::new)
            }
            _ => Err(MachineError::new("what was written is lost")),
        }
    }

    fn send_state(&mut self) -> Result<Option<SourceEvent>, MachineError> {
        if self.peer.is_none() {
            // The link's loss is on its way to the source, which waits for no answer: a failure here
            // would be taken for that of the resume that follows.
            return Ok(None);
        }
        let state = self.machine.capture()?;
        let devices = self.machine.capture_devices()?;
        let resources = resources_section(&self.released)?;
        let mut frames = Vec::new();
        let mut sections = 0_u32;
        for section in [&resources].into_iter().chain(&state.sections).chain(&devices.sections) {
            frames.extend_from_slice(&encode(FrameKind::Section, &section.to_bytes()));
            sections += 1;
        }
        check_names(&state, &devices)?;
        let sent = self.peer.as_ref().map_or(Err(LinkFault::Closed), |peer| {
            std::io::Write::write_all(&mut peer.socket(), &frames).map_err(|error| io_fault(&error))
        });
        match sent {
            Ok(()) => Ok(Some(SourceEvent::StateSent { sections })),
            Err(fault) => {
                self.lose_link(fault);
                Ok(None)
            }
        }
    }
}

fn harvested(dirty_pages: u64) -> SourceEvent {
    SourceEvent::Harvested { dirty_pages }
}

/// What the target must take. Needed unless there is nothing to take.
fn resources_section(released: &Resources) -> Result<Section, MachineError> {
    released.check().map_err(|problem| {
        MachineError::new(format!("what was released cannot be told to the target: {problem}"))
    })?;
    Section::of(released, 0, Some(&Resources::default()))
        .map_err(|error| MachineError::with_source("what was released cannot be told to the target", error))
}

/// The target tells the parts of the state from each other by their sections' names.
fn check_names(state: &MachineState, devices: &MachineState) -> Result<(), MachineError> {
    let is_device = |name: &str| name.starts_with(PREFIX);
    let wrong = (state.sections.iter())
        .find(|section| is_device(&section.name) || section.name == Resources::NAME)
        .or_else(|| devices.sections.iter().find(|section| !is_device(&section.name)));
    wrong.map_or(Ok(()), |section| {
        let name = &section.name;
        Err(MachineError::new(format!(
            "section `{name}`: devices' sections, and no others, are named `device/…`, and `{}` is the engine's",
            Resources::NAME
        )))
    })
}

/// An error and its causes as one sentence.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
