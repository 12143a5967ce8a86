//! What the engine leaves behind: threads by their names, and sockets.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::PATIENCE;

/// One test at a time: what is counted belongs to the process.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What there was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaks {
    pub(crate) threads: Vec<String>,
    pub(crate) sockets: usize,
}

impl Leaks {
    pub(crate) fn now() -> Self {
        let mut threads: Vec<_> = fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .filter(|name| name.starts_with("ferry-"))
            .collect();
        threads.sort();
        let is_socket = |link: &std::path::Path| link.to_string_lossy().starts_with("socket:");
        let sockets = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
            .filter(|link| is_socket(link))
            .count();
        Self { threads, sockets }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.sockets <= before.sockets && self.threads.len() <= before.threads.len()
    }

    /// Waits until there is no more than there was.
    pub(crate) fn none(&self) {
        let began = Instant::now();
        while !Self::now().is_within(self) {
            assert!(began.elapsed() < PATIENCE, "before {self:?}, after {:?}", Self::now());
            std::thread::yield_now();
        }
    }
}
