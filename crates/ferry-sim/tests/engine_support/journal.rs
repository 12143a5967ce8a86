//! A journal of who runs a guest, shared by both sides.

use std::sync::{Arc, Mutex, PoisonError};

use ferry_migrate::{Custody, RunWatch};
use ferry_sim::SimOptions;

/// Every start and stop of one guest, on whatever side.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    inner: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    runs_under: Vec<u64>,
    epochs: Vec<u64>,
    wrong: Option<String>,
}

impl Journal {
    /// Options of a machine whose runs are noted here.
    pub(crate) fn options(self: &Arc<Self>) -> SimOptions {
        SimOptions { watch: Some(Arc::clone(self) as Arc<dyn RunWatch>), ..SimOptions::default() }
    }

    /// The epochs of all runs so far; nobody ever ran beside another, and none under an older epoch.
    pub(crate) fn epochs(&self) -> Vec<u64> {
        let entries = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(entries.wrong, None, "{:?}", entries.epochs);
        assert!(entries.epochs.is_sorted(), "{:?}", entries.epochs);
        entries.epochs.clone()
    }

    /// Whether the guest runs now.
    pub(crate) fn runs(&self) -> bool {
        !self.inner.lock().unwrap_or_else(PoisonError::into_inner).runs_under.is_empty()
    }
}

impl RunWatch for Journal {
    fn starts(&self, custody: &Custody) {
        let mut entries = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = custody.epoch().0;
        if let Some(other) = entries.runs_under.first() {
            entries.wrong = Some(format!("it began to run under epoch {epoch} while it ran under {other}"));
        }
        entries.runs_under.push(epoch);
        entries.epochs.push(epoch);
    }

    fn stops(&self, custody: &Custody) {
        let mut entries = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = custody.epoch().0;
        match entries.runs_under.iter().position(|runs| *runs == epoch) {
            Some(at) => {
                entries.runs_under.swap_remove(at);
            }
            None => entries.wrong = Some(format!("epoch {epoch} stopped and did not run")),
        }
    }
}
