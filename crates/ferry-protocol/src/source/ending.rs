//! How a migration ends that does not pass custody: the guest goes on here as if nothing had been.

use super::{
    Cause, OfGuest, Reason, ReasonKind, Record, Source, SourceAction, SourceEvent, SourceOutcome, ToTarget,
    Wait,
};

impl Source {
    /// Ends the migration; the guest goes on here. `tell` says whether the target is told why.
    pub(super) fn fail(&mut self, cause: Cause, tell: bool) -> Vec<SourceAction> {
        self.undo(cause, tell, true)
    }

    /// The same; `unanswered` says whether a job that is waited for may still be under way.
    pub(super) fn undo(&mut self, cause: Cause, tell: bool, unanswered: bool) -> Vec<SourceAction> {
        self.deadline = None;
        self.total = None;
        self.paused_until = None;
        self.settle = None;
        let mut stale = false;
        match self.wait {
            Wait::Pause { .. } | Wait::Released { .. } if unanswered => {
                self.wait = Wait::Halted { cause, tell };
                return Vec::new();
            }
            // It is ended in turn, after it was started.
            Wait::Log => self.log_started = unanswered,
            Wait::LastHarvest { .. } | Wait::Hash | Wait::Sealed => stale = unanswered,
            _ => {}
        }
        if !self.paused {
            return self.kept(cause, tell);
        }
        // The guest first: telling may block, and every moment is downtime.
        self.wait = Wait::Resumed { cause, tell, stale };
        vec![SourceAction::Resume { take_resources: self.resources_released }]
    }

    pub(super) fn on_undo(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        if let SourceEvent::LinkLost(_) = event {
            self.linked = false;
            return Vec::new();
        }
        match (self.wait.clone(), event) {
            (Wait::Halted { cause, tell }, SourceEvent::Paused | SourceEvent::PausedInVain(_)) => {
                self.paused = true;
                self.undo(cause, tell, false)
            }
            (Wait::Halted { cause, tell }, SourceEvent::ResourcesReleased) => {
                self.resources_released = true;
                self.undo(cause, tell, false)
            }
            (Wait::Halted { cause, tell }, SourceEvent::Failed(_)) => self.undo(cause, tell, false),
            (
                Wait::Resumed { cause, tell, stale: true },
                SourceEvent::Harvested { .. }
                | SourceEvent::Hashed(_)
                | SourceEvent::Sealed
                | SourceEvent::Failed(_),
            ) => {
                self.wait = Wait::Resumed { cause, tell, stale: false };
                Vec::new()
            }
            (Wait::Resumed { cause, tell, .. }, SourceEvent::Resumed) => {
                self.paused = false;
                self.resources_released = false;
                self.kept(cause, tell)
            }
            (Wait::Resumed { cause, tell, .. }, SourceEvent::Failed(obstacle)) => {
                let mut actions = self.farewell(&cause, tell);
                actions.push(SourceAction::Finish(SourceOutcome::Held { cause, obstacle }));
                actions
            }
            _ => Vec::new(),
        }
    }

    fn kept(&mut self, cause: Cause, tell: bool) -> Vec<SourceAction> {
        let mut actions = self.farewell(&cause, tell);
        if let Some(epoch) = self.raised {
            // The guest did not wait for this record, and needs not: above which epoch the next guest of its
            // name is born was on disk before it ran again, in a person's choice or in the witness's record.
            let guest = self.config.guest.clone();
            actions.push(SourceAction::Note(Record::Runs(OfGuest { guest, epoch })));
        }
        actions.push(SourceAction::Finish(SourceOutcome::Kept { cause }));
        actions
    }

    fn farewell(&mut self, cause: &Cause, tell: bool) -> Vec<SourceAction> {
        let mut actions = Vec::new();
        if std::mem::take(&mut self.log_started) {
            actions.push(SourceAction::StopLog);
        }
        if std::mem::take(&mut self.linked) {
            if tell {
                actions.push(SourceAction::Send(ToTarget::Abort(reason_of(cause))));
            }
            actions.push(SourceAction::Disconnect);
        }
        if self.journaled {
            actions.push(SourceAction::Note(Record::Kept(self.of_guest())));
        }
        self.end();
        actions
    }

    pub(super) fn end(&mut self) {
        self.wait = Wait::Nothing;
        self.deadline = None;
        self.total = None;
        self.paused_until = None;
        self.settle = None;
    }
}

/// What the other side is told of a cause.
pub(crate) fn reason_of(cause: &Cause) -> Reason {
    let kind = match cause {
        Cause::Peer(reason) => return reason.clone(),
        Cause::Cancelled => ReasonKind::Cancelled,
        Cause::TimedOut(_) => ReasonKind::TimedOut,
        Cause::Machine(_) => ReasonKind::Machine,
        Cause::OtherProtocol(_) => ReasonKind::Incompatible,
        Cause::Refused(_) => ReasonKind::Verdict,
        Cause::Misbehaved(_) => ReasonKind::Misbehaved,
        Cause::NotReached(_) | Cause::LinkLost(_) => ReasonKind::LinkLost,
        Cause::Witness(_) | Cause::Decided(_) => ReasonKind::Other,
        Cause::Asked => ReasonKind::Asked,
    };
    Reason::new(kind, cause.to_string())
}
