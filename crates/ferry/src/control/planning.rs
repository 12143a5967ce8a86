//! A client's wish to move the guest, made into a migration that can begin.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferry_migrate::Migration;
use ferry_migrate::oneway::{Place, PlaceError};
use ferry_protocol::message::{MAX_LANES, OfEpoch};
use ferry_protocol::{Epoch, GuestId, SessionId, SourceConfig};
use ferry_vmm::{GuestTime, GuestTimeError, fresh_seed};

use super::Request;
use super::host::Shared;
use super::route::Route;
use crate::error::CliError;
use crate::form::State;
use crate::size::Millis;

/// A migration that can begin.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(super) migration: Migration,
    pub(super) of: OfEpoch,
    pub(super) id: GuestId,
    pub(super) epoch: Epoch,
    pub(super) verify: bool,
    pub(super) copies_storage: bool,
    pub(super) to: String,
    pub(super) guest_time: GuestTime,
}

impl Shared {
    /// Prepares a migration: a fresh session and an epoch that was never used.
    pub(crate) fn plan(&self, request: &Request, passed: Option<OwnedFd>) -> Result<Planned, CliError> {
        let Request::Migrate {
            to,
            downtime_limit_ms,
            timeout_ms,
            verify,
            lanes,
            copy_storage,
            bandwidth_limit_bytes_per_second: bandwidth,
            guest_time,
            ..
        } = request
        else {
            return Err(CliError::usage("that is no migration"));
        };
        let guest_time =
            guest_time.parse().map_err(|error: GuestTimeError| CliError::usage(error.to_string()))?;
        let place: Place = to.parse().map_err(|error: PlaceError| CliError::usage(error.to_string()))?;
        if !(1..=MAX_LANES).contains(lanes) {
            return Err(CliError::usage(format!("{lanes} lanes are not to be had: give 1 to {MAX_LANES}")));
        }
        let route = Route::new(place, passed)?;
        route.check_lanes(*lanes)?;
        let millis = |value: f64| value.to_string().parse::<Millis>().map_err(CliError::usage);
        let (downtime_limit, total) = (millis(*downtime_limit_ms)?.0, millis(*timeout_ms)?.0);
        let mut facts = self.facts();
        if facts.state == State::Migrating {
            return Err(CliError::plain("the guest is being moved already: wait until that is over"));
        }
        let found = (facts.machine.clone(), facts.id.clone(), facts.state);
        let (Some(machine), Some(id), State::Running) = found else {
            let state = facts.state.name();
            return Err(CliError::plain(format!(
                "no guest that could be moved runs here: this process is `{state}`"
            )));
        };
        if *copy_storage && facts.disks == 0 {
            return Err(CliError::usage(format!("the guest `{id}` has no disk whose image could be copied")));
        }
        facts.highest = facts.highest.next();
        facts.state = State::Migrating;
        let mut config = SourceConfig::new(id.clone(), SessionId(fresh_seed()), facts.highest, machine);
        config.verify = *verify;
        config.lanes = *lanes;
        config.bandwidth_limit = *bandwidth;
        config.downtime_limit = downtime_limit;
        config.timeouts = self.test.timeouts();
        config.timeouts.total = total;
        let (epoch, verify) = (config.epoch, config.verify);
        let of = OfEpoch { session: config.session, epoch };
        let migration = route.migration(config, Arc::clone(&self.journal));
        Ok(Planned {
            migration: if *copy_storage { migration.with_disks() } else { migration },
            of,
            id,
            epoch,
            verify,
            copies_storage: *copy_storage,
            to: to.clone(),
            guest_time,
        })
    }
}
