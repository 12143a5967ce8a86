//! Lanes beside the session's own link: a socket and a thread each, which send the chunks of a round
//! that the pump hands them.

use std::net::Shutdown;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use ferry_protocol::LinkFault;
use ferry_protocol::frame::FrameKind;
use ferry_protocol::message::{Lane, OfEpoch, ToSource, ToTarget};

use crate::framing::{parse_message, read_frame, send_message};
use crate::link::{Address, Socket};
use crate::send::{LaneSender, Round};

/// The lanes of one migration beside lane 0. Dropping them closes their links.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: Vec<SenderLane>,
}

#[derive(Debug)]
struct SenderLane {
    socket: Socket,
    rounds: Option<Sender<Arc<Round>>>,
    thread: Option<JoinHandle<()>>,
}

/// How lanes are made.
#[derive(Debug)]
pub(crate) struct LaneTerms<'a> {
    pub(crate) address: &'a Address,
    pub(crate) of: OfEpoch,
    pub(crate) connect: Duration,
    pub(crate) hello: Duration,
    pub(crate) silence: Duration,
}

impl Lanes {
    /// Makes lanes 1 to `lanes - 1` and waits until the target took each.
    pub(crate) fn open(lanes: u8, terms: &LaneTerms<'_>) -> Result<Self, LinkFault> {
        let lanes: Result<_, _> = (1..lanes).map(|number| SenderLane::open(number, terms)).collect();
        Ok(Self { lanes: lanes? })
    }

    /// Lets every lane take chunks of a round.
    pub(crate) fn share(&self, round: &Arc<Round>) {
        for lane in &self.lanes {
            // A lane that is gone has left its fault in the round before, and that ended the migration.
            let _ = lane.rounds.as_ref().map(|rounds| rounds.try_send(Arc::clone(round)));
        }
    }
}

impl SenderLane {
    fn open(number: u8, terms: &LaneTerms<'_>) -> Result<Self, LinkFault> {
        let failed = |error: std::io::Error| LinkFault::Failed(format!("lane {number} failed: {error}"));
        let socket = Socket::connect(terms.address, terms.connect).map_err(LinkFault::Failed)?;
        socket.set_write_timeout(terms.silence).map_err(failed)?;
        socket.set_read_timeout(terms.hello).map_err(failed)?;
        let lane = ToTarget::Lane(Lane { of: terms.of, number });
        send_message(&socket, FrameKind::ToTarget, &lane)?;
        await_taken(&socket)?;
        let sending = socket.try_clone().map_err(failed)?;
        // One round is under way at a time; the next one may be handed over while a thread looks up.
        let (rounds, to_send) = bounded(2);
        let thread = std::thread::Builder::new()
            .name(format!("ferry-lane-{number}"))
            .spawn(move || send_rounds(sending, &to_send))
            .map_err(failed)?;
        Ok(Self { socket, rounds: Some(rounds), thread: Some(thread) })
    }
}

fn await_taken(socket: &Socket) -> Result<(), LinkFault> {
    let (kind, head) = read_frame(socket)?;
    let message = match kind {
        FrameKind::ToSource => parse_message::<ToSource>(&head)?,
        _ => return Err(LinkFault::Garbled("the target sent what only a source sends".into())),
    };
    match message {
        ToSource::LaneTaken => Ok(()),
        ToSource::Abort(reason) => Err(LinkFault::Failed(format!("the target refused a lane: {reason}"))),
        other => Err(LinkFault::Garbled(format!("the target sent `{}` on a new lane", other.name()))),
    }
}

fn send_rounds(socket: Socket, rounds: &Receiver<Arc<Round>>) {
    let mut lane = LaneSender::new(socket);
    while let Ok(round) = rounds.recv() {
        if !round.send_all(&mut lane) {
            return;
        }
    }
}

impl Drop for SenderLane {
    fn drop(&mut self) {
        self.rounds = None;
        // A thread in the middle of a write returns from it; one that waits for a round ends.
        self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a lane panicked");
        }
    }
}
