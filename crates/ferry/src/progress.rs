//! Progress of a migration on standard error: a bar on a terminal, lines otherwise.

use std::io::IsTerminal;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::Format;
use crate::form::ProgressForm;
use crate::output;

/// Shows progress; silent for JSON.
#[derive(Debug)]
pub(crate) struct Shown {
    bar: Option<ProgressBar>,
    lines: bool,
    last: Option<(String, u32)>,
}

impl Shown {
    pub(crate) fn new(format: Format) -> Self {
        let text = format == Format::Text;
        let terminal = std::io::stderr().is_terminal();
        let bar = (text && terminal).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let template = "{prefix:<10} [{bar:30}] {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self { bar, lines: text && !terminal, last: None }
    }

    pub(crate) fn show(&mut self, progress: &ProgressForm) {
        let facts = facts(progress);
        if let Some(bar) = &self.bar {
            bar.set_length((progress.round_done_bytes + progress.round_left_bytes).max(1));
            bar.set_position(progress.round_done_bytes);
            bar.set_prefix(progress.phase.clone());
            bar.set_message(facts.clone());
        }
        let step = (progress.phase.clone(), progress.round);
        if self.lines && self.last.as_ref() != Some(&step) {
            output::note(&format!("{:<10} {facts}", progress.phase));
            self.last = Some(step);
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn facts(progress: &ProgressForm) -> String {
    let mut facts = vec![format!("round {}", progress.round)];
    if progress.data_bytes > 0 {
        facts.push(format!(
            "{} sent, {} left, {}/s",
            HumanBytes(progress.data_bytes),
            HumanBytes(progress.round_left_bytes),
            HumanBytes(progress.throughput_bytes_per_second)
        ));
    }
    facts.extend(progress.dirty_bytes_per_second.map(|rate| format!("dirties {}/s", HumanBytes(rate))));
    facts.extend(progress.expected_downtime_ms.map(|downtime| format!("downtime {downtime:.1} ms")));
    let left = progress.time_left_ms.filter(|_| progress.round_left_bytes > 0);
    facts.extend(left.map(|left| format!("{:.1} s to go", left / 1e3)));
    if progress.stalled {
        facts.push("stalled: the guest dirties faster than the link carries, raise --downtime-limit".into());
    }
    facts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_there_is_to_say() {
        let mut progress = ProgressForm {
            phase: "rounds".into(),
            round: 1,
            round_done_bytes: 4096,
            round_left_bytes: 0,
            data_bytes: 0,
            zero_bytes: 4096,
            throughput_bytes_per_second: 0,
            dirty_bytes_per_second: None,
            expected_downtime_ms: None,
            time_left_ms: None,
            stalled: false,
        };
        assert_eq!(facts(&progress), "round 1");
        progress.data_bytes = 1 << 20;
        progress.throughput_bytes_per_second = 1 << 30;
        progress.expected_downtime_ms = Some(2.25);
        progress.stalled = true;
        let text = facts(&progress);
        assert!(
            text.starts_with("round 1, 1.00 MiB sent, 0 B left, 1.00 GiB/s, downtime 2.2 ms, stalled"),
            "{text}"
        );
    }
}
