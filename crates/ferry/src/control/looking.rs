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
    let seen = |guest: &AnyGuest| Seen::of(|| guest.report().stopped, || guest.asked());
    let found = shared.guest.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(seen);
    match found {
        None => Ok(None),
        Some(Seen::Off) => {
            leave(shared);
            Ok(Some(End::Off))
        }
        Some(Seen::Ended(why)) => Err(ended(shared, &why)),
        Some(Seen::WantsRestart) => match begin_anew(shared, builder) {
            Ok(()) => Ok(None),
            Err(error) => {
                Err(ended(shared, &format!("it asked for a restart, and {}", CliError::of(&error).message)))
            }
        },
    }
}

impl Shared {
    /// The process ends: the guest, if it is still here, has a moment for its last words before the terminal is what it was.
    pub(super) fn let_go(&self) {
        drop(self.guest.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.console.end();
    }
}

/// What a guest did by itself.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Off,
    WantsRestart,
    Ended(String),
}

impl Seen {
    /// A guest says first what it asks for and then why it stopped. So the other order here: a guest that had stopped had asked
    /// before, however the two looks fall.
    fn of(stopped: impl FnOnce() -> Option<String>, asked: impl FnOnce() -> Option<Wish>) -> Option<Self> {
        let stopped = stopped();
        match (asked(), stopped) {
            (Some(Wish::Off), Some(_)) => Some(Self::Off),
            (_, Some(why)) => Some(Self::Ended(why)),
            (Some(Wish::Restart), None) => Some(Self::WantsRestart),
            // That it stopped is said next.
            (Some(Wish::Off) | None, None) => None,
        }
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
    let custody = match old.pause() {
        Ok(custody) => custody,
        // Another of its vCPUs switched it off meanwhile: the next look says so.
        Err(_) if old.asked() == Some(Wish::Off) => {
            *seat = Some(old);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_power_off_between_two_looks_is_no_failure() {
        // The guest goes on between any two looks: it asks, then it stops.
        for begun in 0..3 {
            let step = Cell::new(begun);
            let look = |of: u32| {
                let now = step.get();
                step.set(now + 1);
                now >= of
            };
            let seen = Seen::of(
                || look(2).then(|| "it switched itself off".to_owned()),
                || look(1).then_some(Wish::Off),
            );
            assert!(matches!(seen, None | Some(Seen::Off)), "{begun}: {seen:?}");
        }
        let seen = |stopped: Option<&str>, asked| Seen::of(|| stopped.map(str::to_owned), || asked);
        assert_eq!(seen(Some("off"), Some(Wish::Off)), Some(Seen::Off));
        assert_eq!(seen(Some("it crashed"), None), Some(Seen::Ended("it crashed".to_owned())));
        assert_eq!(seen(None, Some(Wish::Restart)), Some(Seen::WantsRestart));
        assert_eq!(seen(None, None), None);
    }
}
