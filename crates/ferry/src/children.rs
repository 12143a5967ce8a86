//! Other processes of this very program, as `demo` and `bench` start them: guests, and targets that wait
//! for one.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferry_vmm::{GuestTime, Level};
use serde_json::Value;

use crate::cli::{Format, GuestArgs};
use crate::control::client::Client;
use crate::control::{Reply, Request};
use crate::error::{CliError, Kind};
use crate::form::{ArrivalForm, MigrationReport};
use crate::verbs::migrate::wait;

/// How long the guest may take to fill its working set and start its work.
const START: Duration = Duration::from_secs(60);

/// How often a process is asked for what it is about to know.
const LOOK: Duration = Duration::from_millis(1);

/// How a guest is to be moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) downtime_limit: Duration,
    pub(crate) verify: bool,
    pub(crate) lanes: u8,
    pub(crate) guest_time: GuestTime,
}

/// The guest's own word after a move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    pub(crate) pages: u64,
    pub(crate) faults: u64,
}

/// One process with a guest, or waiting for one; it is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: String,
    pub(crate) child: Child,
    client: Client,
    /// Where it waits for a guest.
    listen: String,
    /// What else it prints is read, so that it never blocks on a full pipe.
    drain: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// `ferry run` with this guest, named after the verb that wants it.
    pub(crate) fn run(verb: &str, guest: &GuestArgs, backend: &str, more: &[&str]) -> Result<Self, CliError> {
        let id = format!("{verb}-{}", std::process::id());
        let mut flags = vec!["run".into(), format!("--id={id}"), format!("--memory={}", guest.memory.0)];
        flags.push(format!("--cpus={}", guest.cpus));
        flags.push(format!("--payload={}", guest.payload));
        flags.push(format!("--jump-limit={}", guest.jump_limit.0.as_millis()));
        flags.push(format!("--image-level={}", if guest.image_level == Level::Kernel { 0 } else { 3 }));
        flags.push(format!("--rate={}", guest.rate.0));
        flags.push(format!("--backend={backend}"));
        flags.push(format!("--huge-pages={}", guest.huge_pages));
        flags.push(format!("--dirty={}", guest.dirty.kind.name()));
        flags.extend(guest.low_memory.map(|size| format!("--low-memory={}", size.0)));
        flags.extend(guest.working_set.map(|size| format!("--working-set={}", size.0)));
        flags.extend(more.iter().map(ToString::to_string));
        Self::start(id, &flags, "running")
    }

    /// `ferry receive` for this guest, on a free port of the loopback address.
    pub(crate) fn receive(id: &str, guest: &GuestArgs, backend: &str) -> Result<Self, CliError> {
        Self::receive_with(id, guest, backend, &[])
    }

    /// The same with more flags.
    pub(crate) fn receive_with(
        id: &str,
        guest: &GuestArgs,
        backend: &str,
        more: &[&str],
    ) -> Result<Self, CliError> {
        let mut flags = vec![
            "receive".into(),
            "--listen=127.0.0.1:0".into(),
            format!("--id={id}"),
            format!("--backend={backend}"),
            format!("--huge-pages={}", guest.huge_pages),
            format!("--dirty={}", guest.dirty.kind.name()),
        ];
        flags.extend(more.iter().map(ToString::to_string));
        Self::start(id.to_owned(), &flags, "waiting")
    }

    /// Starts this very program and reads the document with which it says that it is ready.
    fn start(id: String, flags: &[String], ready: &str) -> Result<Self, CliError> {
        let failed = |error: std::io::Error| {
            CliError::plain(format!("another process of ferry cannot be started: {error}"))
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
                "another process of ferry ended before it was ready; it said why above",
            ));
        };
        let listen = document[ready]["listen"].as_str().unwrap_or_default().to_owned();
        let mut client = Client::connect(&socket).map_err(failed)?;
        client.be_patient()?;
        let drain = std::thread::Builder::new()
            .name("demo-output".into())
            .spawn(move || lines.lines().for_each(drop))
            .map_err(failed)?;
        Ok(Self { id, child, client, listen, drain: Some(drain) })
    }

    /// Turns of the guest's payload.
    pub(crate) fn progress(&mut self) -> Result<u64, CliError> {
        let status = self.client.status()?;
        status.progress.ok_or_else(|| CliError::plain("no guest is in the process that should have it"))
    }

    /// How the guest arrived in this process. The source knows of it a moment before the process says so.
    pub(crate) fn arrival(&mut self) -> Result<ArrivalForm, CliError> {
        let begun = Instant::now();
        while begun.elapsed() < START {
            if let Some(arrival) = self.client.status()?.arrival {
                return Ok(arrival);
            }
            std::thread::park_timeout(LOOK);
        }
        Err(CliError::plain("the guest is in a process where it did not arrive"))
    }

    /// Waits until the guest filled its pages and works on them: its own check finds them whole.
    pub(crate) fn await_work(&mut self) -> Result<u64, CliError> {
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

    /// The guest's own word on its pages.
    pub(crate) fn check(&mut self) -> Result<Check, CliError> {
        match self.client.ask(&Request::Check {})? {
            Reply::Checked { pages, faults } => Ok(Check { pages, faults }),
            other => Err(other.into_error()),
        }
    }

    /// Moves the guest there and waits until it moved; `progress` is shown as `format` wants.
    pub(crate) fn migrate_to(
        &mut self,
        target: &Self,
        wish: Wish,
        format: Format,
    ) -> Result<MigrationReport, CliError> {
        let request = Request::Migrate {
            to: target.listen.clone(),
            downtime_limit_ms: wish.downtime_limit.as_secs_f64() * 1e3,
            timeout_ms: 600_000.0,
            verify: wish.verify,
            lanes: wish.lanes,
            copy_storage: false,
            bandwidth_limit_bytes_per_second: None,
            guest_time: wish.guest_time.to_string(),
            wait: true,
        };
        match self.client.ask(&request)? {
            Reply::Started { .. } => {}
            other => return Err(other.into_error()),
        }
        let report = wait(&mut self.client, format)?;
        if report.exit_status == 0 {
            return Ok(report);
        }
        let reason = report.reason.clone().unwrap_or_default();
        Err(CliError::new(Kind::of_status(report.exit_status), format!("the guest was not moved: {reason}")))
    }

    /// The process of a guest that moved away ends by itself.
    pub(crate) fn await_end(&mut self) -> Result<(), CliError> {
        let ended = self.child.wait().map_err(|error| CliError::of(&error))?;
        if ended.success() {
            Ok(())
        } else {
            Err(CliError::plain(format!("the source's process ended badly: {ended}")))
        }
    }

    /// Ends the guest.
    pub(crate) fn stop(&mut self) -> Result<(), CliError> {
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
