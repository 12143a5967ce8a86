//! One thing that is open of a guest: a process that lives and cannot know, or one that is gone and left
//! something behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_migrate::journal::{Life, Open, OpenKind};
use ferry_migrate::oneway::{Whereabouts, look};
use ferry_migrate::{Asked, ask};
use ferry_protocol::journal::{Choice, MayBeGiven, OfGuest, Record};
use ferry_protocol::message::Known;
use ferry_protocol::{Epoch, GuestId, InstanceId};

use crate::control::client::Client;
use crate::form::{MigrationReport, State, Status};

/// How long a target may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Which side of a move a process was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
    /// Either.
    Unknown,
}

/// The process that the matter is about.
#[derive(Debug)]
pub(crate) enum Process {
    /// It lives; its number, and a connection to it.
    Lives { pid: u32, client: Client },
    /// It is gone; its instance.
    Gone { instance: InstanceId, given: Option<MayBeGiven> },
    /// It lives and has the guest, by its journal, or nobody knows what it has; and it cannot be asked.
    Silent { instance: InstanceId },
    /// It is gone, and its journal cannot be read as a whole.
    Unreadable { instance: InstanceId },
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The other side answered, or the file showed: it has the guest.
    Moved,
    /// The other side answered, or the file showed: it never had it.
    Refused,
    /// The processes of both sides are gone, and the guest with them.
    Gone,
    /// A person decided.
    Decided(Choice),
    /// The process that lives settled it.
    Reported(Box<MigrationReport>),
}

impl End {
    /// What is written down of it here.
    pub(crate) fn record(&self, of: OfGuest) -> Option<Record> {
        match self {
            Self::Moved => Some(Record::Moved(of)),
            Self::Refused => Some(Record::Kept(of)),
            Self::Gone => Some(Record::Ended(of)),
            Self::Decided(_) | Self::Reported(_) => None,
        }
    }
}

/// Something open.
#[derive(Debug)]
pub(crate) struct Matter {
    pub(crate) guest: GuestId,
    pub(crate) side: Side,
    pub(crate) process: Process,
    pub(crate) epoch: u64,
    /// Where custody was given to; none on the target's side.
    pub(crate) to: Option<String>,
    pub(crate) is_file: bool,
    /// What is known of it, as a sentence.
    pub(crate) known: Option<String>,
    pub(crate) choices: Vec<Choice>,
    pub(crate) end: Option<End>,
    /// Why a choice would be wrong.
    obstacles: Vec<(Choice, String)>,
    asked: bool,
    /// The processes of both sides are gone.
    both_gone: bool,
}

impl Matter {
    /// Of a process that lives and has given custody away, if it cannot know what became of it.
    pub(crate) fn of_living(client: Client, status: &Status) -> Option<Self> {
        let doubt = status.doubt.clone()?;
        let is_open = match status.state {
            State::Ambiguous => true,
            State::Migrating => status.phase.as_deref() == Some("asking"),
            _ => false,
        };
        let guest = status.id.as_deref().filter(|_| is_open)?.parse().ok()?;
        let reason = status.last_migration.as_ref().and_then(|report| report.reason.clone());
        Some(Self {
            guest,
            side: Side::Source,
            process: Process::Lives { pid: status.pid, client },
            epoch: doubt.epoch,
            is_file: !doubt
                .to
                .parse()
                .is_ok_and(|place| matches!(place, ferry_migrate::oneway::Place::Link(_))),
            to: Some(doubt.to),
            known: doubt.known.or(reason.filter(|_| status.state == State::Ambiguous)),
            choices: vec![Choice::SourceRuns, Choice::TargetRuns, Choice::Abandon],
            end: None,
            obstacles: Vec::new(),
            asked: true,
            both_gone: false,
        })
    }

    /// Of a process that has the guest by its journal, or may have, and does not answer.
    pub(crate) fn of_silent(guest: &GuestId, life: &Life) -> Self {
        let path = life.path.display();
        let what = life.complaint().unwrap_or_else(|| format!("it has `{guest}` by its journal {path}"));
        let known = format!(
            "{what}; it lives and does not answer: it is stopped, or was started with another XDG_RUNTIME_DIR (`fuser \
             {path}` tells its number)"
        );
        Self::unclear(guest, life, Process::Silent { instance: life.instance }, known)
    }

    /// Of a process that is gone and left a journal that cannot be read as a whole.
    pub(crate) fn of_unreadable(guest: &GuestId, life: &Life) -> Self {
        let known = life.complaint().unwrap_or_default();
        let process = Process::Unreadable { instance: life.instance };
        let choices = vec![Choice::SourceRuns, Choice::TargetRuns, Choice::Abandon];
        Self { choices, ..Self::unclear(guest, life, process, known) }
    }

    fn unclear(guest: &GuestId, life: &Life, process: Process, known: String) -> Self {
        let highest = life.history().guest(guest).and_then(|of| of.highest);
        Self {
            guest: guest.clone(),
            side: Side::Unknown,
            process,
            epoch: highest.map_or(0, |epoch| epoch.0),
            to: None,
            is_file: false,
            known: Some(known),
            choices: Vec::new(),
            end: None,
            obstacles: Vec::new(),
            asked: true,
            both_gone: false,
        }
    }

    /// Of a process that is gone.
    pub(crate) fn of_dead(open: Open, both_gone: bool) -> Self {
        let instance = open.instance;
        let (given, ran) = match open.kind {
            OpenKind::Given(given) => (Some(given), None),
            OpenKind::Taken { ran } => (None, Some(ran)),
        };
        let mut matter = Self {
            guest: open.guest,
            side: if given.is_some() { Side::Source } else { Side::Target },
            epoch: open.epoch.0,
            to: given.as_ref().map(|given| given.address.clone()),
            is_file: given.as_ref().is_some_and(|given| given.to.is_none()),
            process: Process::Gone { instance, given },
            known: None,
            choices: Vec::new(),
            end: None,
            obstacles: Vec::new(),
            asked: false,
            both_gone,
        };
        if let Some(ran) = ran {
            matter.of_target(ran);
        } else {
            let text = "the source's process is gone, and the paused guest with it";
            matter.obstacles.push((Choice::SourceRuns, text.into()));
        }
        matter
    }

    fn of_target(&mut self, ran: bool) {
        self.asked = true;
        self.choices = vec![Choice::SourceRuns, Choice::Abandon];
        let may = if ran { "it ran the guest" } else { "it may have run the guest" };
        self.known = Some(format!(
            "{may}, which is gone with it, and its source may wait for a word: choose here what is chosen there"
        ));
        let text = "the target's process is gone, and what it ran with it";
        self.obstacles.push((Choice::TargetRuns, text.into()));
    }

    /// Whether somebody must still decide.
    pub(crate) fn is_open(&self) -> bool {
        self.end.is_none()
    }

    /// Asks the other side, or the file, once; what is to be written down, if that settles it.
    pub(crate) fn found_out(&mut self) -> Option<Record> {
        self.look();
        let of = OfGuest { guest: self.guest.clone(), epoch: Epoch(self.epoch) };
        self.end.as_ref()?.record(of)
    }

    /// Why a choice would be wrong.
    pub(crate) fn obstacle(&mut self, choice: Choice) -> Option<String> {
        self.look();
        self.obstacles.iter().find(|(wrong, _)| *wrong == choice).map(|(_, why)| why.clone())
    }

    fn look(&mut self) {
        if self.both_gone {
            return self.gone();
        }
        let Process::Gone { given: Some(given), .. } = &self.process else { return };
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        let given = given.clone();
        match (given.to, given.address.strip_prefix("file:")) {
            (Some(_), _) => self.hear(ask(&given, ANSWER)),
            (None, Some(path)) => self.see(look(&PathBuf::from(path), given.of), Path::new(path)),
            (None, None) => self.stay("it went through a pipe, of which nobody can be asked".into()),
        }
    }

    fn hear(&mut self, answer: Asked) {
        match answer {
            Asked::Runs => self.moved("the target answers that it has the guest".into()),
            Asked::Refused(_) => {
                self.refused("the target answers that it never took the guest and never will".into());
            }
            Asked::Unknown(Known::MayHaveRun) => {
                self.stay("the target answers that its process is gone, and may have run the guest".into());
                self.choices.retain(|choice| *choice != Choice::TargetRuns);
                let text = "the target says that its process is gone, and the guest with it";
                self.obstacles.push((Choice::TargetRuns, text.into()));
            }
            Asked::Unknown(Known::NoTrace) => {
                self.stay(
                    "another process listens there, and has no journal of the one that was given custody"
                        .into(),
                );
            }
            Asked::Unknown(Known::Lives) => self.stay(
                "the target's process lives, and has not written yet what became of the guest: look again"
                    .into(),
            ),
            Asked::Silent(why) => self.stay(format!("the target cannot be asked: {why}")),
        }
    }

    fn see(&mut self, found: std::io::Result<Whereabouts>, path: &Path) {
        match found {
            Ok(Whereabouts::There { path, taken }) => self.moved(match taken {
                Some(taken) => format!(
                    "the guest of {} was taken by process {} on host `{}`",
                    path.display(),
                    taken.pid,
                    taken.host
                ),
                None => format!(
                    "custody is in {}: `ferry receive --from file:{0}` takes the guest",
                    path.display()
                ),
            }),
            Ok(Whereabouts::NotThere { path }) => {
                self.refused(format!("custody is not in {}: no guest can be taken from it", path.display()));
            }
            Ok(Whereabouts::Gone) => self.stay(format!("the file {} is not there any more", path.display())),
            Err(error) => self.stay(format!("the file {} cannot be looked into: {error}", path.display())),
        }
    }

    fn stay(&mut self, known: String) {
        self.known = Some(known);
        self.choices = vec![Choice::TargetRuns, Choice::Abandon];
    }

    fn moved(&mut self, known: String) {
        for wrong in [Choice::SourceRuns, Choice::Abandon] {
            self.obstacles.push((wrong, known.clone()));
        }
        (self.known, self.end) = (Some(known), Some(End::Moved));
    }

    fn gone(&mut self) {
        let known = "the processes of both sides are gone, by their journals here, and the guest with them";
        for wrong in [Choice::SourceRuns, Choice::TargetRuns] {
            self.obstacles.push((wrong, known.into()));
        }
        (self.known, self.end) = (Some(known.into()), Some(End::Gone));
    }

    fn refused(&mut self, known: String) {
        self.obstacles.push((Choice::TargetRuns, known.clone()));
        (self.known, self.end) = (Some(known), Some(End::Refused));
    }
}
