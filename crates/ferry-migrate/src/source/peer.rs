//! The source's link: one socket, and the thread that reads the target's messages from it.

use std::cell::Cell;
use std::net::Shutdown;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use ferry_protocol::frame::FrameKind;
use ferry_protocol::message::{ToSource, ToTarget};
use ferry_protocol::{LinkFault, SourceEvent};

use super::Incoming;
use crate::framing::{parse_message, read_frame, send_message};
use crate::link::Socket;
use crate::send::LaneSender;

/// How long a target may take to close its side after this one did.
const FAREWELL: Duration = Duration::from_millis(100);

/// One link; dropping it closes the socket and ends the reader.
#[derive(Debug)]
pub(super) struct Peer {
    socket: Socket,
    reader: Option<JoinHandle<()>>,
    /// Disconnected when the reader ends.
    ended: Receiver<()>,
    /// What was sent last ends the migration: it is to arrive.
    last_word: Cell<bool>,
}

impl Peer {
    pub(super) fn new(
        socket: Socket,
        link: u64,
        silence: Duration,
        events: Sender<Incoming>,
    ) -> Result<(Self, LaneSender), String> {
        let failed = |error: std::io::Error| format!("the link could not be set up: {error}");
        socket.set_write_timeout(silence).map_err(failed)?;
        let reading = socket.try_clone().map_err(failed)?;
        let lane = LaneSender::new(socket.try_clone().map_err(failed)?);
        let (ends, ended) = bounded(0);
        let reader = std::thread::Builder::new()
            .name("ferry-source-reader".into())
            .spawn(move || {
                let _ends_with_the_reader = ends;
                read_all(&reading, link, &events);
            })
            .map_err(failed)?;
        Ok((Self { socket, reader: Some(reader), ended, last_word: Cell::new(false) }, lane))
    }

    /// A link on which nobody answers.
    pub(super) fn one_way(socket: Socket) -> std::io::Result<(Self, LaneSender)> {
        let lane = LaneSender::new(socket.try_clone()?);
        let (_, ended) = bounded(0);
        Ok((Self { socket, reader: None, ended, last_word: Cell::new(false) }, lane))
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn send(&self, message: &ToTarget) -> Result<(), LinkFault> {
        self.last_word.set(matches!(message, ToTarget::Abort(_) | ToTarget::Release(_)));
        send_message(&self.socket, FrameKind::ToTarget, message)
    }

    /// Nothing more is sent: the target sees the end of the stream. What it sends is still read.
    pub(super) fn end_stream(&self) {
        self.socket.shutdown(Shutdown::Write);
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            tracing::error!("the reader of a link panicked");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // First only this direction: closing a TCP socket with unread bytes resets it, and the last
        // word, why the migration ended, could be lost on its way.
        self.socket.shutdown(Shutdown::Write);
        if self.last_word.get() {
            let _ = self.ended.recv_timeout(FAREWELL);
        }
        self.socket.shutdown(Shutdown::Both);
        self.join();
    }
}

fn read_all(socket: &Socket, link: u64, events: &Sender<Incoming>) {
    loop {
        let read = read_frame(socket).and_then(|(kind, head)| match kind {
            FrameKind::ToSource => parse_message::<ToSource>(&head),
            _ => Err(LinkFault::Garbled("the target sent what only a source sends".into())),
        });
        let (event, over) = match read {
            Ok(message) => (SourceEvent::Received(message), false),
            Err(fault) => (SourceEvent::LinkLost(fault), true),
        };
        // A peer that sends more than the pump takes is not read any further: try_send, because a
        // blocked reader could not be joined.
        if events.try_send(Incoming { link, event }).is_err() || over {
            return;
        }
    }
}
