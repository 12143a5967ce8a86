//! What journals say, folded: of processes that are gone, and of those that live.

use std::collections::{BTreeMap, BTreeSet};

use super::{MayBeGiven, Record};
use crate::{Epoch, GuestId, InstanceId};

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
            Record::Born(_) | Record::Floor(_) | Record::Waived(_) => {}
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

/// What another process can still be made to say of an epoch by its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PastAnswer {
    /// It may have run the guest under it, and is gone with what it ran.
    MayHaveRun,
    /// It ran the guest under it, and lives, or had handed it on or seen it end.
    Took,
    /// It never ran the guest under it, and never will.
    NeverRan,
    /// It lives, and has not written what became of it.
    Undecided,
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
            return PastAnswer::Took;
        }
        let may = about.is_some_and(|history| history.may_have_run.contains(&epoch));
        if may || self.partial { PastAnswer::MayHaveRun } else { PastAnswer::NeverRan }
    }

    /// Whether nobody needs it any more but to keep epochs from being used again.
    pub fn is_settled(&self) -> bool {
        !self.partial && self.guests.values().all(|history| !history.is_open())
    }
}

/// What the journal of a process that lives lets others say in its place. Only what it wrote outright:
/// what it has not written it may still do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Living {
    may_run: BTreeSet<(GuestId, Epoch)>,
    ran: BTreeSet<(GuestId, Epoch)>,
    refused: BTreeSet<(GuestId, Epoch)>,
}

impl Living {
    /// What these records say; none of them, if not all can be read.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut living = Self::default();
        for record in records {
            let set = match record {
                Record::MayRun(_) => &mut living.may_run,
                Record::Runs(_) => &mut living.ran,
                Record::Refused(_) => &mut living.refused,
                _ => continue,
            };
            set.insert((record.guest().clone(), record.epoch()));
        }
        living
    }

    /// What became of an epoch.
    pub fn answer(&self, guest: &GuestId, epoch: Epoch) -> PastAnswer {
        let of = (guest.clone(), epoch);
        if self.refused.contains(&of) {
            PastAnswer::NeverRan
        } else if self.may_run.contains(&of) && self.ran.contains(&of) {
            PastAnswer::Took
        } else {
            PastAnswer::Undecided
        }
    }
}

/// What all processes wrote that kept their journals in one place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Past {
    lives: BTreeMap<InstanceId, History>,
    living: BTreeMap<InstanceId, Living>,
    /// The highest epochs in journals that are there no more.
    floors: BTreeMap<GuestId, Epoch>,
}

impl Past {
    /// Adds the history of a process that is gone.
    pub fn add(&mut self, instance: InstanceId, history: History) {
        self.lives.insert(instance, history);
    }

    /// Adds what the journal of a process that lives says.
    pub fn add_living(&mut self, instance: InstanceId, living: Living) {
        self.living.insert(instance, living);
    }

    /// Notes the highest epoch of a guest in journals that are there no more.
    pub fn raise_floor(&mut self, guest: &GuestId, epoch: Epoch) {
        let floor = self.floors.entry(guest.clone()).or_insert(epoch);
        *floor = (*floor).max(epoch);
    }

    /// The history of a process that is gone.
    pub fn life(&self, instance: InstanceId) -> Option<&History> {
        self.lives.get(&instance)
    }

    /// Every process that is gone.
    pub fn lives(&self) -> impl Iterator<Item = (InstanceId, &History)> {
        self.lives.iter().map(|(&instance, history)| (instance, history))
    }

    /// The highest epoch of a guest that any of those mentions that are gone: no later process may use it
    /// again.
    pub fn floor(&self, guest: &GuestId) -> Option<Epoch> {
        let mentioned = self.lives.values().filter_map(|history| history.guest(guest)?.highest).max();
        mentioned.max(self.floors.get(guest).copied())
    }

    /// What another process would say of an epoch; none if there is no trace of that process.
    pub fn answer(&self, instance: InstanceId, guest: &GuestId, epoch: Epoch) -> Option<PastAnswer> {
        let living = self.living.get(&instance).map(|living| living.answer(guest, epoch));
        living.or_else(|| self.lives.get(&instance).map(|history| history.answer(guest, epoch)))
    }

    /// The epoch at which a new guest of this name is born: above every one that was used.
    pub fn birth(&self, guest: &GuestId) -> Epoch {
        self.floor(guest).map_or(Epoch::BIRTH, Epoch::next)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Choice, Decided, MayRun, OfGuest};
    use super::*;
    use crate::SessionId;
    use crate::message::OfEpoch;

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
        assert_eq!(history.answer(&guest(), Epoch(2)), PastAnswer::Took);
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

    #[test]
    fn of_a_process_that_lives_only_what_it_wrote_is_said() {
        let records = [may_run(2), Record::Refused(of(2)), may_run(3), may_run(4), Record::Runs(of(4))];
        let mut past = Past::default();
        past.add_living(InstanceId(1), Living::of(&records));
        // Also after the guest went on from there.
        let later = [&records[..], &[may_be_given(5), Record::Moved(of(5))]].concat();
        past.add_living(InstanceId(2), Living::of(&later));
        for life in [1, 2] {
            let answer = |epoch| past.answer(InstanceId(life), &guest(), Epoch(epoch)).unwrap();
            let answers = [1, 2, 3, 4].map(answer);
            let undecided = PastAnswer::Undecided;
            assert_eq!(answers, [undecided, PastAnswer::NeverRan, undecided, PastAnswer::Took]);
        }
        assert_eq!(past.floor(&guest()), None, "it may be the source of the very guest");
        // A guest that was given back by a person runs where no target took it.
        let raised = Living::of(&[may_be_given(2), Record::Runs(of(3))]);
        assert_eq!(raised.answer(&guest(), Epoch(3)), PastAnswer::Undecided);
    }

    #[test]
    fn the_floor_of_journals_that_were_removed_stays() {
        let mut past = Past::default();
        past.add(InstanceId(1), History::of(&[Record::Floor(of(7)), Record::Born(of(1))]));
        assert_eq!(past.birth(&guest()), Epoch(8));
        assert!(past.life(InstanceId(1)).unwrap().is_settled());
        past.raise_floor(&guest(), Epoch(9));
        past.raise_floor(&guest(), Epoch(3));
        assert_eq!(past.birth(&guest()), Epoch(10));
    }
}
