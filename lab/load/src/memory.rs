//! Memory that is written and verified, page after page, at a rate.
//!
//! Each word of a page says which page it is and how often that was written, so a page that comes back older, or as another
//! page, or torn, is found.

use std::time::{Duration, Instant};

use crate::tally::{Numbers, Stop, Tally};

const PAGE_BYTES: u64 = 4096;
const PAGE_WORDS: usize = 512;

/// How often the rate is looked at.
const TICK: Duration = Duration::from_millis(10);

/// The memory, and what each page must hold.
#[derive(Debug)]
pub(crate) struct Memory {
    words: Vec<u64>,
    written: Vec<u64>,
    bytes_per_second: u64,
}

/// Word `at` of a page that was written so often.
const fn word(page: usize, written: u64, at: usize) -> u64 {
    (page as u64 ^ (written << 24)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(at as u64)
}

impl Memory {
    /// So many bytes in whole pages, all written once.
    pub(crate) fn new(bytes: u64, bytes_per_second: u64) -> Self {
        let pages = usize::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(0).max(1);
        let mut memory =
            Self { words: vec![0; pages * PAGE_WORDS], written: vec![0; pages], bytes_per_second };
        (0..pages).for_each(|page| memory.write(page));
        memory
    }

    /// Works until the word to stop, and looks at all pages once more then.
    pub(crate) fn run(mut self, stop: &Stop, tally: &Tally) {
        let mut numbers = Numbers(1);
        let mut before = Instant::now();
        let mut owed: u64 = 0;
        while stop.pause(TICK) {
            // What a pause of the guest cost is not made up for: a burst would hide the rate.
            let passed = before.elapsed().min(TICK * 10);
            before = Instant::now();
            let passed_us = u64::try_from(passed.as_micros()).unwrap_or(0);
            owed += self.bytes_per_second.saturating_mul(passed_us) / 1_000_000;
            while owed >= PAGE_BYTES && !stop.is_set() {
                owed -= PAGE_BYTES;
                let page = numbers.below(self.written.len());
                tally.judge(self.verify(page));
                self.write(page);
                tally.judge(self.verify(numbers.below(self.written.len())));
            }
        }
        for page in 0..self.written.len() {
            tally.judge(self.verify(page));
        }
    }

    fn write(&mut self, page: usize) {
        self.written[page] += 1;
        let written = self.written[page];
        for (at, slot) in self.words[page * PAGE_WORDS..][..PAGE_WORDS].iter_mut().enumerate() {
            *slot = word(page, written, at);
        }
    }

    fn verify(&self, page: usize) -> Result<(), String> {
        let words = &self.words[page * PAGE_WORDS..][..PAGE_WORDS];
        let wrong = |(at, found): &(usize, &u64)| **found != word(page, self.written[page], *at);
        let Some((at, found)) = words.iter().enumerate().find(wrong) else { return Ok(()) };
        Err(format!(
            "page {page}, written {} times, holds {found:#x} instead of {:#x} at word {at}",
            self.written[page],
            word(page, self.written[page], at)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_older_or_torn_or_another_is_found() {
        let mut memory = Memory::new(3 * PAGE_BYTES, 0);
        assert_eq!((0..3).map(|page| memory.verify(page)).collect::<Vec<_>>(), vec![Ok(()); 3]);
        let older = memory.words[..PAGE_WORDS].to_vec();
        memory.write(0);
        let whole = memory.words.clone();
        memory.words[..PAGE_WORDS].copy_from_slice(&older);
        assert!(memory.verify(0).unwrap_err().contains("written 2 times"));
        memory.words[..PAGE_WORDS / 2].copy_from_slice(&whole[..PAGE_WORDS / 2]);
        assert!(memory.verify(0).unwrap_err().contains("word 256"));
        memory.words.clone_from(&whole);
        memory.words.copy_within(0..PAGE_WORDS, PAGE_WORDS);
        assert!(memory.verify(0).is_ok() && memory.verify(1).is_err());
    }
}
