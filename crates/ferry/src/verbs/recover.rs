//! `ferry recover`: what became of a guest whose move the two sides could not settle.
//!
//! It looks at the processes of this machine and at the journals of those that are gone, asks the other
//! side, and settles what can be settled. A person decides the rest: what is chosen is journaled first,
//! and refused where something shows that it is wrong.

mod matter;
mod show;

use ferry_protocol::journal::{OfGuest, Record, Waived};
use ferry_protocol::{Epoch, InstanceId, PersonsChoice};
use ferry_vmm::fresh_seed;
use std::time::{Duration, SystemTime};

use ferry_migrate::journal::{Journal, Life, StateFolder};
use matter::{End, Matter, Process};

use crate::cli::{Format, RecoverArgs};
use crate::control::client::{Client, all};
use crate::control::{Reply, Request};
use crate::error::{CliError, Kind};
use crate::folder;
use crate::form::{MigrationReport, Status};

pub(crate) fn recover(args: &RecoverArgs, format: Format) -> Result<u8, CliError> {
    let folder = folder::state(&args.state)?;
    let mut case = Case::of(args, &folder)?;
    match args.choice.choice() {
        Some(choice) => {
            let reason = signed(args.reason.as_deref().unwrap_or_default());
            let choice = PersonsChoice::new(choice, reason, now());
            case.decide(&choice.map_err(|error| CliError::usage(format!("--reason: {error}")))?, &folder)?;
        }
        None => case.settle(&folder)?,
    }
    show::show(&case, format);
    Ok(if case.matters.iter().any(Matter::is_open) { Kind::Ambiguous.exit_status() } else { 0 })
}

/// All that is known of one guest here.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) matters: Vec<Matter>,
    /// Processes that have the guest, and nothing is open of it there.
    pub(crate) has_it: Vec<Status>,
    /// Journals that cannot be read as a whole, and of which it was decided what they had of this guest.
    pub(crate) complaints: Vec<String>,
}

impl Case {
    fn of(args: &RecoverArgs, folder: &StateFolder) -> Result<Self, CliError> {
        let read = || folder.lives_of(&args.id).map_err(|error| CliError::of(&error));
        // Who may have the guest by its journal before the processes are asked, and after it, and did not
        // answer, cannot be asked: a process opens its socket before it gets a guest.
        let before: Vec<_> = read()?.may_have(&args.id).map(|life| life.instance).collect();
        let answering = all()?;
        let lives = read()?;
        let answered: Vec<_> = answering.iter().map(|(_, status)| status.instance.clone()).collect();
        let is_silent =
            |life: &Life| before.contains(&life.instance) && !answered.contains(&life.instance.to_string());
        let is_decided = |life: &Life| lives.unknown(&args.id).all(|other| other.instance != life.instance);
        let mut case = Self {
            id: args.id.to_string(),
            matters: Vec::new(),
            has_it: Vec::new(),
            complaints: lives.iter().filter(|life| is_decided(life)).filter_map(Life::complaint).collect(),
        };
        for (client, status) in answering {
            if status.id.as_deref() != Some(args.id.as_str()) {
                continue;
            }
            match Matter::of_living(client, &status) {
                Some(matter) => case.matters.push(matter),
                None if status.custody => case.has_it.push(status),
                None => {}
            }
        }
        for open in lives.open(Some(&args.id)) {
            let both_gone = lives.both_are_gone(&open);
            case.matters.push(Matter::of_dead(open, both_gone));
        }
        for life in lives.may_have(&args.id) {
            if !life.alive {
                case.matters.push(Matter::of_unreadable(&args.id, life));
            } else if is_silent(life) {
                case.matters.push(Matter::of_silent(&args.id, life));
            }
        }
        Ok(case)
    }

    /// Settles what needs nobody's choice.
    fn settle(&mut self, folder: &StateFolder) -> Result<(), CliError> {
        let mut journal = None;
        for matter in &mut self.matters {
            match &mut matter.process {
                Process::Lives { client, .. } if matter.is_file => {
                    let request = Request::Decide { choice: None, reason: None };
                    match ask(client, &request) {
                        Ok(report) => matter.end = Some(End::Reported(Box::new(report))),
                        Err(error) => matter.known = Some(error.message),
                    }
                }
                Process::Lives { .. } | Process::Silent { .. } | Process::Unreadable { .. } => {}
                Process::Gone { .. } => {
                    if let Some(record) = matter.found_out() {
                        write(&mut journal, folder, &record)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Follows a choice in everything that is open, or in nothing.
    fn decide(&mut self, decision: &PersonsChoice, folder: &StateFolder) -> Result<(), CliError> {
        let choice = decision.choice;
        if self.matters.is_empty() {
            return Err(CliError::plain(format!(
                "nothing is open of a guest `{}` on this host: `ferry recover {}` shows what is known",
                self.id, self.id
            )));
        }
        let silent = |matter: &&Matter| matches!(matter.process, Process::Silent { .. });
        if let Some(silent) = self.matters.iter().find(silent) {
            let known = silent.known.as_deref().unwrap_or_default();
            return Err(CliError::new(Kind::Ambiguous, format!("nothing is decided yet: {known}")));
        }
        let mut journal = None;
        for matter in &mut self.matters {
            if let Process::Gone { .. } = matter.process
                && let Some(obstacle) = matter.obstacle(choice)
            {
                // What was found out settles it all the same.
                if let Some(record) = matter.found_out() {
                    write(&mut journal, folder, &record)?;
                }
                return Err(CliError::plain(format!("`--{choice}` is not followed: {obstacle}")));
            }
        }
        for matter in &mut self.matters {
            let (guest, epoch) = (matter.guest.clone(), Epoch(matter.epoch));
            if let Process::Lives { client, .. } = &mut matter.process {
                let reason = Some(decision.reason.clone());
                let request = Request::Decide { choice: Some(choice.into()), reason };
                matter.end = Some(End::Reported(Box::new(ask(client, &request)?)));
                continue;
            }
            let record = if let Some(end) = &matter.end {
                end.record(OfGuest { guest, epoch })
            } else {
                matter.end = Some(End::Decided(choice));
                let decided = decision.decided(guest, epoch);
                Some(match matter.process {
                    Process::Unreadable { instance } => Record::Waived(Waived::of(decided, instance)),
                    _ => Record::Decided(decided),
                })
            };
            if let Some(record) = record {
                write(&mut journal, folder, &record)?;
            }
        }
        Ok(())
    }
}

/// Writes into a journal of this process's own, which is made for the first record.
fn write(
    journal: &mut Option<ferry_migrate::journal::FileJournal>,
    folder: &StateFolder,
    record: &Record,
) -> Result<(), CliError> {
    if journal.is_none() {
        *journal = Some(folder.begin(InstanceId(fresh_seed())).map_err(|error| CliError::of(&error))?);
    }
    let Some(own) = journal else { return Ok(()) };
    own.write(record).map_err(|error| CliError::of(&error))
}

/// Asks a process that lives to settle a matter, and waits until it has.
fn ask(client: &mut Client, request: &Request) -> Result<MigrationReport, CliError> {
    client.be_patient()?;
    match client.ask(request)? {
        Reply::Report(report) => Ok(*report),
        other => Err(other.into_error()),
    }
}

/// A reason, and whose it is; nothing if there is none.
fn signed(reason: &str) -> String {
    if reason.trim().is_empty() {
        return String::new();
    }
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    let name: String = user.chars().filter(|letter| !letter.is_control()).take(64).collect();
    let id = rustix::process::getuid().as_raw();
    format!("{reason} (user {id} `{name}`)")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}
