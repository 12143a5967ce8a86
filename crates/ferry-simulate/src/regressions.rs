//! Seeds and plans that once broke something, by name. They are run with every batch.

use crate::clock::{Clock, EVEN};
use crate::plan::{Base, Fault, Plan, Side, What, When};
use ferry_protocol::{SourcePhase, TargetPhase};

/// A plan that once failed.
#[derive(Debug, Clone)]
pub struct Regression {
    /// Its name.
    pub name: &'static str,
    /// What was wrong.
    pub was: &'static str,
    /// The shrunk plan: seeds mean other plans when the drawing of plans changes, a plan stays.
    pub plan: Plan,
}

/// Every one of them.
pub fn regressions() -> Vec<Regression> {
    let first = |phase, after_us, what| Fault { when: When::Source { attempt: 1, phase, after_us }, what };
    vec![
        Regression {
            name: "claim-fails",
            was: "a source whose claim failed as a job waited for ever",
            plan: Plan {
                seed: 166,
                base: Base { witness: true, ..calm() },
                faults: vec![
                    first(SourcePhase::Given, 0, CUT),
                    first(SourcePhase::Given, 0, What::Fail { side: Side::Source }),
                ],
            },
        },
        Regression {
            name: "start-fails-after-the-claim",
            was: "a source that lost the claim let the guest go before the target could start it, which then \
                  failed: nobody ran the guest, and nobody was asked",
            plan: Plan {
                seed: 12,
                base: Base { witness: true, job_us: 1000, ..calm() },
                faults: vec![
                    Fault {
                        when: When::Target { attempt: 1, phase: TargetPhase::Taking, after_us: 0 },
                        what: CUT,
                    },
                    first(SourcePhase::Asking, 1000, What::Fail { side: Side::Target }),
                ],
            },
        },
    ]
}

const CUT: What = What::Cut { keep_down: 0, keep_up: 0, tell_source: true, tell_target: true };

/// A small guest on two quiet hosts, moved once.
fn calm() -> Base {
    Base {
        working_pages: 4,
        pages: 8,
        rate: 50,
        delay_us: 200,
        page_us: 10,
        verify: false,
        lanes: 1,
        downtime_limit_us: 1000,
        clocks: [Clock { origin: 0, rate: EVEN }; 2],
        moves: 1,
        job_us: 100,
        lock: false,
        witness: false,
    }
}
