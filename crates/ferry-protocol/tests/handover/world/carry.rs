//! Actions are carried out and jobs answered, as an engine does, with every misuse a panic.

use ferry_protocol::message::{ToSource, ToTarget};
use ferry_protocol::{Epoch, SourceAction, SourceEvent, SourcePhase, TargetAction, TargetEvent};

use super::{Link, LinkFault, World, index, verdict};

impl World {
    pub(super) fn carry_source(&mut self, action: SourceAction) {
        let source = &mut self.source;
        match action {
            SourceAction::Disconnect => {
                source.stop_sending();
                let link = &mut self.links[source.link.take().expect("no link to close")];
                link.to_source.shut();
                link.to_target.end(LinkFault::Closed);
            }
            SourceAction::Send(message) => {
                if let Some(link) = source.link {
                    self.links[link].to_target.send(message);
                }
            }
            SourceAction::Give(of) => {
                assert!(
                    !source.runs && !source.resources && source.jobs.is_empty() && source.given.is_none()
                );
                let link = &mut self.links[source.link.expect("custody is given over a link")];
                link.to_target.send(ToTarget::Custody(of));
                source.given = Some((self.lives[link.life].instance, of));
                (source.refused, source.told_running) = (false, false);
            }
            SourceAction::TakeBack { raise_to } => {
                assert_eq!(raise_to, None, "neither a witness nor a person spoke");
                assert!(source.refused, "taken back without the refusal of the instance it was given to");
                source.given = None;
            }
            SourceAction::ReleaseGuest => {
                assert!(source.told_running, "let go without the word of the instance it was given to");
                source.gone = true;
            }
            SourceAction::Note(_) => {}
            SourceAction::NoteStalled(_) => assert!(source.runs),
            SourceAction::NoteAmbiguous => {
                assert!(source.given.is_some() && !source.ambiguous);
                source.ambiguous = true;
            }
            SourceAction::Finish(outcome) => {
                assert!(source.outcome.is_none(), "finished twice");
                source.stop_sending();
                source.outcome = Some(outcome);
            }
            job => {
                if matches!(job, SourceAction::Resume { .. }) {
                    source.stop_sending();
                }
                assert!(source.given.is_none() || job == SourceAction::Connect, "{job:?} without custody");
                source.jobs.push_back(job);
            }
        }
    }

    /// Answers the oldest job of the source.
    pub(crate) fn source_job(&mut self, success: bool) {
        let Some(job) = self.source.jobs.pop_front() else { return };
        let success =
            success && !(job != SourceAction::StopLog && std::mem::take(&mut self.source.fail_next));
        let event = match job {
            SourceAction::Connect => self.connect(success),
            SourceAction::StopLog => {
                self.source.log = false;
                return;
            }
            _ if !success => SourceEvent::Failed("the source's job failed".into()),
            job => self.source_job_done(&job),
        };
        self.feed_source(event);
    }

    fn connect(&mut self, success: bool) -> SourceEvent {
        let listener = self.address.filter(|_| success);
        let done = self.phase() == SourcePhase::Done;
        let Some(life) = listener.filter(|_| !done) else {
            return SourceEvent::ConnectFailed("nobody listens".into());
        };
        assert!(self.source.link.is_none(), "a second link");
        self.source.link = Some(self.links.len());
        self.links.push(Link::new(life, self.links.len()));
        SourceEvent::Connected
    }

    fn source_job_done(&mut self, job: &SourceAction) -> SourceEvent {
        let source = &mut self.source;
        match *job {
            SourceAction::Journal(_) => SourceEvent::Journaled,
            SourceAction::StartLog => {
                assert!(!source.log, "the log is started twice");
                source.log = true;
                SourceEvent::LogStarted
            }
            SourceAction::SendRound { .. } => SourceEvent::RoundSent { data_pages: 256, zero_pages: 0 },
            SourceAction::Harvest { last } => {
                SourceEvent::Harvested { dirty_pages: if last { 3 } else { self.dirty_pages } }
            }
            SourceAction::Pause => {
                assert!(source.runs, "a paused guest is paused");
                source.runs = false;
                SourceEvent::Paused
            }
            SourceAction::ReleaseResources => {
                assert!(!source.runs && source.resources, "resources of a running guest are released");
                source.resources = false;
                SourceEvent::ResourcesReleased
            }
            SourceAction::HashMemory => SourceEvent::Hashed([7; 32]),
            SourceAction::SendState => SourceEvent::StateSent { sections: 3 },
            SourceAction::Resume { take_resources } => {
                assert!(!source.runs && !source.gone && source.given.is_none());
                assert_eq!(take_resources, !source.resources, "resources are taken that are not missing");
                assert_eq!(self.highest_run, Epoch::BIRTH, "resumed after a later epoch ran");
                (source.runs, source.resources) = (true, true);
                SourceEvent::Resumed
            }
            ref other => panic!("{other:?} is no job"),
        }
    }

    pub(super) fn carry_target(&mut self, number: usize, action: TargetAction) {
        let life = &mut self.lives[number];
        match action {
            TargetAction::Send(link, message) => {
                match &message {
                    ToSource::Running(of) => life.note_answer(*of, true),
                    ToSource::Refused(refused) => life.note_answer(refused.of, false),
                    _ => {}
                }
                self.links[index(link)].to_source.send(message);
            }
            TargetAction::Close(link) => {
                let link = &mut self.links[index(link)];
                link.to_source.end(LinkFault::Closed);
                link.to_target.shut();
            }
            TargetAction::RunGuest { epoch, .. } => {
                assert!(!life.refused(epoch), "an epoch runs that was refused");
                assert!(epoch > self.highest_run, "an epoch runs that is not the highest");
                assert!(life.restored && life.jobs.is_empty(), "what runs was not restored");
                life.runs = Some(epoch);
                life.jobs.push_back(TargetAction::RunGuest { guest: super::guest(), epoch });
            }
            TargetAction::Finish(outcome) => life.outcomes.push(outcome),
            TargetAction::Journal(record) => life.writes.push_back(record),
            TargetAction::Note(record) => life.journal.push(record),
            job => life.jobs.push_back(job),
        }
    }

    /// The oldest record of one life of the target is on disk, or cannot be.
    pub(crate) fn target_write(&mut self, number: usize, success: bool) {
        let life = &mut self.lives[number];
        let Some(record) = life.writes.pop_front() else { return };
        let result = if success { Ok(()) } else { Err("the disk is full".into()) };
        if success {
            life.journal.push(record);
        }
        self.feed_target(number, TargetEvent::JournalDone(result));
    }

    /// Answers the oldest job of one life of the target.
    pub(crate) fn target_job(&mut self, number: usize, success: bool) {
        let life = &mut self.lives[number];
        let Some(job) = life.jobs.pop_front() else { return };
        let success = success && !(job != TargetAction::Discard && std::mem::take(&mut life.fail_next));
        let event = match job {
            TargetAction::Discard => {
                assert!(life.runs.is_none(), "the guest that runs is dropped");
                (life.built, life.restored) = (false, false);
                return;
            }
            TargetAction::RunGuest { epoch, .. } => {
                life.restored = false;
                life.runs = success.then_some(epoch);
                life.ran = life.runs;
                life.ever_ran = life.ever_ran.or(life.ran);
                if success {
                    self.highest_run = epoch;
                }
                if success { TargetEvent::GuestRuns } else { failed() }
            }
            _ if !success => failed(),
            TargetAction::Judge(machine) => TargetEvent::Judged(verdict(&machine.kind)),
            TargetAction::Build { .. } => {
                assert!(!life.built, "a second machine is built");
                life.built = true;
                TargetEvent::Built
            }
            TargetAction::HashMemory => TargetEvent::Hashed([7; 32]),
            TargetAction::Restore { sections } => {
                assert!(life.built && sections == 3);
                life.restored = true;
                TargetEvent::Restored
            }
            other => panic!("{other:?} is no job"),
        };
        self.feed_target(number, event);
    }
}

fn failed() -> TargetEvent {
    TargetEvent::Failed("the target's job failed".into())
}
