//! `ferry demo`: a guest, and processes of this machine between which it is moved while it runs.
//!
//! Everything is real: the processes are `ferry run` and `ferry receive`, the move is the one of
//! `ferry migrate`, over TCP.

use serde_json::{Value, json};

use crate::children::{Check, Process, Wish};
use crate::cli::{DemoArgs, Format};
use crate::error::CliError;
use crate::form::MigrationReport;
use crate::output;
use crate::spread::Spread;
use crate::verbs::choose;
use crate::verbs::migrate::lines;

pub(crate) fn demo(args: &DemoArgs, format: Format) -> Result<u8, CliError> {
    args.guest.config().validate().map_err(|error| CliError::usage(error.to_string()))?;
    let backend = choose(args.guest.backend)?.name();
    let mut source = Process::run("demo", &args.guest, backend, &[])?;
    say(format, &format!("guest       {} starts on {backend}, process {}", source.id, source.child.id()));
    let wish = Wish {
        downtime_limit: args.downtime_limit.0,
        verify: args.verify,
        lanes: args.lanes,
        guest_time: args.time.guest_time,
    };
    let before = source.await_work()?;
    let mut moves = Vec::new();
    for number in 1..=args.moves {
        let mut target = Process::receive(&source.id, &args.guest, backend)?;
        // With many moves a line for each is progress enough.
        let shown = if args.moves == 1 { format } else { Format::Json };
        let report = source.migrate_to(&target, wish, shown)?;
        source.await_end()?;
        let check = target.check()?;
        moves.push((report, check));
        if format == Format::Text {
            say_move(number, args.moves, &moves, &target);
        }
        source = target;
    }
    let after = source.progress()?;
    source.stop()?;
    conclude(&moves, (before, after), format)
}

fn say(format: Format, text: &str) {
    if format == Format::Text {
        output::line(text);
    }
}

fn say_move(number: u32, of: u32, moves: &[(MigrationReport, Check)], target: &Process) {
    let Some((report, check)) = moves.last() else { return };
    if of == 1 {
        output::lines(&lines(report, Some(check.faults == 0)));
        output::line(&format!("            {} pages checked in process {}", check.pages, target.child.id()));
    } else {
        output::line(&format!(
            "move {number:<6} downtime {:7.3} ms, total {:8.1} ms, {} rounds, {} pages checked, {} faults",
            report.downtime_ms.unwrap_or(0.0),
            report.total_ms,
            report.rounds,
            check.pages,
            check.faults
        ));
    }
}

fn conclude(
    moves: &[(MigrationReport, Check)],
    (before, after): (u64, u64),
    format: Format,
) -> Result<u8, CliError> {
    let faults: u64 = moves.iter().map(|(_, check)| check.faults).sum();
    let verified = faults == 0 && after > before;
    let spread = Spread::of(moves.iter().filter_map(|(report, _)| report.downtime_ms).collect());
    if format == Format::Json {
        let Some((last, _)) = moves.last() else { return Ok(0) };
        let mut document = as_one_document(last, Some(verified));
        if let Value::Object(fields) = &mut document {
            fields.insert("downtime_ms".into(), json!(spread.median));
            fields.insert("downtime_ms_min".into(), json!(spread.min));
            fields.insert("downtime_ms_max".into(), json!(spread.max));
            fields.insert("guest_progress".into(), json!({ "before": before, "after": after }));
            let each = moves.iter().map(|(report, check)| as_one_document(report, Some(check.faults == 0)));
            fields.insert("moves".into(), each.collect());
        }
        output::json(&document);
    } else {
        if moves.len() > 1 {
            output::line(&format!(
                "downtime    median {:.3} ms of {} moves, {:.3} to {:.3} ms",
                spread.median,
                moves.len(),
                spread.min,
                spread.max
            ));
        }
        output::line(&format!(
            "nothing lost: {faults} faults; the guest worked on, turn {before} before, {after} after"
        ));
    }
    if verified {
        return Ok(0);
    }
    Err(CliError::plain(format!(
        "the guest was harmed: {faults} faults, turn {before} before and {after} after"
    )))
}

/// A report with the fields that every measuring verb prints.
pub(crate) fn as_one_document(report: &MigrationReport, verified: Option<bool>) -> Value {
    let mut document = json!(report);
    if let Value::Object(fields) = &mut document {
        fields.insert("verified".into(), json!(verified));
    }
    document
}
