//! Migrations whose outcome is open: what a file says, and what a person decides.
//!
//! While the source asks a target, the engine follows a choice or refuses it. Of a file nobody can be
//! asked, so the process looks into it itself.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use crossbeam_channel::Sender;
use ferry_migrate::oneway::{Whereabouts, look, withdraw};
use ferry_migrate::{Custody, Decider, Machine};
use ferry_protocol::journal::{Choice, OfGuest, Record};
use ferry_protocol::message::OfEpoch;
use ferry_protocol::{GuestId, PersonsChoice};

use super::Reply;
use super::host::{Job, Listener, Shared};
use crate::error::{CliError, Kind};
use crate::form::{MigrationReport, State};

/// Custody that may be in a file or a pipe: the guest is paused here.
#[derive(Debug)]
pub(crate) struct Doubt {
    pub(crate) of: OfEpoch,
    pub(crate) guest: GuestId,
    pub(crate) to: String,
    pub(crate) decider: Decider,
}

impl Shared {
    /// What came of the last question who runs the guest.
    pub(super) fn hear(&self, word: String) {
        if let Some(doubt) = &mut self.facts().doubt {
            doubt.known = Some(word);
        }
    }

    /// A person's choice, or the wish to look into a file.
    pub(super) fn decide(&self, choice: Option<Choice>, reason: Option<&str>, who: Listener) {
        let reason = reason.unwrap_or_default();
        let choice = match choice.map(|choice| PersonsChoice::new(choice, reason, now())).transpose() {
            Ok(choice) => choice,
            Err(error) => return refuse(&who.replies, &CliError::usage(error.to_string())),
        };
        let mut audience = self.audience();
        let Some(decider) = audience.decider.clone() else {
            drop(audience);
            let _ = self.jobs.send(Job::Decide(choice, who));
            return;
        };
        let Some(choice) = choice else {
            let text = "a migration is under way here, and this side asks the target by itself";
            return refuse(&who.replies, &CliError::plain(text));
        };
        if audience.chose.is_some() {
            return refuse(
                &who.replies,
                &CliError::plain("another choice is being followed here: look again"),
            );
        }
        audience.chose = Some(who);
        drop(audience);
        if !decider.decide(choice) {
            self.refuse_choice("the migration has just ended: look again");
        }
    }

    /// Tells who chose that the choice is not followed.
    pub(super) fn refuse_choice(&self, why: &str) {
        if let Some(chose) = self.audience().chose.take() {
            refuse(&chose.replies, &CliError::plain(why));
        }
    }

    /// The guest ends with its process: notes it, unless its custody is not here.
    pub(super) fn note_end(&self) {
        if !self.has_custody() {
            return;
        }
        let of = {
            let facts = self.facts();
            facts.id.clone().zip(facts.epoch)
        };
        if let Some((guest, epoch)) = of {
            self.journal.note(&Record::Ended(OfGuest { guest, epoch }));
        }
    }
}

fn refuse(replies: &Sender<Reply>, error: &CliError) {
    let _ = replies.try_send(Reply::error(error));
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

/// How a doubt ended.
enum Settled {
    /// The guest runs here again; why.
    Back(String),
    /// It could not be resumed, and is paused here with its custody; why it came back, and what hinders.
    Held(Custody, String),
    /// It is gone from here: `moved` or `abandoned`, and who has custody.
    Gone(&'static str, &'static str),
}

/// Settles what went into a file, if anything is open here. Gives a report if the guest is gone, and the
/// custody of one that could not be resumed.
pub(super) fn settle(
    shared: &Shared,
    doubt: &mut Option<Doubt>,
    choice: Option<PersonsChoice>,
    replies: &Sender<Reply>,
) -> (Option<MigrationReport>, Option<Custody>) {
    let Some(open) = doubt.as_ref() else {
        refuse(replies, &CliError::plain("nothing is to be decided here: who has the guest is known"));
        return (None, None);
    };
    let settled = match follow(shared, open, choice) {
        Ok(settled) => settled,
        Err(error) => {
            refuse(replies, &error);
            return (None, None);
        }
    };
    *doubt = None;
    let Some(mut report) = shared.facts().last_migration.clone() else { return (None, None) };
    let mut held = None;
    let state = match settled {
        Settled::Back(why) => {
            (report.outcome, report.custody) = ("kept".into(), "source".into());
            report.reason = Some(why);
            report.raised_to = Some(report.epoch.saturating_add(1));
            report.exit_status = Kind::Failed.exit_status();
            State::Running
        }
        Settled::Held(custody, why) => {
            held = Some(custody);
            (report.outcome, report.custody, report.reason) = ("held".into(), "source".into(), Some(why));
            report.exit_status = Kind::Failed.exit_status();
            State::Held
        }
        Settled::Gone(outcome, custody) => {
            (report.outcome, report.custody, report.reason) = (outcome.into(), custody.into(), None);
            report.exit_status = u8::from(outcome == "abandoned");
            drop(shared.guest.lock().unwrap_or_else(PoisonError::into_inner).take());
            State::Moved
        }
    };
    shared.finished(&report, state);
    let _ = replies.try_send(Reply::Report(Box::new(report.clone())));
    (report.is_gone().then_some(report), held)
}

fn follow(shared: &Shared, open: &Doubt, choice: Option<PersonsChoice>) -> Result<Settled, CliError> {
    let path = open.to.strip_prefix("file:").map(PathBuf::from);
    let found = path.as_deref().map_or(Ok(Whereabouts::Gone), |path| seen(path, look(path, open.of)))?;
    let wanted = choice.as_ref().map(|choice| choice.choice);
    let of = OfGuest { guest: open.guest.clone(), epoch: open.of.epoch };
    match (found, wanted) {
        (Whereabouts::There { .. }, None | Some(Choice::TargetRuns)) => {
            shared.journal.note(&Record::Moved(of));
            Ok(Settled::Gone("moved", "target"))
        }
        (Whereabouts::There { path, taken }, Some(choice)) => {
            let taken = taken.map_or_else(String::new, |taken| {
                format!(", and was taken by process {} on host `{}`", taken.pid, taken.host)
            });
            Err(CliError::plain(format!(
                "`--{choice}` would be wrong: custody of the guest is in {}{taken}",
                path.display()
            )))
        }
        (Whereabouts::NotThere { path: found }, None | Some(Choice::SourceRuns)) => {
            // Nobody can get it from there later, either.
            let path = path.unwrap_or(found);
            // What is known of it is on disk before the file goes that shows it.
            let note = || {
                shared.journal.note(&Record::Kept(of));
                note_return(shared, open)
            };
            let withdrawn = withdraw(&path, open.of, || note().map_err(Withdrawing::Unwritten));
            match withdrawn {
                Ok(Whereabouts::There { path, .. }) => {
                    Err(CliError::plain(format!("custody is in {} now: look again", path.display())))
                }
                Ok(_) => come_back(
                    shared,
                    open,
                    format!("custody was not in {}, which was removed", path.display()),
                ),
                Err(Withdrawing::Unwritten(error)) => Err(error),
                Err(Withdrawing::Io(error)) => Err(unseen(&path, &error)),
            }
        }
        (Whereabouts::NotThere { path }, Some(Choice::TargetRuns)) => Err(CliError::plain(format!(
            "`--target-runs` would be wrong: custody is not in {}",
            path.display()
        ))),
        (_, Some(_)) => by_person(shared, open, choice),
        (Whereabouts::Gone, None) => Err(CliError::new(
            Kind::Ambiguous,
            format!(
                "what was written to {} is not there to be looked at: decide with --source-runs, --target-runs or --abandon",
                open.to
            ),
        )),
    }
}

/// Nothing shows what is right: the choice is followed, once it is written down.
fn by_person(shared: &Shared, open: &Doubt, choice: Option<PersonsChoice>) -> Result<Settled, CliError> {
    let Some(decision) = choice else {
        return Err(CliError::plain("no choice was made"));
    };
    let decided = Record::Decided(decision.decided(open.guest.clone(), open.of.epoch));
    shared.journal.write(&decided).map_err(|error| CliError::of(&error))?;
    let choice = decision.choice;
    match choice {
        Choice::SourceRuns => {
            note_return(shared, open)?;
            come_back(shared, open, format!("a person decided: {choice}"))
        }
        Choice::TargetRuns => Ok(Settled::Gone("moved", "target")),
        Choice::Abandon => Ok(Settled::Gone("abandoned", "nobody")),
    }
}

fn seen(path: &Path, found: std::io::Result<Whereabouts>) -> Result<Whereabouts, CliError> {
    found.map_err(|error| unseen(path, &error))
}

fn unseen(path: &Path, error: &std::io::Error) -> CliError {
    CliError::plain(format!("{} cannot be looked into: {error}", path.display()))
}

/// Why a file without custody was not withdrawn.
enum Withdrawing {
    Io(std::io::Error),
    Unwritten(CliError),
}

impl From<std::io::Error> for Withdrawing {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes down that the guest will run here again, under an epoch above the one that was given.
fn note_return(shared: &Shared, open: &Doubt) -> Result<(), CliError> {
    let runs = Record::Runs(OfGuest { guest: open.guest.clone(), epoch: open.of.epoch.next() });
    shared.journal.write(&runs).map_err(|error| CliError::of(&error))
}

/// The guest runs here again, under an epoch of its own.
fn come_back(shared: &Shared, open: &Doubt, why: String) -> Result<Settled, CliError> {
    let mut seat = shared.guest.lock().unwrap_or_else(PoisonError::into_inner);
    let guest = seat.as_mut().ok_or_else(|| CliError::plain("the guest is not here any more"))?;
    let back = open.decider.take_back(open.of.epoch.next());
    let (custody, released) = back.ok_or_else(|| CliError::plain("its custody is not here any more"))?;
    if let Err(error) = guest.stop_dirty_tracking() {
        tracing::warn!(%error, "dirty tracking could not be ended");
    }
    let held = |custody, error: &dyn std::error::Error| {
        Settled::Held(custody, format!("{why}; the guest stays paused here: {}", CliError::of(error)))
    };
    if let Err(error) = guest.take_resources(&open.guest, &released) {
        return Ok(held(custody, &error));
    }
    Ok(match guest.resume(custody) {
        Ok(()) => Settled::Back(why),
        Err(error) => held(error.custody, &error.source),
    })
}
