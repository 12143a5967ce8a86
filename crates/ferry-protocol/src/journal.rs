//! What a side remembers over the end of its process, as values.
//!
//! Each process keeps one journal under its [`InstanceId`]. What it must not forget is on disk before
//! it acts on it ([`SourceAction::Journal`](crate::SourceAction::Journal),
//! [`TargetAction::Journal`](crate::TargetAction::Journal)); the rest are notes, for the person who
//! may have to decide. A process that starts reads the journals of those that are gone: their
//! [`History`], together the [`Past`]. A guest dies with its process, so a journal never brings one
//! back: it says what may have become of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ferry_contract::MAX_TEXT_BYTES;
use minicbor::{Decode, Encode};

use crate::message::OfEpoch;
use crate::{Epoch, GuestId, InstanceId};

/// One entry of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Record {
    /// A guest was born here.
    #[n(0)]
    Born(#[n(0)] OfGuest),
    /// Source: from here on custody may be given. On disk before any page is sent.
    #[n(1)]
    MayBeGiven(#[n(0)] MayBeGiven),
    /// Target: from here on this process may run the guest. On disk before the source hears that the
    /// machine stands.
    #[n(2)]
    MayRun(#[n(0)] MayRun),
    /// Target: this process did not take an epoch of which it had written that it may run it, and
    /// never will. On disk before anybody is told.
    #[n(3)]
    Refused(#[n(0)] OfGuest),
    /// Source: a person decided. On disk before it is done.
    #[n(4)]
    Decided(#[n(0)] Decided),
    /// Note of a source: custody of this epoch was not given, or came back.
    #[n(5)]
    Kept(#[n(0)] OfGuest),
    /// Note of a source: the target said that it runs the guest.
    #[n(6)]
    Moved(#[n(0)] OfGuest),
    /// Note of a target: the guest runs here.
    #[n(7)]
    Runs(#[n(0)] OfGuest),
    /// Note of a target: the source let the guest go.
    #[n(8)]
    Released(#[n(0)] OfGuest),
    /// Note: the guest ended here by itself, or by its user's will.
    #[n(9)]
    Ended(#[n(0)] OfGuest),
}

/// A guest and an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct OfGuest {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The epoch.
    #[n(1)]
    pub epoch: Epoch,
}

/// That a source may give custody away.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct MayBeGiven {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The attempt.
    #[n(1)]
    pub of: OfEpoch,
    /// The life of the target process; none of a file or a pipe.
    #[n(2)]
    pub to: Option<InstanceId>,
    /// Where to, for the question and for people, at most [`MAX_TEXT_BYTES`] bytes.
    #[n(3)]
    pub address: String,
}

/// That a target may run a guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct MayRun {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The attempt.
    #[n(1)]
    pub of: OfEpoch,
}

/// What a person may decide when the two sides cannot settle it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Choice {
    /// The source runs the guest: the person knows that the target does not.
    #[n(0)]
    SourceRuns,
    /// The target runs it, or ran it: the source lets it go.
    #[n(1)]
    TargetRuns,
    /// Nobody shall run it.
    #[n(2)]
    Abandon,
}

impl Choice {
    /// Its name, as it is given to `ferry recover`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SourceRuns => "source-runs",
            Self::TargetRuns => "target-runs",
            Self::Abandon => "abandon",
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A person's decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(map)]
pub struct Decided {
    /// The guest.
    #[n(0)]
    pub guest: GuestId,
    /// The epoch whose fate was open.
    #[n(1)]
    pub epoch: Epoch,
    /// What was decided.
    #[n(2)]
    pub choice: Choice,
    /// Why, and by whom, in the person's words, at most [`MAX_TEXT_BYTES`] bytes.
    #[n(3)]
    pub reason: String,
    /// By this host's clock, in seconds since 1970-01-01 UTC.
    #[n(4)]
    pub unix_seconds: u64,
}

impl Record {
    /// The guest that it is about.
    pub fn guest(&self) -> &GuestId {
        match self {
            Self::Born(of)
            | Self::Refused(of)
            | Self::Kept(of)
            | Self::Moved(of)
            | Self::Runs(of)
            | Self::Released(of)
            | Self::Ended(of) => &of.guest,
            Self::MayBeGiven(given) => &given.guest,
            Self::MayRun(may) => &may.guest,
            Self::Decided(decided) => &decided.guest,
        }
    }

    /// The epoch that it is about.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Born(of)
            | Self::Refused(of)
            | Self::Kept(of)
            | Self::Moved(of)
            | Self::Runs(of)
            | Self::Released(of)
            | Self::Ended(of) => of.epoch,
            Self::MayBeGiven(given) => given.of.epoch,
            Self::MayRun(may) => may.of.epoch,
            Self::Decided(decided) => decided.epoch,
        }
    }

    /// The highest epoch that may be used because of it: who gets the guest back by a person's word runs
    /// it above the one that was given.
    fn highest_used(&self) -> Epoch {
        match self {
            Self::Decided(decided) if decided.choice == Choice::SourceRuns => decided.epoch.next(),
            _ => self.epoch(),
        }
    }

    /// Whether it must be on disk before what follows it is done.
    pub fn is_promise(&self) -> bool {
        matches!(
            self,
            Self::Born(_) | Self::MayBeGiven(_) | Self::MayRun(_) | Self::Refused(_) | Self::Decided(_)
        )
    }

    /// Whether every text in it is within its bound.
    pub fn is_bounded(&self) -> bool {
        match self {
            Self::MayBeGiven(given) => given.address.len() <= MAX_TEXT_BYTES,
            Self::Decided(decided) => decided.reason.len() <= MAX_TEXT_BYTES,
            _ => true,
        }
    }
}

/// What a process that is gone wrote of one guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct GuestHistory {
    /// The highest epoch that it mentions.
    pub highest: Option<Epoch>,
    /// Epochs that it may have run as a target: without a refusal.
    pub may_have_run: BTreeSet<Epoch>,
    /// The last attempt to give the guest away.
    pub given: Option<MayBeGiven>,
    /// What is known of that attempt's end; of a person's choice and what became of it the latter.
    pub end_of_given: Option<Record>,
    /// The highest epoch of which it noted that the guest ran there.
    pub ran: Option<Epoch>,
    /// The highest epoch under which it handed the guest on, or saw it end.
    pub left: Option<Epoch>,
    /// The highest epoch that its source released.
    pub released: Option<Epoch>,
}

impl GuestHistory {
    fn add(&mut self, record: &Record) {
        let epoch = record.epoch();
        self.highest = self.highest.max(Some(record.highest_used()));
        match record {
            Record::Born(_) => {}
            Record::MayBeGiven(given) => {
                self.given = Some(given.clone());
                self.end_of_given = None;
            }
            Record::MayRun(_) => {
                self.may_have_run.insert(epoch);
            }
            Record::Refused(_) => {
                self.may_have_run.remove(&epoch);
            }
            Record::Runs(_) => self.ran = self.ran.max(Some(epoch)),
            Record::Released(_) => self.released = self.released.max(Some(epoch)),
            Record::Kept(_) | Record::Decided(_) => self.end_given(record),
            Record::Moved(_) | Record::Ended(_) => {
                self.left = self.left.max(Some(epoch));
                self.end_given(record);
            }
        }
    }

    fn end_given(&mut self, record: &Record) {
        if self.given.as_ref().is_some_and(|given| given.of.epoch <= record.epoch()) {
            self.end_of_given = Some(record.clone());
        }
    }

    /// The attempt to give the guest away whose end is not known.
    pub fn open_gift(&self) -> Option<&MayBeGiven> {
        self.given.as_ref().filter(|_| self.end_of_given.is_none())
    }

    /// Whether it ran the guest under this epoch, and then handed it on or saw it end: so the epoch was
    /// taken for certain, and the guest did not die with the process.
    pub fn went_through(&self, epoch: Epoch) -> bool {
        self.may_have_run.contains(&epoch) && self.ran == Some(epoch) && self.left >= Some(epoch)
    }

    /// The epoch that it may have run as a target while the source still waits for a word.
    pub fn open_taking(&self) -> Option<Epoch> {
        let last = *self.may_have_run.last()?;
        // A choice counts until it is known what became of the guest.
        let decided = self.end_of_given.as_ref().filter(|end| matches!(end, Record::Decided(_)));
        let closed = self.released.max(self.left).max(decided.map(Record::epoch));
        (closed < Some(last)).then_some(last)
    }

    /// Whether somebody must still find out what became of the guest.
    pub fn is_open(&self) -> bool {
        self.open_gift().is_some() || self.open_taking().is_some()
    }
}

/// What a process that is gone wrote, guest by guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct History {
    guests: BTreeMap<GuestId, GuestHistory>,
    /// Some of it cannot be read: it may have run whatever it is asked about.
    partial: bool,
}

/// What a dead process can still be made to say of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PastAnswer {
    /// It may have run the guest under it; what ran died with the process.
    MayHaveRun,
    /// It ran the guest under it, and handed it on or saw it end.
    WentThrough,
    /// It never ran the guest under it, and never will.
    NeverRan,
}

impl History {
    /// What these records say, in the order in which they were written.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut history = Self::default();
        records.into_iter().for_each(|record| history.add(record));
        history
    }

    /// Takes the next record.
    pub fn add(&mut self, record: &Record) {
        self.guests.entry(record.guest().clone()).or_default().add(record);
    }

    /// Notes that a part of it cannot be read.
    #[must_use]
    pub fn with_a_part_missing(mut self) -> Self {
        self.partial = true;
        self
    }

    /// Whether a part of it cannot be read.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// What it says of one guest.
    pub fn guest(&self, guest: &GuestId) -> Option<&GuestHistory> {
        self.guests.get(guest)
    }

    /// Every guest that it mentions.
    pub fn guests(&self) -> impl Iterator<Item = (&GuestId, &GuestHistory)> {
        self.guests.iter()
    }

    /// What became of an epoch.
    pub fn answer(&self, guest: &GuestId, epoch: Epoch) -> PastAnswer {
        let about = self.guests.get(guest);
        if !self.partial && about.is_some_and(|history| history.went_through(epoch)) {
            return PastAnswer::WentThrough;
        }
        let may = about.is_some_and(|history| history.may_have_run.contains(&epoch));
        if may || self.partial { PastAnswer::MayHaveRun } else { PastAnswer::NeverRan }
    }

    /// Whether nobody needs it any more but to keep epochs from being used again.
    pub fn is_settled(&self) -> bool {
        !self.partial && self.guests.values().all(|history| !history.is_open())
    }
}

/// The histories of all processes that kept their journals in one place and are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Past {
    lives: BTreeMap<InstanceId, History>,
}

impl Past {
    /// Adds the history of one process.
    pub fn add(&mut self, instance: InstanceId, history: History) {
        self.lives.insert(instance, history);
    }

    /// One process's history.
    pub fn life(&self, instance: InstanceId) -> Option<&History> {
        self.lives.get(&instance)
    }

    /// Every process that is gone.
    pub fn lives(&self) -> impl Iterator<Item = (InstanceId, &History)> {
        self.lives.iter().map(|(&instance, history)| (instance, history))
    }

    /// The highest epoch of a guest that any of them mentions: no later process may use it again.
    pub fn floor(&self, guest: &GuestId) -> Option<Epoch> {
        self.lives.values().filter_map(|history| history.guest(guest)?.highest).max()
    }

    /// What a dead process would say of an epoch; none if there is no trace of that process.
    pub fn answer(&self, instance: InstanceId, guest: &GuestId, epoch: Epoch) -> Option<PastAnswer> {
        self.lives.get(&instance).map(|history| history.answer(guest, epoch))
    }

    /// The epoch at which a new guest of this name is born: above every one that was used.
    pub fn birth(&self, guest: &GuestId) -> Epoch {
        self.floor(guest).map_or(Epoch::BIRTH, Epoch::next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionId;

    fn guest() -> GuestId {
        "g".parse().unwrap()
    }

    fn of(epoch: u64) -> OfGuest {
        OfGuest { guest: guest(), epoch: Epoch(epoch) }
    }

    fn attempt(epoch: u64) -> OfEpoch {
        OfEpoch { session: SessionId(epoch), epoch: Epoch(epoch) }
    }

    fn may_run(epoch: u64) -> Record {
        Record::MayRun(MayRun { guest: guest(), of: attempt(epoch) })
    }

    fn may_be_given(epoch: u64) -> Record {
        let to = Some(InstanceId(9));
        Record::MayBeGiven(MayBeGiven { guest: guest(), of: attempt(epoch), to, address: "a".into() })
    }

    #[test]
    fn an_epoch_that_may_have_run_is_never_said_not_to_have() {
        let history = History::of(&[may_run(2), Record::Refused(of(2)), may_run(3)]);
        assert_eq!(history.answer(&guest(), Epoch(2)), PastAnswer::NeverRan);
        assert_eq!(history.answer(&guest(), Epoch(3)), PastAnswer::MayHaveRun);
        let later = History::of(&[may_run(3), Record::Runs(of(3)), Record::Refused(of(4))]);
        assert_eq!(later.answer(&guest(), Epoch(3)), PastAnswer::MayHaveRun);
        assert_eq!(later.answer(&guest(), Epoch(4)), PastAnswer::NeverRan);
    }

    #[test]
    fn what_cannot_be_read_may_have_run_anything() {
        let history = History::of(&[may_run(2), Record::Refused(of(2))]).with_a_part_missing();
        assert_eq!(history.answer(&guest(), Epoch(2)), PastAnswer::MayHaveRun);
        assert!(!history.is_settled());
    }

    #[test]
    fn a_gift_is_open_until_its_end_is_known() {
        for end in [Record::Kept(of(2)), Record::Moved(of(2)), Record::Ended(of(2))] {
            let mut history = History::of(&[Record::Born(of(1)), may_be_given(2)]);
            assert!(history.guest(&guest()).unwrap().open_gift().is_some() && !history.is_settled());
            history.add(&end);
            assert!(history.is_settled(), "{end:?}");
            history.add(&may_be_given(3));
            assert!(!history.is_settled(), "a later attempt is open again");
        }
    }

    #[test]
    fn a_taking_is_open_until_the_source_let_go() {
        let mut history = History::of(&[may_run(2), Record::Runs(of(2))]);
        assert_eq!(history.guest(&guest()).unwrap().open_taking(), Some(Epoch(2)));
        history.add(&Record::Released(of(2)));
        assert!(history.is_settled());
    }

    #[test]
    fn a_guest_that_was_handed_on_was_taken_for_certain() {
        let mut history = History::of(&[may_run(2), Record::Runs(of(2)), may_be_given(3)]);
        assert_eq!(history.answer(&guest(), Epoch(2)), PastAnswer::MayHaveRun);
        history.add(&Record::Moved(of(3)));
        assert_eq!(history.answer(&guest(), Epoch(2)), PastAnswer::WentThrough);
        assert!(history.is_settled(), "its source will be told");
        // A refusal is one whatever follows; and without the word that it ran nothing is certain.
        let refused =
            [may_run(2), Record::Refused(of(2)), may_run(3), Record::Runs(of(3)), Record::Ended(of(3))];
        assert_eq!(History::of(&refused).answer(&guest(), Epoch(2)), PastAnswer::NeverRan);
        let unsure = History::of(&[may_run(2), Record::Moved(of(3))]);
        assert_eq!(unsure.answer(&guest(), Epoch(2)), PastAnswer::MayHaveRun);
    }

    #[test]
    fn a_birth_is_above_every_epoch_that_was_used() {
        let mut past = Past::default();
        assert_eq!(past.birth(&guest()), Epoch::BIRTH);
        past.add(InstanceId(1), History::of(&[may_run(7)]));
        past.add(InstanceId(2), History::of(&[Record::Born(of(3))]));
        assert_eq!((past.floor(&guest()), past.birth(&guest())), (Some(Epoch(7)), Epoch(8)));
        assert_eq!(past.answer(InstanceId(3), &guest(), Epoch(7)), None);
    }

    #[test]
    fn what_a_person_gave_back_ran_above_the_epoch_that_was_given() {
        let decided = |choice| {
            let (guest, epoch, reason) = (guest(), Epoch(2), String::new());
            Record::Decided(Decided { guest, epoch, choice, reason, unix_seconds: 0 })
        };
        for (choice, birth) in [(Choice::SourceRuns, 4), (Choice::TargetRuns, 3), (Choice::Abandon, 3)] {
            let mut past = Past::default();
            past.add(InstanceId(1), History::of(&[may_be_given(2), decided(choice)]));
            assert_eq!(past.birth(&guest()), Epoch(birth), "{choice}");
        }
    }
}
