//! The journals of a folder, read: one for each life of a process, and what together they leave open.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ferry_protocol::journal::{GuestHistory, History, Living, MayBeGiven, OfGuest, Past, PastAnswer, Record};
use ferry_protocol::{Epoch, GuestId, InstanceId};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::JournalError;
use super::form::{Condition, Content, MAX_JOURNAL_BYTES};

/// The most journals of one folder with which a process waits for guests or lets one be born: it keeps
/// them all in its memory.
pub(super) const MAX_LIVES: usize = 4096;

/// How many names of guests are told whose fate is open, where there are too many journals.
const MAX_NAMED: usize = 5;

/// The most guests whose highest epoch is carried on from journals that are removed.
const MAX_FLOORS: usize = 65_536;

/// One life of a process, as its journal tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// The process's life, as the file is named.
    pub instance: InstanceId,
    /// The journal.
    pub path: PathBuf,
    /// Whether the process lives: it holds the journal's lock.
    pub alive: bool,
    /// What was written.
    pub content: Content,
    /// When the journal was written last; none if that is not known.
    pub modified: Option<SystemTime>,
}

impl Life {
    /// What its records say.
    pub fn history(&self) -> History {
        let history = History::of(&self.content.records);
        let is_its_own = self.content.instance == Some(self.instance);
        if self.content.is_whole() && is_its_own { history } else { history.with_a_part_missing() }
    }

    /// Why not all of it can be trusted, as a sentence; none if it can.
    pub fn complaint(&self) -> Option<String> {
        let path = self.path.display();
        let unknown = "what its process may have run is not known";
        match self.content.condition {
            _ if self.content.instance.is_some_and(|instance| instance != self.instance) => {
                Some(format!("the journal {path} is another process's by its content: {unknown}"))
            }
            Condition::Whole | Condition::Torn => None,
            Condition::Damaged { offset } => {
                Some(format!("the journal {path} is damaged at byte {offset}: {unknown}"))
            }
            Condition::OtherVersion(version) => Some(format!(
                "the journal {path} has the form {version}, which this build cannot read: {unknown}"
            )),
            Condition::Foreign => Some(format!("{path} does not begin as a journal does: {unknown}")),
            Condition::Unreadable => Some(format!("the journal {path} cannot be read: {unknown}")),
        }
    }
}

/// Something that the end of a process left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The process that is gone.
    pub instance: InstanceId,
    /// The guest.
    pub guest: GuestId,
    /// The epoch whose fate is open.
    pub epoch: Epoch,
    /// What that process may have done.
    pub kind: OpenKind,
}

/// What a process that is gone may have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenKind {
    /// It may have given custody away.
    Given(MayBeGiven),
    /// It may have run the guest, while the source still waits for a word.
    Taken {
        /// Whether it noted that the guest ran.
        ran: bool,
    },
}

/// All journals of a folder.
#[derive(Debug, Clone, Default)]
pub struct Lives {
    lives: Vec<Life>,
}

impl Lives {
    /// Reads a folder. One journal that cannot be read is a [`Life`] with a complaint.
    pub(super) fn read(folder: &Path) -> Result<Self, JournalError> {
        let mut lives = Vec::new();
        for found in files(folder)? {
            let (instance, path) = found?;
            if lives.len() >= MAX_LIVES {
                return Err(too_many(folder));
            }
            lives.extend(life(instance, &path));
        }
        Ok(Self::sorted(lives))
    }

    /// Reads a folder of however many journals, and keeps of each what it says of one guest.
    pub(super) fn read_of(folder: &Path, guest: &GuestId) -> Result<Self, JournalError> {
        Self::read_some(folder, |record| record.guest() == guest)
    }

    /// The same, of every guest: for who cleans up.
    pub(super) fn read_to_clean(folder: &Path) -> Result<Self, JournalError> {
        Self::read_some(folder, |_| true)
    }

    fn read_some(folder: &Path, keep: impl Fn(&Record) -> bool) -> Result<Self, JournalError> {
        let mut lives = Vec::new();
        for found in files(folder)? {
            let (instance, path) = found?;
            if let Some(mut life) = life(instance, &path) {
                life.content.records.retain(&keep);
                life.content.records.shrink_to_fit();
                lives.push(life);
            }
        }
        Ok(Self::sorted(lives))
    }

    /// A folder names its files in no order.
    fn sorted(mut lives: Vec<Life>) -> Self {
        lives.sort_by_key(|life| (life.modified, life.instance));
        Self { lives }
    }

    /// Every life, the one that wrote last at the end.
    pub fn iter(&self) -> impl Iterator<Item = &Life> {
        self.lives.iter()
    }

    /// The histories of the processes that are gone, and what those say that live.
    pub fn past(&self) -> Past {
        let mut past = Past::default();
        for life in &self.lives {
            if !life.alive {
                past.add(life.instance, life.history());
                continue;
            }
            let is_known = life.complaint().is_none();
            past.add_living(life.instance, Living::of(life.content.records.iter().filter(|_| is_known)));
            for record in &life.content.records {
                if let Record::Floor(of) = record {
                    past.raise_floor(&of.guest, of.epoch);
                }
            }
        }
        past
    }

    /// The highest epoch of a guest that any process mentions, also one that lives.
    pub fn highest(&self, guest: &GuestId) -> Option<Epoch> {
        self.lives.iter().filter_map(|life| life.history().guest(guest)?.highest).max()
    }

    /// One process's life.
    pub fn life(&self, instance: InstanceId) -> Option<&Life> {
        self.lives.iter().find(|life| life.instance == instance)
    }

    /// Journals that cannot be read as a whole, so that what their processes did with this guest is not
    /// known, and of which no person decided it.
    pub fn unknown<'a>(&'a self, guest: &'a GuestId) -> impl Iterator<Item = &'a Life> {
        self.lives.iter().filter(move |life| life.complaint().is_some() && !self.is_waived(life, guest))
    }

    fn is_waived(&self, life: &Life, guest: &GuestId) -> bool {
        self.records().any(|(_, record)| {
            matches!(record, Record::Waived(of) if of.instance == life.instance && of.guest == *guest)
        })
    }

    /// Living processes that have this guest by their journals, or wait to hear what became of it.
    pub fn living_with<'a>(&'a self, guest: &'a GuestId) -> impl Iterator<Item = &'a Life> {
        self.lives.iter().filter(move |life| life.alive && has(life, guest))
    }

    /// Living processes that have this guest, and every one whose journal does not tell.
    pub fn may_have<'a>(&'a self, guest: &'a GuestId) -> impl Iterator<Item = &'a Life> {
        let is_unknown = |life: &Life| life.complaint().is_some() && !self.is_waived(life, guest);
        self.lives.iter().filter(move |life| (life.alive && has(life, guest)) || is_unknown(life))
    }

    /// What processes that are gone left open, of one guest or of all.
    pub fn open(&self, guest: Option<&GuestId>) -> Vec<Open> {
        let mut open = Vec::new();
        for life in self.lives.iter().filter(|life| !life.alive) {
            let history = life.history();
            let wanted = history.guests().filter(|(name, _)| guest.is_none_or(|guest| guest == *name));
            for (name, history) in wanted {
                open.extend(open_of(life.instance, name, history));
            }
        }
        open.retain(|open| !self.closes(open));
        open
    }

    /// Whether the source and the target of a move are both gone, by their journals here, and the guest
    /// with whichever had it: nobody can run it. Not so if the target may have handed it on.
    pub fn both_are_gone(&self, open: &Open) -> bool {
        let gone = |instance| self.life(instance).filter(|life| !life.alive && life.complaint().is_none());
        let is_given_to = |life: &Life| {
            let history = life.history();
            let gift = history.guest(&open.guest).and_then(GuestHistory::open_gift);
            gift.is_some_and(|gift| gift.to == Some(open.instance) && gift.of.epoch == open.epoch)
        };
        let target = match &open.kind {
            OpenKind::Given(given) => given.to.and_then(gone),
            OpenKind::Taken { .. } => gone(open.instance)
                .filter(|_| self.lives.iter().any(|life| gone(life.instance).is_some() && is_given_to(life))),
        };
        target.is_some_and(|life| {
            let history = life.history();
            let handed_on = history.guest(&open.guest).and_then(|of| of.given.as_ref());
            history.answer(&open.guest, open.epoch) == PastAnswer::MayHaveRun
                && handed_on.is_none_or(|given| given.of.epoch <= open.epoch)
        })
    }

    /// Whether another process's journal says how it ended.
    fn closes(&self, open: &Open) -> bool {
        self.records().any(|(life, record)| life.instance != open.instance && ends(record, open))
    }

    /// Journals of processes that are gone which nobody needs any more, oldest first.
    pub(super) fn settled(&self) -> Vec<&Life> {
        let open_alone: Vec<Open> = self
            .lives
            .iter()
            .filter(|life| !life.alive)
            .flat_map(|life| {
                let history = life.history();
                history.guests().flat_map(|(name, of)| open_of(life.instance, name, of)).collect::<Vec<_>>()
            })
            .collect();
        let open = self.open(None);
        let is_needed = |life: &Life| {
            open.iter().any(|open| open.instance == life.instance)
                // It says how another one ended, which is still there.
                || open_alone.iter().any(|open| {
                    open.instance != life.instance && life.content.records.iter().any(|record| ends(record, open))
                })
                // It says what a person decided of one that cannot be read, and is still there.
                || life.content.records.iter().any(|record| {
                    matches!(record, Record::Waived(of) if self.life(of.instance).is_some())
                })
        };
        let gone = self.lives.iter().filter(|life| !life.alive && !life.history().is_partial());
        gone.filter(|life| !is_needed(life)).collect()
    }

    /// The highest epochs that only these journals mention, which are to be removed. A guest that was
    /// never above the first was never offered to anybody: nobody can come back with it.
    pub(super) fn floors(&self, doomed: &[&Life]) -> Vec<OfGuest> {
        let mut floors: BTreeMap<GuestId, Epoch> = BTreeMap::new();
        for life in doomed {
            for (guest, history) in life.history().guests() {
                let floor = floors.entry(guest.clone()).or_insert(Epoch::BIRTH);
                *floor = (*floor).max(history.highest.unwrap_or(Epoch::BIRTH));
            }
        }
        let is_doomed = |life: &Life| doomed.iter().any(|other| other.instance == life.instance);
        for life in self.lives.iter().filter(|life| !is_doomed(life)) {
            for (guest, history) in life.history().guests() {
                if floors.get(guest).is_some_and(|floor| history.highest >= Some(*floor)) {
                    floors.remove(guest);
                }
            }
        }
        let mut floors: Vec<_> = floors.into_iter().filter(|(_, epoch)| *epoch > Epoch::BIRTH).collect();
        floors.sort_by_key(|(_, epoch)| std::cmp::Reverse(*epoch));
        floors.truncate(MAX_FLOORS);
        floors.into_iter().map(|(guest, epoch)| OfGuest { guest, epoch }).collect()
    }

    fn records(&self) -> impl Iterator<Item = (&Life, &Record)> {
        self.lives.iter().flat_map(|life| life.content.records.iter().map(move |record| (life, record)))
    }
}

fn open_of(instance: InstanceId, guest: &GuestId, history: &GuestHistory) -> Vec<Open> {
    let open = |epoch, kind| Open { instance, guest: guest.clone(), epoch, kind };
    let given = history.open_gift().map(|given| open(given.of.epoch, OpenKind::Given(given.clone())));
    let taken =
        history.open_taking().map(|epoch| open(epoch, OpenKind::Taken { ran: history.ran >= Some(epoch) }));
    given.into_iter().chain(taken).collect()
}

/// Whether a record of another process says how something ended: what was found out or decided later,
/// what the target of this very folder wrote, or that the guest ran under an epoch that came after.
fn ends(record: &Record, open: &Open) -> bool {
    if *record.guest() != open.guest {
        return false;
    }
    let is_given = matches!(open.kind, OpenKind::Given(_));
    match record {
        Record::Kept(_) | Record::Moved(_) | Record::Ended(_) | Record::Decided(_) => {
            record.epoch() == open.epoch
        }
        Record::Refused(of) => is_given && of.epoch == open.epoch,
        Record::Runs(of) => of.epoch > open.epoch || (is_given && of.epoch == open.epoch),
        _ => false,
    }
}

/// Whether a life's journal says that the guest is there, may be, or may come back.
fn has(life: &Life, guest: &GuestId) -> bool {
    let about = life.content.records.iter().filter(|record| record.guest() == guest);
    let held = about.fold(None, |held: Option<Epoch>, record| match record {
        Record::Born(_) | Record::MayRun(_) | Record::Runs(_) => held.max(Some(record.epoch())),
        // What ends one epoch says nothing of a later one.
        Record::Refused(_) | Record::Moved(_) | Record::Ended(_) => {
            held.filter(|&epoch| epoch > record.epoch())
        }
        _ => held,
    });
    held.is_some()
}

/// Every journal of a folder.
fn files(
    folder: &Path,
) -> Result<impl Iterator<Item = Result<(InstanceId, PathBuf), JournalError>>, JournalError> {
    let failed = |source| JournalError::new(folder, source);
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    Ok(entries.filter_map(move |entry| match entry {
        Ok(entry) => instance_of(&entry.path()).map(|instance| Ok((instance, entry.path()))),
        Err(error) => Some(Err(failed(error))),
    }))
}

/// What is to be done where there are too many journals: most are those of processes that left something
/// open.
fn too_many(folder: &Path) -> JournalError {
    let mut names = Vec::new();
    for (instance, path) in files(folder).into_iter().flatten().flatten() {
        let history = life(instance, &path).filter(|life| !life.alive).map(|life| life.history());
        let open = history.iter().flat_map(History::guests).filter(|(_, of)| of.is_open());
        for (name, _) in open {
            if !names.contains(name) && names.len() < MAX_NAMED {
                names.push(name.clone());
            }
        }
        if names.len() >= MAX_NAMED {
            break;
        }
    }
    let verbs: Vec<_> = names.iter().map(|name| format!("`ferry recover {name}`")).collect();
    let how = if verbs.is_empty() { "end processes".to_owned() } else { verbs.join(", ") };
    let text = format!(
        "it holds more than {MAX_LIVES} journals, and those are kept that leave something open: settle it ({how}), \
         and the next process that starts removes what nobody needs any more"
    );
    JournalError::new(folder, io::Error::new(io::ErrorKind::QuotaExceeded, text))
}

fn instance_of(path: &Path) -> Option<InstanceId> {
    let is_journal = path.extension().is_some_and(|extension| extension == "journal");
    let stem = path.file_stem().filter(|_| is_journal)?.to_str()?;
    let is_ours = stem.len() == 16 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(stem, 16).ok().filter(|_| is_ours).map(InstanceId)
}

/// One journal; none if it was removed meanwhile.
fn life(instance: InstanceId, path: &Path) -> Option<Life> {
    match read_life(instance, path) {
        Ok(life) => Some(life),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a journal");
            let content = Content { instance: None, records: Vec::new(), condition: Condition::Unreadable };
            Some(Life { instance, path: path.into(), alive: false, content, modified: None })
        }
    }
}

fn read_life(instance: InstanceId, path: &Path) -> io::Result<Life> {
    let file = File::open(path)?;
    // First the lock, then the content: what a process that is gone wrote changes no more. Readers
    // share it, so that one does not take another for the process.
    let alive = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => false,
        Err(Errno::WOULDBLOCK) => true,
        Err(errno) => return Err(errno.into()),
    };
    let mut bytes = Vec::new();
    (&file).take(MAX_JOURNAL_BYTES + 1).read_to_end(&mut bytes)?;
    let mut content = Content::parse(&bytes);
    if bytes.len() as u64 > MAX_JOURNAL_BYTES {
        content.condition = Condition::Damaged { offset: MAX_JOURNAL_BYTES };
    }
    let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
    Ok(Life { instance, path: path.into(), alive, content, modified })
}
