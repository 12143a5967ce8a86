//! A source whose link leads one way: into a file or a pipe, where nobody answers.
//!
//! It waits for no message: hello and offer, then the rounds by the same policy as over a link, then
//! the state. What was sent is made to last before custody is given, so that custody is never without
//! its guest.

use super::{Cause, Record, Source, SourceAction, SourceEvent, SourceOutcome, StateEnd, ToTarget, Wait};

impl Source {
    pub(super) fn begin_one_way(&mut self) -> Vec<SourceAction> {
        vec![self.hello(), self.offer(), self.journal()]
    }

    pub(super) fn seal(&mut self, sections: u32) -> Vec<SourceAction> {
        self.await_job(Wait::Sealed);
        vec![SourceAction::Send(ToTarget::StateEnd(StateEnd { sections })), SourceAction::Seal]
    }

    /// What became of the custody message. Nothing else counts any more: neither a lost link nor a
    /// user who cancels.
    pub(super) fn on_written(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        let epoch = self.config.epoch;
        match event {
            SourceEvent::Delivered => {
                self.end();
                let outcome = SourceOutcome::Moved { epoch };
                let note = SourceAction::Note(Record::Moved(self.of_guest()));
                vec![
                    SourceAction::ReleaseGuest,
                    SourceAction::Disconnect,
                    note,
                    SourceAction::Finish(outcome),
                ]
            }
            SourceEvent::Undelivered(text) => {
                let mut actions = vec![SourceAction::TakeBack { raise_to: None }];
                actions.extend(self.fail(Cause::LinkLost(text), false));
                actions
            }
            SourceEvent::Doubtful(known) => {
                self.end();
                let outcome = SourceOutcome::Doubtful { epoch, known };
                vec![SourceAction::Disconnect, SourceAction::Finish(outcome)]
            }
            _ => Vec::new(),
        }
    }
}
