//! Numbers from a seed: everything in a simulated guest that looks random comes from here.
//!
//! The function is `SplitMix64` (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
//! OOPSLA 2014). It is no cryptography; two builds must only agree on every number, because the two
//! sides of a migration compute the same pages from the same seed.

/// The odd constant by which the generator's state grows: 2⁶⁴ divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every bit of `x` over the whole word; one to one, and zero stays zero.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One number made of two, in which their order matters.
pub(crate) fn join(a: u64, b: u64) -> u64 {
    mix(mix(a.wrapping_add(GAMMA)) ^ b.wrapping_add(GAMMA.rotate_left(32)))
}

/// An endless row of numbers from a seed: the same for the same seed, wherever and whenever.
#[derive(Debug, Clone)]
pub struct Generator {
    state: u64,
}

impl Generator {
    /// The row of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "the row has no end, so it has no `None`")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        mix(self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        // The first outputs for the seed 0, as every implementation of SplitMix64 gives them.
        let mut row = Generator::new(0);
        assert_eq!(row.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(row.next(), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(row.next(), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn the_order_of_two_numbers_matters() {
        assert_ne!(join(1, 2), join(2, 1));
        assert_ne!(join(0, 0), join(0, 1));
    }
}
