//! What `ferry recover` found out, for people and as one document.

use ferry_protocol::journal::Choice;
use serde_json::{Value, json};

use super::Case;
use super::matter::{End, Matter, Process, Side};
use crate::cli::Format;
use crate::output;

pub(super) fn show(case: &Case, format: Format) {
    match format {
        Format::Json => output::json(&document(case)),
        Format::Text => output::lines(&lines(case)),
    }
}

fn document(case: &Case) -> Value {
    let running = case
        .has_it
        .iter()
        .map(|status| json!({ "pid": status.pid, "state": status.state, "epoch": status.epoch }));
    json!({
        "id": case.id,
        "open": case.matters.iter().any(Matter::is_open),
        "matters": case.matters.iter().map(matter).collect::<Vec<_>>(),
        "has_it": running.collect::<Vec<_>>(),
        "complaints": case.complaints,
    })
}

fn matter(matter: &Matter) -> Value {
    let (pid, instance) = match &matter.process {
        Process::Lives { pid, .. } => (Some(*pid), None),
        Process::Gone { instance, .. } | Process::Silent { instance } | Process::Unreadable { instance } => {
            (None, Some(instance.to_string()))
        }
    };
    let choices = matter.choices.iter().filter(|_| matter.is_open()).map(|choice| choice.name());
    json!({
        "side": match matter.side { Side::Source => "source", Side::Target => "target", Side::Unknown => "unknown" },
        "pid": pid,
        "instance": instance,
        "epoch": matter.epoch,
        "to": matter.to,
        "known": matter.known,
        "end": matter.end.as_ref().map(name),
        "report": match &matter.end { Some(End::Reported(report)) => json!(report), _ => Value::Null },
        "choices": choices.collect::<Vec<_>>(),
    })
}

/// How a matter ended, in a word.
fn name(end: &End) -> &str {
    match end {
        End::Moved => "target-has-it",
        End::Refused | End::Gone => "nobody-has-it",
        End::Decided(choice) => choice.name(),
        End::Reported(report) => &report.outcome,
    }
}

fn lines(case: &Case) -> Vec<String> {
    let mut lines: Vec<_> =
        case.complaints.iter().map(|complaint| format!("damage      {complaint}")).collect();
    for status in &case.has_it {
        let epoch = status.epoch.map_or_else(String::new, |epoch| format!(", epoch {epoch}"));
        lines.push(format!(
            "here        process {} has the guest ({}{epoch})",
            status.pid,
            status.state.name()
        ));
    }
    for matter in &case.matters {
        lines.extend(describe(matter));
    }
    if case.matters.is_empty() {
        lines.push(format!("settled     nothing is open of a guest `{}` on this host", case.id));
    }
    lines
}

fn describe(matter: &Matter) -> Vec<String> {
    let (guest, epoch) = (&matter.guest, matter.epoch);
    let to = matter.to.as_deref().unwrap_or_default();
    let mut lines = vec![match (&matter.process, matter.side) {
        (Process::Lives { pid, .. }, _) => format!(
            "source      process {pid} holds `{guest}` paused: custody of epoch {epoch} was given to {to}"
        ),
        (Process::Silent { instance }, _) => {
            format!("unknown     a process that lives (journal {instance}) may have `{guest}`")
        }
        (Process::Unreadable { instance }, _) => {
            format!("unknown     a process that is gone (journal {instance}) may have had `{guest}`")
        }
        (Process::Gone { instance, .. }, Side::Source) => format!(
            "source      a process that is gone (journal {instance}) may have given custody of `{guest}`, epoch {epoch}, to {to}"
        ),
        (Process::Gone { instance, .. }, _) => {
            format!(
                "target      a process that is gone (journal {instance}) was offered `{guest}` under epoch {epoch}"
            )
        }
    }];
    lines.extend(matter.known.as_ref().map(|known| format!("known       {known}")));
    lines.push(match &matter.end {
        Some(End::Moved) => "settled     the target has the guest".into(),
        Some(End::Refused | End::Gone) => {
            format!("settled     nobody has it any more: `ferry run --id {guest}` starts another one")
        }
        Some(End::Decided(choice)) => format!("decided     {choice}, as it is in the journal now"),
        Some(End::Reported(report)) => match report.outcome.as_str() {
            "moved" => "settled     the target has the guest; its process here has ended".into(),
            "abandoned" => "settled     nobody has the guest; its process here has ended".into(),
            "held" => {
                format!("settled     custody is here: {}", report.reason.as_deref().unwrap_or_default())
            }
            _ => format!(
                "settled     the guest runs here again: {}",
                report.reason.as_deref().unwrap_or_default()
            ),
        },
        None => possible(matter),
    });
    lines
}

fn possible(matter: &Matter) -> String {
    if let Process::Silent { .. } = matter.process {
        return "possible    let it go on, or end it, then look again: nothing is decided against a process that lives"
            .into();
    }
    let flags: Vec<_> = matter.choices.iter().map(|choice: &Choice| format!("--{choice}")).collect();
    let asks = matches!(matter.process, Process::Lives { .. }) && !matter.is_file;
    let wait =
        if asks { "wait, it goes on asking, and settles by itself once the target answers; or " } else { "" };
    format!("possible    {wait}decide, with --reason TEXT: {}", flags.join(", "))
}
