//! In which order a workload writes its pages, and what each page holds after so many steps.
//!
//! First every page is written once, in order of address, with the sequence number 1. Then `churn`
//! goes over its working set pass after pass; a pass writes every page once, in an order that
//! follows from the seed: from a start of its own with a stride that shares no factor with the
//! number of pages. So what a page must hold is computed from the number of steps alone, and a
//! page that was lost or came from an earlier round cannot hide behind a header of its own.

use ferry_memory::PAGE_SIZE;

use crate::config::{SimConfig, Workload};
use crate::generator::join;
use crate::page::Stamp;

/// Apart from the seed itself, so that the stride is not a start as well.
const STRIDE_SALT: u64 = 0x7374_7269_6465;

/// What one step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Writes a page for the first time.
    Fill(Stamp),
    /// Holds a page against its old content, then writes the new one.
    Rewrite { old: Stamp, new: Stamp },
    /// Looks at a page and writes no memory.
    Beat { page: u64 },
}

/// The order of one guest's steps.
#[derive(Debug, Clone)]
pub(crate) struct Walk {
    seed: u64,
    pages: u64,
    stride: u64,
    /// `stride * inverse` leaves 1 when divided by `pages`.
    inverse: u64,
    rewrites: bool,
}

impl Walk {
    /// The walk of a config that was checked.
    pub(crate) fn new(config: &SimConfig) -> Self {
        let pages = config.checked_pages().max(1);
        let wanted = join(config.seed, STRIDE_SALT) % pages;
        let (stride, inverse) = (0..pages)
            .map(|more| (wanted + more) % pages)
            .find_map(|stride| Some((stride, inverse(stride, pages)?)))
            .unwrap_or((0, 0));
        let rewrites = matches!(config.workload, Workload::Churn { .. });
        Self { seed: config.seed, pages, stride, inverse, rewrites }
    }

    /// Pages that the workload writes and checks.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// What the step after `steps` steps does.
    pub(crate) fn step(&self, steps: u64) -> Step {
        let Some(later) = steps.checked_sub(self.pages) else {
            return Step::Fill(self.stamp(steps, 1));
        };
        if !self.rewrites {
            return Step::Beat { page: later % self.pages };
        }
        let (pass, place) = (later / self.pages, later % self.pages);
        let page = (self.start(pass) + place * self.stride) % self.pages;
        Step::Rewrite { old: self.stamp(page, pass + 1), new: self.stamp(page, pass + 2) }
    }

    /// What `page` holds after `steps` steps.
    pub(crate) fn holds(&self, page: u64, steps: u64) -> Stamp {
        let Some(later) = steps.checked_sub(self.pages) else {
            return self.stamp(page, u64::from(page < steps));
        };
        if !self.rewrites {
            return self.stamp(page, 1);
        }
        let (pass, done) = (later / self.pages, later % self.pages);
        let from_start = (page + self.pages - self.start(pass)) % self.pages;
        let place = from_start * self.inverse % self.pages;
        self.stamp(page, pass + 1 + u64::from(place < done))
    }

    /// Pages that `steps` steps have held against their old content.
    pub(crate) fn checked(&self, steps: u64) -> u64 {
        if self.rewrites { steps.saturating_sub(self.pages) } else { 0 }
    }

    fn start(&self, pass: u64) -> u64 {
        join(self.seed, pass) % self.pages
    }

    fn stamp(&self, page: u64, sequence: u64) -> Stamp {
        Stamp { seed: self.seed, page, sequence }
    }
}

/// How many steps a second the workload makes once its pages are filled.
pub(crate) fn steps_per_second(workload: &Workload) -> u64 {
    match *workload {
        Workload::Idle { .. } => 100,
        Workload::Churn { rate_bytes_per_second, .. } => (rate_bytes_per_second / PAGE_SIZE).max(1),
    }
}

/// The number whose product with `a` leaves 1 when divided by `n`; none if they share a factor.
/// Numbers are below 2²⁸ ([`MAX_MEMORY_BYTES`](crate::MAX_MEMORY_BYTES) in pages), so nothing overflows.
fn inverse(a: u64, n: u64) -> Option<u64> {
    if n == 1 {
        return Some(0);
    }
    // Euclid's algorithm; `x` keeps to x * a ≡ r (mod n), with its sign folded into 0..n.
    let (mut r, mut x) = ((n, a % n), (0, 1));
    while r.1 != 0 {
        let quotient = r.0 / r.1;
        r = (r.1, r.0 % r.1);
        x = (x.1, (x.0 + (n - quotient % n) * x.1) % n);
    }
    (r.0 == 1).then_some(x.0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn churn(seed: u64, pages: u64) -> Walk {
        let workload = Workload::Churn { working_set_bytes: pages * PAGE_SIZE, rate_bytes_per_second: 4096 };
        Walk::new(&SimConfig { seed, memory_bytes: pages * PAGE_SIZE, workload })
    }

    #[test]
    fn an_inverse_is_one() {
        for n in 2..60 {
            for a in 0..n {
                let shares = (2..=a.max(2)).any(|d| a % d == 0 && n % d == 0) || a == 0;
                assert_eq!(inverse(a, n).is_none(), shares, "{a} mod {n}");
                assert!(inverse(a, n).is_none_or(|b| a * b % n == 1), "{a} mod {n}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_a_page_holds_is_what_the_steps_wrote(seed: u64, pages in 1_u64..40, steps in 0_u64..400) {
            let walk = churn(seed, pages);
            let mut written: HashMap<u64, Stamp> = HashMap::new();
            for done in 0..steps {
                match walk.step(done) {
                    Step::Fill(stamp) => prop_assert!(written.insert(stamp.page, stamp).is_none()),
                    Step::Rewrite { old, new } => prop_assert_eq!(written.insert(new.page, new), Some(old)),
                    Step::Beat { .. } => prop_assert!(false, "churn does not beat"),
                }
            }
            for page in 0..pages {
                let never = Stamp { seed, page, sequence: 0 };
                prop_assert_eq!(walk.holds(page, steps), written.get(&page).copied().unwrap_or(never));
            }
        }

        #[test]
        fn a_pass_writes_every_page_once(seed: u64, pages in 1_u64..200, pass in 0_u64..1000) {
            let walk = churn(seed, pages);
            let mut seen = [false; 200];
            for place in 0..pages {
                let Step::Rewrite { new, .. } = walk.step(pages * (pass + 1) + place) else {
                    return Err(TestCaseError::fail("no rewrite"));
                };
                prop_assert!(!std::mem::replace(&mut seen[usize::try_from(new.page).unwrap()], true));
            }
        }
    }

    #[test]
    fn idle_writes_each_page_once_and_then_none() {
        let workload = Workload::Idle { patterned_bytes: 4 * PAGE_SIZE };
        let walk = Walk::new(&SimConfig { seed: 3, memory_bytes: 8 * PAGE_SIZE, workload });
        assert!((0..4).all(|step| matches!(walk.step(step), Step::Fill(stamp) if stamp.page == step)));
        assert!((4..99).all(|step| matches!(walk.step(step), Step::Beat { .. })));
        assert_eq!(walk.holds(2, 2).sequence, 0);
        assert_eq!(walk.holds(2, 3).sequence, 1);
        assert_eq!(walk.holds(2, 90).sequence, 1);
    }
}
