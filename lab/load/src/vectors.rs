//! Floating point and vectors: sums whose every bit is known.
//!
//! Many lanes of chaotic maps run side by side, long enough that timer ticks and other threads come between: a bit that is lost in
//! a register, or another rounding mode, makes the result another one. IEEE 754 gives addition, multiplication, division and
//! square root one result each, so one constant holds on every processor. [`pulp`] runs the loop with the widest vectors
//! that CPUID shows; the compiler makes vector instructions of it, and fuses nothing.

use std::time::{Duration, Instant};

use pulp::{Arch, NullaryFnOnce};

use crate::tally::{Stop, Tally};

/// Lanes of each kind: 16 registers of 256 bits hold all of them.
const LANES: usize = 32;

/// Turns of the loop between two looks at the result.
const TURNS: u32 = 2_000;

/// How long a thread rests after a turn, in turns.
const REST: u32 = 6;

/// A pause of the guest that came within a turn is not rested for.
const TURN_MAX: Duration = Duration::from_millis(500);

/// The results of the first four seeds.
const KNOWN: [u64; 4] =
    [0x85d7_b504_1b86_ed3e, 0xa0e6_88b1_f344_fb56, 0xedcb_7811_4aa6_d802, 0xe0f1_a79c_0b01_2e47];

/// The loop with its seed.
#[derive(Debug, Clone, Copy)]
struct Maps {
    seed: usize,
}

impl NullaryFnOnce for Maps {
    type Output = u64;

    #[expect(
        clippy::inline_always,
        reason = "only inside the caller is it compiled for the vectors chosen there"
    )]
    #[inline(always)]
    fn call(self) -> u64 {
        let mut wide = [0_f64; LANES];
        let mut narrow = [0_f32; LANES];
        let mut whole = [0_u32; LANES];
        let mut start = 0.1;
        for lane in 0..LANES {
            start += 0.02;
            wide[lane] = start + 0.001 * f64::from(whole_of(self.seed));
            #[expect(clippy::cast_possible_truncation, reason = "the lane starts anywhere between 0 and 1")]
            {
                narrow[lane] = wide[lane] as f32;
            }
            whole[lane] = whole_of(self.seed * LANES + lane);
        }
        for _ in 0..TURNS {
            for lane in &mut wide {
                // The logistic map, taken apart and put together again by rounding operations.
                let next = 3.9 * *lane * (1.0 - *lane);
                *lane = (next * next).sqrt() / (1.0 + next * 0.001);
            }
            for lane in &mut narrow {
                *lane = 3.8 * *lane * (1.0 - *lane);
            }
            for lane in &mut whole {
                *lane = (lane.wrapping_mul(0x9e37_79b1) ^ (*lane >> 15)).wrapping_add(0x85eb_ca6b);
            }
        }
        let bits = wide.iter().map(|lane| lane.to_bits());
        let bits = bits.chain(narrow.iter().map(|lane| u64::from(lane.to_bits())));
        let bits = bits.chain(whole.iter().map(|lane| u64::from(*lane)));
        bits.fold(0, |sum: u64, bits| (sum.rotate_left(7) ^ bits).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

fn whole_of(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Computes until the word to stop; threads of unlike numbers hold unlike values.
pub(crate) fn run(thread: u64, stop: &Stop, tally: &Tally) {
    let arch = Arch::new();
    let seed = usize::try_from(thread).unwrap_or(0) % KNOWN.len();
    let mut took = Duration::ZERO;
    // Most of the time is left to the rest of the load, and to the other guests of an emulated host.
    while stop.pause(took * REST) {
        let start = Instant::now();
        tally.judge(look(seed, arch.dispatch(Maps { seed })));
        took = start.elapsed().min(TURN_MAX);
    }
}

fn look(seed: usize, found: u64) -> Result<(), String> {
    if found == KNOWN[seed] {
        return Ok(());
    }
    Err(format!("the sum of seed {seed} is {found:#018x} instead of {:#018x}", KNOWN[seed]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_the_same_with_all_vectors_and_with_none() {
        for seed in 0..KNOWN.len() {
            let widest = Arch::new().dispatch(Maps { seed });
            assert_eq!(look(seed, widest), Ok(()));
            assert_eq!(widest, Maps { seed }.call());
        }
        assert!(look(0, KNOWN[0] ^ 1).unwrap_err().contains("seed 0"));
    }
}
