//! Inputs near a good one, the same on every machine: what stable tests try where no fuzzer runs.

/// Bytes that turn a length, a count or a type into something extreme: CBOR's heads of the widest
/// and of indefinite length (RFC 8949, section 3), and the ends of ranges.
const EXTREMES: &[u8] =
    &[0x00, 0x01, 0x17, 0x18, 0x1b, 0x3b, 0x5b, 0x5f, 0x7b, 0x7f, 0x80, 0x9b, 0x9f, 0xbb, 0xbf, 0xf6, 0xff];

/// The most edits of one mutant.
const EDITS_MAX: usize = 4;

/// A bytestring's mutants, without end; the same seed gives the same mutants.
#[derive(Debug, Clone)]
pub struct Mutants<'a> {
    original: &'a [u8],
    random: Random,
}

impl<'a> Mutants<'a> {
    /// Mutants of `original`.
    pub fn of(original: &'a [u8], seed: u64) -> Self {
        Self { original, random: Random(seed) }
    }
}

impl Iterator for Mutants<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut bytes = self.original.to_vec();
        for _ in 0..=self.random.below(EDITS_MAX) {
            edit(&mut bytes, &mut self.random);
        }
        Some(bytes)
    }
}

fn edit(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(random.byte());
        return;
    }
    let at = random.below(bytes.len());
    match random.below(7) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = EXTREMES[random.below(EXTREMES.len())],
        3 => bytes[at] = random.byte(),
        4 => bytes.insert(at, EXTREMES[random.below(EXTREMES.len())]),
        5 => {
            // A length of any width becomes the greatest.
            let end = bytes.len().min(at + (1 << random.below(4)));
            bytes[at..end].fill(0xff);
        }
        _ => {
            let end = bytes.len().min(at + 1 + random.below(16));
            if random.below(2) == 0 {
                bytes.drain(at..end);
            } else {
                bytes.extend_from_within(at..end);
            }
        }
    }
}

/// `SplitMix64`: small, and good enough to choose edits.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_mutants() {
        let some = |seed| Mutants::of(b"original", seed).take(100).collect::<Vec<_>>();
        assert_eq!(some(1), some(1));
        assert_ne!(some(1), some(2));
        assert!(some(1).iter().filter(|mutant| mutant.as_slice() != b"original").count() > 95);
    }

    #[test]
    fn no_bytes_have_mutants_too() {
        assert!(Mutants::of(b"", 1).take(100).any(|mutant| !mutant.is_empty()));
    }
}
