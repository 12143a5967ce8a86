//! Links that carry pages beside a session's own.
//!
//! They come when the machine stands and go when the last round is over: custody, the state and
//! every other message travel on the session's own link alone.

use super::{
    Cause, LinkFault, LinkId, Target, TargetAction, TargetPhase, Time, TimerName, ToSource, turn_away,
};
use crate::message::{Lane, Reason, ReasonKind};

impl Target {
    pub(super) fn is_lane(&self, link: LinkId) -> bool {
        self.session.as_ref().is_some_and(|session| session.lanes.values().any(|&lane| lane == link))
    }

    /// Takes a lane of the live session; anybody else is turned away and nothing changes.
    pub(super) fn on_lane(&mut self, now: Time, link: LinkId, lane: Lane) -> Vec<TargetAction> {
        let silence = self.timeouts.silence;
        let session = self.session.as_mut().filter(|session| {
            let offered = session.offer.as_ref().map_or(1, |offer| offer.lanes);
            session.of == lane.of
                && session.phase == TargetPhase::Receive
                && session.next_round == 0
                && (1..offered).contains(&lane.number)
                && !session.lanes.contains_key(&lane.number)
        });
        let Some(session) = session else {
            let text = "no session here waits for that lane";
            return turn_away(link, Reason::new(ReasonKind::Misbehaved, text));
        };
        session.lanes.insert(lane.number, link);
        session.deadline = Some((now.after(silence), TimerName::Silence));
        vec![TargetAction::TakeLane(link), TargetAction::Send(link, ToSource::LaneTaken)]
    }

    /// A lane that ends before the last round is over takes the session with it.
    pub(super) fn on_lane_lost(&mut self, fault: &LinkFault) -> Vec<TargetAction> {
        self.end_session(match fault {
            LinkFault::Closed => Cause::LinkLost("a lane ended in the middle of the rounds".into()),
            fault => fault.clone().into(),
        })
    }

    /// Closes the lanes: the session is over, or its last round is.
    pub(super) fn close_lanes(&mut self) -> Vec<TargetAction> {
        let lanes = self.session.as_mut().map(|session| std::mem::take(&mut session.lanes));
        lanes.into_iter().flatten().map(|(_, link)| TargetAction::Close(link)).collect()
    }
}
