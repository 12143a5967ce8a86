//! `ferry migrate`: asks the process that has the guest to move it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ferry_migrate::oneway::Place;

use indicatif::HumanBytes;

use crate::cli::{Format, MigrateArgs};
use crate::control::client::{Client, all, find};
use crate::control::{Reply, Request};
use crate::error::{CliError, Kind};
use crate::form::{MigrationReport, State};
use crate::output;
use crate::progress::Shown;
use crate::verbs::demo::as_one_document;

/// How long a guest that runs on the target may take to be handed over there.
const ARRIVAL: Duration = Duration::from_secs(12);

pub(crate) fn migrate(args: &MigrateArgs, format: Format) -> Result<u8, CliError> {
    if args.lanes > 1 && !matches!(args.to, Place::Link(_)) {
        return Err(CliError::usage(format!(
            "{} is written in one piece: --lanes is for addresses",
            args.to
        )));
    }
    let (to, fd) = destination(&args.to)?;
    let (mut client, _) = find(args.id.as_str())?;
    let request = Request::Migrate {
        to: to.to_string(),
        downtime_limit_ms: args.downtime_limit.0.as_secs_f64() * 1e3,
        timeout_ms: args.timeout.0.as_secs_f64() * 1e3,
        verify: args.verify,
        lanes: args.lanes,
        copy_storage: args.copy_storage,
        bandwidth_limit_bytes_per_second: args.max_bandwidth.map(|size| size.0),
        guest_time: args.time.guest_time.to_string(),
        wait: args.wait,
    };
    let started = match fd {
        Some(fd) => client.ask_with(&request, fd)?,
        None => client.ask(&request)?,
    };
    let epoch = match started {
        Reply::Started { epoch } => epoch,
        other => return Err(other.into_error()),
    };
    if args.wait {
        return follow(&mut client, format);
    }
    match format {
        Format::Json => {
            output::json(&serde_json::json!({ "started": { "id": args.id.as_str(), "epoch": epoch } }));
        }
        Format::Text => output::line(&format!(
            "guest `{}` is being moved to {} under epoch {epoch}; `ferry status {}` shows how it goes",
            args.id, args.to, args.id
        )),
    }
    Ok(0)
}

/// Where the guest's process is to send it: that process has another folder and other descriptors.
fn destination(to: &Place) -> Result<(Place, Option<OwnedFd>), CliError> {
    match to {
        Place::File(path) => {
            let path = std::path::absolute(path)
                .map_err(|error| CliError::plain(format!("{to} cannot be found: {error}")))?;
            Ok((Place::File(path), None))
        }
        Place::Descriptor(0) => Err(CliError::usage("standard input is not written to: use fd:3 or above")),
        Place::Descriptor(number) => Ok((to.clone(), Some(adopt(*number)?))),
        Place::Link(_) => Ok((to.clone(), None)),
    }
}

/// An inherited descriptor.
pub(crate) fn adopt(number: i32) -> Result<OwnedFd, CliError> {
    ferry_kvm::adopt(number)
        .map_err(|error| CliError::usage(format!("descriptor {number} cannot be used: {error}")))
}

/// Shows a migration to its end, and its report.
pub(crate) fn follow(client: &mut Client, format: Format) -> Result<u8, CliError> {
    let report = wait(client, format)?;
    // The target's process can be asked only if it is on this machine; elsewhere its own
    // `ferry status` tells.
    let verified = verified_here(&report);
    say_report(&report, verified, format);
    if report.exit_status == 0 { Ok(0) } else { Err(error_of(&report)) }
}

/// The error that a report is for whoever waited for it.
fn error_of(report: &MigrationReport) -> CliError {
    let reason = report.reason.clone().unwrap_or_default();
    if report.outcome == "doubtful" {
        let message = format!("who may run the guest `{}` is not known: {reason}", report.id);
        return CliError::new(Kind::Ambiguous, message);
    }
    let guest = match report.outcome.as_str() {
        "held" => "is paused on this host",
        _ => "still runs on this host",
    };
    let message = format!("the guest `{}` was not moved to {} and {guest}: {reason}", report.id, report.to);
    CliError { kind: Kind::of_status(report.exit_status), message, findings: report.findings.clone() }
}

/// Waits for the end of a migration, showing progress.
pub(crate) fn wait(client: &mut Client, format: Format) -> Result<MigrationReport, CliError> {
    client.be_patient()?;
    let mut shown = Shown::new(format);
    loop {
        match client.next() {
            Ok(Reply::Progress(progress)) => shown.show(&progress),
            Ok(Reply::Report(report)) => {
                shown.finish();
                return Ok(*report);
            }
            Ok(Reply::Ambiguous { message }) => {
                shown.finish();
                return Err(CliError::new(Kind::Ambiguous, message));
            }
            Ok(other) => {
                shown.finish();
                return Err(other.into_error());
            }
            Err(error) => {
                shown.finish();
                return Err(error);
            }
        }
    }
}

/// The process of this machine that has the guest now, if one has.
fn arrived_here(report: &MigrationReport) -> Option<Client> {
    let begun = Instant::now();
    while begun.elapsed() < ARRIVAL {
        let mut arrives = false;
        for (client, status) in all().ok()? {
            if status.epoch == Some(report.epoch)
                && status.id.as_deref() == Some(&report.id)
                && status.custody
            {
                return Some(client);
            }
            arrives |= status.custody && status.state == State::Receiving;
        }
        if !arrives {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    None
}

/// The guest's own check after the move, if the guest is on this machine now.
fn verified_here(report: &MigrationReport) -> Option<bool> {
    if report.outcome != "moved" {
        return None;
    }
    let mut target = arrived_here(report)?;
    target.be_patient().ok()?;
    match target.ask(&Request::Check {}) {
        Ok(Reply::Checked { faults, .. }) => Some(faults == 0),
        _ => None,
    }
}

/// The report, for people or as one document.
fn say_report(report: &MigrationReport, verified: Option<bool>, format: Format) {
    if format == Format::Json {
        output::json(&as_one_document(report, verified));
        return;
    }
    if report.outcome == "moved" {
        output::lines(&lines(report, verified));
    }
}

/// A moved guest's figures as aligned lines.
pub(crate) fn lines(report: &MigrationReport, verified: Option<bool>) -> Vec<String> {
    let parts = report.downtime_parts_ms.named();
    let parts: Vec<_> = parts
        .iter()
        .filter(|(_, took)| *took >= 0.0005)
        .map(|(name, took)| format!("{name} {took:.3}"))
        .collect();
    let mut lines = vec![
        format!("guest       {} moved to {}, epoch {}", report.id, report.to, report.epoch),
        format!("verdict     {}", report.verdict.as_deref().unwrap_or("none")),
        format!("downtime    {:.3} ms ({})", report.downtime_ms.unwrap_or(0.0), parts.join(", ")),
        format!("total       {:.1} ms, of it {:.1} ms setup", report.total_ms, report.setup_ms),
        format!(
            "memory      {} of data and {} of zeros in {} rounds, {}/s; {} were never touched",
            HumanBytes(report.data_bytes),
            HumanBytes(report.zero_bytes),
            report.rounds,
            HumanBytes(report.throughput_bytes_per_second),
            HumanBytes(report.untouched_bytes)
        ),
    ];
    if report.disk_bytes > 0 {
        lines.push(format!(
            "disks       {} of images moved with the guest, and count as memory above",
            HumanBytes(report.disk_bytes)
        ));
    }
    lines.extend(report.dirty_source.as_ref().map(|source| format!("tracking    by KVM's dirty {source}")));
    if report.hashes_equal == Some(true) {
        lines.push("hashes      equal: all memory, on both sides, while the guest was paused".into());
    }
    match verified {
        Some(true) => {
            lines.push("verified    the guest checked its own pages after the move: no fault".into());
        }
        Some(false) => lines.push("verified    NO: the guest found pages that it did not leave so".into()),
        None => {}
    }
    lines
}
