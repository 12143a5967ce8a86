//! The hand-over of a guest, simulated: the engine's own decisions
//! ([`Source`](ferry_protocol::Source), [`Target`](ferry_protocol::Target)) between simulated
//! processes, links, disks and clocks, with a guest that has real pages.
//!
//! Everything follows from a seed. [`Plan::of`] turns it into a guest, two hosts and the faults that
//! strike; [`simulate`] runs it and looks at every invariant after every step; [`shrink`] leaves out
//! of a failing plan whatever it does not need. `cargo xtask simulate` runs many seeds.

#![forbid(unsafe_code)]

mod batch;
mod birth;
mod clock;
mod dice;
mod disk;
mod faults;
mod guest;
mod invariants;
mod moves;
mod network;
mod person;
mod plan;
mod process;
mod regressions;
mod report;
mod shrink;
mod source;
mod source_jobs;
mod story;
mod target;
mod witness;
mod world;

pub use batch::{Batch, Failing, search};
pub use invariants::{Broken, Violation};
pub use plan::{Base, Fault, Plan};
pub use regressions::{Regression, regressions};
pub use report::{Report, Tally};
pub use shrink::shrink;
pub use story::Telling;

use ferry_protocol::Rules;

/// Runs a plan to its end, or until something is broken. The same plan tells the same story.
pub fn simulate(plan: &Plan, rules: Rules, telling: Telling) -> Report {
    let run = || world::World::new(plan, rules, telling).run();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word");
        let violation = Violation { broken: Broken::Machine, what: format!("the decisions panic: {text}") };
        Report { violation: Some(violation), story: Vec::new(), tally: Tally::default() }
    })
}
