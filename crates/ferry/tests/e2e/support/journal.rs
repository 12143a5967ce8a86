//! The journal of vCPU runs, held against what may be: no two processes run one guest at one time.

use std::collections::BTreeMap;
use std::path::Path;

use ferry_vmm::{RunEvent, RunLog};

/// The clock of the journal, `CLOCK_MONOTONIC`, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// Who ran the guest last, and whether that is over.
#[derive(Debug, Clone, Copy)]
struct Run {
    at_ns: u64,
    pid: u32,
    epoch: u64,
    over: bool,
}

/// Checks every line; `deaths` says when processes were killed. Gives the processes that ran the
/// guest, in order.
pub(crate) fn check(path: &Path, deaths: &BTreeMap<u32, Vec<u64>>) -> Vec<u32> {
    let Ok(lines) = RunLog::read(path) else { return Vec::new() };
    let mut last: Option<Run> = None;
    let mut runners = Vec::new();
    for line in &lines {
        match line.event {
            RunEvent::DoubleRun => panic!("two processes ran the guest: {lines:#?}"),
            RunEvent::Stop => {
                let run = last.as_mut().unwrap_or_else(|| panic!("a stop without a run: {lines:#?}"));
                assert_eq!((run.pid, run.epoch, run.over), (line.pid, line.epoch, false), "{lines:#?}");
                run.over = true;
            }
            RunEvent::Run => {
                if let Some(run) = last {
                    // A number may be another process's later on.
                    let since = run.at_ns..=line.at_ns;
                    let is_dead =
                        || deaths.get(&run.pid).is_some_and(|at| at.iter().any(|at| since.contains(at)));
                    assert!(run.over || is_dead(), "{} still runs: {lines:#?}", run.pid);
                    let is_newer = line.epoch > run.epoch;
                    let is_the_same = line.epoch == run.epoch && line.pid == run.pid;
                    assert!(is_newer || is_the_same, "an epoch came back: {lines:#?}");
                }
                last = Some(Run { at_ns: line.at_ns, pid: line.pid, epoch: line.epoch, over: false });
                runners.push(line.pid);
            }
        }
    }
    runners.dedup();
    runners
}
