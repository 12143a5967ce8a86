//! A process as a source: the actions of its decisions carried out, its jobs done.

use ferry_protocol::journal::{Choice, Record};
use ferry_protocol::message::{Known, OfEpoch, ToSource, ToTarget};
use ferry_protocol::{LinkFault, PersonsChoice, SourceAction, SourceEvent, SourcePhase, TimerName};

use crate::clock::Due;
use crate::guest::Custody;
use crate::invariants::Broken;
use crate::network::{Down, Ends, Maker, Up};
use crate::process::{Job, SourceSide};
use crate::story::ends;
use crate::world::World;

impl World {
    /// Feeds a source; what follows is carried out.
    pub(crate) fn feed_source(&mut self, process: usize, event: SourceEvent) {
        let (now, clock) = (self.now, self.clock_of(process));
        let name = &self.processes[process].name;
        self.story.step(now, || format!("{name}, source: {}", said(&format!("{event:?}"))));
        let Some(source) = &mut self.processes[process].source else { return };
        let was_done = source.machine.phase() == SourcePhase::Done;
        let actions = source.machine.step(clock.shows(now), event);
        if was_done && !actions.is_empty() {
            self.broken(Broken::Machine, || "a source that is done acts".into());
        }
        for action in actions {
            self.carry_source(process, action);
        }
        self.tell_source_phase(process);
        self.check_deadlines(process);
        if self.processes[process].source.as_ref().is_some_and(SourceSide::is_over) {
            self.source_is_over(process);
        }
    }

    fn tell_source_phase(&mut self, process: usize) {
        let Some(source) = &mut self.processes[process].source else { return };
        let (phase, attempt) = (source.machine.phase(), source.attempt);
        if source.phase != phase {
            source.phase = phase;
            let name = &self.processes[process].name;
            let line = || format!("the source {name} is in `{}`", phase.name());
            // What comes before the pages matters to nobody who reads a story.
            if phase < SourcePhase::Rounds {
                self.story.step(self.now, line);
            } else {
                self.story.tell(self.now, line);
            }
            self.source_reached(attempt, phase);
        }
    }

    fn carry_source(&mut self, process: usize, action: SourceAction) {
        match action {
            SourceAction::Disconnect => self.disconnect(process),
            SourceAction::Send(message) => self.send_from_source(process, message),
            SourceAction::Give(of) => self.give(process, of),
            SourceAction::TakeBack { raise_to } => {
                self.check_choice(process);
                if let Some(guest) = &mut self.processes[process].guest
                    && let Custody::Given(before) = guest.custody
                {
                    guest.custody = Custody::Here(raise_to.unwrap_or(before));
                } else {
                    self.broken(Broken::Machine, || "custody is taken back that was not given".into());
                }
            }
            SourceAction::ReleaseGuest => {
                self.check_choice(process);
                if let Some(guest) = &mut self.processes[process].guest {
                    guest.custody = Custody::None;
                }
            }
            SourceAction::Note(record) => {
                let (host, instance) = (self.processes[process].host, self.processes[process].instance);
                let disk = &mut self.disks[host];
                if let Record::Moved(_) = record {
                    // What cannot be written is not noted: then the target's journal still says it.
                    let _ = disk.write(self.now, instance, record);
                } else {
                    disk.note(self.now, instance, record);
                }
            }
            SourceAction::NoteStalled(_) => {
                self.story.step(self.now, || "the guest does not converge".into());
            }
            SourceAction::NoteAmbiguous => self.become_ambiguous(process),
            SourceAction::NoteChoiceRefused(text) => {
                self.story.tell(self.now, || format!("the person's choice is refused: {text}"));
                if let Some(source) = &mut self.processes[process].source
                    && source.chose.take().is_some()
                {
                    self.tally.overruled += u64::from(source.answered);
                }
            }
            SourceAction::Finish(outcome) => {
                let name = self.processes[process].name.clone();
                self.story.tell(self.now, || format!("the move from {name} is over: {}", ends(&outcome)));
                self.note_followed(process);
                if let Some(source) = &mut self.processes[process].source {
                    source.stop_sending();
                    if source.outcome.replace(outcome).is_some() {
                        self.broken(Broken::Machine, || format!("the source {name} finishes twice"));
                    }
                }
            }
            job => self.ask_source(process, job),
        }
    }

    /// Enters a job.
    pub(crate) fn ask_source(&mut self, process: usize, what: SourceAction) {
        let host = self.processes[process].host;
        let disk =
            if matches!(what, SourceAction::Journal(_)) { self.disks[host].delay(self.now) } else { 0 };
        let lasts = self.job_time() + disk;
        let Some(source) = &mut self.processes[process].source else { return };
        if matches!(what, SourceAction::Resume { .. }) {
            source.stop_sending();
        }
        let after = source.jobs.back().map_or(self.now, |job| job.ready_at.max(self.now));
        let ready_at = after.after(std::time::Duration::from_micros(lasts));
        source.jobs.push_back(Job { what, ready_at, since: None });
        self.agenda.enter(ready_at, Due::SourceJob(process));
    }

    fn give(&mut self, process: usize, of: OfEpoch) {
        let Some(source) = &self.processes[process].source else { return };
        let to = source.link.map(|link| self.links[link].target);
        let Some(guest) = &mut self.processes[process].guest else { return };
        let (custody, running) = (guest.custody, guest.running);
        match custody {
            Custody::Here(epoch) if !running && epoch < of.epoch => guest.custody = Custody::Given(epoch),
            _ => self.broken(Broken::Machine, || {
                format!("epoch {} is given: custody {custody:?}, running {running}", of.epoch)
            }),
        }
        if self.locks && self.lock == Some(process) {
            self.broken(Broken::Machine, || "custody is given and the lock is held".into());
        }
        if let Some(source) = &mut self.processes[process].source {
            source.given_to = to;
        }
        self.send_from_source(process, ToTarget::Custody(of));
    }

    fn become_ambiguous(&mut self, process: usize) {
        let name = self.processes[process].name.clone();
        self.story.tell(self.now, || format!("{name} cannot find out who runs the guest: a person is asked"));
        if let Some(source) = &mut self.processes[process].source {
            source.ambiguous = true;
        }
        self.tally.asked += 1;
        self.agenda_person(process);
    }

    /// Closes the session's link and its lanes; what was sent before still leaves.
    pub(crate) fn disconnect(&mut self, process: usize) {
        let now = self.now;
        let Some(source) = &mut self.processes[process].source else { return };
        source.stop_sending();
        let closed: Vec<_> = source.link.take().into_iter().chain(source.lanes.drain(..)).collect();
        for link in closed {
            self.links[link].up.shut();
            self.send_down(link, now, Down::Lost(LinkFault::Closed));
        }
    }

    fn send_from_source(&mut self, process: usize, message: ToTarget) {
        let link = self.processes[process].source.as_ref().and_then(|source| source.link);
        if let Some(link) = link {
            self.send_down(link, self.now, Down::Message(message));
        }
    }

    /// The link is found dead: a write or the network said so.
    pub(crate) fn lose_link(&mut self, process: usize, fault: LinkFault) {
        self.disconnect(process);
        self.feed_source(process, SourceEvent::LinkLost(fault));
    }

    /// Something may have arrived at the source's end of a link.
    pub(crate) fn deliver_up(&mut self, link: usize) {
        let now = self.now;
        let target_host = self.processes[self.links[link].target].host;
        if self.network.holds(target_host, now) {
            return;
        }
        let Maker::Source(process) = self.links[link].maker else {
            return self.deliver_to_stranger(link);
        };
        if self.is_away(process) {
            return;
        }
        let Some(item) = self.links[link].up.take(now) else { return };
        self.links[link].answers += 1;
        let Some(source) = &mut self.processes[process].source else { return };
        let is_lane = source.lanes.contains(&link);
        if !is_lane && source.link != Some(link) {
            return;
        }
        if !item.is_end() {
            self.agenda.enter(now, Due::Up(link));
        }
        match item {
            Up::Message(ToSource::LaneTaken) if is_lane => {
                source.lanes_taken.insert(link);
                self.agenda.enter(now, Due::SourceJob(process));
            }
            Up::Message(message) if is_lane => {
                let text = format!("`{}` on a lane", message.name());
                self.lose_link(process, LinkFault::Garbled(text));
            }
            Up::Lost(fault) if is_lane => self.lose_link(process, fault),
            Up::Message(message) => {
                if let ToSource::Unknown(unknown) = &message {
                    source.told_gone = unknown.of == source.of && unknown.known == Known::MayHaveRun;
                }
                source.answered |= source.machine.choice().is_some() && answers(&message, source.of);
                self.feed_source(process, SourceEvent::Received(message));
            }
            Up::Lost(fault) => {
                self.send_down(link, now, Down::Lost(LinkFault::Closed));
                source_forgets(&mut self.processes[process].source, link);
                self.lose_link(process, fault);
            }
        }
    }

    /// A person decides; whether that is heard. It is followed later, or gives way to an answer.
    pub(crate) fn decide(&mut self, process: usize, choice: Choice) -> bool {
        let name = self.processes[process].name.clone();
        self.story.tell(self.now, || format!("a person decides for `{choice}` in {name}"));
        let Ok(decision) = PersonsChoice::new(choice, "looked at both hosts", 0) else { return false };
        if let Some(source) = &mut self.processes[process].source {
            (source.chose, source.answered) = (Some(choice), false);
        }
        self.feed_source(process, SourceEvent::Decide(decision));
        let source = self.processes[process].source.as_ref();
        let waits = source.is_some_and(|source| source.chose.is_some() && source.machine.choice().is_some());
        self.tally.held += u64::from(waits);
        waits
    }

    /// The time within which something of the engine's own must be done, by this process's clock.
    pub(crate) fn within(&self, process: usize, timer: TimerName) -> u64 {
        let timeouts = crate::world::timeouts();
        let within = match timer {
            TimerName::Connect => timeouts.connect,
            TimerName::Hello => timeouts.hello,
            _ => timeouts.silence,
        };
        let rate = self.clock_of(process).rate.max(1);
        u64::try_from(within.as_micros()).unwrap_or(u64::MAX / 2).saturating_mul(crate::clock::EVEN) / rate
    }

    /// Writes into the journal of a process.
    pub(crate) fn write(&mut self, process: usize, record: Record) -> Result<(), String> {
        let (host, instance) = (self.processes[process].host, self.processes[process].instance);
        let name = self.processes[process].name.clone();
        self.story.step(self.now, || format!("{name} writes {}", said(&format!("{record:?}"))));
        self.disks[host].write(self.now, instance, record)
    }
}

fn source_forgets(source: &mut Option<SourceSide>, link: usize) {
    if let Some(source) = source
        && source.link == Some(link)
    {
        source.link = None;
    }
}

/// Whether a message settles who has the guest.
fn answers(message: &ToSource, of: OfEpoch) -> bool {
    match message {
        ToSource::Running(running) => *running == of,
        ToSource::Refused(refused) => refused.of == of,
        _ => false,
    }
}

/// A value's form, short enough for a line.
pub(crate) fn said(form: &str) -> String {
    const MOST: usize = 110;
    let end = form.char_indices().nth(MOST).map_or(form.len(), |(at, _)| at);
    if end < form.len() { format!("{}…", &form[..end]) } else { form.to_owned() }
}

/// What is under way on a link, for the story.
pub(crate) fn with_under_way(lost: &[&'static str]) -> String {
    if lost.is_empty() { String::new() } else { format!(" with `{}` under way", lost.join("`, `")) }
}
