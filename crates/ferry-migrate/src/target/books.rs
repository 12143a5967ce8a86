//! What a target writes down, and whom it asks: its journal, and the witness if there is one.

use std::sync::Arc;

use ferry_protocol::journal::Record;
use ferry_protocol::{Claim, ClaimAnswer};

use crate::journal::{Journal, JournalError};
use crate::witness::Witness;

/// A target's journal and witness.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) witness: Option<Arc<dyn Witness>>,
}

impl Books {
    pub(crate) fn write(&self, record: &Record) -> Result<(), JournalError> {
        self.journal.write(record)
    }

    pub(crate) fn note(&self, record: &Record) {
        self.journal.note(record);
    }

    pub(crate) fn claim(&self, claim: &Claim) -> ClaimAnswer {
        self.witness.as_ref().map_or_else(
            || ClaimAnswer::Unreached("this process was given no witness".into()),
            |witness| witness.claim(claim, self.journal.instance()),
        )
    }
}
