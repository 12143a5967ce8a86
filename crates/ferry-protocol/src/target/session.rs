//! One session of a target: from the offer to a guest that runs here, or to a refusal.

use std::time::Duration;

use super::{
    Cause, Claim, ClaimAnswer, HashCheck, LinkFault, OfGuest, Record, Refused, Rule, Session, Target,
    TargetAction, TargetEvent, TargetOutcome, TargetPhase, Time, Timeouts, TimerName, ToSource, ToTarget,
};
use crate::message::RoundTaken;
use crate::source::reason_of;

impl Target {
    pub(super) fn on_message(&mut self, now: Time, message: ToTarget) -> Vec<TargetAction> {
        let (silence, state) = (self.timeouts.silence, self.timeouts.state);
        let Some(session) = &mut self.session else { return Vec::new() };
        match (session.phase, message) {
            (TargetPhase::Hello, ToTarget::Offer(offer)) => {
                session.phase = TargetPhase::Offer;
                session.deadline = None;
                let machine = offer.machine.clone();
                if offer.to.is_some_and(|to| to != self.instance) && self.rules.keep(Rule::OnlyToThatProcess)
                {
                    let text = "the offer was made to another process: somebody repeats an old session";
                    return self.end_session(Cause::Misbehaved(text.into()));
                }
                if offer.witness.is_some() && !self.has_witness {
                    let text =
                        "the source names a witness, which this target cannot reach: give both the same";
                    return self.end_session(Cause::Machine(text.into()));
                }
                if offer.witness.is_some_and(|stands| stands >= session.of.epoch) {
                    // Both sides could win a claim of it.
                    let text = "the witness's record of the guest is not below the offered epoch: offer a higher one";
                    return self.end_session(Cause::Misbehaved(text.into()));
                }
                session.offer = Some(offer);
                session.job = true;
                vec![TargetAction::Judge(machine)]
            }
            (TargetPhase::Receive, ToTarget::RoundEnd(end))
                if end.round == session.next_round && !session.last_round_done =>
            {
                session.next_round = session.next_round.saturating_add(1);
                session.last_round_done = end.last;
                session.deadline = Some(if end.last {
                    (now.after(state + session.hash_allowance()), TimerName::State)
                } else {
                    (now.after(silence), TimerName::Silence)
                });
                let taken = RoundTaken { round: end.round };
                let word = TargetAction::Send(session.link, ToSource::RoundTaken(taken));
                if end.last { self.on_last_round() } else { vec![word] }
            }
            (TargetPhase::Receive, ToTarget::MemoryHash(hash))
                if session.last_round_done && session.verifies() && session.hash.expected.is_none() =>
            {
                session.hash.expected = Some(hash.blake3);
                self.compare_hashes()
            }
            (TargetPhase::Receive, ToTarget::StateEnd(end)) if session.last_round_done => {
                self.on_state_end(end.sections)
            }
            (TargetPhase::Ready, ToTarget::Custody(of)) if of == session.of => self.take(),
            (TargetPhase::Running, ToTarget::Release(of)) if of == session.of => {
                let link = session.link;
                self.released(link)
            }
            // Custody was taken: nothing that comes on this link can change that.
            (TargetPhase::Taking | TargetPhase::Running, _) => Vec::new(),
            (_, ToTarget::Abort(reason)) => {
                let link = session.link;
                let mut actions = self.end_silently(Cause::Peer(reason));
                actions.insert(0, TargetAction::Close(link));
                actions
            }
            (phase, message) => {
                let (name, phase) = (message.name(), phase.name());
                self.end_session(Cause::Misbehaved(format!("the source sent `{name}` in phase `{phase}`")))
            }
        }
    }

    /// Pages come: the source is not silent.
    pub(super) fn on_heard(&mut self, now: Time) -> Vec<TargetAction> {
        let silence = self.timeouts.silence;
        if let Some(session) = &mut self.session
            && session.phase == TargetPhase::Receive
            && !session.last_round_done
        {
            session.deadline = Some((now.after(silence), TimerName::Silence));
        }
        Vec::new()
    }

    /// Every page is here: the lanes end, and what is to be hashed can be.
    fn on_last_round(&mut self) -> Vec<TargetAction> {
        let mut actions = self.close_lanes();
        if let Some(session) = self.session.as_mut().filter(|session| session.verifies()) {
            session.job = true;
            actions.push(TargetAction::HashMemory);
        }
        actions
    }

    fn on_state_end(&mut self, sections: u32) -> Vec<TargetAction> {
        let Some(session) = &mut self.session else { return Vec::new() };
        if session.hash.sections.is_some() {
            return self.end_session(Cause::Misbehaved("the source ended its state twice".into()));
        }
        if session.verifies() && session.hash.expected.is_none() {
            return self.end_session(Cause::Misbehaved("the source's memory hash is missing".into()));
        }
        session.hash.sections = Some(sections);
        self.restore()
    }

    /// Restores once the state is complete and the hashes, if they are wanted, are equal.
    fn restore(&mut self) -> Vec<TargetAction> {
        let Some(session) = &mut self.session else { return Vec::new() };
        match session.hash {
            HashCheck { sections: Some(sections), found, .. } if found.is_some() || !session.verifies() => {
                session.phase = TargetPhase::Restore;
                session.deadline = None;
                session.job = true;
                vec![TargetAction::Restore { sections }]
            }
            _ => Vec::new(),
        }
    }

    fn compare_hashes(&mut self) -> Vec<TargetAction> {
        let Some(session) = &mut self.session else { return Vec::new() };
        match session.hash {
            HashCheck { expected: Some(expected), found: Some(found), .. } if expected != found => {
                let text = "the memory that arrived differs from the source's: the hashes are not equal";
                self.end_session(Cause::Misbehaved(text.into()))
            }
            _ => self.restore(),
        }
    }

    fn take(&mut self) -> Vec<TargetAction> {
        let Some(session) = &mut self.session else { return Vec::new() };
        let (guest, epoch) = (session.guest.clone(), session.of.epoch);
        if !self.ledger.take(&guest, epoch) {
            return self.end_session(Cause::Misbehaved(format!("epoch {epoch} was refused before")));
        }
        session.phase = TargetPhase::Taking;
        session.deadline = None;
        session.job = true;
        match self.claim() {
            Some(claim) if self.rules.keep(Rule::WitnessDecides) => {
                if let Some(session) = &mut self.session {
                    session.claiming = true;
                }
                vec![claim]
            }
            _ => vec![TargetAction::RunGuest { guest, epoch }],
        }
    }

    /// The claim, where the offer names a witness.
    fn claim(&self) -> Option<TargetAction> {
        let session = self.session.as_ref()?;
        let from = session.offer.as_ref()?.witness?;
        let (guest, to) = (session.guest.clone(), session.of.epoch);
        Some(TargetAction::Claim(Claim { guest, from, to }))
    }

    fn on_claimed(&mut self, now: Time, answer: &ClaimAnswer) -> Vec<TargetAction> {
        let again = now.after(self.timeouts.ask_interval);
        let Some(session) = &mut self.session else { return Vec::new() };
        match answer {
            ClaimAnswer::Won => {
                (session.job, session.claiming) = (true, false);
                vec![TargetAction::RunGuest { guest: session.guest.clone(), epoch: session.of.epoch }]
            }
            ClaimAnswer::Lost => {
                let text = "the witness says that the guest is the source's again".into();
                self.not_started(Cause::Witness(text))
            }
            // The claim may have been won: only the witness can tell, and nobody runs until it does.
            ClaimAnswer::Unreached(_) => {
                session.deadline = Some((again, TimerName::Ask));
                Vec::new()
            }
        }
    }

    /// Custody was taken, and no vCPU ran.
    fn not_started(&mut self, cause: Cause) -> Vec<TargetAction> {
        let Some(session) = &self.session else { return Vec::new() };
        let (guest, epoch) = (session.guest.clone(), session.of.epoch);
        self.ledger.untake(&guest, epoch);
        let mut actions = self.end_session(cause);
        let words = self.refuse_waiting();
        actions.extend(self.after_refusal(&guest, epoch, words));
        actions
    }

    pub(super) fn on_job_done(&mut self, now: Time, event: TargetEvent) -> Vec<TargetAction> {
        if self.stale_jobs > 0 {
            self.stale_jobs -= 1;
            return Vec::new();
        }
        let timeouts = self.timeouts.clone();
        let Some(session) = &mut self.session else { return Vec::new() };
        session.job = false;
        match (session.phase, event) {
            (TargetPhase::Offer, TargetEvent::Judged(verdict)) => {
                let verdict = verdict.trimmed();
                let answer = TargetAction::Send(session.link, ToSource::Verdict(verdict.clone()));
                if verdict.is_refusal() {
                    return self.end_with(vec![answer], Cause::Refused(verdict));
                }
                session.phase = TargetPhase::Build;
                session.job = true;
                let build = session.offer.as_ref().map(|offer| TargetAction::Build {
                    machine: offer.machine.clone(),
                    written: offer.written.clone(),
                });
                [Some(answer), build].into_iter().flatten().collect()
            }
            (TargetPhase::Build, TargetEvent::Built) => self.write_may_run(now),
            (TargetPhase::Receive, TargetEvent::Hashed(found)) => self.on_hashed(found),
            (TargetPhase::Restore, TargetEvent::Restored) => {
                session.phase = TargetPhase::Ready;
                session.deadline = Some((now.after(timeouts.custody), TimerName::Custody));
                vec![TargetAction::Send(session.link, ToSource::Ready)]
            }
            (TargetPhase::Taking, TargetEvent::GuestRuns) => {
                session.phase = TargetPhase::Running;
                session.deadline = Some((now.after(timeouts.release), TimerName::Release));
                let runs = OfGuest { guest: session.guest.clone(), epoch: session.of.epoch };
                let mut actions = vec![TargetAction::Send(session.link, ToSource::Running(session.of))];
                actions.extend(self.answer_waiting(now));
                actions.push(TargetAction::Note(Record::Runs(runs)));
                actions
            }
            (TargetPhase::Taking, TargetEvent::Claimed(answer)) => self.on_claimed(now, &answer),
            // The claim may have been carried out all the same.
            (TargetPhase::Taking, TargetEvent::Failed(text)) if session.claiming => {
                self.on_claimed(now, &ClaimAnswer::Unreached(text))
            }
            (TargetPhase::Taking, TargetEvent::Failed(text)) => self.not_started(Cause::Machine(text)),
            // The guest runs here: whatever failed, nobody may be told otherwise.
            (TargetPhase::Running, TargetEvent::Failed(_)) => Vec::new(),
            (_, TargetEvent::Failed(text)) => self.end_session(Cause::Machine(text)),
            // A job that nobody waits for any more.
            _ => Vec::new(),
        }
    }

    fn on_hashed(&mut self, found: [u8; 32]) -> Vec<TargetAction> {
        if let Some(session) = &mut self.session {
            session.hash.found = Some(found);
        }
        self.compare_hashes()
    }

    pub(super) fn on_session_link_lost(&mut self, fault: LinkFault) -> Vec<TargetAction> {
        match self.phase() {
            // The custody came, or the guest is being started by a job that reports next: the guest
            // is here, and the source will ask.
            TargetPhase::Taking => Vec::new(),
            TargetPhase::Running => {
                self.session = None;
                self.runs(false).into_iter().collect()
            }
            // The source would else only see that the link ends.
            _ if matches!(fault, LinkFault::Garbled(_) | LinkFault::Machine(_)) => {
                self.end_session(fault.into())
            }
            _ => self.end_silently(fault.into()),
        }
    }

    pub(super) fn on_session_timeout(&mut self, timer: TimerName) -> Vec<TargetAction> {
        if self.phase() == TargetPhase::Taking {
            if let Some(session) = &mut self.session {
                session.deadline = None;
                session.job = true;
            }
            return self.claim().into_iter().collect();
        }
        if self.phase() != TargetPhase::Running {
            return self.end_session(Cause::TimedOut(timer));
        }
        let link = self.session.take().map(|session| TargetAction::Close(session.link));
        link.into_iter().chain(self.runs(false)).collect()
    }

    pub(super) fn on_cancel(&mut self) -> Vec<TargetAction> {
        match self.phase() {
            TargetPhase::Waiting | TargetPhase::Taking | TargetPhase::Running => Vec::new(),
            _ => self.end_session(Cause::Cancelled),
        }
    }

    /// Ends the session, refuses its epoch and tells the source so. A source that has not given custody
    /// needs no refusal, and its guest may be paused: it hears at once that the session is over, and
    /// waits for no disk.
    pub(super) fn end_session(&mut self, cause: Cause) -> Vec<TargetAction> {
        let Some(session) = &self.session else { return Vec::new() };
        let reason = reason_of(&cause);
        let waits = self.ledger.owes(&session.guest, session.of.epoch);
        let abort = (waits && session.phase < TargetPhase::Taking)
            .then(|| TargetAction::Send(session.link, ToSource::Abort(reason.clone())));
        let refused = Refused { of: session.of, reason };
        let tell = TargetAction::Send(session.link, ToSource::Refused(refused));
        abort.into_iter().chain(self.end_with(vec![tell], cause)).collect()
    }

    fn end_with(&mut self, mut words: Vec<TargetAction>, cause: Cause) -> Vec<TargetAction> {
        if let Some(session) = &self.session {
            words.push(TargetAction::Close(session.link));
        }
        self.end_saying(words, cause)
    }

    fn end_silently(&mut self, cause: Cause) -> Vec<TargetAction> {
        self.end_saying(Vec::new(), cause)
    }

    /// The refusal stands in the ledger, and where it must on disk, before anybody is told. What the machine
    /// took is let go of before a disk is waited for: a source that resumes needs it.
    fn end_saying(&mut self, words: Vec<TargetAction>, cause: Cause) -> Vec<TargetAction> {
        let lanes = self.close_lanes();
        let Some(session) = self.session.take() else { return Vec::new() };
        if self.rules.keep(Rule::RefusalIsFinal) {
            self.ledger.answer(&session.guest, session.of.epoch);
        }
        let waits = self.ledger.owes(&session.guest, session.of.epoch);
        let told = self.after_refusal(&session.guest, session.of.epoch, words);
        self.stale_jobs += u32::from(session.job);
        let dropped = lanes.into_iter().chain([TargetAction::Discard]);
        let mut actions: Vec<_> =
            if waits { dropped.chain(told).collect() } else { told.into_iter().chain(dropped).collect() };
        actions.push(TargetAction::Finish(TargetOutcome::NotTaken { guest: session.guest, cause }));
        actions
    }
}

impl Session {
    fn hash_allowance(&self) -> Duration {
        let verified = self.offer.as_ref().filter(|offer| offer.verify);
        Timeouts::hash_allowance(verified.map_or(0, |offer| offer.machine.moved_bytes()))
    }

    fn verifies(&self) -> bool {
        self.offer.as_ref().is_some_and(|offer| offer.verify)
    }
}
