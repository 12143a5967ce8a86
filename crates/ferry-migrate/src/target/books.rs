//! What a target writes down, and whom it asks: its journal, and the witness if there is one.

use std::sync::Arc;

use ferry_contract::{Finding, FindingKind, Layer};
use ferry_protocol::journal::Record;
use ferry_protocol::{Claim, ClaimAnswer, GuestId, InstanceId};

use crate::journal::{Journal, JournalError};
use crate::source::sentence;
use crate::witness::Witness;

/// A target's journal and witness.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) witness: Option<Arc<dyn Witness>>,
}

impl Books {
    /// Writes a record; that a guest may run here only while no other process has one of its name, but
    /// for its source.
    pub(crate) fn write(&self, record: &Record, source: Option<InstanceId>) -> Result<(), JournalError> {
        match record {
            Record::MayRun(_) | Record::Born(_) => self.journal.take_name(record, source),
            _ => self.journal.write(record),
        }
    }

    pub(crate) fn note(&self, record: &Record) {
        self.journal.note(record);
    }

    /// Why a guest of this name cannot be taken: another process of this host has one. Looked at before
    /// anything is built, and once more as the name is taken.
    pub(crate) fn objection(&self, guest: &GuestId, source: Option<InstanceId>) -> Option<Finding> {
        let (target, effect, remedy) = match self.journal.holder(guest, source) {
            Ok(None) => return None,
            Ok(Some(path)) => (
                format!("a process that lives has a guest of this name (journal {})", path.display()),
                "two guests of one name could not be told apart",
                format!("end that guest, or settle it with `ferry recover {guest}`"),
            ),
            Err(error) => (
                sentence(&error),
                "whether another guest of this name is here is not known",
                "mend the folder of the journals".into(),
            ),
        };
        Some(Finding {
            kind: FindingKind::Refusal,
            subject: "name".into(),
            layer: Layer::Machine,
            guest: guest.to_string(),
            target,
            effect: effect.into(),
            remedy,
        })
    }

    pub(crate) fn claim(&self, claim: &Claim) -> ClaimAnswer {
        self.witness.as_ref().map_or_else(
            || ClaimAnswer::Unreached("this process was given no witness".into()),
            |witness| witness.claim(claim, self.journal.instance()),
        )
    }
}
