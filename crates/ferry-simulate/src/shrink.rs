//! A failing plan made small: faults are left out, and quiet settings taken, while it still fails.

use ferry_protocol::Rules;

use crate::clock::{Clock, EVEN};
use crate::invariants::Broken;
use crate::plan::{Base, Fault, Plan};
use crate::story::Telling;

/// Leaves out of a failing plan whatever it does not need to break the same invariant.
pub fn shrink(plan: &Plan, rules: Rules, broken: Broken) -> Plan {
    let fails = |plan: &Plan| {
        let report = crate::simulate(plan, rules, Telling::Nothing);
        report.violation.is_some_and(|violation| violation.broken == broken)
    };
    let mut best = plan.clone();
    loop {
        let before = best.clone();
        for number in (0..best.faults.len()).rev() {
            let mut fewer = best.clone();
            fewer.faults.remove(number);
            if fails(&fewer) {
                best = fewer;
            }
        }
        for quieter in QUIETER {
            let mut calm = best.clone();
            quieter(&mut calm.base);
            if calm != best && fails(&calm) {
                best = calm;
            }
        }
        for number in 0..best.faults.len() {
            for smaller in SMALLER {
                let mut calm = best.clone();
                smaller(&mut calm.faults[number]);
                if calm != best && fails(&calm) {
                    best = calm;
                }
            }
        }
        if best == before {
            return best;
        }
    }
}

const QUIETER: [fn(&mut Base); 9] = [
    |base| base.moves = 1,
    |base| base.moves = base.moves.saturating_sub(1).max(1),
    |base| base.clocks = [Clock { origin: 0, rate: EVEN }; 2],
    |base| base.verify = false,
    |base| base.lanes = 1,
    |base| base.witness = false,
    |base| base.lock = false,
    |base| base.job_us = 100,
    |base| (base.rate, base.page_us) = (50, 10),
];

const SMALLER: [fn(&mut Fault); 2] = [Fault::at_once, Fault::shorter];
