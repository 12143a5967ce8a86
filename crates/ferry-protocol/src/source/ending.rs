//! How a migration ends that does not pass custody: the guest goes on here as if nothing had been.

use super::{Cause, Reason, ReasonKind, Source, SourceAction, SourceEvent, SourceOutcome, ToTarget, Wait};

impl Source {
    /// Ends the migration; the guest goes on here. `tell` says whether the target is told why.
    pub(super) fn fail(&mut self, cause: Cause, tell: bool) -> Vec<SourceAction> {
        self.deadline = None;
        self.total = None;
        self.settle = None;
        if !self.paused {
            return self.kept(cause, tell);
        }
        // The guest first: telling may block, and every moment is downtime.
        self.wait = Wait::Resumed { cause, tell };
        vec![SourceAction::Resume { take_resources: self.resources_released }]
    }

    pub(super) fn on_undo(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        match (&self.wait, event) {
            (Wait::Resumed { cause, tell }, SourceEvent::Resumed) => {
                let (cause, tell) = (cause.clone(), *tell);
                self.paused = false;
                self.resources_released = false;
                self.kept(cause, tell)
            }
            (Wait::Resumed { cause, tell }, SourceEvent::Failed(obstacle)) => {
                let (cause, tell) = (cause.clone(), *tell);
                let mut actions = self.farewell(&cause, tell);
                actions.push(SourceAction::Finish(SourceOutcome::Held { cause, obstacle }));
                actions
            }
            (_, SourceEvent::LinkLost(_)) => {
                self.linked = false;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn kept(&mut self, cause: Cause, tell: bool) -> Vec<SourceAction> {
        let mut actions = self.farewell(&cause, tell);
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
        self.end();
        actions
    }

    pub(super) fn end(&mut self) {
        self.wait = Wait::Nothing;
        self.deadline = None;
        self.total = None;
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
        Cause::Asked => ReasonKind::Asked,
    };
    Reason::new(kind, cause.to_string())
}
