//! What libFuzzer says of a run, in one line.
//!
//! The facts come from its standard error: status lines `#RUNS<tab>EVENT cov: N ft: N …`, final
//! statistics `stat::NAME: N`, and for a broken input `Test unit written to FILE`.

use std::fmt;

/// One target's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    name: String,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// No input broke anything.
    Fine { runs: u64, runs_per_second: u64, coverage_at_start: u64, coverage: u64 },
    /// An input broke something: what was said of it, and where it lies.
    Broken { reason: String, input: Option<String> },
    /// The target ran without counting coverage: it was built wrongly.
    Blind,
}

impl Report {
    /// Reads what libFuzzer printed.
    pub(super) fn read(name: &str, succeeded: bool, text: &str) -> Self {
        let outcome = if succeeded { Self::fine(text) } else { Self::broken(text) };
        Self { name: name.to_owned(), outcome }
    }

    /// Whether nothing was found.
    pub(super) fn is_fine(&self) -> bool {
        matches!(self.outcome, Outcome::Fine { .. })
    }

    fn fine(text: &str) -> Outcome {
        let coverage: Vec<u64> = text.lines().filter_map(|line| number_after(line, " cov: ")).collect();
        let figure = |key| text.lines().find_map(|line| number_after(line, key)).unwrap_or(0);
        let (Some(&coverage_at_start), Some(&coverage)) = (coverage.first(), coverage.last()) else {
            return Outcome::Blind;
        };
        Outcome::Fine {
            runs: figure("stat::number_of_executed_units:"),
            runs_per_second: figure("stat::average_exec_per_sec:"),
            coverage_at_start,
            coverage,
        }
    }

    fn broken(text: &str) -> Outcome {
        let mut lines = text.lines();
        let panic = lines.find_map(|line| line.split_once(" panicked at ")).map(|(_thread, place)| {
            let message = lines.next().unwrap_or_default();
            format!("panicked at {place} {message}")
        });
        let error = || text.lines().find(|line| line.contains("ERROR: libFuzzer")).map(str::to_owned);
        let reason = panic.or_else(error).unwrap_or_else(|| "ended without a word".to_owned());
        let input = text.lines().find_map(|line| line.split("Test unit written to ").nth(1));
        Outcome::Broken { reason, input: input.map(str::to_owned) }
    }
}

fn number_after(line: &str, key: &str) -> Option<u64> {
    line.split_once(key)?.1.split_whitespace().next()?.parse().ok()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.outcome {
            Outcome::Fine { runs, runs_per_second, coverage_at_start, coverage } => write!(
                f,
                "{name}: {runs} runs, {runs_per_second} a second, coverage {coverage_at_start} to {coverage}"
            ),
            Outcome::Broken { reason, input: Some(input) } => {
                write!(f, "{name}: {reason}; replay with: cargo xtask fuzz {name} --replay {input}")
            }
            Outcome::Broken { reason, input: None } => write!(f, "{name}: {reason}; no input was written"),
            Outcome::Blind => {
                write!(f, "{name}: no coverage was counted; see INSTRUMENTATION, xtask/src/fuzz.rs")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_one_line() {
        let text = "INFO: seed\n#4\tINITED cov: 30 ft: 31 corp: 2/8b\n#9\tNEW    cov: 40 ft: 50 corp: 3/9b\n\
                    stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     90\n";
        let report = Report::read("frame", true, text);
        assert!(report.is_fine());
        assert_eq!(report.to_string(), "frame: 900 runs, 90 a second, coverage 30 to 40");
    }

    #[test]
    fn a_broken_input_comes_with_its_command() {
        let text = "thread '<unnamed>' (4711) panicked at fuzz/src/lib.rs:9:5:\nindex out of bounds\n\
                    ==1== ERROR: libFuzzer: deadly signal\nTest unit written to fuzz/artifacts/frame/crash-1\n";
        let report = Report::read("frame", false, text);
        assert!(!report.is_fine());
        assert_eq!(
            report.to_string(),
            "frame: panicked at fuzz/src/lib.rs:9:5: index out of bounds; \
             replay with: cargo xtask fuzz frame --replay fuzz/artifacts/frame/crash-1"
        );
        let hang = Report::read("frame", false, "==1== ERROR: libFuzzer: timeout after 5 seconds\n");
        assert!(hang.to_string().contains("timeout after 5 seconds; no input was written"));
    }

    #[test]
    fn a_target_that_counts_nothing_is_no_success() {
        assert!(!Report::read("frame", true, "stat::number_of_executed_units: 900\n").is_fine());
    }
}
