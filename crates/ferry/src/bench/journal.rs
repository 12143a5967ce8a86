//! `ferry bench journal`: what journals add to a move.
//!
//! Two equal guests move in turn, one between processes that keep journals on disk, one between processes
//! that forget, so that both see the same machine. Beside the difference, which the noise of the moves
//! may hide, stands what both sides waited for the journal, as they measured it themselves.

use ferry_vmm::GuestTime;
use serde_json::{Value, json};

use crate::children::{Process, Wish};
use crate::cli::{BenchJournalArgs, Format, GuestArgs};
use crate::error::CliError;
use crate::folder;
use crate::form::{ArrivalForm, MigrationReport};
use crate::output;
use crate::spread::Spread;
use crate::verbs::choose;

/// One guest, and its moves so far.
#[derive(Debug)]
struct Lane<'a> {
    at: Process,
    flags: Vec<&'a str>,
    moves: Vec<(MigrationReport, ArrivalForm)>,
}

impl<'a> Lane<'a> {
    fn new(name: &str, guest: &GuestArgs, backend: &str, flags: Vec<&'a str>) -> Result<Self, CliError> {
        let mut at = Process::run(name, guest, backend, &flags)?;
        at.await_work()?;
        Ok(Self { at, flags, moves: Vec::new() })
    }

    fn step(&mut self, guest: &GuestArgs, backend: &str, how: Wish) -> Result<(), CliError> {
        let mut target = Process::receive_with(&self.at.id, guest, backend, &self.flags)?;
        let report = self.at.migrate_to(&target, how, Format::Json)?;
        self.at.await_end()?;
        let arrival = target.arrival()?;
        let faults = target.check()?.faults;
        if faults > 0 {
            return Err(CliError::plain(format!("the guest found {faults} faults after a move")));
        }
        self.moves.push((report, arrival));
        self.at = target;
        Ok(())
    }

    fn spread(&self, of: fn(&MigrationReport, &ArrivalForm) -> f64) -> Spread {
        Spread::of(self.moves.iter().map(|(report, arrival)| of(report, arrival)).collect())
    }

    fn document(&self) -> Value {
        let total = self.spread(|report, _| report.total_ms);
        let setup = self.spread(|report, _| report.setup_ms);
        let downtime = self.spread(|report, _| report.downtime_ms.unwrap_or(0.0));
        json!({
            "total_ms": total.median, "total_ms_min": total.min, "total_ms_max": total.max,
            "setup_ms": setup.median, "setup_ms_min": setup.min, "setup_ms_max": setup.max,
            "downtime_ms": downtime.median, "downtime_ms_min": downtime.min, "downtime_ms_max": downtime.max,
            "source_journal_ms": self.spread(|report, _| report.journal_ms).median,
            "target_journal_ms": self.spread(|_, arrival| arrival.journal_ms).median,
        })
    }
}

pub(crate) fn journal(args: &BenchJournalArgs, format: Format) -> Result<u8, CliError> {
    args.guest.config().validate().map_err(|error| CliError::usage(error.to_string()))?;
    let backend = choose(args.guest.backend)?.name();
    let folder = folder::state(&args.state)?;
    let on_disk = format!("--state-dir={}", folder.path().display());
    let guest = &args.guest;
    let mut with = Lane::new("journal", guest, backend, vec![&on_disk])?;
    let mut without = Lane::new("forget", guest, backend, vec!["--volatile-journal"])?;
    let how =
        Wish { downtime_limit: args.downtime_limit.0, verify: false, lanes: 1, guest_time: GuestTime::Stops };
    for number in 0..args.moves {
        // Neither is always the first after the other.
        let (first, second) =
            if number % 2 == 0 { (&mut with, &mut without) } else { (&mut without, &mut with) };
        first.step(guest, backend, how)?;
        second.step(guest, backend, how)?;
    }
    let document = document(args, backend, &with, &without, folder.path());
    with.at.stop()?;
    without.at.stop()?;
    match format {
        Format::Json => output::json(&document),
        Format::Text => output::lines(&summary(&document)),
    }
    Ok(0)
}

fn document(
    args: &BenchJournalArgs,
    backend: &str,
    with: &Lane<'_>,
    without: &Lane<'_>,
    folder: &std::path::Path,
) -> Value {
    let (a, b) = (with.document(), without.document());
    let adds = |name: &str| a[name].as_f64().unwrap_or(0.0) - b[name].as_f64().unwrap_or(0.0);
    json!({
        "backend": backend,
        "memory_bytes": args.guest.memory.0,
        "moves": args.moves,
        "state_dir": folder,
        "adds_total_ms": rounded(adds("total_ms")),
        "adds_setup_ms": rounded(adds("setup_ms")),
        "adds_downtime_ms": rounded(adds("downtime_ms")),
        "with": a,
        "without": b,
    })
}

fn rounded(millis: f64) -> f64 {
    (millis * 1e3).round() / 1e3
}

fn summary(document: &Value) -> Vec<String> {
    let number = |pointer: &str| document.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    let row = |name: &str, key: &str| {
        let of = |side: &str, end: &str| number(&format!("/{side}/{key}{end}"));
        format!(
            "{name:<12}median {:.3} ms with journals ({:.3} to {:.3}), {:.3} without ({:.3} to {:.3}): {:+.3} ms",
            of("with", ""),
            of("with", "_min"),
            of("with", "_max"),
            of("without", ""),
            of("without", "_min"),
            of("without", "_max"),
            number(&format!("/adds_{key}")),
        )
    };
    vec![
        format!("journals    {}, {} moves of each guest", document["state_dir"], document["moves"]),
        row("total", "total_ms"),
        row("setup", "setup_ms"),
        row("downtime", "downtime_ms"),
        format!(
            "waited      {:.3} ms for the journal on the source, {:.3} ms on the target, before the first page",
            number("/with/source_journal_ms"),
            number("/with/target_journal_ms")
        ),
    ]
}
