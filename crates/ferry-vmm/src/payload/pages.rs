//! `idle` and `churn`: one program whose parameters make it the one or the other.
//!
//! The program fills its working set, then turns in a loop: look for a command, write a burst of
//! pages, wait. `idle` has bursts of no page and waits until it is asked. `churn` goes through its
//! working set again and again; a page holds the number of the pass in which it was written, so the
//! vCPU knows from its own registers what each page must hold: pages before the position the
//! current pass, the others the pass before. It checks a page before it writes it again, and all of
//! them when asked. A page that is stale, foreign or torn in a single byte is a fault.
//!
//! Each vCPU has a share of the working set and a seed of its own, and counts pages from its share's
//! first. A page of sequence `s` at index `p` holds 512 words of 64 bits: `s`, `p`, and
//! from word 2 on `h + k * (h | 1)` for k = 0, 1, …, where `h` mixes the guest's seed, `p` and `s`
//! ([`page_word`] is the same in Rust).
//!
//! It uses no interrupt, no exception and no `HLT`.

/// Bytes of a page, as the program counts them.
pub const PAGE_BYTES: u64 = 4096;

/// 64-bit words of a page.
pub const PAGE_WORDS: i32 = 512;

/// Odd constants of the mixing function (the golden ratio's and one of the usual finalizers).
pub(super) const MIX_PAGE: u64 = 0x9e37_79b9_7f4a_7c15;
pub(super) const MIX_SEQUENCE: u64 = 0xbf58_476d_1ce4_e5b9;

/// Bursts of `churn` come about so often; a burst is whole pages, so the time follows from the rate.
const BURSTS_PER_SECOND: u64 = 200;

/// How many pages to write how often: whole pages, and the microseconds that they stand for.
pub(crate) fn burst(rate_bytes_per_second: u64) -> (u64, u32) {
    let pages = (rate_bytes_per_second / PAGE_BYTES / BURSTS_PER_SECOND).max(1);
    let bytes = u128::from(pages * PAGE_BYTES);
    let wait_us = bytes * 1_000_000 / u128::from(rate_bytes_per_second.max(1));
    (pages, u32::try_from(wait_us).unwrap_or(u32::MAX).max(1))
}

/// What word `word` of page `page` holds after it was written with `sequence`.
pub fn page_word(seed: u64, page: u64, sequence: u64, word: u32) -> u64 {
    let mut mixed = page.wrapping_mul(MIX_PAGE) ^ sequence.wrapping_mul(MIX_SEQUENCE);
    mixed = mixed.wrapping_add(seed);
    mixed = (mixed ^ mixed >> 29).wrapping_mul(MIX_PAGE);
    mixed ^= mixed >> 32;
    match word {
        0 => sequence,
        1 => page,
        _ => mixed.wrapping_add(u64::from(word - 2).wrapping_mul(mixed | 1)),
    }
}

/// What a fault says.
pub(crate) fn fault(page: u64, word: u32, expected: u64, found: u64) -> String {
    format!("page {page} of the working set, word {word}: expected {expected:#018x}, found {found:#018x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_keep_the_rate() {
        for rate in [4096, 10_000, 1 << 20, 200 << 20, 3 << 30] {
            let (pages, wait_us) = burst(rate);
            let got = pages * 4096 * 1_000_000 / u64::from(wait_us);
            assert!(got.abs_diff(rate) <= rate / 100, "{rate}: {pages} pages in {wait_us} us");
        }
        assert_eq!(burst(200 << 20), (256, 5000));
    }

    #[test]
    fn pages_differ_by_seed_index_and_sequence() {
        let words = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
            .map(|(seed, page, sequence)| page_word(seed, page, sequence, 2));
        let distinct: std::collections::BTreeSet<_> = words.iter().collect();
        assert_eq!(distinct.len(), words.len());
        assert_eq!(page_word(1, 7, 9, 0), 9);
        assert_eq!(page_word(1, 7, 9, 1), 7);
    }
}
