//! A process as a target: the actions of its decisions carried out, its jobs done.

use ferry_contract::{Finding, FindingKind, Layer, Verdict};
use ferry_protocol::journal::Record;
use ferry_protocol::message::{ToSource, ToTarget};
use ferry_protocol::{
    ClaimAnswer, Epoch, LinkFault, LinkId, MachineDescription, TargetAction, TargetEvent, TargetPhase, Time,
};

use crate::clock::Due;
use crate::guest::{Custody, Guest};
use crate::invariants::{Broken, Said};
use crate::moves::STRANGER;
use crate::network::{Down, Ends, Maker, Up};
use crate::process::{Incoming, Job};
use crate::source::said;
use crate::story::session_ends;
use crate::world::World;

impl World {
    /// Feeds a target; what follows is carried out.
    pub(crate) fn feed_target(&mut self, process: usize, event: TargetEvent) {
        let (now, clock) = (self.now, self.clock_of(process));
        let name = &self.processes[process].name;
        self.story.step(now, || format!("{name}, target: {}", said(&format!("{event:?}"))));
        let Some(target) = &mut self.processes[process].target else { return };
        for action in target.machine.step(clock.shows(now), event) {
            self.carry_target(process, action);
        }
        let Some(target) = &mut self.processes[process].target else { return };
        let phase = target.machine.phase();
        if target.phase != phase {
            target.phase = phase;
            let name = &self.processes[process].name;
            let line = || format!("the target {name} is in `{}`", phase.name());
            let is_early = (TargetPhase::Hello..=TargetPhase::Receive).contains(&phase);
            if is_early {
                self.story.step(now, line);
            } else {
                self.story.tell(now, line);
            }
            self.target_reached(phase);
        }
        self.check_deadlines(process);
    }

    fn carry_target(&mut self, process: usize, action: TargetAction) {
        let now = self.now;
        match action {
            TargetAction::Send(link, message) => self.send_from_target(process, link, message),
            TargetAction::Close(link) => {
                if let Some(number) = self.link_of(process, link) {
                    self.links[number].down.shut();
                    self.send_up(number, now, Up::Lost(LinkFault::Closed));
                }
                self.forget(process, link);
            }
            TargetAction::TakeLane(link) => {
                if let Some(target) = &mut self.processes[process].target {
                    target.lanes.insert(link);
                }
            }
            TargetAction::Note(record) => {
                let (host, instance) = (self.processes[process].host, self.processes[process].instance);
                self.disks[host].note(now, instance, record);
            }
            TargetAction::Journal(record) => {
                let host = self.processes[process].host;
                let lasts = self.job_time() + self.disks[host].delay(now);
                let Some(target) = &mut self.processes[process].target else { return };
                let after = target.writing.back().map_or(now, |job| job.ready_at.max(now));
                let ready_at = Time(after.0 + lasts);
                target.writing.push_back(Job { what: record, ready_at, since: None });
                self.agenda.enter(ready_at, Due::TargetJob(process));
            }
            TargetAction::Finish(outcome) => {
                let name = &self.processes[process].name;
                self.story.tell(now, || format!("the session in {name} is over: {}", session_ends(&outcome)));
            }
            job => {
                if let TargetAction::RunGuest { epoch, .. } = &job {
                    self.about_to_run(process, *epoch);
                }
                let lasts = self.job_time();
                let Some(target) = &mut self.processes[process].target else { return };
                let after = target.jobs.back().map_or(now, |job| job.ready_at.max(now));
                let ready_at = Time(after.0 + lasts);
                target.jobs.push_back(Job { what: job, ready_at, since: None });
                self.agenda.enter(ready_at, Due::TargetJob(process));
            }
        }
    }

    /// From now on a vCPU may run here any moment.
    fn about_to_run(&mut self, process: usize, epoch: Epoch) {
        let Some(guest) = &mut self.processes[process].guest else {
            return self.broken(Broken::Machine, || "a guest is run that is not there".into());
        };
        let digest = guest.digest().unwrap_or(0);
        guest.running = true;
        guest.custody = Custody::Here(epoch);
        let restored = self.processes[process].target.as_ref().and_then(|target| target.incoming.as_ref());
        if restored.is_none_or(|incoming| !incoming.restored) {
            self.broken(Broken::Machine, || "a guest is run that was not restored".into());
        }
        if self.locks && self.lock != Some(process) {
            self.broken(Broken::Machine, || "a guest is run without its lock".into());
        }
        self.check_arrived(process, epoch, digest);
        self.note_runs(process, epoch);
    }

    fn send_from_target(&mut self, process: usize, link: LinkId, message: ToSource) {
        let Some(number) = self.link_of(process, link) else { return };
        // For itself, or for a process of its folder that is gone: whichever was asked.
        let instance = self.links[number].asked.unwrap_or(self.processes[process].instance);
        match &message {
            ToSource::Running(of) => {
                self.note_answer(instance, *of, Said::Runs);
            }
            // A stranger's own guest is another one.
            ToSource::Refused(_) if self.links[number].maker == Maker::Stranger => {}
            ToSource::Refused(refused) => {
                self.note_answer(instance, refused.of, Said::Refused);
            }
            ToSource::Verdict(verdict) => {
                let is_strangers =
                    verdict.findings.first().is_some_and(|finding| finding.subject == STRANGER);
                if is_strangers != (self.links[number].maker == Maker::Stranger) {
                    self.broken(Broken::Answer, || "a verdict about another offer".into());
                }
            }
            _ => {}
        }
        self.send_up(number, self.now, Up::Message(message));
    }

    fn link_of(&self, process: usize, link: LinkId) -> Option<usize> {
        self.processes[process].target.as_ref()?.links.get(&link).copied()
    }

    fn forget(&mut self, process: usize, link: LinkId) {
        if let Some(target) = &mut self.processes[process].target {
            target.links.remove(&link);
            target.lanes.remove(&link);
        }
    }

    /// Something may have arrived at the target's end of a link.
    pub(crate) fn deliver_down(&mut self, link: usize) {
        let now = self.now;
        let (process, id, from_host) =
            (self.links[link].target, self.links[link].id, self.links[link].from_host);
        if self.is_away(process) || self.network.holds(from_host, now) {
            return;
        }
        if self.link_of(process, id).is_none() {
            return self.links[link].down.shut();
        }
        if self.waits_for_pages(process, link) {
            return;
        }
        let Some(item) = self.links[link].down.take(now) else { return };
        if !item.is_end() {
            self.agenda.enter(now, Due::Down(link));
        }
        match item {
            Down::Opened => self.feed_target(process, TargetEvent::Opened(id)),
            Down::Message(message) => {
                if let ToTarget::Ask(ask) = &message {
                    self.links[link].asked = Some(ask.instance);
                }
                self.feed_target(process, TargetEvent::Received(id, message));
            }
            Down::Page { round, page, data } => self.take_page(process, id, round, page, data.as_deref()),
            Down::Section(section) => {
                let target = self.processes[process].target.as_mut().filter(|target| target.carries(id));
                if let Some(incoming) = target.and_then(|target| target.incoming.as_mut()) {
                    incoming.sections.push(section);
                }
            }
            Down::Lost(fault) => {
                // Who could not be read may still be told why.
                if !matches!(fault, LinkFault::Garbled(_)) {
                    self.send_up(link, now, Up::Lost(LinkFault::Closed));
                }
                self.feed_target(process, TargetEvent::LinkLost(id, fault));
                self.send_up(link, now, Up::Lost(LinkFault::Closed));
                self.forget(process, id);
            }
        }
    }

    /// A round's end counts once all its pages are here, over whatever lane they come.
    fn waits_for_pages(&self, process: usize, link: usize) -> bool {
        let Some(target) = &self.processes[process].target else { return false };
        let Some(Down::Message(ToTarget::RoundEnd(end))) = self.links[link].down.arrived(self.now) else {
            return false;
        };
        let here = target.incoming.as_ref().and_then(|incoming| incoming.pages.get(&end.round).copied());
        target.carries(self.links[link].id) && here.unwrap_or(0) < end.data_pages + end.zero_pages
    }

    fn take_page(&mut self, process: usize, id: LinkId, round: u32, page: u64, data: Option<&[u8]>) {
        let this = &mut self.processes[process];
        let Some(target) = this.target.as_mut().filter(|target| target.carries(id)) else { return };
        let (Some(incoming), Some(guest)) = (&mut target.incoming, &mut this.guest) else { return };
        if target.phase != TargetPhase::Receive {
            return;
        }
        let put = guest.put(page, data);
        *incoming.pages.entry(round).or_default() += 1;
        let session = target.machine.session_link().and_then(|id| target.links.get(&id)).copied();
        if put.is_err() {
            return self.broken(Broken::Machine, || format!("page {page} lies outside guest memory"));
        }
        if let Some(session) = session {
            self.agenda.enter(self.now, Due::Down(session));
        }
        self.feed_target(process, TargetEvent::Heard(id));
    }

    /// Looks at a target's oldest record and oldest job.
    pub(crate) fn target_job(&mut self, process: usize) {
        if self.is_away(process) {
            return;
        }
        let now = self.now;
        let Some(target) = &mut self.processes[process].target else { return };
        if target.writing.front().is_some_and(|job| job.ready_at <= now)
            && let Some(job) = target.writing.pop_front()
        {
            self.agenda.enter(now, Due::TargetJob(process));
            return self.journal_done(process, job.what);
        }
        if target.jobs.front().is_none_or(|job| job.ready_at > now) {
            return;
        }
        let Some(job) = target.jobs.pop_front() else { return };
        let fails = job.what != TargetAction::Discard && std::mem::take(&mut target.fail_next);
        self.agenda.enter(now, Due::TargetJob(process));
        let event = if fails {
            Err("the target's job failed".to_owned())
        } else {
            self.do_target_job(process, &job.what)
        };
        if event.is_err()
            && let TargetAction::RunGuest { epoch, .. } = job.what
        {
            if let Some(guest) = &mut self.processes[process].guest {
                (guest.running, guest.custody) = (false, Custody::None);
            }
            self.note_never_ran(process, epoch);
        }
        match event {
            Ok(None) => {}
            Ok(Some(event)) => self.feed_target(process, event),
            Err(text) => self.feed_target(process, TargetEvent::Failed(text)),
        }
    }

    fn journal_done(&mut self, process: usize, record: Record) {
        let written = self.write(process, record);
        self.feed_target(process, TargetEvent::JournalDone(written));
    }

    fn do_target_job(&mut self, process: usize, what: &TargetAction) -> Result<Option<TargetEvent>, String> {
        let rate = self.plan.base.rate;
        let now = self.now;
        if let TargetAction::Claim(claim) = what {
            let answer: ClaimAnswer = self.claim(process, claim);
            return Ok(Some(TargetEvent::Claimed(answer)));
        }
        let this = &mut self.processes[process];
        let Some(target) = &mut this.target else { return Ok(None) };
        let event = match what {
            TargetAction::Judge(machine) => TargetEvent::Judged(verdict(machine)),
            TargetAction::Build { machine, .. } => {
                this.guest = Some(Guest::built(machine, rate)?);
                target.incoming = Some(Incoming::default());
                TargetEvent::Built
            }
            TargetAction::Discard => {
                let runs = this.guest.as_ref().is_some_and(|guest| guest.running);
                (this.guest, target.incoming) = (None, None);
                if self.lock == Some(process) {
                    self.lock = None;
                }
                if runs {
                    self.broken(Broken::Machine, || "the guest that runs is dropped".into());
                }
                return Ok(None);
            }
            TargetAction::HashMemory => {
                let guest = this.guest.as_ref().ok_or("there is no machine")?;
                TargetEvent::Hashed(guest.hash().map_err(|error| error.to_string())?)
            }
            TargetAction::Restore { sections } => return self.restore(process, *sections).map(Some),
            TargetAction::RunGuest { .. } => {
                let Some(guest) = &mut this.guest else { return Err("there is no machine".into()) };
                guest.run(now);
                target.incoming = None;
                TargetEvent::GuestRuns
            }
            other => return Err(format!("{other:?} is no job")),
        };
        Ok(Some(event))
    }

    /// Takes the lock, then the state.
    fn restore(&mut self, process: usize, sections: u32) -> Result<TargetEvent, String> {
        let this = &mut self.processes[process];
        let incoming = this.target.as_mut().and_then(|target| target.incoming.as_mut());
        let (Some(guest), Some(incoming)) = (&mut this.guest, incoming) else {
            return Err("there is no machine".into());
        };
        if self.locks && self.lock.is_some_and(|holder| holder != process) {
            return Err("the lock is held".into());
        }
        self.lock = self.lock.or(self.locks.then_some(process));
        let here = std::mem::take(&mut incoming.sections);
        if u32::try_from(here.len()) != Ok(sections) {
            return Err("sections are missing".into());
        }
        guest.restore(here).map_err(|error| error.to_string())?;
        incoming.restored = true;
        Ok(TargetEvent::Restored)
    }

    /// A stranger hears an answer, and sends what the source had sent after so many.
    pub(crate) fn deliver_to_stranger(&mut self, link: usize) {
        let now = self.now;
        let Some(item) = self.links[link].up.take(now) else { return };
        if item.is_end() {
            return;
        }
        self.links[link].answers += 1;
        self.agenda.enter(now, Due::Up(link));
        self.replay(link);
    }

    /// Sends what a stranger may send by now.
    pub(crate) fn replay(&mut self, link: usize) {
        while let Some(&(after, _)) = self.links[link].replay.front()
            && after <= self.links[link].answers
            && let Some((_, item)) = self.links[link].replay.pop_front()
        {
            self.send_down(link, self.now, item);
        }
    }
}

/// A verdict that says for which kind of machine it is.
fn verdict(machine: &MachineDescription) -> Verdict {
    let finding = Finding {
        kind: FindingKind::Notice,
        subject: machine.kind.clone(),
        layer: Layer::Machine,
        guest: String::new(),
        target: String::new(),
        effect: String::new(),
        remedy: String::new(),
    };
    Verdict { findings: vec![finding] }
}
