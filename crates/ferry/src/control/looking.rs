//! What the main loop does when the guest did something by itself: it ended, switched itself off, or asked for a restart.

use std::sync::PoisonError;

use ferry_migrate::{Machine, MachineError};
use ferry_vmm::{AnyBuilder, AnyGuest, Guest, Wish};

use super::host::{End, Shared};
use crate::error::CliError;
use crate::form::State;

/// Looks; the process ends with what is not `None`.
pub(super) fn look_after(shared: &Shared, builder: &mut AnyBuilder) -> Result<Option<End>, CliError> {
    if !shared.is_running() {
        return Ok(None);
    }
    let asked = shared.guest.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Guest::asked);
    if asked == Some(Wish::Restart) {
        return match begin_anew(shared, builder) {
            Ok(()) => Ok(None),
            Err(error) => {
                Err(ended(shared, &format!("it asked for a restart, and {}", CliError::of(&error).message)))
            }
        };
    }
    match (shared.status().stopped, asked) {
        (None, _) => Ok(None),
        (Some(_), Some(Wish::Off)) => {
            leave(shared);
            Ok(Some(End::Off))
        }
        (Some(why), _) => Err(ended(shared, &why)),
    }
}

fn leave(shared: &Shared) {
    shared.note_end();
    shared.enter(State::Ended, None);
}

fn ended(shared: &Shared, why: &str) -> CliError {
    leave(shared);
    let id = shared.status().id.unwrap_or_default();
    CliError::plain(format!("the guest `{id}` ended by itself: {why}"))
}

/// Gives the guest a new machine like the one that it has, in which its kernel begins.
fn begin_anew(shared: &Shared, builder: &mut AnyBuilder) -> Result<(), MachineError> {
    let mut seat = shared.guest.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut old) = seat.take() else { return Ok(()) };
    let description = old.description();
    let custody = old.pause()?;
    let resources = old.release_resources()?;
    // Its memory and its devices are wanted again.
    drop(old);
    let failed = |error| MachineError::with_source("it cannot begin anew", error);
    let mut guest: AnyGuest = builder.anew(&description).map_err(failed)?;
    guest.take_resources(custody.guest(), &resources)?;
    shared.has_serial(&guest);
    guest.resume(custody).map_err(|error| MachineError::with_source("it cannot run", error))?;
    *seat = Some(guest);
    Ok(())
}
