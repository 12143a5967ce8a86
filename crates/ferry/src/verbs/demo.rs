//! `ferry demo`: a guest, and processes of this machine between which it is moved while it runs.
//!
//! Everything is real: the processes are `ferry run` and `ferry receive`, the move is the one of
//! `ferry migrate`, over TCP.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::{DemoArgs, Format};
use crate::control::client::Client;
use crate::control::{Reply, Request};
use crate::error::{CliError, Kind};
use crate::form::MigrationReport;
use crate::output;
use crate::verbs::choose;
use crate::verbs::migrate::{lines, wait};

/// How long the guest may take to fill its working set and start its work.
const START: Duration = Duration::from_secs(60);

pub(crate) fn demo(args: &DemoArgs, format: Format) -> Result<u8, CliError> {
    args.guest.config().validate().map_err(|error| CliError::usage(error.to_string()))?;
    let backend = choose(args.guest.backend)?.name();
    let mut source = Process::run(args, backend)?;
    say(format, &format!("guest       {} starts on {backend}, process {}", source.id, source.child.id()));
    let before = source.await_work()?;
    let mut moves = Vec::new();
    for number in 1..=args.moves {
        let mut target = Process::receive(&source.id, backend)?;
        let report = source.migrate_to(&target, args, format)?;
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

/// The guest's own word after a move.
#[derive(Debug, Clone, Copy)]
struct Check {
    pages: u64,
    faults: u64,
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

#[derive(Debug, Clone, Copy)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            at(middle)
        } else {
            f64::midpoint(at(middle.saturating_sub(1)), at(middle))
        };
        Self { min: at(0), median, max: at(values.len().saturating_sub(1)) }
    }
}

/// One process of the demonstration; it is ended when this is dropped.
#[derive(Debug)]
struct Process {
    id: String,
    child: Child,
    client: Client,
    /// Where it waits for a guest.
    listen: String,
    /// What else it prints is read, so that it never blocks on a full pipe.
    drain: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    fn run(args: &DemoArgs, backend: &str) -> Result<Self, CliError> {
        let id = format!("demo-{}", std::process::id());
        let guest = &args.guest;
        let mut flags = vec!["run".into(), format!("--id={id}"), format!("--memory={}", guest.memory.0)];
        flags.push(format!("--cpus={}", guest.cpus));
        flags.push(format!("--payload={}", guest.payload.name()));
        flags.push(format!("--rate={}", guest.rate.0));
        flags.push(format!("--backend={backend}"));
        flags.extend(guest.working_set.map(|size| format!("--working-set={}", size.0)));
        Self::start(id, &flags, "running")
    }

    fn receive(id: &str, backend: &str) -> Result<Self, CliError> {
        let flags = [
            "receive".into(),
            "--listen=127.0.0.1:0".into(),
            format!("--id={id}"),
            format!("--backend={backend}"),
        ];
        Self::start(id.to_owned(), &flags, "waiting")
    }

    /// Starts this very program and reads the document with which it says that it is ready.
    fn start(id: String, flags: &[String], ready: &str) -> Result<Self, CliError> {
        let failed = |error: std::io::Error| {
            CliError::plain(format!("a process of the demo cannot be started: {error}"))
        };
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(flags)
            .args(["--output=json", "--die-with-parent"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut lines =
            BufReader::new(child.stdout.take().ok_or_else(|| CliError::plain("a process has no output"))?);
        let mut line = String::new();
        lines.read_line(&mut line).map_err(failed)?;
        let document: Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(socket) = document[ready]["control_socket"].as_str().map(PathBuf::from) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(CliError::plain(
                "a process of the demo ended before it was ready; it said why above",
            ));
        };
        let listen = document[ready]["listen"].as_str().unwrap_or_default().to_owned();
        let client = Client::connect(&socket).map_err(failed)?;
        client.be_patient()?;
        let drain = std::thread::Builder::new()
            .name("demo-output".into())
            .spawn(move || lines.lines().for_each(drop))
            .map_err(failed)?;
        Ok(Self { id, child, client, listen, drain: Some(drain) })
    }

    fn progress(&mut self) -> Result<u64, CliError> {
        let status = self.client.status()?;
        status.progress.ok_or_else(|| CliError::plain("no guest is in the process that should have it"))
    }

    /// Waits until the guest filled its pages and works on them: its own check finds them whole.
    fn await_work(&mut self) -> Result<u64, CliError> {
        let begun = Instant::now();
        while begun.elapsed() < START {
            let check = self.check()?;
            let progress = self.progress()?;
            if check.faults > 0 {
                return Err(CliError::plain(format!(
                    "the guest found {} faults before it was moved",
                    check.faults
                )));
            }
            if check.pages > 0 && progress > 0 {
                return Ok(progress);
            }
        }
        Err(CliError::plain("the guest did not start to work within a minute"))
    }

    fn check(&mut self) -> Result<Check, CliError> {
        match self.client.ask(&Request::Check {})? {
            Reply::Checked { pages, faults } => Ok(Check { pages, faults }),
            other => Err(other.into_error()),
        }
    }

    fn migrate_to(
        &mut self,
        target: &Self,
        args: &DemoArgs,
        format: Format,
    ) -> Result<MigrationReport, CliError> {
        let request = Request::Migrate {
            to: target.listen.clone(),
            downtime_limit_ms: args.downtime_limit.0.as_secs_f64() * 1e3,
            timeout_ms: 600_000.0,
            verify: args.verify,
            lanes: args.lanes,
            bandwidth_limit_bytes_per_second: None,
            wait: true,
        };
        match self.client.ask(&request)? {
            Reply::Started { .. } => {}
            other => return Err(other.into_error()),
        }
        // With many moves a line for each is progress enough.
        let shown = if args.moves == 1 { format } else { Format::Json };
        let report = wait(&mut self.client, shown)?;
        if report.exit_status == 0 {
            return Ok(report);
        }
        let reason = report.reason.clone().unwrap_or_default();
        Err(CliError::new(
            Kind::of_status(report.exit_status),
            format!("the demo's guest was not moved: {reason}"),
        ))
    }

    /// The process of a guest that moved away ends by itself.
    fn await_end(&mut self) -> Result<(), CliError> {
        let ended = self.child.wait().map_err(|error| CliError::of(&error))?;
        if ended.success() {
            Ok(())
        } else {
            Err(CliError::plain(format!("the source's process ended badly: {ended}")))
        }
    }

    fn stop(&mut self) -> Result<(), CliError> {
        match self.client.ask(&Request::Stop {})? {
            Reply::Stopped => self.await_end(),
            other => Err(other.into_error()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(drain) = self.drain.take() {
            let _ = drain.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 4.0));
        assert!((Spread::of(vec![7.0]).median - 7.0).abs() < f64::EPSILON);
    }
}
