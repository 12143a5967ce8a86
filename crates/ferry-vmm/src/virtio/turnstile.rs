//! A lock whose holder can see that others wait, and that can be waited for so long and no longer.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// What one thread uses at a time.
#[derive(Debug)]
pub(super) struct Turnstile<T> {
    inner: Mutex<T>,
    waiting: AtomicUsize,
    gate: Mutex<()>,
    freed: Condvar,
}

/// It, in use.
pub(super) struct Held<'a, T> {
    // The order counts: it is free before the bell rings.
    inner: MutexGuard<'a, T>,
    _bell: Bell<'a>,
}

/// Tells those who wait that it is free.
struct Bell<'a> {
    waiting: &'a AtomicUsize,
    gate: &'a Mutex<()>,
    freed: &'a Condvar,
}

impl<T> Turnstile<T> {
    /// Free.
    pub(super) fn new(inner: T) -> Self {
        let (waiting, gate, freed) = (AtomicUsize::new(0), Mutex::new(()), Condvar::new());
        Self { inner: Mutex::new(inner), waiting, gate, freed }
    }

    /// How many wait that want the holder to make haste.
    pub(super) fn waiting(&self) -> &AtomicUsize {
        &self.waiting
    }

    /// Waits without haste.
    pub(super) fn lock(&self) -> Held<'_, T> {
        self.held(self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits, and lets the holder know.
    pub(super) fn hurry(&self) -> Held<'_, T> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let held = self.lock();
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        held
    }

    /// The same, but not longer than this.
    pub(super) fn hurry_within(&self, limit: Duration) -> Option<Held<'_, T>> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        // Either the holder sees this, or it is free below.
        fence(Ordering::SeqCst);
        let until = Instant::now() + limit;
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let found = loop {
            match self.inner.try_lock() {
                Ok(inner) => break Some(inner),
                Err(TryLockError::Poisoned(inner)) => break Some(inner.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break None;
            }
            gate = self.freed.wait_timeout(gate, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        found.map(|inner| self.held(inner))
    }

    fn held<'a>(&'a self, inner: MutexGuard<'a, T>) -> Held<'a, T> {
        Held { inner, _bell: Bell { waiting: &self.waiting, gate: &self.gate, freed: &self.freed } }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl Drop for Bell<'_> {
    fn drop(&mut self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Acquire) > 0 {
            // Whoever found it in use waits already when the gate opens.
            drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
            self.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn who_waits_is_seen_woken_and_not_kept_for_ever() {
        let turnstile = Turnstile::new(1);
        let held = turnstile.lock();
        let began = Instant::now();
        assert!(turnstile.hurry_within(Duration::from_millis(30)).is_none());
        assert!(began.elapsed() >= Duration::from_millis(30));
        assert_eq!(turnstile.waiting().load(Ordering::SeqCst), 0);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| turnstile.hurry_within(PATIENCE).map(|held| *held));
            while turnstile.waiting().load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            drop(held);
            assert_eq!(waits.join().unwrap(), Some(1));
        });
        assert!(began.elapsed() < PATIENCE, "it was woken");
        *turnstile.hurry() = 2;
        assert_eq!(*turnstile.lock(), 2);
    }
}
