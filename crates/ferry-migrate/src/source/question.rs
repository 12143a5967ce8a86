//! The question of a source whose process is gone, asked in its place: who runs the guest?
//!
//! What the target answers is for ever, as if the source itself had asked. Only the guest that was
//! paused there is gone with its process.

use std::time::Duration;

use ferry_protocol::Cause;
use ferry_protocol::frame::FrameKind;
use ferry_protocol::journal::MayBeGiven;
use ferry_protocol::message::{Ask, Known, Reason, ToSource, ToTarget};

use crate::framing::{parse_message, read_frame, send_message};
use crate::link::{Address, Socket};

/// What a target answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It runs the guest, or ran it and handed it on. It was told that the source let go.
    Runs,
    /// It did not take the guest, and never will.
    Refused(Reason),
    /// Another process listens there, and this is what it knows of the one that was given custody.
    Unknown(Known),
    /// Nobody answered, or not what answers the question; why.
    Silent(String),
}

/// Asks the target to which custody may have been given.
pub fn ask(given: &MayBeGiven, within: Duration) -> Asked {
    let answer = given
        .address
        .parse::<Address>()
        .map_err(|error| error.to_string())
        .and_then(|address| Socket::connect(&address, within))
        .and_then(|socket| ask_over(&socket, given, within));
    answer.unwrap_or_else(Asked::Silent)
}

fn ask_over(socket: &Socket, given: &MayBeGiven, within: Duration) -> Result<Asked, String> {
    let instance = given.to.ok_or("custody was given to no process that could be asked")?;
    let failed = |fault| Cause::from(fault).to_string();
    socket
        .set_write_timeout(within)
        .and_then(|()| socket.set_read_timeout(within))
        .map_err(|e| e.to_string())?;
    let ask = Ask { guest: given.guest.clone(), of: given.of, instance };
    send_message(socket, FrameKind::ToTarget, &ToTarget::Ask(ask)).map_err(failed)?;
    let (kind, head) = read_frame(socket).map_err(failed)?;
    if kind != FrameKind::ToSource {
        return Err("the target sent what only a source sends".into());
    }
    match parse_message::<ToSource>(&head).map_err(failed)? {
        ToSource::Running(of) if of == given.of => {
            // It stops waiting for a source that is gone.
            let _ = send_message(socket, FrameKind::ToTarget, &ToTarget::Release(of));
            Ok(Asked::Runs)
        }
        ToSource::Refused(refused) if refused.of == given.of => Ok(Asked::Refused(refused.reason)),
        ToSource::Unknown(unknown) if unknown.of == given.of => Ok(Asked::Unknown(unknown.known)),
        other => Err(format!("the target answered `{}`, which says nothing of the guest", other.name())),
    }
}
