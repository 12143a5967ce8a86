//! What a source's jobs do, when their time has come.

use ferry_protocol::message::{Lane, ToTarget};
use ferry_protocol::{LinkFault, SourceAction, SourceEvent, SourcePhase, TimerName};

use crate::clock::Due;
use crate::guest::Custody;
use crate::network::{Down, Link, Maker};
use crate::process::{Round, SourceSide};
use crate::world::World;

/// Pages that leave in one piece.
const CHUNK: usize = 4;

/// What may wait on the way before the sender is held up.
const ROOM: usize = 64;

/// Microseconds between two looks at something that is not ready.
const LOOK_AGAIN: u64 = 200;

/// Microseconds for which a source tries to take back a lock that the target still holds.
const LETTING_GO: u64 = 2_000;

/// Why a job fails that a fault struck, and how a resume fails whose lock is held: nothing else may keep a
/// guest from being resumed.
pub(crate) const INJECTED: &str = "the source's job failed";
pub(crate) const LOCKED: &str = "holds the lock";

/// What came of trying a job.
enum Tried {
    Done(Option<SourceEvent>),
    /// It is not over: look again then.
    Later(u64),
    /// The link was lost over it, and the job with it.
    LinkLost(LinkFault),
}

fn failed(text: impl Into<String>) -> Tried {
    Tried::Done(Some(SourceEvent::Failed(text.into())))
}

impl World {
    /// Looks at a source's oldest job.
    pub(crate) fn source_job(&mut self, process: usize) {
        if self.is_away(process) {
            return;
        }
        let now = self.now;
        let Some(source) = &mut self.processes[process].source else { return };
        let Some(job) = source.jobs.front_mut().filter(|job| job.ready_at <= now) else { return };
        let since = *job.since.get_or_insert(now);
        let (what, waited) = (job.what.clone(), now.0 - since.0);
        let fails = !matches!(what, SourceAction::StopLog | SourceAction::Connect)
            && source.round.is_none()
            && std::mem::take(&mut source.fail_next);
        let tried = if fails { failed(INJECTED) } else { self.try_job(process, &what, waited) };
        match tried {
            Tried::Done(event) => {
                if let Some(source) = &mut self.processes[process].source {
                    source.jobs.pop_front();
                }
                self.agenda.enter(now, Due::SourceJob(process));
                if let Some(event) = event {
                    self.feed_source(process, event);
                } else if self.processes[process].source.as_ref().is_some_and(SourceSide::is_over) {
                    self.source_is_over(process);
                }
            }
            Tried::Later(after) => {
                let at = ferry_protocol::Time(now.0 + after.max(1));
                if let Some(job) = self.processes[process].source.as_mut().and_then(|s| s.jobs.front_mut()) {
                    job.ready_at = at;
                }
                self.agenda.enter(at, Due::SourceJob(process));
            }
            Tried::LinkLost(fault) => self.lose_link(process, fault),
        }
    }

    fn try_job(&mut self, process: usize, what: &SourceAction, waited: u64) -> Tried {
        match what {
            SourceAction::Connect => self.try_connect(process, waited),
            SourceAction::OpenLanes { lanes } => self.try_lanes(process, *lanes, waited),
            SourceAction::SendRound { round, .. } => self.try_round(process, *round),
            SourceAction::SendState => self.try_state(process),
            SourceAction::Resume { take_resources } => self.try_resume(process, *take_resources, waited),
            SourceAction::Journal(record) => match self.write(process, record.clone()) {
                Ok(()) => Tried::Done(Some(SourceEvent::Journaled)),
                Err(text) => failed(text),
            },
            SourceAction::Claim(claim) => {
                let answer = self.claim(process, claim);
                Tried::Done(Some(SourceEvent::Claimed(answer)))
            }
            other => self.try_machine(process, other),
        }
    }

    /// Jobs of the machine alone.
    fn try_machine(&mut self, process: usize, what: &SourceAction) -> Tried {
        let now = self.now;
        let this = &mut self.processes[process];
        let (Some(guest), Some(source)) = (&mut this.guest, &mut this.source) else {
            return failed("there is no machine");
        };
        if let Err(error) = guest.catch_up(now) {
            return failed(error.to_string());
        }
        let event = match what {
            SourceAction::StartLog => {
                guest.start_log();
                source.dirty = guest.all_pages();
                SourceEvent::LogStarted
            }
            SourceAction::StopLog => {
                guest.stop_log();
                return Tried::Done(None);
            }
            SourceAction::Harvest { .. } => match guest.harvest(&mut source.dirty) {
                Ok(()) => SourceEvent::Harvested { dirty_pages: source.dirty.count() },
                Err(error) => return failed(error.to_string()),
            },
            SourceAction::Pause => {
                guest.running = false;
                let (epoch, digest) = (source.of.epoch, guest.digest().unwrap_or(0));
                self.note_paused(epoch, digest);
                SourceEvent::Paused
            }
            SourceAction::ReleaseResources => {
                if self.lock == Some(process) {
                    self.lock = None;
                }
                SourceEvent::ResourcesReleased
            }
            SourceAction::HashMemory => match guest.hash() {
                Ok(hash) => SourceEvent::Hashed(hash),
                Err(error) => return failed(error.to_string()),
            },
            other => return failed(format!("{other:?} is no job of a link")),
        };
        Tried::Done(Some(event))
    }

    fn try_connect(&mut self, process: usize, waited: u64) -> Tried {
        let now = self.now;
        let host = self.processes[process].host;
        let Some(source) = &self.processes[process].source else { return Tried::Done(None) };
        if source.machine.phase() == SourcePhase::Done {
            return Tried::Done(Some(SourceEvent::ConnectFailed("it is over".into())));
        }
        let to_host = source.to_host;
        if self.network.holds(host, now) || self.network.holds(to_host, now) || self.dark[to_host] {
            if waited < self.within(process, TimerName::Connect) {
                return Tried::Later(LOOK_AGAIN);
            }
            return Tried::Done(Some(SourceEvent::ConnectFailed("the host does not answer".into())));
        }
        let Some(target) = self.listener(to_host) else {
            return Tried::Done(Some(SourceEvent::ConnectFailed("nobody listens".into())));
        };
        let link = self.open(Maker::Source(process), host, target);
        if let Some(source) = &mut self.processes[process].source {
            source.link = Some(link);
        }
        Tried::Done(Some(SourceEvent::Connected))
    }

    /// A new link, seen by the target a while later.
    pub(crate) fn open(&mut self, maker: Maker, from_host: usize, target: usize) -> usize {
        let number = self.links.len();
        self.links.push(Link::new(number, maker, from_host, target));
        let id = self.links[number].id;
        if let Some(side) = &mut self.processes[target].target {
            side.links.insert(id, number);
        }
        self.send_down(number, self.now, Down::Opened);
        number
    }

    fn try_lanes(&mut self, process: usize, lanes: u8, waited: u64) -> Tried {
        let host = self.processes[process].host;
        let Some(source) = &self.processes[process].source else { return Tried::Done(None) };
        let more = usize::from(lanes.saturating_sub(1));
        if source.lanes_taken.len() == more {
            return Tried::Done(Some(SourceEvent::LanesOpen));
        }
        if waited >= self.within(process, TimerName::Hello) {
            return Tried::LinkLost(LinkFault::Silent);
        }
        let (of, opened, to_host) = (source.of, source.lanes.len(), source.to_host);
        let Some(target) = self.listener(to_host).filter(|_| opened < more) else {
            return Tried::Later(LOOK_AGAIN);
        };
        for number in opened..more {
            let link = self.open(Maker::Source(process), host, target);
            let number = u8::try_from(number + 1).unwrap_or(u8::MAX);
            self.send_down(link, self.now, Down::Message(ToTarget::Lane(Lane { of, number })));
            if let Some(source) = &mut self.processes[process].source {
                source.lanes.push(link);
            }
        }
        Tried::Later(LOOK_AGAIN)
    }

    /// Sends the next pages of a round, each as it is at that moment.
    fn try_round(&mut self, process: usize, number: u32) -> Tried {
        let now = self.now;
        let silence = self.within(process, TimerName::Silence);
        let this = &mut self.processes[process];
        let (Some(guest), Some(source)) = (&mut this.guest, &mut this.source) else {
            return failed("there is no machine");
        };
        let round = source.round.get_or_insert_with(|| {
            let pages =
                source.dirty.ranges().flat_map(|range| range.first..range.first + range.count).collect();
            source.dirty.clear();
            Round { number, pages, data: 0, zeros: 0 }
        });
        let Some(&page) = round.pages.front() else {
            let done = SourceEvent::RoundSent { data_pages: round.data, zero_pages: round.zeros };
            source.round = None;
            return Tried::Done(Some(done));
        };
        let links: Vec<_> = source.link.iter().chain(&source.lanes).copied().collect();
        let turn = usize::try_from(page).unwrap_or(0) / CHUNK % links.len().max(1);
        let Some(&link) = links.get(turn) else { return Tried::LinkLost(LinkFault::Closed) };
        let way = &self.links[link].down;
        if way.under_way() >= ROOM {
            let since = *source.stuck_since.get_or_insert(now);
            let is_silent = now.0 - since.0 >= silence;
            return if is_silent { Tried::LinkLost(LinkFault::Silent) } else { Tried::Later(LOOK_AGAIN) };
        }
        source.stuck_since = None;
        let backlog = way.backlog(now);
        if backlog > 0 {
            return Tried::Later(backlog);
        }
        let mut sent = Vec::new();
        if let Err(error) = guest.catch_up(now) {
            return failed(error.to_string());
        }
        while sent.len() < CHUNK
            && let Some(page) = round.pages.pop_front()
        {
            let Ok(data) = guest.page(page) else { return failed("a page cannot be read") };
            *(if data.is_some() { &mut round.data } else { &mut round.zeros }) += 1;
            sent.push(Down::Page { round: round.number, page, data });
        }
        for item in sent {
            self.send_down(link, now, item);
        }
        Tried::Later(1)
    }

    fn try_state(&mut self, process: usize) -> Tried {
        let this = &self.processes[process];
        let (Some(guest), Some(source)) = (&this.guest, &this.source) else {
            return failed("there is no machine");
        };
        let Some(link) = source.link else { return Tried::Done(None) };
        let sections = match guest.capture() {
            Ok(sections) => sections,
            Err(error) => return failed(error.to_string()),
        };
        let count = u32::try_from(sections.len()).unwrap_or(0);
        for section in sections {
            self.send_down(link, self.now, Down::Section(section));
        }
        Tried::Done(Some(SourceEvent::StateSent { sections: count }))
    }

    /// The lock first, then the guest.
    fn try_resume(&mut self, process: usize, take_resources: bool, waited: u64) -> Tried {
        let now = self.now;
        if take_resources && self.locks {
            match self.lock {
                Some(holder) if holder != process && waited < LETTING_GO => {
                    // The end of the stream tells the target to let go.
                    self.end_stream(process);
                    return Tried::Later(LOOK_AGAIN);
                }
                Some(holder) if holder != process => {
                    let name = self.processes[holder].name.clone();
                    return failed(format!("{name} {LOCKED}"));
                }
                _ => self.lock = Some(process),
            }
        }
        let Some(guest) = &mut self.processes[process].guest else { return failed("there is no machine") };
        let Custody::Here(epoch) = guest.custody else { return failed("custody is not here") };
        guest.run(now);
        self.note_runs(process, epoch);
        Tried::Done(Some(SourceEvent::Resumed))
    }

    fn end_stream(&mut self, process: usize) {
        let link = self.processes[process].source.as_ref().and_then(|source| source.link);
        if let Some(link) = link {
            self.send_down(link, self.now, Down::Lost(LinkFault::Closed));
        }
    }
}
