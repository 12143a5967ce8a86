//! Parts of a state that most steps leave as they are: shared between states, hashed once.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A value with its hash. To clone it is cheap, and so is to hash it.
pub(crate) struct Shared<T>(Arc<(u64, T)>);

impl<T: Hash> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new((hash_of(&value), value)))
    }
}

impl<T: Hash + Clone> Shared<T> {
    /// Changes the value; other states keep the old one.
    pub(crate) fn change<R>(&mut self, how: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.0.1.clone();
        let result = how(&mut value);
        *self = Self::new(value);
        result
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.0);
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.0 == other.0.0 && self.0.1 == other.0.1)
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.1.fmt(f)
    }
}

/// The hash of a value, fast where tests are hardly optimised: most of a search is hashing.
pub(crate) fn hash_of(value: &impl Hash) -> u64 {
    let mut fold = Fold(0);
    value.hash(&mut fold);
    fold.0
}

/// Multiplies and folds, word by word.
struct Fold(u64);

impl Fold {
    fn add(&mut self, word: u64) {
        // Twice, so that words that differ in few bits cannot make up for each other.
        let once = (self.0.rotate_left(23) ^ word ^ 0x51_7cc1_b727_220a).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let twice = (once ^ (once >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = twice ^ (twice >> 29);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.add(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.add(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.add(word.cast_unsigned() as u64);
    }
}
