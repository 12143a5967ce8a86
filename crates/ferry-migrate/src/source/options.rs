//! What a migration is asked to be.

use std::sync::Arc;

use ferry_protocol::SourceConfig;

use crate::journal::Journal;
use crate::link::Address;
use crate::oneway::Sink;
use crate::witness::Witness;

/// One migration to be made.
#[derive(Debug, Clone)]
pub struct MigrateOptions {
    /// Where the target listens.
    pub address: Address,
    /// The guest, the session, the epoch, limits and timeouts.
    pub config: SourceConfig,
    /// Where this process writes what it must not forget.
    pub journal: Arc<dyn Journal>,
    /// Who decides when the two sides cannot; then [`SourceConfig::witness`] names the epoch of its record.
    pub witness: Option<Arc<dyn Witness>>,
}

impl MigrateOptions {
    /// A migration without a witness.
    pub fn new(address: Address, config: SourceConfig, journal: Arc<dyn Journal>) -> Self {
        Self { address, config, journal, witness: None }
    }
}

/// Where it goes, and how.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) route: Route,
    pub(super) config: SourceConfig,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) witness: Option<Arc<dyn Witness>>,
    /// The images of its disks move with the guest.
    pub(super) with_disks: bool,
}

#[derive(Debug)]
pub(super) enum Route {
    /// To a target that answers.
    Link(Address),
    /// Into a file or a descriptor; none once it was opened.
    OneWay(Option<Sink>),
}
