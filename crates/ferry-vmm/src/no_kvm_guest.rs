//! In place of guests on KVM, on hosts of an architecture that has none yet: there is nothing of these types,
//! and whoever asks for one is told why.

use std::fs::File;
use std::sync::Arc;

use ferry_contract::Verdict;
use ferry_kvm::HugePages;
use ferry_migrate::{Builder, MachineError, RunWatch};
use ferry_protocol::MachineDescription;
use ferry_sim::SimMachine;

use crate::backend::{Birth, DirtyKind};
use crate::{GuestConfig, VmmError};

/// What a guest on KVM would be; there is none, so any kind of guest serves.
pub type KvmGuest = SimMachine;

/// Whether guests on KVM can be had here.
pub(crate) const fn is_possible() -> Result<(), VmmError> {
    Err(VmmError::Architecture)
}

/// Refuses to make a guest.
pub fn create(
    _config: &GuestConfig,
    _birth: Birth<'_>,
    _watch: Option<Arc<dyn RunWatch>>,
) -> Result<KvmGuest, VmmError> {
    Err(VmmError::Architecture)
}

/// Would make guests on the target of a migration; there is none.
#[derive(Debug)]
pub enum KvmBuilder {}

impl KvmBuilder {
    /// Refuses.
    pub const fn new() -> Result<Self, VmmError> {
        Err(VmmError::Architecture)
    }

    /// The same with someone who is told when a guest starts and stops to run.
    #[must_use]
    pub fn with_watch(self, _watch: Option<Arc<dyn RunWatch>>) -> Self {
        self
    }

    /// The same for guests whose written pages are noted there.
    pub const fn with_dirty(self, _dirty: DirtyKind) -> Result<Self, VmmError> {
        Ok(self)
    }

    /// The same with a file for what guests write to their serial port.
    #[must_use]
    pub fn with_serial_output(self, _file: Option<Arc<File>>) -> Self {
        self
    }

    /// The same with guests whose memory lies in such pages.
    #[must_use]
    pub const fn with_huge_pages(self, _wish: HugePages) -> Self {
        self
    }
}

impl Builder for KvmBuilder {
    type Machine = KvmGuest;

    fn judge(&mut self, _machine: &MachineDescription) -> Verdict {
        match *self {}
    }

    fn build(&mut self, _machine: &MachineDescription) -> Result<KvmGuest, MachineError> {
        match *self {}
    }
}
