//! Everything that looks random in a simulation: rows of numbers from its seed.
//!
//! Each part of the world has a row of its own, so that a fault that is left out of a plan does not
//! shift the dice of the rest.

use ferry_sim::Generator;

/// One row of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Dice {
    row: Generator,
}

impl Dice {
    /// The row of one part of the world.
    pub(crate) fn new(seed: u64, part: u64) -> Self {
        let start = Generator::new(seed).next() ^ Generator::new(!part).next();
        Self { row: Generator::new(start) }
    }

    /// A number below `n`; 0 if there is none.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.row.next().checked_rem(n).unwrap_or(0)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in so many of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of a list, each as often as its weight says.
    pub(crate) fn weighted<T: Copy>(&mut self, choices: &[(u64, T)], otherwise: T) -> T {
        let mut left = self.below(choices.iter().map(|(weight, _)| weight).sum());
        for &(weight, choice) in choices {
            if left < weight {
                return choice;
            }
            left -= weight;
        }
        otherwise
    }
}
