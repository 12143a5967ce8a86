//! The source's link: one socket, and the thread that reads the target's messages from it.

use std::net::Shutdown;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use ferry_protocol::frame::FrameKind;
use ferry_protocol::message::{ToSource, ToTarget};
use ferry_protocol::{LinkFault, SourceEvent};

use super::Incoming;
use crate::framing::{parse_message, read_frame, send_message};
use crate::link::Socket;

/// One link; dropping it closes the socket and ends the reader.
#[derive(Debug)]
pub(super) struct Peer {
    socket: Socket,
    reader: Option<JoinHandle<()>>,
}

impl Peer {
    pub(super) fn new(
        socket: Socket,
        link: u64,
        silence: Duration,
        events: Sender<Incoming>,
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the link could not be set up: {error}");
        socket.set_write_timeout(silence).map_err(failed)?;
        let reading = socket.try_clone().map_err(failed)?;
        let reader = std::thread::Builder::new()
            .name("ferry-source-reader".into())
            .spawn(move || read_all(&reading, link, &events))
            .map_err(failed)?;
        Ok(Self { socket, reader: Some(reader) })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn send(&self, message: &ToTarget) -> Result<(), LinkFault> {
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
