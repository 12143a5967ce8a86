//! `ferry status`: the guests of this machine, as their processes tell.

use indicatif::HumanBytes;

use crate::cli::{Format, StatusArgs};
use crate::control::client::{all, find};
use crate::error::CliError;
use crate::form::Status;
use crate::output;

pub(crate) fn status(args: &StatusArgs, format: Format) -> Result<u8, CliError> {
    if let Some(id) = &args.id {
        let (_, status) = find(id.as_str())?;
        match format {
            Format::Json => output::json(&status),
            Format::Text => output::lines(&details(&status)),
        }
        return Ok(0);
    }
    let found: Vec<_> = all()?.into_iter().map(|(_, status)| status).collect();
    match format {
        Format::Json => output::json(&serde_json::json!({ "guests": found })),
        Format::Text if found.is_empty() => output::line("no guest runs here and none is awaited"),
        Format::Text => output::lines(&table(&found)),
    }
    Ok(0)
}

fn table(found: &[Status]) -> Vec<String> {
    let head = ["GUEST", "STATE", "BACKEND", "EPOCH", "MEMORY", "PAYLOAD", "FAULTS", "PID"].map(String::from);
    let rows = found.iter().map(|status| {
        [
            status.id.clone().unwrap_or_else(dash),
            phase(status),
            status.backend.clone(),
            status.epoch.map_or_else(dash, |epoch| epoch.to_string()),
            status.memory_bytes.map_or_else(dash, |bytes| HumanBytes(bytes).to_string()),
            status.payload.clone().unwrap_or_else(dash),
            status.faults.map_or_else(dash, |faults| faults.to_string()),
            status.pid.to_string(),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..8).map(width).collect();
    let cells = |row: &[String; 8]| {
        let padded: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    rows.iter().map(cells).collect()
}

fn details(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines.push(format!("{name:<14}{value}"));
        }
    };
    say("guest", status.id.clone());
    say("state", Some(phase(status)));
    say("custody", Some(if status.custody { "here" } else { "not here" }.into()));
    say("epoch", status.epoch.map(|epoch| epoch.to_string()));
    say("backend", Some(status.backend.clone()));
    say("written pages", status.dirty_source.as_ref().map(|source| format!("by KVM's dirty {source}")));
    say("process", Some(status.pid.to_string()));
    say("memory", status.memory_bytes.map(|bytes| HumanBytes(bytes).to_string()));
    say(
        "pages",
        status.memory_pages.as_ref().map(|pages| match &status.memory_pages_reason {
            Some(reason) => format!("{pages}, because {reason}"),
            None => pages.clone(),
        }),
    );
    say("vCPUs", status.cpus.map(|cpus| cpus.to_string()));
    say("payload", status.payload.clone());
    say("progress", status.progress.map(|turns| format!("{turns} turns")));
    say("checked", status.pages_checked.map(|pages| format!("{pages} pages")));
    say("faults", status.faults.map(|faults| faults.to_string()));
    say("first fault", status.first_fault.clone());
    say("ended", status.stopped.clone());
    say("listens", status.listen.clone());
    if let Some(last) = &status.last_migration {
        let reason = last.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        say("last move", Some(format!("to {}, {}{reason}", last.to, last.outcome)));
    }
    lines
}

fn phase(status: &Status) -> String {
    let state = status.state.name();
    status.phase.as_ref().map_or_else(|| state.to_owned(), |phase| format!("{state}: {phase}"))
}

fn dash() -> String {
    "-".into()
}
