//! What the target's pump needs of whatever brings it frames: the doors on which sources knock, or a
//! file or descriptor that is read to its end.

use std::collections::VecDeque;

use ferry_contract::Finding;
use ferry_memory::GuestRam;
use ferry_protocol::journal::Record;
use ferry_protocol::message::ToSource;
use ferry_protocol::{
    Claim, ClaimAnswer, Epoch, GuestId, LinkId, TargetAction, TargetEvent, TargetOutcome, TargetPhase,
};

use super::{Answering, Doors};
use crate::intake::{ArrivedState, Received};
use crate::journal::JournalError;
use crate::{Custody, MachineError};

/// Brings events, takes messages, and holds what arrived.
pub(crate) trait Desk: Sized {
    fn phase(&self) -> TargetPhase;
    fn step(&mut self, event: TargetEvent) -> Vec<TargetAction>;
    /// Waits for the next event; an error when none will come any more.
    fn next_event(&mut self) -> Result<TargetEvent, MachineError>;
    fn send(&mut self, link: LinkId, message: &ToSource);
    fn close(&mut self, link: LinkId);
    fn take_lane(&mut self, link: LinkId);
    fn open_intake(&mut self, ram: GuestRam);
    fn drop_intake(&mut self);
    /// The guest of the present session, under the name that it has here.
    fn guest(&self) -> Option<GuestId>;
    /// Why the guest of the present session cannot be taken under its name.
    fn objection(&self) -> Option<Finding>;
    fn state(&self, sections: u32) -> Result<ArrivedState, String>;
    fn received(&self) -> Received;
    /// Writes a record; it is on disk when this returns.
    fn write(&mut self, record: &Record) -> Result<(), JournalError>;
    fn note(&mut self, record: &Record);
    fn claim(&mut self, claim: &Claim) -> ClaimAnswer;
    /// The one custody that the decision to run the guest becomes.
    fn custody(&self, guest: GuestId, epoch: Epoch) -> Custody {
        Custody::taken(guest, epoch)
    }
    /// Goes on answering a source that does not know yet that the guest runs here.
    fn answering(self) -> Result<Option<Answering>, MachineError>;
}

impl Desk for Doors {
    fn phase(&self) -> TargetPhase {
        Doors::phase(self)
    }

    fn step(&mut self, event: TargetEvent) -> Vec<TargetAction> {
        Doors::step(self, event)
    }

    fn next_event(&mut self) -> Result<TargetEvent, MachineError> {
        Doors::next_event(self)
    }

    fn send(&mut self, link: LinkId, message: &ToSource) {
        Doors::send(self, link, message);
    }

    fn close(&mut self, link: LinkId) {
        Doors::close(self, link);
    }

    fn take_lane(&mut self, link: LinkId) {
        Doors::take_lane(self, link);
    }

    fn open_intake(&mut self, ram: GuestRam) {
        Doors::open_intake(self, ram);
    }

    fn drop_intake(&mut self) {
        Doors::drop_intake(self);
    }

    fn guest(&self) -> Option<GuestId> {
        Doors::guest(self)
    }

    fn objection(&self) -> Option<Finding> {
        Doors::objection(self)
    }

    fn state(&self, sections: u32) -> Result<ArrivedState, String> {
        Doors::state(self, sections)
    }

    fn received(&self) -> Received {
        Doors::received(self)
    }

    fn write(&mut self, record: &Record) -> Result<(), JournalError> {
        self.books().write(record, self.source())
    }

    fn note(&mut self, record: &Record) {
        self.books().note(record);
    }

    fn claim(&mut self, claim: &Claim) -> ClaimAnswer {
        self.books().claim(claim)
    }

    fn answering(self) -> Result<Option<Answering>, MachineError> {
        answer(self).map(Some)
    }
}

/// Goes on answering in a thread of its own, until the source let the guest go.
fn answer(mut doors: Doors) -> Result<Answering, MachineError> {
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let released = |action: &TargetAction| {
        matches!(action, TargetAction::Finish(TargetOutcome::Runs { released: true, .. }))
    };
    std::thread::Builder::new()
        .name("ferry-answering".into())
        .spawn(move || {
            while let Ok(Some(event)) = doors.next_event_or(&stopped) {
                let mut events = VecDeque::from([event]);
                while let Some(event) = events.pop_front() {
                    for action in doors.step(event) {
                        if released(&action) {
                            return;
                        }
                        events.extend(doors.answer(action));
                    }
                }
            }
        })
        .map_err(|error| MachineError::with_source("no thread to answer the source's questions", error))?;
    Ok(Answering { _stop: stop })
}
