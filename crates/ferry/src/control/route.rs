//! The way of a migration that a client asked for.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferry_migrate::journal::Journal;
use ferry_migrate::oneway::{Direction, Place, Sink, Stream};
use ferry_migrate::{Address, MigrateOptions, Migration};
use ferry_protocol::SourceConfig;

use crate::error::CliError;

/// Where a guest goes.
#[derive(Debug)]
pub(super) enum Route {
    Link(Address),
    OneWay(Sink),
}

impl Route {
    pub(super) fn new(place: Place, passed: Option<OwnedFd>) -> Result<Self, CliError> {
        match (place, passed) {
            (Place::Link(address), None) => Ok(Self::Link(address)),
            (Place::File(path), None) if path.is_absolute() => Ok(Self::OneWay(Sink::file(path))),
            (Place::File(_), None) => Err(CliError::usage(
                "give the file's whole path: this process may have another folder than yours",
            )),
            (Place::Descriptor(_), Some(fd)) => {
                let stream = Stream::new(fd, Direction::Out)
                    .map_err(|error| CliError::usage(CliError::of(&error).message))?;
                Ok(Self::OneWay(Sink::stream(stream)))
            }
            (Place::Descriptor(_), None) => {
                Err(CliError::usage("no descriptor came with the request: send it as SCM_RIGHTS"))
            }
            (_, Some(_)) => Err(CliError::usage("a descriptor came with a request that has no use for it")),
        }
    }

    pub(super) fn check_lanes(&self, lanes: u8) -> Result<(), CliError> {
        match self {
            Self::OneWay(_) if lanes > 1 => {
                Err(CliError::usage("a file or descriptor is written in one piece: lanes are for addresses"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn migration(self, config: SourceConfig, journal: Arc<dyn Journal>) -> Migration {
        match self {
            Self::Link(address) => Migration::new(MigrateOptions::new(address, config, journal)),
            Self::OneWay(sink) => Migration::one_way(sink, config, journal),
        }
    }
}
