//! `cargo xtask bench move`: the downtime of whole moves, beside the limit of the same machine.

use std::process::Command;

use serde::Deserialize;

use crate::bench::limit::{Limit, ROUND_TRIPS, ROUNDS};
use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

/// How the moves are asked for; the downtime of an idle guest is what the project promises.
const DEMO: &[&str] = &["demo", "--moves", "20", "--payload", "idle", "--memory", "512M", "--output", "json"];

/// What `ferry demo --output json` prints, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Report {
    backend: String,
    moves: Vec<Move>,
}

#[derive(Debug, Deserialize)]
struct Move {
    downtime_ms: f64,
    total_ms: f64,
}

/// Median, least and most of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// Builds the program, moves a guest, and prints the figures.
pub(super) fn run(tree: &Tree) -> Result<(), Failure> {
    run::pass(&mut run::cargo(tree, &["build", "--release", "--package", "ferry"]))?;
    let limit = Limit::measure().map_err(Failure::Loopback)?;
    let mut demo = Command::new(tree.target.join("release/ferry"));
    demo.args(DEMO);
    let shown = run::shown(&demo);
    say::step(&shown);
    let json = run::capture(&mut demo)?;
    let report: Report =
        serde_json::from_slice(&json).map_err(|source| Failure::Json { command: shown.clone(), source })?;
    let spread = |figure: fn(&Move) -> f64| Spread::of(report.moves.iter().map(figure).collect());
    let (Some(downtime), Some(total)) = (spread(|one| one.downtime_ms), spread(|one| one.total_ms)) else {
        return Err(Failure::Unknown(format!("`{shown}` reports no move")));
    };
    print(&report, downtime, total, limit);
    Ok(())
}

fn print(report: &Report, downtime: Spread, total: Spread, limit: Limit) {
    let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    say::line(&format!("moves     {} on the backend {}", report.moves.len(), report.backend));
    say::line(&downtime.shown("downtime"));
    say::line(&total.shown("total"));
    say::line(&format!(
        "limit     {:.3} ms: {ROUND_TRIPS} round trips of {:.3} ms and a wake-up of {:.3} ms \
         (medians of {ROUNDS}); the median downtime is {:.0} times that",
        milliseconds(limit.downtime()),
        milliseconds(limit.round_trip),
        milliseconds(limit.wake_up),
        downtime.median / milliseconds(limit.downtime()),
    ));
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*figures.first()?, *figures.last()?);
        let upper = figures.len() / 2;
        let lower = (figures.len() - 1) / 2;
        Some(Self { median: f64::midpoint(figures[lower], figures[upper]), min, max })
    }

    fn shown(self, name: &str) -> String {
        let Self { median, min, max } = self;
        format!("{name:<9} median {median:.3} ms, min {min:.3} ms, max {max:.3} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        assert_eq!(Spread::of(Vec::new()), None);
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn fields_that_are_not_measured_are_skipped() {
        let json = r#"{"backend":"sim","new":1,"moves":[{"downtime_ms":1.5,"total_ms":9,"rounds":2}]}"#;
        let report: Report = serde_json::from_str(json).unwrap();
        assert_eq!((report.backend.as_str(), report.moves.len()), ("sim", 1));
    }
}
